"""The explorer's page in a real browser: the map, marks, searches and pictures."""

from tests.explorer.tile import FIRST, centre


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
