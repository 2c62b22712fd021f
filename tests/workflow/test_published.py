"""A folder of published embedding files becomes an explorer, with and without datasets of the run's own."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

from kiln.explorer.database import ExplorerDatabase
from tests.workflow.workflow import Run

ENTRY = {"name": "tiles", "files": "synced", "layout": "earth-index", "model": "another model"}
ALONE = {"datasets": [], "index": {"published": [ENTRY]}}


def write(folder: Path, tile: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    made = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
    points = [shapely.Point(30 + k / 10, -10) for k in range(count)]
    ids = [f"{tile}-{k}" for k in range(count)]
    frame = gpd.GeoDataFrame({"id": ids, "embedding": list(made)}, geometry=points, crs="EPSG:4326")
    frame.to_parquet(folder / f"{tile}_2024-01-01_2025-01-01.parquet")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one published file of 20 rows, with its index. Tests must not change it."""
    run = Run(tmp_path_factory.mktemp("published"), ALONE)
    assert run.jobs("index") == {"build_index": 1, "index": 1}, "nothing is looked up before a job runs"
    write(run.folder / "synced", "36LXK", 20)
    run.snakemake("--cores", "1", "index")
    return run


def test_published_files_alone_make_an_explorer_which_grows_with_them(indexed: Run, tmp_path: Path) -> None:
    run = indexed.clone(tmp_path / "clone")
    record = json.loads(run.one("results/tiny/index/*.json").read_text())
    assert (record["rows"], record["products"], len(record["published"])) == (20, [], 1)
    assert ExplorerDatabase(str(run.folder / "results/tiny/explorer")).metadata["tiles"]["model"] == "another model"
    write(run.folder / "synced", "36LYK", 5)
    assert "Nothing to be done" in run.snakemake("-n", "index")
    run.snakemake("--cores", "1", "index", "-R", "build_index")
    assert ExplorerDatabase(str(run.folder / "results/tiny/explorer")).table.count_rows() == 25


def test_everything_of_published_files_alone_is_the_database_and_a_picture(tmp_path: Path) -> None:
    assert Run(tmp_path, ALONE).jobs() == {"build_index": 1, "picture_similar": 1, "all": 1}


def test_another_entry_is_another_database(indexed: Run, tmp_path: Path) -> None:
    run = indexed.clone(tmp_path / "clone")
    run.configure({"datasets": [], "index": {"published": [ENTRY | {"name": "others"}]}})
    assert run.jobs("index") == {"build_index": 1, "index": 1}


def test_a_run_of_neither_datasets_nor_files_is_refused(tmp_path: Path) -> None:
    output = Run(tmp_path, {"datasets": []}).snakemake("-n", "index", check=False)
    assert "nothing to do" in output


def test_an_entry_with_both_layout_and_columns_is_refused_by_the_config(tmp_path: Path) -> None:
    both = {"index": {"published": [ENTRY | {"columns": {"vector": "v"}}]}}
    output = Run(tmp_path, both).snakemake("-n", "index", check=False)
    assert "published" in output
