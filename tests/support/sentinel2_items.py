"""A Sentinel-2 item in its three spellings, and versions of it."""

from dataclasses import replace

from kiln.archives.sentinel2.item import read_item
from tests.support.items import FILES, NAME, stac_item

ASSET_HREFS = {b: f"https://bucket/a/{f}.tif" for b, f in (FILES | {"scl": "SCL"}).items()}
ITEM_URL = f"https://bucket/a/{NAME}.json"


def make_item(style, **properties):
    item = stac_item(NAME, ASSET_HREFS, style, 32629, "29", "R", "KH", "20200219")
    item["properties"] |= properties
    item["properties"] = {k: v for k, v in item["properties"].items() if v is not None}
    return item


def make_version(**facts):
    return replace(read_item(make_item("v1"), ITEM_URL), **facts)
