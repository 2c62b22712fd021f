"""Searches and exports through the API."""

import json

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.explorers_server import error_text
from tests.support.products import WORLD, chip_at, random_vectors

CHIP = chip_at(WORLD, 2021, 4, 3)
FACTS = {
    *("chip_id", "dataset", "year", "datetime", "item_id", "source"),
    *("nodata_fraction", "cloud_fraction", "lon", "lat", "bbox"),
}


def nearest(k, year=None):
    """Return the nearest chips of CHIP, computed by NumPy: ids and cosines."""
    chips = [chip_at(WORLD, y, c, r) for y in (2020, 2021) for c in range(10) for r in range(10)]
    unit = random_vectors(chips).astype(np.float16).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit[[c.chip_id for c in chips].index(CHIP.chip_id)]
    order = [
        i for i in np.argsort(-cosine) if chips[i].chip_id != CHIP.chip_id and year in (None, chips[i].extra["year"])
    ]
    return [chips[i].chip_id for i in order[:k]], cosine[order[:k]]


def test_a_search_gives_facts_and_similarities_in_order(web):
    answer = web.post("/api/search", {"likes": [CHIP.chip_id], "k": 12}).json()
    ids, cosine = nearest(12)
    assert [r["chip_id"] for r in answer["results"]] == ids
    assert [r["similarity"] for r in answer["results"]] == pytest.approx(cosine, abs=1e-5)
    assert set(answer["results"][0]) == FACTS | {"similarity"}
    assert (answer["method"], answer["note"]) == ("mean", "")
    assert 0 < answer["ms"] < 5000
    by_year = web.post("/api/search", {"likes": [CHIP.chip_id], "k": 5, "filters": {"years": [2020]}}).json()
    assert [r["chip_id"] for r in by_year["results"]] == nearest(5, 2020)[0]


def test_a_search_by_linear_and_one_per_neighbourhood(web):
    ids = nearest(20)[0]
    body = {"likes": ids[:3], "dislikes": ids[-3:], "method": "linear", "k": 6, "apart_km": 8}
    answer = web.post("/api/search", body).json()
    assert (answer["method"], len(answer["results"])) == ("linear", 6)
    assert "count as faint" in answer["note"]
    assert not {r["chip_id"] for r in answer["results"]} & {*ids[:3], *ids[-3:]}


def test_an_area_outside_the_data_gives_no_result_and_the_bounds_of_the_data(web):
    area = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    answer = web.post("/api/search", {"likes": [CHIP.chip_id], "filters": {"area": area}}).json()
    assert answer["results"] == []
    assert "the data lie within -125.00" in answer["note"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "expected a like or a place, got none"),
        ({"likes": "x"}, "likes: expected a list, got 'x'"),
        ({"likes": [3]}, "likes.0: expected text, got 3"),
        ({"likes": [str(n) for n in range(10_000)]}, "expected at most 1000 likes, got 10000"),
        ({"likes": ["x"], "dislikes": [str(n) for n in range(10_000)]}, "expected at most 1000 dislikes, got 10000"),
        ({"likes": ["x"], "k": 501}, "expected 1 to 500 results"),
        ({"likes": ["x"], "k": "5"}, "search: k: expected a whole number, got '5'"),
        ({"likes": ["x"], "k": True}, "k: expected a whole number, got True"),
        ({"likes": ["x"], "method": "magic"}, "expected method mean or linear"),
        ({"likes": ["x"], "method": ["mean"]}, "method: expected text"),
        ({"likes": ["x"], "apart_km": "far"}, "apart_km: expected a number, got 'far'"),
        ({"likes": ["x"], "apart_km": 1e9}, "km apart"),
        ({"likes": ["x"], "filters": 3}, "filters: expected an object"),
        ({"likes": ["x"], "filters": {"area": {"type": "Point", "coordinates": [0, 0]}}}, "expected a GeoJSON Polygon"),
        ({"likes": ["x"], "filters": {"area": "no json at all"}}, "got no json at all"),
        ({"likes": ["x"], "filters": {"datasets": ["naip"]}}, "expected a dataset of worldcover, got 'naip'"),
        ({"likes": ["x"], "limit": 3}, "apart_km, filters, got 'limit'"),
    ],
)
def test_wrong_searches_are_refused_with_a_reason(web, body, message):
    assert message in error_text(web.post("/api/search", body), 422)


def test_unknown_marks_are_refused(web):
    message = error_text(web.post("/api/search", {"likes": [CHIP.chip_id, "gone:1", "gone:2"]}), 404)
    assert message == "no chip 'gone:1' and 1 more in this database"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'{"k": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_a_body_without_valid_json_is_refused(web, data):
    error_text(web.post("/api/search", data=data, headers={"Content-Type": "application/json"}), 400)


def test_too_large_a_request_is_refused(web):
    headers = {"Content-Type": "application/json"}
    assert "at most 2 MB" in error_text(web.post("/api/search", data=b" " * (3 << 20), headers=headers), 413)
    pieces = (b" " * 65536 for _ in range(100))  # of unknown length
    try:
        answer = web.post("/api/search", data=pieces, headers=headers)
    except ConnectionError:  # the server closed the connection during the upload
        return
    error_text(answer, 413)


@pytest.mark.parametrize("embeddings", [False, True])
def test_results_are_exported_as_geojson_and_geoparquet(web, tmp_path, embeddings):
    body = {"likes": [CHIP.chip_id], "k": 7, "embeddings": embeddings}
    ids, cosine = nearest(7)
    vectors = random_vectors([CHIP]).astype(np.float16)
    for kind, name in (("geojson", "similar.geojson"), ("geoparquet", "similar.parquet")):
        answer = web.post("/api/export", body | {"format": kind})
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        path = tmp_path / name
        path.write_bytes(answer.content)
        frame = gpd.read_file(path) if kind == "geojson" else gpd.read_parquet(path)
        assert frame["chip_id"].tolist() == ids
        assert frame["rank"].tolist() == list(range(1, 8))
        assert frame["similarity"].to_numpy() == pytest.approx(cosine, abs=1e-5)
        assert frame.crs.to_epsg() == 4326
        assert frame.geometry.is_valid.all()
        assert ("embeddings" in frame) == embeddings
        if embeddings and kind == "geoparquet":
            schema = pq.read_schema(path)
            assert str(schema.field("embeddings").type) == "fixed_size_list<item: halffloat>[8]" or (
                schema.field("embeddings").type.list_size == 8
            )
            assert json.loads(schema.metadata[b"kiln"])["worldcover"]["model"] == "Clay v1.5"
            got = np.stack(frame["embeddings"]).astype(float)
            unit = got / np.linalg.norm(got, axis=1, keepdims=True)
            assert unit @ (vectors[0] / np.linalg.norm(vectors[0].astype(float))) == pytest.approx(cosine, abs=1e-3)
    error_text(web.post("/api/export", body | {"format": "shapefile"}), 422)
    error_text(web.post("/api/export", body | {"embeddings": "yes"}), 422)


def test_an_empty_export_is_a_valid_file(web, tmp_path):
    body = {"likes": [CHIP.chip_id], "filters": {"bbox": [0, 0, 1, 1]}}
    assert web.post("/api/export", body).json() == {"type": "FeatureCollection", "features": []}
    (tmp_path / "none.parquet").write_bytes(web.post("/api/export", body | {"format": "geoparquet"}).content)
    assert len(gpd.read_parquet(tmp_path / "none.parquet")) == 0
