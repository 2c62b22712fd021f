"""The sample run of `make demo`: its content is pinned, and the documents' Python examples run in its folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pystac
import pytest

from kiln.report.bounds import NOTHING
from kiln.report.estimate import RowSize, database_estimate, estimate_plan
from tests import ROOT
from tests.support.sample_run import PINS, content_digests
from tests.support.stac import assert_valid, stac_objects
from tests.workflow.workflow import Run


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished sample run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sample")
    environment = Run(folder).environment(PYTHONPATH=str(ROOT))
    make = [sys.executable, "-m", "kiln.sample", "--out", "sample"]
    subprocess.run(make, cwd=folder, env=environment, check=True, capture_output=True)
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    done = subprocess.run(
        [*snakemake, "--cores", "2"], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return folder


def test_the_content_of_the_sample_is_pinned(sample: Path) -> None:
    """A change of a digest here changes what users get: CHANGELOG.md must name it.

    `python -m tests.support.sample_run results/sample` writes the pins again.
    """
    assert content_digests(sample / "results/sample") == json.loads(PINS.read_text())


def test_the_stac_of_the_sample_is_valid_and_complete(sample: Path) -> None:
    run = sample / "results/sample"
    assert_valid(json.loads((run / "catalog.json").read_text()))
    catalog = pystac.Catalog.from_file(str(run / "catalog.json"))
    collections = list(catalog.get_children())
    assert len(collections) == len(list(run.glob("*/products/*/*.json"))) == 6
    for product in run.glob("*/products/*/*/"):
        values = dict(stac_objects(product))
        assert [value["type"] for value in values.values()] == ["Collection", "Feature"]
        for value in values.values():
            assert_valid(value)
    items = list(catalog.get_items(recursive=True))
    assert sum(item.properties["table:row_count"] for item in items) == 829


@pytest.mark.parametrize("document", ["README.md", "docs/api.md"])
def test_the_python_examples_of_a_document_run(sample: Path, document: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert examples
    names = [f"{document}, example {n}" for n in range(len(examples))]
    runs = [f"exec(compile({code!r}, {name!r}, 'exec'), {{}})" for code, name in zip(examples, names, strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(runs)],
        cwd=sample, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_every_estimate_is_close_to_what_came_out_or_says_at_most(sample: Path, tmp_path: Path, finished: int) -> None:
    """Of every `finished` thirds of the shards."""
    row_size = RowSize(192, "float16")
    run = tmp_path / "results/sample"
    shutil.copytree(sample / "results/sample", run)
    plans = sorted(str(path) for path in run.glob("*/plan-*.jsonl.gz"))
    outcomes = [row for plan in plans for row in estimate_plan(plan, row_size).partitions]
    database = database_estimate(
        f"{run}/explorer", f"{run}/index", sum((row.chips for row in outcomes), NOTHING), row_size
    )
    assert database.word == ""
    assert {row.chips.word + row.read_left.word + row.stored.word for row in outcomes} == {""}
    records = [json.loads(path.read_text()) for path in sorted(run.glob("*/products/*/*.json"))]
    assert sorted(row.chips.value for row in outcomes) == sorted(record["rows"] for record in records)
    jobs = {path: json.loads(path.read_text()) for path in run.glob("runs/jobs/*/*/*.json")}
    read = {}  # bytes by partition of the deleted shards' jobs
    for number, shard in enumerate(sorted(p for p in run.glob("*/shards/*/*.parquet") if ".ledger" not in p.name)):
        if number % 3 >= finished:
            shard.unlink()
            job = jobs[run / "runs/jobs" / shard.parts[-4] / shard.parts[-2] / f"{shard.stem}.json"]
            key = (job["dataset"], job["partition"])
            read[key] = read.get(key, 0) + job["disk_bytes"]
    estimates = [row for plan in plans for row in estimate_plan(plan, row_size, price_per_hour=3600).partitions]
    chips = sum((row.chips for row in estimates), NOTHING)
    shutil.rmtree(run / "index")
    assert database_estimate(f"{run}/explorer", f"{run}/index", chips, row_size).value >= database.value
    for row, outcome in zip(estimates, outcomes, strict=True):
        real_read = read.get((row.dataset, row.partition), 0)
        assert row.seconds is not None or finished == 0
        values = ((row.chips, outcome.chips.value), (row.read_left, real_read), (row.stored, outcome.stored.value))
        for estimate, real in values:
            if estimate.word == "at most":
                assert estimate.value >= real, (row, real)
            else:
                assert estimate.value == pytest.approx(real, rel=0.1), (row, real)
