"""Sentinel-2 plans that are refused: pages, lists, inventories and settings that cannot be used."""

import gzip
import shutil

import pytest

from kiln.errors import TransientError
from tests.support.inventories import FOLDER, item_id, key, put, text
from tests.support.sentinel2_plans import (
    ALL_DATES,
    DOCUMENTS,
    IDS,
    VERSION_0,
    item_document,
    plan_bytes,
    refusal,
    units_of,
    write_list,
)


def test_a_failing_page_leaves_no_plan(serve_items, tmp_path):
    ids = [item_id(n, f"{zone}RKH", month=m) for zone in (29, 32) for m in (1, 2, 3) for n in range(28)]
    api = serve_items([item_document(i) for i in ids])
    api.trouble = {2: [404]}
    assert "refuses with 404" in refusal(tmp_path, search=api.url, **ALL_DATES)
    api.matched = 3
    assert "expected 171 items, got 168" in refusal(tmp_path, TransientError, search=api.url, **ALL_DATES)
    api.matched, api.trouble, api.wait = 0, {2: [429]}, "1"
    assert len(units_of(plan_bytes(tmp_path / "p.gz", search=api.url, **ALL_DATES))) == 168


def test_an_api_that_answers_html_is_refused(serve, tmp_path):
    web = serve({"/": b"<html>Sign in</html>"})
    assert "STAC API" in refusal(tmp_path, search=f"{web.url}/", **ALL_DATES)


def test_filters_that_leave_nothing_are_refused(serve_items, tmp_path):
    inventory = put(tmp_path, text(map(key, IDS)))
    items = write_list(tmp_path, map(key, IDS))
    days = {"dates": "2021-01-01/2021-01-02"}
    for filters in ({"years": [2016]}, {"months": [7]}, {"tiles": ["31"]}, {"bbox": [0, 0, 1, 1]}, days):
        for way in ({"inventory": inventory}, {"items": items}):
            assert "the filters leave none of 120 items" in refusal(tmp_path, **way, **filters)
    api = serve_items(DOCUMENTS)
    assert "leave none of 120" in refusal(tmp_path, search=api.url, years=[2016], **ALL_DATES)
    assert "got none in 0 lines" in refusal(tmp_path, search=api.url, bbox=[0, 0, 1, 1])


def test_lists_and_inventories_without_an_item_are_refused(tmp_path):
    message = refusal(tmp_path, items=write_list(tmp_path, ["", "<html>", "</html>"]))
    assert "items.txt: expected items of Sentinel-2, got none in 3 lines" in message
    inventory = put(tmp_path, text([f"{FOLDER}2019/{VERSION_0}/B02.tif"]))
    assert "got none in 1 lines" in refusal(tmp_path, inventory=inventory)


def test_a_missing_or_truncated_list_is_refused(tmp_path):
    assert "none.txt: does not exist" in refusal(tmp_path, items=tmp_path / "none.txt")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(text(map(key, IDS)))[:-9])
    assert "cut.gz: truncated or damaged" in refusal(tmp_path, items=tmp_path / "cut.gz")


def test_a_missing_inventory_part_leaves_no_plan(tmp_path):
    inventory = put(tmp_path, text(map(key, IDS)))
    shutil.rmtree(tmp_path / "data")
    assert "part0.csv.gz" in refusal(tmp_path, inventory=inventory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chip_size": 20_000}, "chip_size: expected 8 to 10980, got 20000"),
        ({"bbox": [1, 4, 3, 2]}, "bbox: expected"),
        ({"bbox": [1, 2, 1, 4]}, "bbox: expected"),
        ({"bbox": [float("nan"), 2, 1, 4]}, "bbox: expected"),
        ({"bbox": [0, 0, 200, 10]}, "bbox: expected"),
        ({"tiles": ["61R"]}, "tiles: expected"),
        ({"tiles": ["29RK"]}, "tiles: expected"),
        ({"tiles": ["29I"]}, "tiles: expected"),
        ({"dates": "2021-01-01/2020-01-01"}, "dates: expected"),
        ({"dates": "../.."}, "dates: expected"),
        ({"dates": "2021-02-30"}, "dates: expected"),
        ({"dates": "0001-01-01/2021-01-01"}, "dates: expected"),
        ({"bbox": [0, 0, 1, 1], "area": "a.geojson"}, "area and bbox: expected one of them"),
        ({"search": "http://127.0.0.1:9"}, "exactly one of inventory, search, items, got search and items"),
        ({"inventory_root": "a"}, "inventory_root: expected together with inventory"),
        ({"area": "none.geojson"}, "none.geojson: does not exist"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    assert message in refusal(tmp_path, items=write_list(tmp_path, [key(VERSION_0)]), **settings)


def test_a_search_without_area_or_dates_is_refused(tmp_path):
    assert "search: expected area, bbox or dates" in refusal(tmp_path, search="http://127.0.0.1:9")


def test_a_bounding_box_across_the_antimeridian_selects_tiles_on_both_sides(tmp_path):
    ids = [item_id(1, t) for t in ("60KYF", "01KAB", "60KXF", "31NAA")]
    data = plan_bytes(tmp_path / "p.gz", items=write_list(tmp_path, map(key, ids)), bbox=[179.5, -19, -179.5, -16])
    assert units_of(data) == sorted(ids[:2])
