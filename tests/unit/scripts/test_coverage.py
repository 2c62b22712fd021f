"""The script of the report's pictures: the flags of costs are given together, and their files are written."""

import json
from itertools import combinations

import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.formats.job_record import write_job_record
from kiln.io import storage
from kiln.product.record import read_record
from kiln.report.costs import read_costs
from kiln.report.run_page import run_page
from scripts import coverage
from tests.support.job_records import make_job_record
from tests.support.products import make_product

NAME = "worldcover-1a2b3c4d"
COSTS = {"--run": ".", "--run-page": "run.html", "--runs": "runs", "--datasets": NAME, "--price-per-hour": "1.5"}


@pytest.mark.parametrize(
    "names", [some for count in (1, 2, 3, 4) for some in combinations(COSTS, count)], ids=lambda names: " ".join(names)
)
def test_only_some_of_the_flags_of_costs_are_a_usage_error(here, capsys, names):
    flags = [text for name in names for text in (name, COSTS[name])]
    with pytest.raises(SystemExit) as e:
        coverage.main(["--records", "none.json", "--map", "map.png", "--ledger", "ledger.html", *flags])
    assert e.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--run, --run-page, --runs, --datasets and --price-per-hour: expected all of them or none" in error
    assert list(here.iterdir()) == []


def test_costs_are_written_as_a_page_and_as_a_record_of_each_dataset(here):
    record = make_product(here, columns=[Column(0, 0, 2)]).record_file
    write_job_record(f"runs/jobs/{NAME}/2021/s.json", make_job_record(wall_s=7200.0))
    storage.write_bytes(f"{NAME}/shards/2021/s.parquet", b"rows")
    argv = ["--records", record, "--map", "map.png", "--ledger", "ledger.html"]
    coverage.main(argv)
    assert not (here / "run.html").exists()
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["jobs"]
    coverage.main([*argv, *(text for flag in COSTS.items() for text in flag)])
    assert json.loads((here / f"runs/{NAME}.json").read_text())["price"] == 3
    assert (here / "run.html").read_text() == run_page([read_record(record)], read_costs("runs", [NAME], 1.5))
