"""The page of a run for the report: its products, and what they took."""

from collections.abc import Sequence

from kiln.product.record import ProductRecord
from kiln.report import html_page
from kiln.report.costs import DatasetCosts, cost_table
from kiln.report.run_summary import product_rows


def run_page(records: Sequence[ProductRecord], costs: Sequence[DatasetCosts]) -> str:
    """Return the page.

    Args:
        records: Records of the products.
        costs: What the jobs of each dataset took.
    """
    rows = product_rows(records)
    products = html_page.table("Products", rows, left=(0, len(rows[0]) - 1))
    untrained = any(record.untrained for record in records)
    warning = "<p class=warn>UNTRAINED weights: a demonstration.</p>" if untrained else ""
    return html_page.page("Run", f"{warning}{products}{cost_table(costs)}", "The products, and what they took")
