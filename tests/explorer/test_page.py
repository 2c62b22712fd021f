"""The explorer's page in a real browser, over the real server."""

import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.explorer.conftest import AXE, SIDE
from tests.explorer.mapserver import MapServer
from tests.explorer.serving import Server
from tests.support import explorers

DESK, PHONE = (1360, 820), (375, 740)
FIRST = "test:00312"  # in the middle of the tile
EXPECTED = re.compile(r"net::ERR_|status of 4\d\d|GPU stall|GL Driver")  # messages of the browser itself


class Page:
    """An open page and the actions of the tests. `faults` has script errors and requests to other servers."""

    def __init__(self, browser, served, folder, size=DESK, **options):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, accept_downloads=True, reduced_motion="reduce", **options
        )
        self.page, self.served, self.folder, self.faults = self.context.new_page(), served, folder, []
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on(
            "console",
            lambda m: m.type in ("error", "warning") and not EXPECTED.search(m.text) and self.faults.append(m.text),
        )
        self.page.on(
            "request",
            lambda r: r.url.startswith((served.address, "blob:", "data:")) or self.faults.append(f"asks {r.url}"),
        )

    def open(self, fragment=""):
        self.page.goto(f"{self.served.address}#{fragment}" if fragment else self.served.address)
        self.page.wait_for_selector("body[data-map=drawn]")
        return self

    def ranked(self):
        """Wait for the answer to the last search; return the chip ids in their order."""
        self.page.wait_for_selector("#grid[aria-busy=false]")
        return self.ids("#grid")

    def ids(self, selector):
        return self.page.eval_on_selector_all(f"{selector} [data-chip]", "all => all.map(e => e.dataset.chip)")

    def text(self, selector):
        return self.page.inner_text(selector)

    def search(self, body):
        """Return the server's results for this search."""
        return self.page.request.post(f"{self.served.address}api/search", data=body).json()["results"]

    def shown(self):
        """Wait until the visible pictures are loaded."""
        self.page.wait_for_function(
            """() => [...document.querySelectorAll('.picture')].filter(e => {
                 const b = e.getBoundingClientRect();
                 return b.width && b.bottom > 0 && b.top < innerHeight;
               }).every(e => e.dataset.from && (!e.querySelector('img') || e.querySelector('img').complete))"""
        )

    def shot(self, name, **options):
        self.shown()
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=str(self.folder / f"{name}.png"), **options)
        return self

    def accessible(self):
        """Assert that axe finds no violation and that nothing is wider than the screen."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        findings = [f"{v['id']}: {n['html'][:150]} {n['failureSummary']}" for v in found for n in v["nodes"]]
        assert not findings, "\n".join(findings)
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def click_map(self, lon, lat):
        at = self.page.evaluate(f"(() => {{ const p = kiln.map.project([{lon}, {lat}]); return [p.x, p.y]; }})()")
        box = self.page.locator("#map").bounding_box()
        self.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
        self.page.mouse.click(box["x"] + at[0], box["y"] + at[1])

    def mark(self, n, kind):
        self.page.locator("#grid li").nth(n).locator(f".mark.{kind}").click()


@pytest.fixture
def visit(browser, served, pictures_folder):
    pages = []

    def start(fragment="", **options):
        pages.append(Page(browser, served, pictures_folder, **options))
        return pages[-1].open(fragment)

    yield start
    for page in pages:
        faults = page.faults
        page.context.close()
        assert not faults


def centre(chip_id):
    n = int(chip_id.partition(":")[2])
    return -96 + (n % SIDE + 0.5) / SIDE, 44 - (n // SIDE + 0.5) / SIDE


# -------------------------------------------------------------------------------------------------- see and click


def test_the_first_page_shows_the_map_and_warns_of_untrained_weights(visit):
    page = visit()
    assert "750 chips" in page.text("#about")
    assert "UNTRAINED weights: a demonstration" in page.text("#untrained")
    assert "Nothing is marked yet" in page.text("#status")
    page.page.wait_for_function("() => kiln.map.queryRenderedFeatures({layers: ['outlines']}).length > 600")
    page.shot("first").accessible()


def test_a_clicked_chip_is_liked_and_the_servers_results_are_shown(visit):
    page = visit()
    page.click_map(*centre(FIRST))
    page.page.wait_for_selector("#likes [data-chip]")
    assert page.ids("#likes") == [FIRST]  # the newest of its two years
    expected = page.search({"likes": [FIRST], "dislikes": [], "method": "mean", "k": 48, "filters": {}})
    assert page.ranked() == [r["chip_id"] for r in expected]
    assert "48 chips · mean" in page.text("#status")
    assert FIRST in page.text("#chip")
    page.shot("search").accessible()
    page.page.check("input[value=colours]")
    page.page.wait_for_timeout(1200)
    page.shot("colours").accessible()


def test_a_new_mark_starts_a_search_and_appears_in_its_row(visit):
    page = visit(f"like={FIRST}")
    before = page.ranked()
    page.mark(1, "like")
    assert before[1] not in page.ranked()
    page.mark(0, "dislike")
    after = page.ranked()
    likes, dislikes = page.ids("#likes"), page.ids("#dislikes")
    assert likes == [FIRST, before[1]]
    assert len(dislikes) == 1
    assert not {*likes, *dislikes} & set(after)
    assert after == [
        r["chip_id"] for r in page.search({"likes": likes, "dislikes": dislikes, "method": "mean", "k": 48})
    ]
    page.shot("marks").accessible()
    page.page.locator("#dislikes .away").click()
    page.ranked()
    assert page.ids("#dislikes") == []


def test_the_linear_method_asks_for_missing_marks_and_then_ranks(visit):
    page = visit(f"like={FIRST}")
    page.ranked()
    page.page.check("input[value=linear]")
    page.page.wait_for_function("() => document.getElementById('results-error').textContent.includes('likes')")
    likes, dislikes = [f"test:{n:05d}" for n in (310, 311, 312)], [f"test:{n:05d}" for n in (20, 600, 40)]
    fragment = "&".join([*(f"like={i}" for i in likes), *(f"dislike={i}" for i in dislikes), "method=linear&k=20"])
    page = visit(fragment)
    expected = page.search({"likes": likes, "dislikes": dislikes, "method": "linear", "k": 20})
    assert page.ranked() == [r["chip_id"] for r in expected]
    assert page.text("#results-error") == ""


def test_places_and_ids_are_found_and_wrong_ones_are_explained(visit):
    page = visit()
    for wrong, words in (
        ("", "Enter longitude"), ("test:99999", "test:99999"), ("12.5, 41.9", "12.5"), ("43.5, -96.5", "first"),
    ):  # fmt: skip
        page.page.fill("#find-text", wrong)
        page.page.press("#find-text", "Enter")
        page.page.wait_for_function("w => document.getElementById('find-error').textContent.includes(w)", arg=words)
    assert page.ids("#likes") == []
    page.accessible()
    lon, lat = centre(FIRST)
    page.page.fill("#find-text", f"{lon:.4f}, {lat:.4f}")
    page.page.press("#find-text", "Enter")
    page.page.wait_for_selector("#likes [data-chip]")
    assert page.ids("#likes") == [FIRST]
    assert page.text("#find-error") == ""


def test_the_picture_under_the_pointer_is_shown_on_request(visit):
    page = visit()
    lon, lat = centre(FIRST)
    page.page.click("#peek")
    at = page.page.evaluate(f"(() => {{ const p = kiln.map.project([{lon}, {lat}]); return [p.x, p.y]; }})()")
    box = page.page.locator("#map").bounding_box()
    page.page.mouse.move(box["x"] + at[0] - 3, box["y"] + at[1])
    page.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
    page.page.wait_for_selector("#peeked img")
    assert "2021 · worldcover" in page.text("#peeked")
    page.shot("peek")


def test_a_missing_picture_shows_its_reason(visit):
    page = visit("like=scene:00302&dataset=sentinel2&k=12")
    assert all(i.startswith("scene:") for i in page.ranked())
    page.shown()
    assert "gone.tif" in page.text("#grid li:first-child .missing")
    page.shot("missing").accessible()


def test_pictures_come_from_the_source_once_the_service_is_gone(browser, database, pictures_folder, tmp_path, program):
    wms = MapServer(program, tmp_path, database / "tile.tif", (-96, 43, -95, 44))
    service = {"wms": {"url": wms.url, "version": "1.3.0", "crs": "EPSG:4326", "layers": "tiles", "styles": ""}}
    server = Server(database, tmp_path, "db", "--pictures", json.dumps({"worldcover": service}))
    page = Page(browser, server, pictures_folder)
    seen = "all => all.slice(0, 4).map(e => [e.dataset.from, e.title])"
    try:
        page.open(f"like={FIRST}&dataset=worldcover&k=8").ranked()
        page.shot("service")
        assert page.page.eval_on_selector_all("#grid .picture", seen) == [["wms", ""]] * 4
        assert page.text("#chip") == ""
        page.page.click("#grid [data-chip]")
        page.page.wait_for_selector("#chip:has-text('image service')")
        wms.stop()
        page.page.goto("about:blank")
        page.open("like=test:00020&dataset=worldcover&k=8").ranked()
        page.shot("service-gone")
        for origin, why in page.page.eval_on_selector_all("#grid .picture", seen):
            assert origin == "source"
            assert "does not answer" in why
    finally:
        page.context.close()
        server.stop()
    assert not page.faults


# ------------------------------------------------------------------------------------------------ filters and area


def test_filters_show_the_results_that_the_server_filters(visit):
    page = visit(f"like={FIRST}&k=500")
    assert len(page.ranked()) == 500
    page.page.click("#filters summary")
    page.page.check("input[value=sentinel2]")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length === 125")
    page.page.fill("#max-cloud", "30")
    page.page.press("#max-cloud", "Tab")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length < 125")
    expected = page.search(
        {"likes": [FIRST], "dislikes": [], "method": "mean", "k": 500,
         "filters": {"datasets": ["sentinel2"], "max_cloud": 0.3}}
    )  # fmt: skip
    assert page.ranked() == [r["chip_id"] for r in expected]
    assert "2 set" in page.text("#filters-set")
    page.shot("filters").accessible()
    page.page.click("#filters-clear")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length === 500")
    page.page.fill("#from", "2021-01-01")
    page.page.wait_for_function("() => !document.querySelector('#grid [data-id^=scene]')")
    assert len(page.ranked()) == 500


def test_the_maps_view_and_a_drawn_area_limit_the_results(visit):
    page = visit(f"like={FIRST}&k=500&map=9.6/43.7/-95.7")
    page.ranked()
    page.page.click("#filters summary")
    page.page.check("input[name=within][value=view]", force=True)
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length < 500")
    west, south, east, north = map(float, re.search(r"bbox=([-\d.,]+)", page.page.url)[1].split(","))
    inside = [centre(i) for i in page.ranked()]
    assert inside
    assert all(west <= x <= east and south <= y <= north for x, y in inside)
    page.page.click("#draw")
    for x, y in ((-95.7, 43.6), (-95.5, 43.6), (-95.5, 43.8), (-95.7, 43.8)):
        page.click_map(x, y)
    page.shot("drawing").accessible()
    page.page.click("#draw-done")
    page.page.wait_for_function("() => document.querySelector('input[name=within][value=area]').checked")
    found = page.ranked()
    assert len(found) in range(20, 26)
    assert all(-95.701 <= x <= -95.499 and 43.599 <= y <= 43.801 for x, y in map(centre, found))
    assert "area=" in page.page.url
    page.shot("area").accessible()


def test_one_per_neighbourhood_keeps_results_apart(visit):
    page = visit(f"like={FIRST}")
    page.ranked()
    page.page.check("#apart-on")
    page.page.fill("#apart", "15")
    page.page.press("#apart", "Tab")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length < 48")
    found = [centre(i) for i in page.ranked()]
    for n, (x, y) in enumerate(found):
        for u, v in found[:n]:
            assert (((x - u) * 80.6) ** 2 + ((y - v) * 111.1) ** 2) ** 0.5 > 14.8


# ------------------------------------------------------------------------------------------------------------ save


def test_a_link_shows_the_same_page(visit):
    page = visit(f"like={FIRST}&dislike=test:00020")
    page.page.click("#filters summary")
    page.page.check("input[value='2021']")
    page.page.check("input[value=colours]")
    page.page.fill("#k", "24")
    page.page.press("#k", "Tab")
    page.click_map(*centre("test:00400"))
    page.page.focus("#map canvas")
    page.page.keyboard.press("+")
    page.page.wait_for_function("() => location.hash.includes('map=')")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length === 24")
    found, link = page.ranked(), page.page.url
    other = visit(link.partition("#")[2])
    assert other.ranked() == found
    assert other.ids("#likes") == [FIRST]
    assert other.ids("#dislikes") == ["test:00020"]
    assert other.page.is_checked("input[value=colours]")
    assert other.page.is_checked("input[value='2021']")
    assert other.page.url == link
    views = [p.page.evaluate("[kiln.map.getZoom(), kiln.map.getCenter().lng]") for p in (page, other)]
    assert views[0] == pytest.approx(views[1], abs=0.01)


def test_marks_are_saved_and_opened_again(visit, tmp_path):
    page = visit(f"like={FIRST}&like=scene:00300&dislike=test:00020")
    page.ranked()
    with page.page.expect_download() as saved:
        page.page.click("#save")
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    marks = json.loads(file.read_text())
    assert [(f["properties"]["chip_id"], f["properties"]["mark"]) for f in marks["features"]] == [
        (FIRST, "like"), ("scene:00300", "like"), ("test:00020", "dislike"),
    ]  # fmt: skip
    assert all(f["geometry"]["type"] == "Polygon" for f in marks["features"])
    other = visit()
    other.page.set_input_files("#open-file", str(file))
    other.page.wait_for_selector("#dislikes [data-chip]")
    assert other.ids("#likes") == [FIRST, "scene:00300"]
    assert other.ranked() == page.ranked()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "no JSON"),
        ('{"type": "Feature"}', "FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"chip_id": 3}}]}', "feature 1"),
        (json.dumps({"type": "FeatureCollection", "features": [
            {"properties": {"chip_id": f"test:{n:05d}", "mark": "like"}} for n in range(10_000)]}), "at most 1000"),
    ],
)  # fmt: skip
def test_a_file_without_marks_is_refused_with_a_reason(visit, tmp_path, text, words):
    (tmp_path / "odd.geojson").write_text(text)
    page = visit(f"like={FIRST}")
    page.page.set_input_files("#open-file", str(tmp_path / "odd.geojson"))
    page.page.wait_for_function("w => document.getElementById('find-error').textContent.includes(w)", arg=words)
    assert page.ids("#likes") == [FIRST]


def test_results_are_exported_as_geojson_and_as_geoparquet_with_embeddings(visit):
    page = visit(f"like={FIRST}&k=10")
    ranked = page.ranked()
    page.page.click("#open-export")
    page.shot("export").accessible()
    with page.page.expect_download() as plain:
        page.page.click("#export-go")
    exported = json.loads(Path(plain.value.path()).read_text())
    assert [f["properties"]["chip_id"] for f in exported["features"]] == ranked
    assert "embeddings" not in exported["features"][0]["properties"]
    page.page.click("#open-export")
    page.page.check("input[value=geoparquet]")
    page.page.check("#embeddings")
    with page.page.expect_download() as full:
        page.page.click("#export-go")
    table = pq.read_table(io.BytesIO(Path(full.value.path()).read_bytes()))
    assert table["chip_id"].to_pylist() == ranked
    assert len(table["embeddings"][0].as_py()) == 8


def test_a_mark_of_another_database_is_shown_and_can_be_removed(visit):
    page = visit(f"like={FIRST}&like=elsewhere:1")
    page.page.wait_for_selector("#likes .unknown")
    assert "elsewhere:1" in page.text("#results-error")
    page.accessible()
    page.page.click("#likes .unknown .away")
    assert len(page.ranked()) == 48
    assert page.text("#results-error") == ""


# -------------------------------------------------------------------------------------------------------- access


def test_everything_can_be_done_with_the_keyboard_alone(visit):
    page = visit()
    keys = page.page.keyboard
    keys.press("Tab")
    assert page.text(":focus") == "Skip to search"
    keys.press("Enter")
    keys.press("Tab")
    assert page.page.evaluate("document.activeElement.id") == "find-text"
    keys.type(FIRST)
    keys.press("Enter")
    found = page.ranked()
    for _ in range(40):
        keys.press("Tab")
        if page.page.evaluate("document.activeElement.matches('#grid [data-chip]')"):
            break
    focused = "document.activeElement.dataset.chip"
    assert page.page.evaluate(focused) == found[0]
    columns = page.page.evaluate(
        "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
    )
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    assert page.page.evaluate(focused) == found[1 + columns]
    page.shot("keyboard")
    keys.press("End")
    assert page.page.evaluate(focused) == found[-1]
    keys.press("Home")
    keys.press("d")
    after = page.ranked()
    assert page.ids("#dislikes") == [found[0]]
    assert page.page.evaluate(focused) in after  # the focus stays among the results
    keys.press("l")
    page.ranked()
    assert len(page.ids("#likes")) == 2
    page.page.focus("#dislikes [data-chip]")
    keys.press("Delete")
    page.ranked()
    assert page.ids("#dislikes") == []


def test_the_map_is_used_with_the_keyboard_alone(visit):
    lon, lat = centre(FIRST)
    page = visit(f"map=10/{lat:.5f}/{lon:.5f}&k=500")
    page.page.focus("#map canvas")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#likes [data-chip]")
    assert page.ids("#likes") == [FIRST]
    assert page.page.evaluate("document.activeElement.closest('#chip') !== null")
    page.page.keyboard.press("Escape")
    assert page.page.is_hidden("#chip")
    page.ranked()
    page.page.click("#filters summary")
    page.page.focus("#draw")
    page.page.keyboard.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.page.keyboard.press("Enter")
        page.page.keyboard.press(key)
        page.page.wait_for_timeout(700)  # the map glides
    page.page.wait_for_selector("#draw-done:enabled")
    page.page.focus("#draw-done")
    page.page.keyboard.press("Enter")
    page.page.wait_for_function("() => document.querySelector('input[name=within][value=area]').checked")
    assert 0 < len(page.ranked()) < 300


def test_the_help_dialog_names_the_keys_and_gives_the_focus_back(visit):
    page = visit()
    page.page.click("#open-help")
    assert "like or dislike" in page.text("#help")
    page.shot("help").accessible()
    page.page.keyboard.press("Escape")
    assert page.page.evaluate("document.activeElement.id") == "open-help"


def test_500_results_fit_a_small_screen(visit):
    page = visit(f"like={FIRST}&k=500", size=PHONE, has_touch=True)
    assert len(page.ranked()) == 500
    page.shot("phone")
    page.page.locator("#results").scroll_into_view_if_needed()
    page.page.evaluate("document.getElementById('results').scrollIntoView()")
    page.shot("phone-results").accessible()
    page.page.evaluate("document.querySelector('#grid li:last-child').scrollIntoView()")
    page.shown()
    assert page.page.locator("#grid li:last-child .picture").get_attribute("data-from")
    page.page.evaluate("scrollTo(0, 0)")
    page.click_map(*centre("test:00400"))
    page.page.wait_for_selector("#chip .picture[data-from]")
    page.shot("phone-chip").accessible()


def test_dark_mode_passes_the_accessibility_checks(visit):
    page = visit(f"like={FIRST}&dislike=test:00020&layer=colours", color_scheme="dark")
    page.ranked()
    page.click_map(*centre("test:00400"))
    page.page.wait_for_selector("#chip .picture[data-from]")
    page.page.wait_for_timeout(800)
    page.shot("dark").accessible()
    page.page.click("#filters summary")
    page.shot("dark-filters").accessible()


def test_the_page_reports_a_stopped_server_and_continues_once_it_is_back(visit, served):
    page = visit(f"like={FIRST}")
    page.ranked()
    served.stop()
    try:
        page.mark(0, "like")
        page.page.wait_for_selector("#connection:has-text('does not answer')")
        assert len(page.ids("#likes")) == 2  # the mark is not lost
        page.shot("stopped").accessible()
    finally:
        served.start()
    page.page.wait_for_selector("#connection:has-text('The server is back')")
    likes = page.ids("#likes")
    expected = [r["chip_id"] for r in page.search({"likes": likes, "dislikes": [], "method": "mean", "k": 48})]
    page.page.wait_for_function(
        "ids => ids.join() === [...document.querySelectorAll('#grid [data-chip]')].map(e => e.dataset.chip).join()",
        arg=expected,
    )
    page.shot("back").accessible()


def test_an_empty_database_is_reported_and_shown_once_it_is_filled(browser, pictures_folder, tmp_path):
    explorers.write(tmp_path / "db", [])
    server = Server(tmp_path, tmp_path)
    page = Page(browser, server, pictures_folder)
    try:
        page.open()
        assert "0 chips" in page.text("#about")
        assert "no chips yet" in page.text("#empty")
        assert page.page.is_hidden("#invite")
        page.shot("empty").accessible()
        page.page.fill("#find-text", "-96, 43")
        page.page.press("#find-text", "Enter")
        page.page.wait_for_function("() => document.getElementById('find-error').textContent.includes('empty')")
        explorers.write(tmp_path / "db", [explorers.chip(n, -96 + n / 25, 43, [1, n, 0, 0]) for n in range(5)])
        page.page.wait_for_selector("#about:has-text('5 chips')")
        page.page.wait_for_selector("body[data-map=drawn]")
        assert page.page.is_hidden("#empty")
        page.page.click("#example")
        page.page.wait_for_selector("#grid [data-chip]")  # the example's facts arrive before the search starts
        assert len(page.ranked()) == 4
        page.shot("filled").accessible()
    finally:
        page.context.close()
        server.stop()
    assert not page.faults
