"""The Python API: a search as a GeoDataFrame, its arguments, and when the matrix is built."""

from datetime import date

import geopandas as gpd
import numpy as np
import pytest
import shapely

from kiln.errors import ConfigError
from kiln.explorer.api import open_explorer
from kiln.explorer.chips import UnknownChipError
from tests.support import explorers
from tests.support.ground import marks

SQUARE = shapely.box(-124.6, 49.0, -124.2, 49.6)


@pytest.fixture
def explorer(opened, tmp_path):
    """Open the database of kinds of ground with its own cache."""
    return open_explorer(opened[0].uri, tmp_path / "cache")


def test_a_search_gives_footprints_with_facts_best_first(explorer, opened):
    (like,) = marks(opened[1], 1, 1)
    frame = explorer.search(like, k=12)
    assert isinstance(frame, gpd.GeoDataFrame)
    assert frame.crs.to_epsg() == 4326
    assert frame["rank"].tolist() == list(range(1, 13))
    assert (np.diff(frame.similarity) <= 0).all()
    assert like not in set(frame.chip_id)
    assert list(frame.columns) == [
        "chip_id", "rank", "dataset", "item_id", "source", "year", "datetime", "nodata_fraction", "cloud_fraction",
        "similarity", "lon", "lat", "footprint", "geometry",
    ]  # fmt: skip
    chip = explorer.chip(frame.chip_id[0])
    assert frame.geometry[0].bounds == chip.bbox
    assert set(frame.footprint) == {"exact"}
    assert (frame.year[0], frame.datetime[0], frame.dataset[0]) == (chip.year, chip.datetime, "worldcover")
    assert (frame.bounds.minx < frame.lon).all()
    assert (frame.lon < frame.bounds.maxx).all()
    assert len(explorer) == 2400
    assert explorer.datasets == ["worldcover"]
    assert "2400 chips of worldcover" in repr(explorer)


def test_filters_hold_and_columns_of_a_result_are_the_next_query(explorer):
    frame = explorer.search(at=(-124.9, 49.9), bbox=SQUARE.bounds, years=2020, datasets="worldcover", k=20)
    assert set(frame.year) == {2020}
    assert SQUARE.contains(gpd.points_from_xy(frame.lon, frame.lat)).all()
    more = explorer.search(
        frame.chip_id[:3], frame.chip_id[15:18], years=[2021], first_day=date(2021, 1, 1), last_day=date(2021, 12, 31),
        max_nodata=0.5, max_cloud=1.0,
    )  # fmt: skip
    assert len(more) == 48
    assert set(more.year) == {2021}
    assert not (explorer.cache / "matrix").exists()


@pytest.mark.parametrize("area", [SQUARE, shapely.geometry.mapping(SQUARE)], ids=["geometry", "GeoJSON"])
def test_an_area_a_distance_and_a_classifier_use_the_matrix(explorer, opened, area):
    likes, dislikes = marks(opened[1], 1, 4), marks(opened[1], 3, 4)
    frame = explorer.search(likes, dislikes, area=area, method="linear", apart_km=5, k=8)
    assert len(frame) == 8
    assert SQUARE.contains(gpd.points_from_xy(frame.lon, frame.lat)).all()
    assert (explorer.cache / "matrix").exists()


def test_a_search_without_a_hit_is_an_empty_frame(explorer, opened, caplog):
    with caplog.at_level("INFO"):
        frame = explorer.search(marks(opened[1], 1, 1), bbox=(0, 0, 10, 10))
    assert len(frame) == 0
    assert frame.crs.to_epsg() == 4326
    assert "similarity" in frame.columns
    assert "The filters leave no chip; the data lie within -125.00" in caplog.text


def test_a_chip_across_the_antimeridian_is_in_two_parts_and_unknown_years_are_missing(tmp_path):
    rows = [explorers.chip(n, lon, 0, [1, n, 0, 0], year=year) for n, (lon, year) in
            enumerate([(0, 2021), (180, None)])]  # fmt: skip
    frame = open_explorer(explorers.write(tmp_path / "db", rows)).search("test:00000")
    assert frame.geometry[0].geom_type == "MultiPolygon"
    assert frame.year.isna().tolist() == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a like or a place"),
        ({"likes": "x"}, "no chip 'x'"),
        ({"at": (0, 0)}, "no chip covers"),
        ({"at": (0, 100)}, "expected longitude"),
        ({"at": (0,)}, "expected longitude and latitude"),
        ({"likes": "x", "k": 0}, "expected 1 to 10000 results"),
        ({"likes": "x", "method": "magic"}, "expected method mean or linear"),
        ({"likes": "x", "bbox": (1, 2, 0, 3)}, "west < east"),
        ({"likes": "x", "bbox": (1, 2)}, "west < east"),
        ({"likes": "x", "years": 0}, "expected a year"),
        ({"likes": "x", "max_cloud": 2}, "expected max_cloud from 0 to 1"),
        ({"likes": "x", "area": shapely.Point(0, 0)}, "expected a GeoJSON Polygon"),
        ({"likes": "x", "first_day": date(2021, 1, 2), "last_day": date(2021, 1, 1)}, "expected from <= to"),
    ],
)
def test_arguments_out_of_range_are_config_errors(explorer, arguments, message):
    with pytest.raises(ConfigError, match=message):
        explorer.search(**arguments)


def test_unknown_chips_and_databases_are_config_errors(explorer, tmp_path):
    with pytest.raises(UnknownChipError, match="no chip 'x'"):
        explorer.chip("x")
    with pytest.raises(ConfigError, match="no explorer database there"):
        open_explorer(tmp_path / "none")
