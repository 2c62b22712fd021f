"""`kiln search` by likes and dislikes, from options and from files of marks."""

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
from PIL import Image

from tests.support.searches import CHIP, PLACE, nearest_chips, search_error, search_output


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
