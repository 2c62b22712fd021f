"""The explorer's server, a real one: every route, what it refuses, its headers, pictures, and the next version."""

import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError
from kiln.explorer import pictures, ranking
from kiln.explorer.build import Select, build
from kiln.explorer.results import as_geojson, read_marks
from kiln.explorer.web import picture_cache, version
from kiln.explorer.web.guard import content_security_policy
from kiln.explorer.web.picture_cache import PictureCache
from kiln.explorer.web.settings import Rate, parse_base_map
from kiln.sample.worldcover import draw_tile
from tests.support import explorers
from tests.support.archives import write_tile
from tests.support.explorers_server import ExplorerServer
from tests.support.products import WORLD, chip_at, drawn, make_product

COLUMNS = [Column(k, 0, 10) for k in range(10)]
CHIP = chip_at(WORLD, 2021, 4, 3)
FACTS = {
    *("chip_id", "dataset", "year", "datetime", "item_id", "source"),
    *("nodata_fraction", "cloud_fraction", "lon", "lat", "bbox"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A database of 100 chips in each of two years, whose sources are a tile on this machine."""
    folder = tmp_path_factory.mktemp("server")
    tile = write_tile(folder / "archive", 2021, -125, 49, draw_tile(-125, 49, 240, 2021, 7))
    products = [make_product(folder, y, columns=COLUMNS, source=str(tile)) for y in (2020, 2021)]
    build([m.record_file for m in products], [m.uri for m in products], str(folder / "db"), Select())
    return folder


@pytest.fixture(scope="module")
def web(run):
    made = ExplorerServer(str(run / "db"), run / "cache")
    yield made
    made.stop()


@pytest.fixture
def other(tmp_path):
    """Starts servers that end with the test."""
    started = []

    def start(db, **options):
        started.append(ExplorerServer(db, tmp_path / "cache", **options))
        return started[-1]

    yield start
    for made in started:
        made.stop()


def refused(answer, status):
    """What a person reads."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]


# ----------------------------------------------------------------------------------------------------- the whole


def test_about_tells_what_is_there(web):
    told = web.get("/api/about").json()
    assert (told["rows"], told["dimensions"], told["untrained"]) == (200, 8, False)
    (dataset,) = told["datasets"]
    side = 512 / 12000
    assert (dataset["name"], dataset["years"], dataset["rows"]) == ("worldcover", [2020, 2021], 200)
    assert dataset["bounds"] == pytest.approx([-125, 50 - 10 * side, -125 + 10 * side, 50])
    assert dataset["dates"] == ["2020-06-01T00:00:00Z", "2021-06-01T00:00:00Z"]
    assert told["bounds"] == dataset["bounds"]
    assert (told["methods"], told["max_results"], told["max_outlines"]) == (["mean", "linear"], 500, 20000)
    assert told["base_map"] is None
    assert web.get("/api/chip", params={"id": told["example"]}).json()["year"] == 2021
    assert web.get("/api/version").json() == {"version": told["version"], "problem": None}


def test_every_answer_has_the_headers_of_safety(web):
    for path in ("/", "/api/about", "/api/tiles/coverage/0/0/0.png", "/page/none.js", "/nothing", "/api/chip?id=x"):
        headers = web.get(path).headers
        rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_the_page_and_its_files_are_served_and_nothing_else(web, run, other, tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "index.html").write_text("<title>a page</title>")
    (folder / "a.mjs").write_text("export {}")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    made = other(str(run / "db"), page=folder)
    assert "a page" in made.get("/").text
    assert "javascript" in made.get("/page/a.mjs").headers["content-type"]
    for path in ("/page/../secret.txt", "/page/%2e%2e/secret.txt", "/page/..%2fsecret.txt", "/page//etc/passwd",
                 "/page/", "/page/link.txt", "/secret.txt", "/page/..%5csecret.txt", "/page/a.mjs%00"):  # fmt: skip
        with socket.create_connection(
            ("127.0.0.1", int(made.address.rpartition(":")[2])), 5
        ) as raw:  # no client tidies it
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b"")).decode()
        assert "secret" not in answer.partition("\r\n\r\n")[2], path
        assert re.match(r"HTTP/1.1 (404|405|400) ", answer), (path, answer[:80])


def test_the_projects_page_needs_nothing_inline(web):
    page = web.get("/").text
    assert "<script>" not in page
    assert not re.search(r"<[^>]+\s(on\w+|style)=", page)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_only_this_machines_names_are_answered(web):
    for name in ("evil.example", "127.0.0.1.evil.example", ""):
        assert "Use one of these names" in refused(web.get("/api/about", headers={"Host": name}), 421)
    for name in ("localhost:1", "[::1]:8765", "LOCALHOST"):
        assert web.get("/api/about", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("path", ["/api/search", "/api/export"])
def test_another_page_cannot_ask_in_a_visitors_name(web, path):
    """A form of another page sends such types without asking first; JSON is asked for, and not allowed."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused(web.post(path, data='{"likes": ["x"]}', headers={"Content-Type": kind}), 415)
    assert (
        "access-control-allow-origin" not in web.get("/api/about", headers={"Origin": "https://evil.example"}).headers
    )


def test_wrong_methods_and_routes_are_refused_in_json(web):
    refused(web.get("/api/search"), 405)
    refused(web.get("/api/nothing"), 404)
    refused(web.get("/api/tiles/coverage/a/0/0.png"), 404)


# --------------------------------------------------------------------------------------------------- what is where


def test_tiles_are_drawn_and_not_sent_twice(web):
    first = web.get("/api/tiles/colours/8/39/87.png?v=1")
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(first.content)) as image:
        assert image.size == (256, 256)
        assert np.asarray(image)[..., 3].any()
    again = web.get("/api/tiles/colours/8/39/87.png", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    filtered = web.get("/api/tiles/colours/8/39/87.png?years=2020", headers={"If-None-Match": first.headers["etag"]})
    assert filtered.status_code == 200
    assert filtered.content != first.content


@pytest.mark.parametrize(
    "path", ["coverage/25/0/0", "coverage/3/8/0", "nothing/3/0/0", "colours/0/0/0.png?years=x", "colours/0/0/0.png?q=1"]
)
def test_tiles_that_are_none_are_refused(web, path):
    refused(web.get(f"/api/tiles/{path}" + ("" if "png" in path else ".png")), 422)


def test_outlines_of_what_is_in_view(web):
    west, south, east, north = CHIP.footprint.bounds
    told = web.get(f"/api/chips?bbox={west + 0.001},{south + 0.001},{east - 0.001},{north - 0.001}&years=2021").json()
    (feature,) = told["features"]
    assert feature["properties"] == {"chip_id": CHIP.chip_id, "dataset": "worldcover", "year": 2021}
    assert feature["geometry"]["coordinates"][0][0] == pytest.approx([west, south], abs=1e-6)
    assert len(web.get("/api/chips?bbox=-180,-90,180,90").json()["features"]) == 200
    assert web.get("/api/chips?bbox=0,0,1,1").json()["features"] == []


def test_too_many_outlines_are_counted(web, monkeypatch):
    monkeypatch.setattr(version, "MAX_OUTLINES", 199)
    assert web.get("/api/chips?bbox=-180,-90,180,90").json() == {"too_many": 200}


@pytest.mark.parametrize("query", ["", "bbox=1,2,3", "bbox=a,b,c,d", "bbox=0,5,1,2", "bbox=0,0,1,1&max_cloud=2"])
def test_views_that_are_none_are_refused(web, query):
    refused(web.get(f"/api/chips?{query}"), 422)


def test_a_chip_by_id_and_by_place(web):
    told = web.get("/api/chip", params={"id": CHIP.chip_id}).json()
    assert set(told) == FACTS
    assert told["bbox"] == pytest.approx(list(CHIP.footprint.bounds))
    assert (told["year"], told["datetime"], told["cloud_fraction"]) == (2021, "2021-06-01T00:00:00Z", None)
    lon, lat = CHIP.center
    assert web.get(f"/api/chip?at={lon},{lat}").json() == told
    older = web.get(f"/api/chip?at={lon},{lat}&years=2020").json()
    assert older["chip_id"] == chip_at(WORLD, 2020, 4, 3).chip_id


def test_chips_that_are_not_there_are_said(web):
    assert "no chip 'worldcover:x'" in refused(web.get("/api/chip?id=worldcover:x"), 404)
    assert "the nearest is worldcover:" in refused(web.get("/api/chip?at=-125.2,49.9"), 404)
    assert "no chip covers 10.0, 10.0" in refused(web.get("/api/chip?at=10,10"), 404)
    for query in ("", "at=1", "at=a,b", "at=500,0", "at=nan,1", f"id={CHIP.chip_id}&at=1,1"):
        refused(web.get(f"/api/chip?{query}"), 422)


# ------------------------------------------------------------------------------------------------------- searches


def nearest(k, year=None):
    """The chips most like CHIP, by NumPy."""
    chips = [chip_at(WORLD, y, c, r) for y in (2020, 2021) for c in range(10) for r in range(10)]
    unit = drawn(chips).astype(np.float16).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit[[c.chip_id for c in chips].index(CHIP.chip_id)]
    order = [
        i for i in np.argsort(-cosine) if chips[i].chip_id != CHIP.chip_id and year in (None, chips[i].extra["year"])
    ]
    return [chips[i].chip_id for i in order[:k]], cosine[order[:k]]


def test_a_search_gives_facts_and_similarities_in_order(web):
    told = web.post("/api/search", {"likes": [CHIP.chip_id], "k": 12}).json()
    ids, cosine = nearest(12)
    assert [r["chip_id"] for r in told["results"]] == ids
    assert [r["similarity"] for r in told["results"]] == pytest.approx(cosine, abs=1e-5)
    assert set(told["results"][0]) == FACTS | {"similarity"}
    assert (told["method"], told["note"]) == ("mean", "")
    assert 0 < told["ms"] < 5000
    by_year = web.post("/api/search", {"likes": [CHIP.chip_id], "k": 5, "filters": {"years": [2020]}}).json()
    assert [r["chip_id"] for r in by_year["results"]] == nearest(5, 2020)[0]


def test_a_search_by_linear_and_one_per_neighbourhood(web):
    ids = nearest(20)[0]
    body = {"likes": ids[:3], "dislikes": ids[-3:], "method": "linear", "k": 6, "apart_km": 8}
    told = web.post("/api/search", body).json()
    assert (told["method"], len(told["results"])) == ("linear", 6)
    assert "count as faint" in told["note"]
    assert not {r["chip_id"] for r in told["results"]} & {*ids[:3], *ids[-3:]}


def test_areas_outside_the_data_give_no_result_and_say_where_it_lies(web):
    area = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    told = web.post("/api/search", {"likes": [CHIP.chip_id], "filters": {"area": area}}).json()
    assert told["results"] == []
    assert "the data lie within -125.00" in told["note"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "nothing is liked yet"),
        ({"likes": "x"}, "likes: expected a valid list, got 'x'"),
        ({"likes": [3]}, "likes.0: expected a valid string, got 3"),
        ({"likes": [str(n) for n in range(10_000)]}, "10000 likes: at most 1000 are taken"),
        ({"likes": ["x"], "dislikes": [str(n) for n in range(10_000)]}, "10000 dislikes"),
        ({"likes": ["x"], "k": 501}, "want 1 to 500"),
        ({"likes": ["x"], "k": "5"}, "search: k: expected a valid integer, got '5'"),
        ({"likes": ["x"], "k": True}, "k: expected a valid integer, got True"),
        ({"likes": ["x"], "method": "magic"}, "want mean or linear"),
        ({"likes": ["x"], "method": ["mean"]}, "method: expected a valid string"),
        ({"likes": ["x"], "apart_km": "far"}, "apart_km: expected a valid number, got 'far'"),
        ({"likes": ["x"], "apart_km": 1e9}, "km apart"),
        ({"likes": ["x"], "filters": 3}, "want an object"),
        ({"likes": ["x"], "filters": {"area": {"type": "Point", "coordinates": [0, 0]}}}, "want a GeoJSON Polygon"),
        ({"likes": ["x"], "filters": {"area": "no json at all"}}, "this is no json at all"),
        ({"likes": ["x"], "filters": {"datasets": ["naip"]}}, "no dataset 'naip' here; there is worldcover"),
        ({"likes": ["x"], "limit": 3}, "apart_km, filters, got 'limit'"),
    ],
)
def test_searches_that_cannot_be_made_say_why(web, body, said):
    assert said in refused(web.post("/api/search", body), 422)


def test_unknown_marks_are_said(web):
    said = refused(web.post("/api/search", {"likes": [CHIP.chip_id, "gone:1", "gone:2"]}), 404)
    assert said == "no chip 'gone:1' and 1 more in this database"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'{"k": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(web, data):
    refused(web.post("/api/search", data=data, headers={"Content-Type": "application/json"}), 400)


def test_too_large_a_request_is_refused(web):
    headers = {"Content-Type": "application/json"}
    assert "at most 2 MB" in refused(web.post("/api/search", data=b" " * (3 << 20), headers=headers), 413)
    pieces = (b" " * 65536 for _ in range(100))  # of unknown length
    try:
        answer = web.post("/api/search", data=pieces, headers=headers)
    except ConnectionError:  # the server hung up on what still came
        return
    refused(answer, 413)


def test_too_many_requests_are_told_to_wait(run, other):
    made = other(str(run / "db"), rate=Rate(5.0, 8.0), search_rate=Rate(1.0, 2.0))
    codes = [made.get("/api/version").status_code for _ in range(20)]
    assert codes[:8] == [200] * 8
    assert 429 in codes
    searches = [made.post("/api/search", {"likes": [CHIP.chip_id]}) for _ in range(4)]
    assert [a.status_code for a in searches[:2]] == [200, 200]
    assert "too many requests: wait 1 s" in refused(searches[3], 429)
    assert searches[3].headers["retry-after"] == "1"
    time.sleep(1.1)
    assert made.post("/api/search", {"likes": [CHIP.chip_id]}).status_code == 200


# -------------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("embeddings", [False, True])
def test_results_are_exported_as_geojson_and_geoparquet(web, tmp_path, embeddings):
    body = {"likes": [CHIP.chip_id], "k": 7, "embeddings": embeddings}
    ids, cosine = nearest(7)
    vectors = drawn([CHIP]).astype(np.float16)
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
    refused(web.post("/api/export", body | {"format": "shapefile"}), 422)
    refused(web.post("/api/export", body | {"embeddings": "yes"}), 422)


def test_an_export_of_nothing_is_a_file_too(web, tmp_path):
    body = {"likes": [CHIP.chip_id], "filters": {"bbox": [0, 0, 1, 1]}}
    assert web.post("/api/export", body).json() == {"type": "FeatureCollection", "features": []}
    (tmp_path / "none.parquet").write_bytes(web.post("/api/export", body | {"format": "geoparquet"}).content)
    assert len(gpd.read_parquet(tmp_path / "none.parquet")) == 0


def test_a_box_over_the_antimeridian_is_exported_in_two_parts():
    row = {"chip_id": "a", "bbox": [179.9, 1.0, -179.9, 2.0]}
    (feature,) = as_geojson([row])["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [p[0][0][0] for p in feature["geometry"]["coordinates"]] == [179.9, -180.0]


def test_sets_of_marks_are_read():
    def mark(chip_id, kind):
        return {"type": "Feature", "geometry": None, "properties": {"chip_id": chip_id, "mark": kind}}

    several = {"type": "FeatureCollection", "features": [mark("b", "like"), mark("a", "dislike"), mark("c", "like")]}
    assert read_marks(several) == (("b", "c"), ("a",))
    for wrong in (None, [], {}, {"type": "FeatureCollection"}, {"type": "FeatureCollection", "features": [3]},
                  {"type": "FeatureCollection", "features": [mark("a", "love")]},
                  {"type": "FeatureCollection", "features": [mark(3, "like")]},
                  {"type": "Polygon", "coordinates": []}):  # fmt: skip
        with pytest.raises(ConfigError, match="marks"):
            read_marks(wrong)


# ------------------------------------------------------------------------------------------------------- pictures


def picture(web, chip_id):
    answer = web.get(f"/api/picture/{chip_id}.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as image:
        return answer.headers, np.asarray(image.convert("RGB"))


def test_a_picture_is_read_from_the_source_once(web, monkeypatch):
    headers, pixels = picture(web, CHIP.chip_id)
    assert headers["x-picture-from"] == "source"
    assert headers["x-picture-why"] == "no service configured"
    assert pixels.shape == (256, 256, 3)
    assert np.ptp(pixels) > 20
    monkeypatch.setattr(pictures, "picture", None)  # what is kept is not made again
    assert (picture(web, CHIP.chip_id)[1] == pixels).all()


def test_a_missing_picture_is_a_grey_square_with_the_reason(other, tmp_path):
    rows = [
        explorers.chip(1, 0, 0, [1, 0, 0, 0], source=str(tmp_path / "gone.tif")),
        explorers.chip(2, 0, 0, [1, 0, 0, 0], source="/vsicurl/http://169.254.169.254/latest"),
        explorers.chip(3, 0, 0, [1, 0, 0, 0], source="<VRTDataset/>"),
        explorers.chip(4, 0, 0, [1, 0, 0, 0], source=__file__),
        explorers.chip(5, 180, 0, [1, 0, 0, 0], source="ünknown\r\nX-Evil: 1"),
    ]
    made = other(explorers.write(tmp_path / "db", rows))
    for n in range(1, 6):
        headers, pixels = picture(made, f"test:{n:05d}")
        assert headers["x-picture-from"] == "none"
        assert headers["x-picture-why"].isascii()
        assert "x-evil" not in headers
        assert headers["cache-control"] == "no-store"
        assert (pixels[0] == 217).all()


def test_a_picture_of_no_chip_is_refused(web):
    for name in ("nope", "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a" * 5000):
        assert web.get(f"/api/picture/{name}.png").status_code == 404


def test_a_service_that_fails_is_told_and_one_that_hangs_rests(run, tmp_path, serve, monkeypatch):
    """A service that answers with an error, then one that lets us wait: the source's picture is shown."""
    from kiln.explorer.results import facts
    from kiln.explorer.web.version import Version

    version = Version(str(run / "db"), run / "cache")
    row, next_row = facts(version.matrix, [0, 1])
    service = serve(status=500)
    wms = {"worldcover": {"wms": {"url": f"{service.url}/wms", "version": "1.3.0", "layers": "a"}}}
    cache = PictureCache(tmp_path / "pictures", wms)
    shown = cache.get(row)
    assert shown.origin == "source"
    assert "the service answers 500" in shown.why
    asked = len(service.requests)
    assert cache.get(row).why == shown.why
    assert len(service.requests) == asked  # kept, for an hour
    monkeypatch.setattr(picture_cache, "STAND_IN_LIFETIME_S", 0.0)
    assert cache.get(row).origin == "source"
    assert len(service.requests) > asked  # then asked again
    monkeypatch.setattr(picture_cache, "SLOW_S", -1.0)  # every failure counts as one that kept us waiting
    cache.get(next_row)
    asked = len(service.requests)
    resting = cache.get(row)
    assert "the service is paused" in resting.why
    assert resting.origin == "source"
    assert len(service.requests) == asked


def test_kept_pictures_stay_below_their_bound(run, tmp_path):
    from kiln.explorer.results import facts
    from kiln.explorer.web.version import Version

    version = Version(str(run / "db"), run / "cache")
    cache = PictureCache(tmp_path / "pictures", {}, max_bytes=300_000)
    for row in facts(version.matrix, range(20)):
        assert cache.get(row).origin == "source"
    kept = sum(p.stat().st_size for p in (tmp_path / "pictures").iterdir())
    assert 0 < kept <= 300_000
    assert PictureCache(tmp_path / "pictures", {})._bytes == kept


# ------------------------------------------------------------------------------------------------------- versions


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_the_next_version_is_followed_and_who_is_answered_keeps_theirs(tmp_path, other, monkeypatch):
    db = tmp_path / "db"
    rows = [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(10)]
    made = other(explorers.write(db, rows[:5]))
    made.follower.start()
    first = made.get("/api/version").json()["version"]
    arrived, release, search = threading.Event(), threading.Event(), ranking.search

    def held(*args):
        arrived.set()
        release.wait(10)
        return search(*args)

    monkeypatch.setattr(ranking, "search", held)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(made.post, "/api/search", {"likes": ["test:00000"], "k": 50})
        arrived.wait(10)
        explorers.write(db, rows)
        wait_for(lambda: made.get("/api/version").json()["version"] != first)
        release.set()
        told = answer.result().json()
    assert (told["version"], len(told["results"])) == (first, 4)
    assert len(made.post("/api/search", {"likes": ["test:00000"], "k": 50}).json()["results"]) == 9
    assert made.get("/api/about").json()["rows"] == 10


def test_a_build_without_a_tag_is_not_shown_and_a_lost_database_is_said(tmp_path, other):
    from kiln.explorer import database

    db = tmp_path / "db"
    made = other(explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(5)]))
    made.follower.start()
    first = made.get("/api/version").json()
    table = database.connect(str(db)).open_table("chips")
    table.delete("chip_id = 'test:00001'")
    time.sleep(0.5)
    assert made.get("/api/version").json() == first
    db.rename(tmp_path / "gone")  # in one step: a database that is half removed is told of in other words
    wait_for(lambda: made.get("/api/version").json()["problem"])
    told = made.get("/api/version").json()
    assert told["version"] == first["version"]
    # connecting makes the folder again if it goes between the two looks at it: "no finished explorer database there"
    assert re.search(r"no (finished )?explorer database there", told["problem"])
    assert made.get("/api/chip?id=test:00001").status_code == 200  # what is open stays open
    explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(6)])
    wait_for(lambda: made.get("/api/about").json()["rows"] == 6)
    wait_for(lambda: made.get("/api/version").json()["problem"] is None)


def test_an_empty_database_is_served_and_says_so(tmp_path, other):
    made = other(explorers.write(tmp_path / "db", []))
    told = made.get("/api/about").json()
    assert (told["rows"], told["datasets"], told["bounds"], told["example"]) == (0, [], None, None)
    assert made.get("/api/tiles/coverage/3/1/1.png").status_code == 200
    assert made.get("/api/chips?bbox=-180,-90,180,90").json()["features"] == []
    assert "the database is empty" in refused(made.post("/api/search", {"likes": ["x"]}), 422)
    assert "the database is empty" in refused(made.get("/api/chip?at=0,0"), 404)


def test_a_bug_is_a_plain_answer(web, monkeypatch):
    def broken(*args):
        raise KeyError("a secret detail")

    monkeypatch.setattr(ranking, "search", broken)
    assert (
        refused(web.post("/api/search", {"likes": [CHIP.chip_id]}), 500) == "the server failed; its log has the reason"
    )


# ------------------------------------------------------------------------------------------------------- base map


def test_a_base_map_is_a_source_for_the_page_and_may_be_reached():
    xyz = parse_base_map({"url": "https://tiles.example/{z}/{x}/{y}.png", "attribution": "<b>a</b>", "max_zoom": 12})
    assert xyz == {
        "type": "raster", "tiles": ["https://tiles.example/{z}/{x}/{y}.png"], "tileSize": 256, "maxzoom": 12,
        "attribution": "&lt;b&gt;a&lt;/b&gt;",
    }  # fmt: skip
    assert "img-src 'self' data: blob: https://tiles.example;" in content_security_policy(xyz)
    wms = parse_base_map({"wms": {"url": "http://maps.example:81/wms", "version": "1.1.1", "layers": "rgb"}})
    (url,) = wms["tiles"]
    assert url.startswith(
        "http://maps.example:81/wms?SERVICE=WMS&REQUEST=GetMap&VERSION=1.1.1&LAYERS=rgb&STYLES=&SRS=EPSG"
    )
    assert url.endswith("&BBOX={bbox-epsg-3857}")
    assert "connect-src 'self' http://maps.example:81;" in content_security_policy(wms)
    assert parse_base_map(None) is None


@pytest.mark.parametrize(
    "value",
    [
        {"url": "https://tiles.example/a.png"}, {"url": "file:///etc/{z}{x}{y}"}, {"url": 3}, [1], {"colour": "red"},
        {"url": "https://a.example;script-src *//{z}/{x}/{y}"}, {"wms": {"layers": "a"}},
    ],
)  # fmt: skip
def test_what_is_no_base_map_is_refused(value):
    with pytest.raises(ConfigError, match="base map"):
        parse_base_map(value)
