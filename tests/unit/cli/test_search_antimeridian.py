"""`kiln search` over chips at the antimeridian: places, boxes, GeoJSON, and the coverage map."""

import json

import geopandas as gpd
import pytest
import shapely
from affine import Affine

from kiln.archives.sentinel2.scene import SceneGrid
from kiln.errors import ConfigError
from kiln.explorer.build import Select, build
from kiln.explorer.database import ExplorerDatabase
from kiln.product.record import read_record
from kiln.report import coverage
from tests.support.searches import build_scene_database, search_output


@pytest.fixture(scope="module")
def dateline(tmp_path_factory):
    """Build a database of 16 chips in a row of zone 1 south; one in the middle crosses the antimeridian.

    Return the run's folder with `p.json`, `p` and `db`, and the footprints by chip_id from west to east.
    """
    run = tmp_path_factory.mktemp("dateline")
    grid = SceneGrid(256, 4096, Affine(10, 0, 160_000, 0, -10, 8_118_000), "EPSG:32701", 256)
    return run, build_scene_database(run, grid)


def over(footprints):
    """Return the chip over the antimeridian and its two parts: west and east of the line."""
    ((chip, shape),) = ((c, f) for c, f in footprints.items() if f.geom_type == "MultiPolygon")
    return chip, sorted(shape.geoms, key=lambda g: -g.bounds[0])


def test_the_antimeridian_cuts_one_chip_of_the_row(dateline):
    chip, (before, after) = over(dateline[1])
    assert 0 < int(chip[1:]) < 15
    assert (before.bounds[2], after.bounds[0]) == (180, -180)


@pytest.mark.parametrize("lon", [179.995, 180.0, -180.0, -179.995, 179.97, 179.99, -179.97, -179.99])
def test_a_place_at_the_antimeridian_is_the_chip_that_covers_it(dateline, capsys, lon):
    run, footprints = dateline
    lat = shapely.union_all(over(footprints)[1]).centroid.y
    answer = json.loads(search_output(capsys, str(run / "db"), f"--at={lon},{lat}", "--format", "json"))
    footprint = footprints[answer["query"]["chip_id"]]
    assert footprint.distance(shapely.Point(lon, lat)) < 1e-3
    covering = [c for c, f in footprints.items() if f.covers(shapely.Point(lon, lat))]
    assert answer["query"]["chip_id"] in covering


def test_the_chip_over_the_antimeridian_has_its_centre_there(dateline):
    run, footprints = dateline
    chip, (before, after) = over(footprints)
    (row,) = ExplorerDatabase(str(run / "db")).table.search().where(f"chip_id = '{chip}'").to_list()
    assert (row["xmin"], row["xmax"]) == (before.bounds[0], after.bounds[2])
    assert row["xmin"] > 179.97
    assert row["xmax"] < -179.97
    assert abs(row["lon"]) > 179.98
    assert row["cell"] in ("S18E179", "S17E179", "S18W180", "S17W180")


def test_the_nearest_chip_is_found_across_the_antimeridian(dateline):
    run, footprints = dateline
    db = ExplorerDatabase(str(run / "db"))
    last = max(footprints)
    west = footprints[last].bounds[2]  # its eastern edge, in the western hemisphere
    assert west < 0
    with pytest.raises(ConfigError, match=f"the nearest is {last}"):
        db.at(west + 0.01, footprints[last].centroid.y)
    chip, (before, _) = over(footprints)
    neighbour = f"c{int(chip[1:]) - 1:02d}"  # in the other hemisphere
    for lon in (180.0, -180.0):
        with pytest.raises(ConfigError, match=rf"the nearest is ({chip}|{neighbour}), 12\.\d km away"):
            db.at(lon, before.bounds[3] + 0.1)


@pytest.mark.parametrize("bbox", [(179.9, -18.0, -179.9, -16.0), (179.96, -18.0, -179.96, -16.0)])
def test_a_bbox_over_the_antimeridian_filters_results_and_selects_rows(dateline, capsys, tmp_path, bbox):
    run, footprints = dateline
    db = ExplorerDatabase(str(run / "db"))
    middles = {c.chip_id: c.lon for c in db.chips([*footprints])[0]}
    expected = {c for c, lon in middles.items() if lon >= bbox[0] or lon <= bbox[2]}
    assert over(footprints)[0] in expected
    assert 2 < len(expected) < 16
    answer = search_output(
        capsys, str(run / "db"), "--chip", "c00", f"--bbox={','.join(map(str, bbox))}", "--format", "json"
    )
    assert {r["chip_id"] for r in json.loads(answer)["results"]} == expected - {"c00"}
    build([str(run / "p.json")], [str(run / "p")], str(tmp_path / "db"), Select(bbox=bbox))
    rows = ExplorerDatabase(str(tmp_path / "db")).table.search().limit(100).to_list()
    assert {r["chip_id"] for r in rows} == expected


def test_geojson_over_the_antimeridian_is_cut_there(dateline, capsys, tmp_path):
    run, footprints = dateline
    chip, _ = over(footprints)
    text = search_output(capsys, str(run / "db"), "--chip", chip, "--format", "geojson", "-k", "15")
    (tmp_path / "a.geojson").write_text(text)
    first, *rest = json.loads(text)["features"]
    assert first["geometry"]["type"] == "MultiPolygon"
    assert first["bbox"][0] > first["bbox"][2]  # RFC 7946, 5.2
    assert {f["geometry"]["type"] for f in rest} == {"Polygon"}
    frame = gpd.read_file(tmp_path / "a.geojson").set_index("chip_id")
    assert len(frame) == 16
    assert frame.is_valid.all()
    assert {x for p in frame.geometry[chip].geoms for x in p.bounds[::2]} >= {180, -180}
    for chip_id, footprint in footprints.items():
        assert frame.geometry[chip_id].normalize() == footprint.normalize(), "the product's own geometry, to the bit"
        for part in shapely.get_parts(frame.geometry[chip_id]):
            assert part.exterior.is_ccw  # RFC 7946, 3.1.6


def test_the_coverage_map_of_the_row_is_a_few_kilometres_wide(dateline):
    run, _ = dateline
    boxes = coverage.read_boxes(read_record(str(run / "p.json")), str(run / "p"))
    (chips,) = coverage.join_over_antimeridian([boxes])
    west, _, east, _ = coverage.map_bounds([chips])
    assert len(chips) == 16
    assert 179 < west < 180 < east < 180.5
