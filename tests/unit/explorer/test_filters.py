"""Filters: valid and refused ones; LanceDB and NumPy return the same chips."""

import random
from datetime import UTC, date, datetime

import pytest

from kiln.errors import ConfigError
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.filters import MAX_VERTICES, ChipFilter, parse_box
from kiln.explorer.matrix_cache import open_matrix
from tests.support import explorers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write 500 chips worldwide of two datasets, some without date, year or masks; return database, matrix and rows."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("filters")
    rows = [
        explorers.chip(
            n,
            rng.uniform(-179.9, 179.9),
            rng.uniform(-84, 84),
            [rng.gauss(0, 1) for _ in range(4)],
            dataset=rng.choice(["naip", "worldcover"]),
            year=rng.choice([2019, 2020, None]),
            datetime=rng.choice([None, *(datetime(2020, m, d, tzinfo=UTC) for m, d in ((6, 1), (6, 2), (12, 31)))]),
            nodata_fraction=rng.choice([0.0, 0.25, 0.5, None]),
            cloud_fraction=rng.choice([0.0, 0.25, 0.5, None]),
        )
        for n in range(500)
    ]
    about = {d: explorers.KILN | {"dimensions": 4} for d in ("naip", "worldcover")}
    db = ExplorerDatabase(explorers.write(folder / "db", rows, about))
    return db, open_matrix(db, folder / "cache"), {r["chip_id"]: r for r in rows}


@pytest.mark.parametrize(
    ("values", "keep"),
    [
        ({}, lambda r: True),
        ({"datasets": ["naip"]}, lambda r: r["dataset"] == "naip"),
        ({"years": [2019]}, lambda r: r["year"] == 2019),
        ({"from": "2020-06-02"}, lambda r: r["datetime"] and r["datetime"].timetuple()[:3] >= (2020, 6, 2)),
        ({"to": "2020-06-01"}, lambda r: r["datetime"] and r["datetime"].timetuple()[:3] <= (2020, 6, 1)),
        ({"max_nodata": 0.25}, lambda r: r["nodata_fraction"] is None or r["nodata_fraction"] <= 0.25),
        ({"max_cloud": 0.25}, lambda r: r["cloud_fraction"] is None or r["cloud_fraction"] <= 0.25),
        ({"bbox": [-50, -40, 60, 45]}, lambda r: -50 <= r["lon"] <= 60 and -40 <= r["lat"] <= 45),
        ({"bbox": [150, -40, -120, 45]}, lambda r: (r["lon"] >= 150 or r["lon"] <= -120) and -40 <= r["lat"] <= 45),
        ({"bbox": [150, -40, 240, 45]}, lambda r: (r["lon"] >= 150 or r["lon"] <= -120) and -40 <= r["lat"] <= 45),
        ({"bbox": [-200, -90, 200, 90]}, lambda r: True),
        ({"bbox": [-60, -90, 100, 90], "years": [2020], "datasets": ["worldcover"]},
         lambda r: -60 <= r["lon"] <= 100 and r["year"] == 2020 and r["dataset"] == "worldcover"),
    ],
)  # fmt: skip
def test_the_database_and_the_matrix_leave_the_same_chips(world, values, keep):
    db, matrix, rows = world
    chip_filter = ChipFilter.from_json(values)
    expected = {i for i, r in rows.items() if keep(r)}
    found = db.table.search().where(chip_filter.sql() or "true").limit(1000).select(["chip_id"]).to_list()
    assert {r["chip_id"] for r in found} == expected
    mask = chip_filter.mask(matrix)
    assert {*matrix.ids(range(len(matrix)) if mask is None else mask.nonzero()[0])} == expected
    assert expected
    assert (mask is None) == (values == {})


def test_an_area_is_tested_exactly_and_the_database_gets_its_box(world):
    db, matrix, rows = world
    triangle = {"type": "Polygon", "coordinates": [[[-150, -60], [150, -60], [0, 80], [-150, -60]]]}
    chip_filter = ChipFilter.from_json({"area": triangle})
    expected = {
        i
        for i, r in rows.items()
        if r["lat"] >= -60 and abs(r["lon"]) <= 150 * (80 - r["lat"]) / 140 and r["lat"] <= 80
    }
    assert {*matrix.ids(chip_filter.mask(matrix).nonzero()[0])} == expected
    boxed = db.table.search().where(chip_filter.sql()).limit(1000).select(["chip_id"]).to_list()
    assert expected < {r["chip_id"] for r in boxed}


def test_an_unknown_dataset_is_an_error(world):
    with pytest.raises(ConfigError, match="expected a dataset of naip, worldcover, got 'sentinel2'"):
        ChipFilter(datasets=("sentinel2",)).mask(world[1])


@pytest.mark.parametrize(
    "values",
    [
        [], "x", {"year": [2020]}, {"years": 2020}, {"years": ["twenty"]}, {"years": [20.5]}, {"years": [10_000]},
        {"years": list(range(1, 400))}, {"datasets": "naip"}, {"datasets": [3]}, {"datasets": [""]},
        {"datasets": ["x" * 101]}, {"from": "yesterday"}, {"from": 2020}, {"to": "2020-13-01"},
        {"from": "2021-01-01", "to": "2020-01-01"}, {"max_cloud": 1.5}, {"max_cloud": "a"}, {"max_nodata": -0.1},
        {"max_nodata": True}, {"bbox": [1, 2, 3]}, {"bbox": "1,2,3,4"}, {"bbox": [0, 10, 1, 5]},
        {"bbox": [0, 0, float("nan"), 1]}, {"bbox": [0, 0, 1e9, 1]}, {"bbox": [5, 0, 5, 1]},
        {"from": "2020-01-01' OR 1"},
    ],
)  # fmt: skip
def test_wrong_filters_are_refused(values):
    with pytest.raises(ConfigError):
        ChipFilter.from_json(values)


def test_quotes_stay_inside_their_literal(world):
    chip_filter = ChipFilter(datasets=("na'ip' OR 1=1 --",))
    assert world[0].table.search().where(chip_filter.sql()).limit(10).to_list() == []


def test_an_area_of_too_many_vertices_is_refused():
    ring = [[n / MAX_VERTICES, 0] for n in range(MAX_VERTICES)]
    area = {"type": "Polygon", "coordinates": [[*ring, [0.5, 1], ring[0]]]}
    with pytest.raises(ConfigError, match=f"expected at most {MAX_VERTICES} vertices"):
        ChipFilter.from_json({"area": area})


def test_an_address_gives_the_same_filters_as_json():
    by_address = ChipFilter.from_address(
        {"datasets": "a,b", "years": "2020,2021", "bbox": "1,2,3,4", "max_cloud": "0.5", "from": ""}
    )
    assert by_address == ChipFilter.from_json(
        {"datasets": ["b", "a"], "years": [2021, 2020], "bbox": [1, 2, 3, 4], "max_cloud": 0.5}
    )
    assert ChipFilter.from_json({"to": "2020-06-30T12:00:00Z"}).last_day == date(2020, 6, 30)
    assert parse_box([-180, -90, 180, 95]) == (-180, -90, 180, 90)
    assert parse_box([370, 0, 380, 1]) == (10, 0, 20, 1)
