"""The page with a keyboard, on a small screen and in dark mode."""

from tests.explorer.page import PHONE
from tests.explorer.tile import FIRST, centre


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
