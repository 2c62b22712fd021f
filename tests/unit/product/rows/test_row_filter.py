"""Filters of rows: the same rows as a loop over all of them; values that are refused; row groups that are skipped."""

from datetime import date, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from kiln.errors import ConfigError
from kiln.product.rows.row_filter import RowFilter
from kiln.product.rows.row_stream import open_rows
from tests.support.exports import write_chips

SQUARE = shapely.box(-60, -30, 60, 30)
OVER = shapely.MultiPolygon([shapely.box(170, -40, 180, 0), shapely.box(-180, -40, -170, 0)])
SOME = frozenset({"u:3", "u:50", "u:99", "u:500"})
FILTERS = {
    "box": RowFilter(bbox=(-100, -20, 0, 20)),
    "box over the antimeridian": RowFilter(bbox=(170, -40, -170, 40)),
    "point": RowFilter(bbox=(179.9, -39.9, 179.9, -39.9)),
    "area": RowFilter(area=shapely.Point(0, 0).buffer(70)),
    "area over the antimeridian": RowFilter(area=OVER),
    "box and area": RowFilter(bbox=(-100, -20, 20, 20), area=SQUARE),
    "from": RowFilter(first_day=date(2021, 3, 5)),
    "to": RowFilter(last_day=date(2021, 3, 5)),
    "one day": RowFilter(first_day=date(2021, 2, 2), last_day=date(2021, 2, 2)),
    "years": RowFilter(years=(2020, 2022)),
    "nodata": RowFilter(max_nodata=0.35),
    "cloud": RowFilter(max_cloud=3 / 7),
    "no cloud": RowFilter(max_cloud=0),
    "ids": RowFilter(chip_ids=SOME),
    "no ids": RowFilter(chip_ids=frozenset()),
    "several": RowFilter(bbox=(-180, -40, 0, 20), years=(2021,), max_nodata=0.5, max_cloud=0.5),
    "none": RowFilter(),
}


def brute_force(rule, row):
    """Return whether a row passes, from its values alone."""
    geometry, day = shapely.from_wkb(row["geometry"]), row["datetime"] and row["datetime"].date()
    limits = ((rule.max_nodata, row["nodata_fraction"]), (rule.max_cloud, row["cloud_fraction"]))
    if any(limit is not None and value is not None and value > np.float32(limit) for limit, value in limits):
        return False
    if (rule.first_day and (day is None or day < rule.first_day)) or (
        rule.last_day and (day is None or day > rule.last_day)
    ):
        return False
    if rule.years and row["year"] not in rule.years:
        return False
    if rule.chip_ids is not None and row["chip_id"] not in rule.chip_ids:
        return False
    if rule.area is not None and not geometry.intersects(rule.area):
        return False
    if rule.bbox is None:
        return True
    west, south, east, north = rule.bbox
    boxes = [(west, south, east, north)] if west <= east else [(west, south, 180, north), (-180, south, east, north)]
    return any(geometry.intersects(shapely.box(*box)) for box in boxes)


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Write 400 chips in row groups of 16; return the file and its rows."""
    path = tmp_path_factory.mktemp("filter") / "chips.parquet"
    return str(path), write_chips(path, 400)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_the_rows_that_brute_force_leaves(chips, name):
    uri, rows = chips
    expected = [row["chip_id"] for row in rows.to_pylist() if brute_force(FILTERS[name], row)]
    batches = list(open_rows(uri, FILTERS[name]).batches(["chip_id"], batch_rows=7))
    assert [chip_id for batch in batches for chip_id in batch["chip_id"].to_pylist()] == expected
    assert all(len(batch) for batch in batches)
    if name not in ("no ids", "none"):
        assert 0 < len(expected) < 400


def test_row_groups_outside_the_place_are_skipped(tmp_path):
    write_chips(tmp_path / "chips.parquet", 400, row_group=8)
    for rule in (RowFilter(bbox=(10, -40, 20, -30)), RowFilter(area=shapely.box(10, -40, 20, -30))):
        rows = open_rows(str(tmp_path / "chips.parquet"), rule)
        assert 0 < rows.rows_to_read < 200
        assert rows.rows == 400


def test_years_without_a_column_are_those_of_the_acquisition(chips, tmp_path):
    _, rows = chips
    pq.write_table(rows.drop_columns("year"), tmp_path / "scenes.parquet")
    batches = open_rows(str(tmp_path / "scenes.parquet"), RowFilter(years=(2021,))).batches(["datetime"])
    years = [time.year for batch in batches for time in batch["datetime"].to_pylist()]
    assert years == [time.year for time in rows["datetime"].to_pylist() if time and time.year == 2021]


@pytest.mark.parametrize(
    ("rule", "column", "flag"),
    [
        (RowFilter(max_cloud=0.5), "cloud_fraction", "max_cloud"),
        (RowFilter(max_nodata=0.5), "nodata_fraction", "max_nodata"),
        (RowFilter(first_day=date(2021, 1, 1)), "datetime", "from"),
        (RowFilter(last_day=date(2021, 1, 1)), "datetime", "to"),
    ],
)
def test_a_filter_on_a_column_that_the_file_lacks_is_refused(chips, tmp_path, rule, column, flag):
    _, rows = chips
    pq.write_table(rows.drop_columns(column), tmp_path / "few.parquet")
    with pytest.raises(ConfigError, match=f"expected a column {column} for the filter {flag}, got chip_id, "):
        open_rows(str(tmp_path / "few.parquet"), rule)


@pytest.mark.parametrize(
    "values",
    [
        {"bbox": (0, 1, 1, 0)}, {"bbox": (0, 0, 1)}, {"bbox": (0, 0, 1, float("inf"))}, {"bbox": (10, 0, -10, 1)},
        {"area": shapely.Polygon()}, {"area": "POLYGON"}, {"max_nodata": 1.5}, {"max_cloud": -0.1},
        {"max_cloud": float("nan")}, {"first_day": date(2021, 1, 2), "last_day": date(2021, 1, 1)},
    ],
)  # fmt: skip
def test_values_that_no_chip_has_are_refused(values):
    with pytest.raises(ConfigError, match="expected"):
        RowFilter(**values)


def test_the_json_of_a_filter_names_what_is_set():
    assert RowFilter().as_json() == {}
    day = date(2021, 6, 30)
    rule = RowFilter(bbox=(1, 2, 3, 4), area=SQUARE, first_day=day, last_day=day + timedelta(1), years=(2021, 2020),
                     max_nodata=0.5, max_cloud=0.0, chip_ids=SOME)  # fmt: skip
    values = rule.as_json()
    digests = values.pop("area")["sha256"], values.pop("chip_ids")["sha256"]
    assert all(len(digest) == 64 for digest in digests)
    assert values == {
        "bbox": [1.0, 2.0, 3.0, 4.0], "from": "2021-06-30", "to": "2021-07-01", "years": [2020, 2021],
        "max_nodata": 0.5, "max_cloud": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"years": 2020}, "years: expected a tuple of numbers, got 2020"),
        ({"years": ("2020",)}, "years: expected a tuple of numbers"),
        ({"first_day": "2020-01-01"}, "first_day: expected a datetime.date, got '2020-01-01'"),
        ({"max_cloud": "0.1"}, "max_cloud: expected a fraction from 0 to 1, got '0.1'"),
        ({"chip_ids": "abc"}, "chip_ids: expected a frozenset of ids, got 'abc'"),
        ({"area": shapely.Point(0, 0)}, "area: expected a polygon in degrees"),
    ],
)
def test_values_of_other_types_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        RowFilter(**values)
