"""A fourth archive goes from its plan to a search without a change to shared code or to the config of the others."""

import json
from pathlib import Path

import pytest

from kiln.cli import search
from kiln.sample.worldcover import make_worldcover
from tests.support.toy_archive import ARCHIVE
from tests.support.toy_archive.config import Config
from tests.support.toy_archive.sample import make_sample
from tests.workflow.workflow import CONFIG, Run

SECTION = Config(archive="toy").model_dump()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of WorldCover and the toy archive. Tests must not change it."""
    folder = tmp_path_factory.mktemp("toy")
    make_sample(folder / "toy")
    make_worldcover(folder / "archive", tiles=["N43W001"], years=[2021], ppd=120, seed=7)
    base = {key: CONFIG[key] for key in ("run", "model", "pictures", "resources")}
    world = {**CONFIG["worldcover"], "region": [-1, 43, 0, 44]}
    base |= {"datasets": ["worldcover", "toy"], "worldcover": world, "toy": SECTION}
    run = Run(folder, base=base, variables={"KILN_ARCHIVES": ARCHIVE.module})
    run.snakemake("--cores", "2")
    return run


def test_every_rule_runs_and_a_second_run_has_nothing_to_do(run: Run) -> None:
    assert {p.parent.parent.name for p in run.folder.glob("results/tiny/toy-*/products/*/*.json")} == {"products"}
    assert sorted(p.parent.name for p in run.folder.glob("results/tiny/toy-*/products/*/*.json")) == ["2023", "2024"]
    assert "Nothing to be done" in run.snakemake("-n")


def test_the_ledger_counts_every_chip(run: Run) -> None:
    records = [json.loads(p.read_text()) for p in sorted(run.folder.glob("results/tiny/toy-*/products/*/*.json"))]
    for record in records:
        assert record["counts"]["expected"] == 27
        assert (record["counts"]["embedded"], record["counts"]["skipped_nodata"]) == (26, 1)


def test_a_search_finds_its_chips_and_the_contact_sheet_shows_them(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(run.folder.glob("results/tiny/pictures/*/similar-*.png"))
    database = ["--db", str(run.folder / "results/tiny/explorer")]
    search.main([*database, "--chip", "toy:2023:tile-0:1:1", "-k", "5", "--dataset", "toy", "--format", "json"])
    hits = json.loads(capsys.readouterr().out)["results"]
    assert len(hits) == 5
    assert {hit["dataset"] for hit in hits} == {"toy"}


def test_without_its_module_the_archive_is_unknown(run: Run, tmp_path: Path) -> None:
    output = Run(tmp_path, base=run.base).snakemake("-n", check=False)
    assert "toy" in output
    assert "Traceback" not in output
