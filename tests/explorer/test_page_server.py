"""The page with a stopped server, a stopped image service and an empty database."""

import json

from tests.explorer.mapserver import MapServer
from tests.explorer.page import Page
from tests.explorer.serving import Server
from tests.explorer.tile import FIRST
from tests.support import explorers


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
