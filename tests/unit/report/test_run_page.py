"""The page of a run."""

from dataclasses import replace

from kiln.product.record import read_record
from kiln.report.costs import DatasetCosts
from kiln.report.run_page import run_page
from tests.support.job_records import make_job_record
from tests.support.products import make_product
from tests.unit.report.test_coverage import Page


def test_the_page_has_the_products_and_what_they_took(tmp_path):
    record = replace(read_record(make_product(tmp_path).record_file), untrained=True)
    page = Page(run_page([record], [DatasetCosts("naip-1a2b3c4d", [make_job_record()], 1.0)]))
    products, costs = page.tables
    assert products[1][1][:3] == [record.title, f"{record.counts['expected']:,}", f"{record.counts['embedded']:,}"]
    assert costs[1][1][0] == "naip-1a2b3c4d"
    assert "UNTRAINED" in "".join(page.text)
