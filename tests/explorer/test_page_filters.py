"""The page's filters, areas and neighbourhoods."""

import re

from tests.explorer.tile import FIRST, centre


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
