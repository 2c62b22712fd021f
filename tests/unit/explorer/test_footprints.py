"""Footprints of results: those of the product in every format, boxes with a warning from older databases."""

import json

import geopandas as gpd
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine

from kiln.archives.sentinel2.scene import SceneGrid
from kiln.explorer.api import open_explorer
from kiln.explorer.build import Select, build
from kiln.explorer.chips import UnknownChipError
from kiln.explorer.database import FACTS, VECTOR, ExplorerDatabase
from kiln.explorer.filters import EVERY_CHIP
from kiln.explorer.footprints import read_footprints
from kiln.explorer.search import Query
from kiln.explorer.web.version import Version
from kiln.product.read import read_product
from tests.support import explorers
from tests.support.builds import find_published, write_published
from tests.support.searches import build_scene_database, search_output

NOTE = "This database has boxes only, so results have boxes and not footprints. Rebuild the index"


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    """Build a database of a row of 16 chips at 67 N in zone 33.

    Return the run's folder and the product's own geometries by chip_id.
    """
    run = tmp_path_factory.mktemp("north")
    build_scene_database(run, SceneGrid(256, 4096, Affine(10, 0, 300_000, 0, -10, 7_440_000), "EPSG:32633", 256))
    product = read_product(str(run / "p.json"), columns=["chip_id"])
    footprints = dict(zip(product.chip_id, product.geometry, strict=True))
    assert product.bounds.miny.between(66.5, 67.5).all()
    assert all(shapely.box(*f.bounds).area > 1.05 * f.area for f in footprints.values()), "boxes are larger"
    return run, footprints


@pytest.fixture
def old(tmp_path):
    """Write a database as Kiln 0.2 did: 3 chips without footprints, the last across the antimeridian."""
    rows = [explorers.chip(n, lon, 0, [1, n, 0, 0]) for n, lon in enumerate((0, 1, 180))]
    return explorers.write(tmp_path / "db", rows, footprints=False)


def check(frame, footprints, rows):
    """Check that the geometries of a result are the product's own, anticlockwise."""
    assert len(frame) == rows
    assert set(frame.footprint) == {"exact"}
    for chip_id, geometry in zip(frame.chip_id, frame.geometry, strict=True):
        assert shapely.to_wkb(geometry) == shapely.to_wkb(footprints[chip_id])
        assert geometry.area == footprints[chip_id].area
        assert geometry.exterior.is_ccw


# -------------------------------------------------------------------------------------------------- every format


def test_a_geodataframe_has_the_products_footprints(north, tmp_path):
    run, footprints = north
    check(open_explorer(run / "db", tmp_path).search("c03", k=15), footprints, 15)


def test_geojson_and_geoparquet_of_the_command_have_the_products_footprints(north, capsys, tmp_path):
    run, footprints = north
    (tmp_path / "a.geojson").write_text(
        search_output(
            capsys, str(run / "db"), "--chip=c03", "-k15", "--format=geojson", f"--parquet={tmp_path / 'a.parquet'}"
        )
    )
    check(gpd.read_file(tmp_path / "a.geojson"), footprints, 16)
    check(gpd.read_parquet(tmp_path / "a.parquet"), footprints, 15)
    for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]:
        assert feature["bbox"] == list(footprints[feature["id"]].bounds)
    boxes = pq.read_table(tmp_path / "a.parquet", columns=["chip_id", "bbox"]).to_pylist()
    assert all(tuple(row["bbox"].values()) == footprints[row["chip_id"]].bounds for row in boxes)


@pytest.mark.parametrize("file_format", ["geojson", "geoparquet"])
def test_exports_of_the_page_have_the_products_footprints(north, tmp_path, file_format):
    run, footprints = north
    version = Version(str(run / "db"), tmp_path / "cache")
    assert version.summary["export_note"] == ""
    path = tmp_path / "export"
    path.write_bytes(version.export(Query(("c03",), k=15), file_format, False))
    check(gpd.read_file(path) if file_format == "geojson" else gpd.read_parquet(path), footprints, 15)


def test_published_points_stay_points(tmp_path):
    write_published(tmp_path / "synced", "36LXK", 5)
    build([], [], str(tmp_path / "db"), Select(), find_published(tmp_path / "synced"))
    frame = open_explorer(tmp_path / "db", tmp_path).search("tiles:36LXK-0")
    assert set(frame.geom_type) == {"Point"}
    assert frame.geometry.x.tolist() == frame.lon.tolist()
    assert set(frame.footprint) == {"exact"}


def test_clockwise_footprints_are_turned(tmp_path):
    clockwise = shapely.Polygon([(1, 0), (1, 1), (1.3, 1.1), (1.3, 0)])
    assert not clockwise.exterior.is_ccw
    rows = [explorers.chip(0, 0, 0, [1, 0, 0, 0]), explorers.chip(1, 1, 0, [1, 1, 0, 0], geometry=clockwise.wkb)]
    (found,) = open_explorer(explorers.write(tmp_path / "db", rows), tmp_path).search("test:00000").geometry
    assert found.equals(clockwise)
    assert found.exterior.is_ccw


# ---------------------------------------------------------------------------------------------- what is read when


def test_searches_and_the_matrix_do_not_read_footprints(north, tmp_path, monkeypatch):
    run, _ = north
    read = []
    rows = ExplorerDatabase.rows
    monkeypatch.setattr(
        ExplorerDatabase, "rows", lambda self, i, columns: read.append(columns) or rows(self, i, columns)
    )
    explorer = open_explorer(run / "db", tmp_path)
    explorer.find(Query(("c03",), k=15))
    explorer.find(Query(("c03",), k=15, apart_km=1))
    assert read == [(*FACTS, VECTOR)]
    assert "geometry" not in {*explorer.matrix.columns, *explorer.matrix.texts.column_names}
    explorer.search("c03", k=2)
    assert read[1:] == [("chip_id", "geometry")]


def test_footprints_of_thousands_of_chips_are_read(opened):
    chips = opened[0].chips(opened[0].column("chip_id", EVERY_CHIP).to_pylist())[0]
    footprints = read_footprints(opened[0], chips)
    assert len(footprints.geometries) == 2400
    assert all(footprints.geometries[c.chip_id].bounds == c.bbox for c in chips)


def test_a_chip_of_another_database_is_an_error(opened, old):
    with pytest.raises(UnknownChipError, match="no chip 'test:00000'"):
        read_footprints(opened[0], ExplorerDatabase(old).chips(["test:00000"])[0])


# ------------------------------------------------------------------------------------- databases without footprints


def test_a_geodataframe_of_an_older_database_has_boxes_and_a_warning(old, tmp_path, caplog):
    frame = open_explorer(old, tmp_path).search("test:00000", k=2)
    assert set(frame.footprint) == {"box"}
    assert frame.geometry[0].bounds == pytest.approx((0.98, -0.02, 1.02, 0.02))
    assert frame.geometry[1].geom_type == "MultiPolygon"
    assert f"{old}: {NOTE}" in caplog.text


def test_files_of_an_older_database_have_boxes_and_one_warning(old, tmp_path, capsys, caplog):
    path = tmp_path / "a.parquet"
    text = search_output(capsys, old, "--chip=test:00000", "--format=geojson", f"--parquet={path}")
    assert {f["properties"]["footprint"] for f in json.loads(text)["features"]} == {"box"}
    assert gpd.read_parquet(path).footprint.tolist() == ["box", "box"]
    assert caplog.text.count(NOTE) == 1
    caplog.clear()
    search_output(capsys, old, "--chip=test:00000", "--format=json")
    assert NOTE not in caplog.text, "JSON has no footprints"


def test_exports_of_an_older_database_have_boxes_and_the_page_says_so(old, tmp_path, caplog):
    version = Version(old, tmp_path / "cache")
    assert version.summary["export_note"].startswith(NOTE)
    (first, *_) = json.loads(version.export(Query(("test:00000",)), "geojson", False))["features"]
    assert first["properties"]["footprint"] == "box"
    assert NOTE in caplog.text
