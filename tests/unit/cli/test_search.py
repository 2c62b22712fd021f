"""`kiln search`: the output in every format, the query, filters, and errors."""

import json

import geopandas as gpd
import pytest
import shapely

from kiln.cli import search
from tests.support.products import WORLD, chip_at, make_product, shard_metadata
from tests.support.searches import (
    CHIP,
    COLUMNS,
    PLACE,
    SIDE,
    build_database,
    nearest_chips,
    search_error,
    search_output,
)

# -------------------------------------------------------------------------------------------------------- formats


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


# -------------------------------------------------------------------------------------------------------- queries


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


# -------------------------------------------------------------------------------------------------------- filters


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


# -------------------------------------------------------------------------------------------- databases and flags


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
    product = make_product(tmp_path, columns=COLUMNS[:2], kiln=shard_metadata(untrained=untrained))
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
