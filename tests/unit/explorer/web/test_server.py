"""The explorer's server: the page, the map, chips, and refused requests."""

import io
import re
import socket

import numpy as np
import pytest
from PIL import Image

from kiln.explorer.web import version
from tests.support import explorers
from tests.support.explorers_server import error_text
from tests.support.products import WORLD, chip_at

CHIP = chip_at(WORLD, 2021, 4, 3)
FACTS = {
    *("chip_id", "dataset", "year", "datetime", "item_id", "source"),
    *("nodata_fraction", "cloud_fraction", "lon", "lat", "bbox"),
}


def test_about_describes_the_database(web):
    about = web.get("/api/about").json()
    assert (about["rows"], about["dimensions"], about["untrained"]) == (200, 8, False)
    (dataset,) = about["datasets"]
    side = 512 / 12000
    assert (dataset["name"], dataset["years"], dataset["rows"]) == ("worldcover", [2020, 2021], 200)
    assert dataset["bounds"] == pytest.approx([-125, 50 - 10 * side, -125 + 10 * side, 50])
    assert dataset["dates"] == ["2020-06-01T00:00:00Z", "2021-06-01T00:00:00Z"]
    assert about["bounds"] == dataset["bounds"]
    assert (about["methods"], about["max_results"], about["max_outlines"]) == (["mean", "linear"], 500, 20000)
    assert about["base_map"] is None
    assert about["export_note"] == ""
    assert web.get("/api/chip", params={"id": about["example"]}).json()["year"] == 2021
    assert web.get("/api/version").json() == {"version": about["version"], "problem": None}


def test_every_answer_has_the_security_headers(web):
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
    server = other(str(run / "db"), page=folder)
    assert "a page" in server.get("/").text
    assert "javascript" in server.get("/page/a.mjs").headers["content-type"]
    for path in ("/page/../secret.txt", "/page/%2e%2e/secret.txt", "/page/..%2fsecret.txt", "/page//etc/passwd",
                 "/page/", "/page/link.txt", "/secret.txt", "/page/..%5csecret.txt", "/page/a.mjs%00"):  # fmt: skip
        with socket.create_connection(
            ("127.0.0.1", int(server.address.rpartition(":")[2])), 5
        ) as raw:  # a client would normalise the path
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
        assert "Use one of these names" in error_text(web.get("/api/about", headers={"Host": name}), 421)
    for name in ("localhost:1", "[::1]:8765", "LOCALHOST"):
        assert web.get("/api/about", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("path", ["/api/search", "/api/export"])
def test_cross_site_requests_are_refused(web, path):
    """A form of another page can send these types without a preflight request; JSON needs one, which is not allowed."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        error_text(web.post(path, data='{"likes": ["x"]}', headers={"Content-Type": kind}), 415)
    assert (
        "access-control-allow-origin" not in web.get("/api/about", headers={"Origin": "https://evil.example"}).headers
    )


def test_wrong_methods_and_routes_are_refused_in_json(web):
    error_text(web.get("/api/search"), 405)
    error_text(web.get("/api/nothing"), 404)
    error_text(web.get("/api/tiles/coverage/a/0/0.png"), 404)


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
def test_wrong_tiles_are_refused(web, path):
    error_text(web.get(f"/api/tiles/{path}" + ("" if "png" in path else ".png")), 422)


def test_outlines_are_those_of_the_chips_in_view(web):
    west, south, east, north = CHIP.footprint.bounds
    outlines = web.get(
        f"/api/chips?bbox={west + 0.001},{south + 0.001},{east - 0.001},{north - 0.001}&years=2021"
    ).json()
    (feature,) = outlines["features"]
    assert feature["properties"] == {"chip_id": CHIP.chip_id, "dataset": "worldcover", "year": 2021}
    assert feature["geometry"]["coordinates"][0][0] == pytest.approx([west, south], abs=1e-6)
    assert len(web.get("/api/chips?bbox=-180,-90,180,90").json()["features"]) == 200
    assert web.get("/api/chips?bbox=0,0,1,1").json()["features"] == []


def test_too_many_outlines_are_counted(web, monkeypatch):
    monkeypatch.setattr(version, "MAX_OUTLINES", 199)
    assert web.get("/api/chips?bbox=-180,-90,180,90").json() == {"too_many": 200}


@pytest.mark.parametrize("query", ["", "bbox=1,2,3", "bbox=a,b,c,d", "bbox=0,5,1,2", "bbox=0,0,1,1&max_cloud=2"])
def test_wrong_views_are_refused(web, query):
    error_text(web.get(f"/api/chips?{query}"), 422)


def test_a_chip_is_found_by_id_and_by_place(web):
    chip = web.get("/api/chip", params={"id": CHIP.chip_id}).json()
    assert set(chip) == FACTS
    assert chip["bbox"] == pytest.approx(list(CHIP.footprint.bounds))
    assert (chip["year"], chip["datetime"], chip["cloud_fraction"]) == (2021, "2021-06-01T00:00:00Z", None)
    lon, lat = CHIP.center
    assert web.get(f"/api/chip?at={lon},{lat}").json() == chip
    older = web.get(f"/api/chip?at={lon},{lat}&years=2020").json()
    assert older["chip_id"] == chip_at(WORLD, 2020, 4, 3).chip_id


def test_missing_chips_and_wrong_places_are_refused(web):
    assert "no chip 'worldcover:x'" in error_text(web.get("/api/chip?id=worldcover:x"), 404)
    assert "the nearest is worldcover:" in error_text(web.get("/api/chip?at=-125.2,49.9"), 404)
    assert "no chip covers 10.0, 10.0" in error_text(web.get("/api/chip?at=10,10"), 404)
    for query in ("", "at=1", "at=a,b", "at=500,0", "at=nan,1", f"id={CHIP.chip_id}&at=1,1"):
        error_text(web.get(f"/api/chip?{query}"), 422)


def test_an_empty_database_is_served(tmp_path, other):
    server = other(explorers.write(tmp_path / "db", []))
    about = server.get("/api/about").json()
    assert (about["rows"], about["datasets"], about["bounds"], about["example"]) == (0, [], None, None)
    assert server.get("/api/tiles/coverage/3/1/1.png").status_code == 200
    assert server.get("/api/chips?bbox=-180,-90,180,90").json()["features"] == []
    assert "the database is empty" in error_text(server.post("/api/search", {"likes": ["x"]}), 422)
    assert "the database is empty" in error_text(server.get("/api/chip?at=0,0"), 404)


def test_a_bug_is_answered_without_details(web, monkeypatch):
    def broken(*args):
        raise KeyError("a secret detail")

    monkeypatch.setattr(version, "search", broken)
    assert (
        error_text(web.post("/api/search", {"likes": [CHIP.chip_id]}), 500)
        == "the server failed; its log has the reason"
    )
