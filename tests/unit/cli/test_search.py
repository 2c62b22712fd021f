"""The search script: what is printed in each format, which chip a query is, the contact sheet."""

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from PIL import Image

from kiln.archives.sentinel2.scene import SceneGrid
from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.cli import search
from kiln.errors import ConfigError
from kiln.explorer.build import Select, build
from kiln.explorer.contact_sheet import COLUMNS as SHEET_COLUMNS
from kiln.explorer.database import ExplorerDatabase
from kiln.formats import embeddings_file
from kiln.formats.ledger import LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Unit
from kiln.product.record import read_record
from kiln.report import coverage
from tests.support.archives import write_tile
from tests.support.chips import make_chip
from tests.support.products import WORLD, YEAR, about, chip_at, drawn, make_product, merge_shards

SIDE = 512 / 12000
COLUMNS = [Column(k, 0, 10) for k in range(10)]
PLACE = f"{-125 + 4.5 * SIDE},{50 - 3.5 * SIDE}"  # in column 4, row 3
CHIP = chip_at(WORLD, 2021, 4, 3).chip_id


def build_database(folder, *products):
    build([m.record_file for m in products], [m.uri for m in products], str(folder / "db"), Select())
    return str(folder / "db")


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Build a database of 100 chips in each of two years; read only."""
    run = tmp_path_factory.mktemp("search")
    return build_database(run, *(make_product(run, year, columns=COLUMNS) for year in (2020, 2021)))


def search_output(capsys, db, *args):
    """Return what the command prints."""
    capsys.readouterr()
    search.main(["--db", db, *args])
    return capsys.readouterr().out


def search_error(capsys, db, *args):
    """Return the exit status and the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        search.main(["--db", db, *args])
    return e.value.code, capsys.readouterr().err


def nearest_chips(k, keep=lambda chip: True):
    """Return the k nearest chips of CHIP without itself, computed by NumPy: ids and cosines."""
    chips = [chip_at(WORLD, y, c, r) for y in (2020, 2021) for c in range(10) for r in range(10)]
    unit = drawn(chips).astype(np.float16).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    likes = unit @ unit[[c.chip_id for c in chips].index(CHIP)]
    order = sorted((i for i, c in enumerate(chips) if keep(c) and c.chip_id != CHIP), key=lambda i: -likes[i])[:k]
    return [chips[i].chip_id for i in order], [likes[i] for i in order]


# ------------------------------------------------------------------------------------------------------- formats


def test_the_table_has_the_query_and_k_results_in_order(db, capsys):
    lines = search_output(capsys, db, "--chip", CHIP, "-k", "7").splitlines()
    assert lines[0].split() == ["cosine", "lon", "lat", "year", "chip"]
    assert lines[1].split()[0] == "like"
    assert lines[1].split()[-1] == CHIP
    ids, likes = nearest_chips(7)
    assert [x.split()[-1] for x in lines[2:]] == ids
    assert [x.split()[0] for x in lines[2:]] == [str(n) for n in range(1, 8)]
    assert [float(x.split()[1]) for x in lines[2:]] == pytest.approx(likes, abs=1e-4)
    assert len({len(x) for x in lines[1:]}) == 1  # aligned


def test_json_has_ids_similarities_boxes_and_sources(db, capsys):
    answer = json.loads(search_output(capsys, db, "--chip", CHIP, "-k", "5", "--format", "json"))
    assert answer["query"]["chip_id"] == CHIP
    assert [r["chip_id"] for r in answer["results"]] == nearest_chips(5)[0]
    first = answer["results"][0]
    facts = {"chip_id", "similarity", "lon", "lat", "dataset", "year", "datetime", "item_id", "source", "bbox"}
    assert set(first) == facts | {"nodata_fraction", "cloud_fraction"}
    assert first["datetime"].endswith("-06-01T00:00:00Z")
    assert first["source"].startswith("s3://")
    west, south, east, north = first["bbox"]
    assert west < first["lon"] < east
    assert south < first["lat"] < north


def test_geojson_is_valid_and_the_query_is_rank_0(db, capsys, tmp_path):
    text = search_output(capsys, db, "--chip", CHIP, "-k", "4", "--format", "geojson")
    answer = json.loads(text)
    assert answer["type"] == "FeatureCollection"
    assert [f["properties"]["rank"] for f in answer["features"]] == [0, 1, 2, 3, 4]
    assert [f["id"] for f in answer["features"]] == [CHIP, *nearest_chips(4)[0]]
    for f in answer["features"]:
        ring = shapely.Polygon(f["geometry"]["coordinates"][0])
        assert ring.is_valid
        assert ring.exterior.is_ccw  # RFC 7946, 3.1.6
        assert list(ring.bounds) == f["bbox"]
        assert f["properties"]["chip_id"] == f["id"]
    (tmp_path / "a.geojson").write_text(text)
    frame = gpd.read_file(tmp_path / "a.geojson")
    assert len(frame) == 5
    assert frame.geometry[0].equals(chip_at(WORLD, 2021, 4, 3).footprint)


@pytest.mark.parametrize("k", [1, 12, 199, 500])
def test_k_results_are_returned_or_all_if_there_are_fewer(db, capsys, k):
    answer = json.loads(search_output(capsys, db, "--chip", CHIP, "-k", str(k), "--format", "json"))
    ids = [r["chip_id"] for r in answer["results"]]
    assert len(ids) == min(k, 199)
    assert CHIP not in ids


@pytest.mark.parametrize("k", ["0", "-3"])
def test_k_below_one_is_refused(db, capsys, k):
    code, message = search_error(capsys, db, "--chip", CHIP, "-k", k)
    assert code == 2
    assert "expected 1 to 10000 results" in message


# ------------------------------------------------------------------------------------------------------- queries


def test_a_place_is_the_chip_that_covers_it(db, capsys):
    by_place = search_output(capsys, db, f"--at={PLACE}", "--format", "json")
    assert by_place == search_output(capsys, db, "--chip", CHIP, "--format", "json")


def test_the_error_for_an_uncovered_place_names_the_nearest_chip(db, capsys):
    code, message = search_error(capsys, db, f"--at={-125 - 0.5 * SIDE},{50 - 3.5 * SIDE}")
    assert code == 2
    assert "the nearest is worldcover:" in message
    assert ":x0660000:y0481536" in message
    assert "km away" in message


@pytest.mark.parametrize("chip", ["worldcover:2021:512:x9999999:y0480000", "it's", "' OR 1=1 --"])
def test_an_unknown_chip_is_an_error(db, capsys, chip):
    code, message = search_error(capsys, db, "--chip", chip)
    assert code == 2
    assert "no chip" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "", "1;2"])
def test_a_place_that_is_no_pair_of_numbers_is_refused(db, capsys, text):
    code, message = search_error(capsys, db, f"--at={text}")
    assert code == 2
    assert "expected 2 numbers" in message


@pytest.mark.parametrize("text", ["nan,49", "-124,inf", "1e400,0"])
def test_a_place_that_is_not_finite_is_refused(db, capsys, text):
    code, message = search_error(capsys, db, f"--at={text}")
    assert code == 2
    assert "Traceback" not in message


def test_an_example_is_always_the_same_chip(db, capsys):
    first = search_output(capsys, db, "--example", "--year", "2020", "--format", "json")
    assert first == search_output(capsys, db, "--example", "--year", "2020", "--format", "json")
    answer = json.loads(first)
    assert answer["query"]["year"] == 2020
    assert {r["year"] for r in answer["results"]} == {2020}


def test_an_example_is_refused_if_the_filters_leave_no_chip(db, capsys):
    code, message = search_error(capsys, db, "--example", "--year", "1999")
    assert code == 2
    assert "no chip in it that the filters leave" in message


# ------------------------------------------------------------------------------------------------------- filters


def test_year_dataset_and_bbox_filter_the_results(db, capsys):
    answer = json.loads(search_output(capsys, db, "--chip", CHIP, "--year", "2020", "--format", "json"))
    assert [r["chip_id"] for r in answer["results"]] == nearest_chips(10, lambda c: c.extra["year"] == 2020)[0]
    box = (-125.0, 50 - 5 * SIDE, -125 + 3 * SIDE, 50 - 1 * SIDE)
    answer = search_output(capsys, db, "--chip", CHIP, f"--bbox={','.join(map(str, box))}", "--format", "json")
    expected = nearest_chips(10, lambda c: box[0] <= c.center[0] <= box[2] and box[1] <= c.center[1] <= box[3])[0]
    assert [r["chip_id"] for r in json.loads(answer)["results"]] == expected
    assert len(expected) == 10
    both = search_output(capsys, db, "--chip", CHIP, "--year", "2020", "--year", "2021", "--dataset", "worldcover")
    assert both == search_output(capsys, db, "--chip", CHIP)
    code, answer = search_error(capsys, db, "--chip", CHIP, "--dataset", "na'ip", "--format", "json")
    assert (code, "expected a dataset of worldcover" in answer) == (2, True)


def test_a_bbox_the_wrong_way_round_is_refused(db, capsys):
    code, message = search_error(capsys, db, "--chip", CHIP, "--bbox=1,2,0,3")
    assert code == 2
    assert "west < east" in message


# ---------------------------------------------------------------------------------------------- databases and flags


def test_a_missing_or_empty_database_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        code, message = search_error(capsys, str(tmp_path / name), "--chip", CHIP)
        assert code == 2
        assert "explorer database there" in message
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("args", [["--chip", CHIP], [f"--at={PLACE}"], ["--example"]])
def test_a_database_without_chips_is_an_error(tmp_path, capsys, args):
    product = make_product(tmp_path, columns=COLUMNS[:2], skip=lambda c, r: True)
    code, message = search_error(capsys, build_database(tmp_path, product), *args)
    assert code == 2
    assert "no chip" in message


@pytest.mark.parametrize(("untrained", "logged"), [(True, True), (False, False)])
def test_untrained_weights_are_logged(tmp_path, capsys, caplog, untrained, logged):
    product = make_product(tmp_path, columns=COLUMNS[:2], kiln=about(untrained=untrained))
    with caplog.at_level("INFO"):
        search.main(["--db", build_database(tmp_path, product), "--chip", chip_at(WORLD, 2021, 1, 3).chip_id])
    assert ("UNTRAINED" in caplog.text) == logged


def test_exactly_one_query_is_required(db, capsys):
    assert search_error(capsys, db)[0] == 2
    assert search_error(capsys, db, "--chip", CHIP, "--example")[0] == 2


def test_pictures_that_are_no_json_are_refused(db, capsys):
    code, message = search_error(capsys, db, "--chip", CHIP, "--pictures", "{")
    assert code == 2
    assert "--pictures: expected JSON or a config file" in message


# ------------------------------------------------------------------------------------------------- contact sheet

SMALL = Lattice(24, 240)  # a tenth of a degree a chip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Build a database of the 10 x 10 chips of a tile of noise."""
    run = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(4)
    pixels = rng.integers(200, 2600, (4, 240, 240)).astype(np.uint16)
    tile = write_tile(run / "archive", 2021, -125, 49, pixels)
    product = make_product(run, columns=COLUMNS, lattice=SMALL, source=str(tile), kiln=about(untrained=True))
    return build_database(run, product)


def cells_of(png, hits):
    """Return the pictures of a sheet, located by its layout: a large one, then five per line."""
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    lines = max(2, -(-hits // SHEET_COLUMNS))
    assert pixels.shape[:2] == pytest.approx(((2.32 * lines + 1.35) * 110, (2.0 * 7 + 0.7) * 110), abs=1)
    height, width = pixels.shape[:2]
    top = 0.85 * 110
    line = (height - 0.85 * 110 - 0.5 * 110) / lines
    column = width / 7
    large = pixels[int(top + 30) : int(top + 1.2 * line), 60 : int(1.6 * column)]
    small = []
    for n in range(hits):
        r, c = divmod(n, SHEET_COLUMNS)
        y, x = int(top + r * line + 0.35 * line), int((c + 2.35) * column)
        small.append(pixels[y : y + 50, x : x + 50])
    return large, small


def test_the_sheet_shows_every_chip_and_warns_of_untrained_weights(scene, tmp_path, capsys):
    png = tmp_path / "sheet.png"
    chip = chip_at(SMALL, 2021, 5, 5).chip_id
    search_output(capsys, scene, "--chip", chip, "-k", "7", "--png", str(png))
    large, small = cells_of(png, 7)
    for picture in (large, *small):
        assert np.ptp(picture.reshape(-1, 3), axis=0).min() > 60  # noise, not a blank
    with Image.open(png) as image:
        top = np.asarray(image.convert("RGB")).astype(int)[:80]
    red = (top[..., 0] > 150) & (top[..., 1] < 80) & (top[..., 2] < 80)
    assert red.sum() > 100  # the warning of untrained weights
    assert list(tmp_path.iterdir()) == [png]


def test_equal_queries_draw_equal_bytes(scene, tmp_path, capsys):
    for name in "ab":
        search_output(capsys, scene, "--example", "-k", "5", "--png", str(tmp_path / f"{name}.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_more_results_make_a_taller_sheet(scene, tmp_path, capsys):
    search_output(capsys, scene, "--example", "-k", "17", "--png", str(tmp_path / "a.png"))
    _, small = cells_of(tmp_path / "a.png", 17)
    assert all(np.ptp(s.reshape(-1, 3), axis=0).min() > 60 for s in small)


def test_missing_pictures_are_drawn_grey(tmp_path, capsys, caplog):
    product = make_product(tmp_path, columns=COLUMNS[:2], source=str(tmp_path / "gone.tif"))
    services = json.dumps({"worldcover": {"wms": {"url": "http://127.0.0.1:9/", "version": "1.3.0", "layers": "a"}}})
    png = tmp_path / "sheet.png"
    with caplog.at_level("INFO"):
        search.main(
            ["--db", build_database(tmp_path, product), "--chip", chip_at(WORLD, 2021, 1, 3).chip_id, "-k", "4",
             "--png", str(png), "--pictures", services]
        )  # fmt: skip
    large, small = cells_of(png, 4)
    for picture in (*small, large):
        grey = (np.abs(picture - np.array([0xD9, 0xD9, 0xD6])).max(axis=-1) <= 1).mean()
        assert grey > 0.7
    assert "5 missing" in caplog.text
    assert "the service does not answer" in caplog.text
    assert "gone.tif" in caplog.text


def test_a_sheet_that_cannot_be_written_is_an_error(scene, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, message = search_error(capsys, scene, "--example", "--png", str(tmp_path / "file" / "a.png"))
    assert code == 1
    assert "cannot be written" in message


# ------------------------------------------------------------------------------------------------ the antimeridian


@pytest.fixture(scope="module")
def dateline(tmp_path_factory):
    """Build a database of 16 chips in a row of zone 1 south; one in the middle crosses the antimeridian.

    Returns the run's folder with `p.json`, `p` and `db`, and the footprints by chip_id from west to east.
    """
    run = tmp_path_factory.mktemp("dateline")
    grid = SceneGrid(256, 4096, Affine(10, 0, 160_000, 0, -10, 8_118_000), "EPSG:32701", 256)
    footprints = grid.footprints()[0][0]
    chips = [make_chip(n, footprint=f, chip_id=f"c{n:02d}") for n, f in enumerate(footprints)]
    kiln = about(dataset="sentinel2", lattice={"chip_size": 256, "lattice": "scene", "edge": "drop"})
    with embeddings_file.ShardWriter(run / "s.parquet", embeddings_file.schema(8, "float32", [YEAR], kiln)) as out:
        out.append(chips, {"embeddings": np.random.default_rng(0).standard_normal((16, 8), np.float32)})
    entry = LedgerEntry(Unit("sentinel2:s", 16, "s3://b/i", "e"), embedded=16)
    write_ledger(run / "s.ledger.parquet", ledger_table([entry]))
    record = merge_shards(["s"], run, run / "p")
    (run / "p.json").write_text(json.dumps(record))
    build([str(run / "p.json")], [str(run / "p")], str(run / "db"), Select())
    return run, {c.chip_id: c.footprint for c in chips}


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
    chip, (before, after) = over(footprints)
    text = search_output(capsys, str(run / "db"), "--chip", chip, "--format", "geojson", "-k", "15")
    (tmp_path / "a.geojson").write_text(text)
    first, *rest = json.loads(text)["features"]
    assert first["geometry"]["type"] == "MultiPolygon"
    assert first["bbox"][0] > first["bbox"][2]  # RFC 7946, 5.2
    assert {f["geometry"]["type"] for f in rest} == {"Polygon"}
    frame = gpd.read_file(tmp_path / "a.geojson").set_index("chip_id")
    assert len(frame) == 16
    assert frame.is_valid.all()
    assert frame.geometry[chip].covers(footprints[chip])
    assert {x for p in frame.geometry[chip].geoms for x in p.bounds[::2]} >= {180, -180}
    assert sum(p.area for p in frame.geometry[chip].geoms) < 1.2 * (before.area + after.area)


def test_the_coverage_map_of_the_row_is_a_few_kilometres_wide(dateline):
    run, _ = dateline
    boxes = coverage.read_boxes(read_record(str(run / "p.json")), str(run / "p"))
    (chips,) = coverage.join_over_antimeridian([boxes])
    west, _, east, _ = coverage.map_bounds([chips])
    assert len(chips) == 16
    assert 179 < west < 180 < east < 180.5


# --------------------------------------------------------------------------------------------------------- marks


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "search-cache"))


def marks_file(path, likes, dislikes):
    """Write a file of marks as the explorer saves it."""
    both = [(c, "like") for c in likes] + [(c, "dislike") for c in dislikes]
    features = [{"type": "Feature", "geometry": None, "properties": {"chip_id": c, "mark": mark}} for c, mark in both]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def ids_of(text):
    return [r["chip_id"] for r in json.loads(text)["results"]]


def test_one_like_is_the_same_as_a_chip(db, capsys, own_cache):
    by_chip = json.loads(search_output(capsys, db, "--chip", CHIP, "--format", "json"))
    by_mark = json.loads(search_output(capsys, db, "--like", CHIP, "--format", "json"))
    assert [r["chip_id"] for r in by_mark["results"]] == [r["chip_id"] for r in by_chip["results"]]
    assert by_mark["query"] == by_chip["query"]
    first, same = by_mark["results"][0], by_chip["results"][0]
    assert first["similarity"] == pytest.approx(same["similarity"], abs=1e-5)
    assert first | {"similarity": 0} == same | {"similarity": 0}
    assert len(search_output(capsys, db, "--like", CHIP).splitlines()) == 12


def test_marks_change_the_results_and_are_left_out_of_them(db, capsys, own_cache, tmp_path):
    near = nearest_chips(20)[0]
    file = marks_file(tmp_path / "marks.geojson", [CHIP, near[0]], near[1:4])
    ids = ids_of(search_output(capsys, db, "--marks", file, "-k", "50", "--format", "json"))
    assert not {CHIP, *near[:4]} & {*ids}
    by_hand = [a for d in near[1:4] for a in ("--dislike", d)]
    flags = ["--like", CHIP, "--like", near[0], *by_hand, "-k", "50", "--format", "json"]
    assert ids == ids_of(search_output(capsys, db, *flags))
    assert ids != ids_of(search_output(capsys, db, "--like", CHIP, "--like", near[0], "-k", "50", "--format", "json"))


def test_method_area_days_and_distance_are_options(db, capsys, own_cache, tmp_path):
    near = nearest_chips(60)[0]
    file = marks_file(tmp_path / "marks.geojson", near[:4], near[-4:])
    ring = [[-125.0, 50.0], [-124.7, 50.0], [-124.7, 49.6], [-125.0, 49.6], [-125.0, 50.0]]
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    common = ["--marks", file, "--area", str(tmp_path / "area.geojson"), "--from", "2021-01-01", "--format", "json"]
    for method in ("mean", "linear"):
        results = json.loads(search_output(capsys, db, *common, "--method", method, "--apart", "6", "-k", "5"))[
            "results"
        ]
        assert len(results) == 5
        assert {r["year"] for r in results} == {2021}
        for n, r in enumerate(results):
            assert shapely.Polygon(ring).contains(shapely.Point(r["lon"], r["lat"]))
            for o in results[:n]:
                east = (r["lon"] - o["lon"]) * np.cos(np.radians(r["lat"]))
                assert np.hypot(east, r["lat"] - o["lat"]) * 111.2 >= 5.9


def test_a_place_and_marks_can_be_combined(db, capsys, own_cache):
    dislike = nearest_chips(3)[0][2]
    by_place = search_output(capsys, db, f"--at={PLACE}", "--year", "2021", "--dislike", dislike, "--format", "json")
    assert by_place == search_output(
        capsys, db, "--chip", CHIP, "--year", "2021", "--dislike", dislike, "--format", "json"
    )


def test_results_are_written_as_geoparquet(db, capsys, own_cache, tmp_path):
    path = tmp_path / "out.parquet"
    text = search_output(
        capsys, db, "--like", CHIP, "-k", "6", "--parquet", str(path), "--embeddings", "--format", "json"
    )
    frame = gpd.read_parquet(path)
    assert frame["chip_id"].tolist() == ids_of(text)
    assert len(frame["embeddings"][0]) == 8


def test_a_search_by_marks_draws_a_sheet(db, capsys, own_cache, tmp_path):
    search_output(capsys, db, "--like", CHIP, "--png", str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size[0] > 500


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "--chip --at --example --like --marks is required"),
        (["--dislike", CHIP], "is required"),
        (["--example", "--method", "linear"], "--example goes without"),
        (["--like", "nope"], "no chip 'nope'"),
        (["--like", CHIP, "--dislike", CHIP], "liked and disliked"),
        (["--like", CHIP, "--method", "linear"], "at least 3 likes and 3 dislikes"),
        (["--like", CHIP, "--from", "soon"], "expected from as a day such as"),
        (["--like", CHIP, "--max-cloud", "7"], "expected max_cloud from 0 to 1"),
        (["--like", CHIP, "--area", "nowhere.geojson"], "--area: expected a GeoJSON file, got nowhere.geojson"),
        (["--marks", "nowhere.geojson"], "--marks: expected a GeoJSON file, got nowhere.geojson"),
        (["--like", CHIP, "--apart", "-1"], "km apart"),
        (["--like", CHIP, "-k", "10001"], "expected 1 to 10000"),
        (["--chip", CHIP, "--embeddings"], "--embeddings requires --parquet"),
    ],
)
def test_wrong_queries_are_errors(db, capsys, own_cache, args, reason):
    code, message = search_error(capsys, db, *args)
    assert code == 2
    assert reason in message
    assert "Traceback" not in message


def test_a_file_without_marks_is_an_error(db, capsys, own_cache, tmp_path):
    for text in ("{", "[]", '{"type": "FeatureCollection", "features": [{}]}'):
        (tmp_path / "marks.geojson").write_text(text)
        assert search_error(capsys, db, "--marks", str(tmp_path / "marks.geojson"))[0] == 2
