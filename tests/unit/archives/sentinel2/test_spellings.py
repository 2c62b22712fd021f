"""Spellings of items by catalogue, each with the keys that it uses, and the page that lists them."""

import re

import pytest

from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.spellings import ASSET_KEYS, ASSET_NAMES, PROPERTIES, asset_keys
from tests import ROOT
from tests.support.sentinel2_items import ITEM_URL, make_item

PAGE = (ROOT / "docs" / "archives" / "sentinel2.md").read_text()
PRODUCT = "S2A_MSIL2A_20220119T113431_N0400_R080_T29RKH_20220119T123456"
KEYS = {  # of blue, red edge 1, narrow infrared and SCL, by catalogue
    "Earth Search v1 and Collection 1": ("blue", "rededge1", "nir08", "scl"),
    "Earth Search v0, Planetary Computer and Sentinel Hub": ("B02", "B05", "B8A", "SCL"),
    "Copernicus Data Space": ("B02_10m", "B05_20m", "B8A_20m", "SCL_20m"),
    "JPEG 2000 of Earth Search v1": ("blue-jp2", "rededge1-jp2", "nir08-jp2", "scl-jp2"),
    "JPEG 2000 of others": ("B02-jp2", "B05-jp2", "B8A-jp2", "SCL-jp2"),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_assets_of_every_catalogue_are_known(keys):
    style = list(KEYS.values()).index(keys)
    bands = ("blue", "rededge1", "nir08", "scl")
    assert tuple(asset_keys(band)[style] for band in bands) == keys
    item = make_item("v1")
    item["assets"] = {asset_keys(band)[style]: {"href": f"{band}.tif"} for band in ASSET_NAMES}
    assert set(keys) <= set(item["assets"])
    assert read_item(item, ITEM_URL).assets == {band: f"https://bucket/a/{band}.tif" for band in ASSET_NAMES}


def test_the_first_spelling_is_taken_and_an_asset_without_an_address_is_none():
    for first, style in enumerate(ASSET_KEYS):
        item = make_item("v1")
        item["assets"] = {key: {"href": key} for key in asset_keys("red")[first:]}
        assert read_item(item, ITEM_URL).assets == {"red": f"https://bucket/a/{asset_keys('red')[first]}"}, style
    item["assets"] = {"red": {"title": "no address"}, "B04": None, "B04_10m": {"href": ""}, "B04-jp2": {"href": "x"}}
    assert read_item(item, ITEM_URL).assets == {"red": "https://bucket/a/x"}


@pytest.mark.parametrize("key", [asset_keys("red")[n] for n in range(len(ASSET_KEYS))])
def test_the_crs_of_an_asset_is_read_under_every_key(key):
    item = make_item("v1", **{"proj:epsg": None})
    item["assets"] = {key: {"href": "x", "proj:code": "EPSG:32629"}}
    assert read_item(item, ITEM_URL).epsg == 32629


@pytest.mark.parametrize("key", [asset_keys("blue")[n] for n in range(len(ASSET_KEYS))])
def test_the_offset_of_an_asset_is_read_under_every_key(key):
    item = make_item("v1")
    item["assets"] = {key: {"href": "x", "raster:offset": -0.1}}
    assert read_item(item, ITEM_URL).raster_offset == -0.1


@pytest.mark.parametrize("name", PROPERTIES["product name"])
@pytest.mark.parametrize("text", [PRODUCT, f"{PRODUCT}.SAFE", f"/eodata/Sentinel-2/MSI/L2A/2022/01/19/{PRODUCT}.SAFE"])
def test_the_baseline_is_read_from_the_products_name_under_every_property(name, text):
    item = make_item("v1", **{"s2:processing_baseline": None, "s2:product_uri": None, "s2:generation_time": None})
    assert read_item(item, ITEM_URL).baseline == ""
    item["properties"][name] = text
    read = read_item(item, ITEM_URL)
    assert (read.baseline, read.generation_time) == ("04.00", "2022-01-19T12:34:56.000000+00:00")


def test_a_property_without_a_baseline_does_not_hide_one_that_has_it():
    item = make_item("v1", **{"s2:processing_baseline": "five", "processing:version": "05.11"})
    assert read_item(item, ITEM_URL).baseline == "05.11"
    item = make_item("v1", **{"s2:processing_baseline": None, "s2:product_uri": "none", "title": PRODUCT})
    assert read_item(item, ITEM_URL).baseline == "04.00"


@pytest.mark.parametrize("name", PROPERTIES["datastrip"])
def test_the_sensing_time_is_read_from_the_datastrip_under_every_property(name):
    item = make_item("v1", **{"s2:datastrip_id": None})
    assert read_item(item, ITEM_URL).sensing == ""
    item["properties"][name] = "S2A_OPER_MSI_L2A_DS_2APS_20240308T143352_S20240308T101546_N05.10"
    assert read_item(item, ITEM_URL).sensing == "20240308T101546"


# ------------------------------------------------------------------------------------------------------- the document


def asset_table():
    """Return the table of asset keys, as the page has it."""
    bands = ("red", "rededge1", "scl")
    rows = [
        f"| {catalogues} | {' | '.join(f'`{asset_keys(band)[n]}`' for band in bands)} |"
        for n, catalogues in enumerate(ASSET_KEYS.values())
    ]
    head = "| keys of | band of 10 m | band of 20 m | scene classification |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def test_the_page_lists_the_keys_of_assets():
    assert asset_table() in PAGE


def test_the_page_names_every_band_in_both_spellings():
    for band, name in ASSET_NAMES.items():
        assert f"`{band}` (`{name}`)" in PAGE


@pytest.mark.parametrize("fact", [fact for fact in PROPERTIES if fact != "product type"])
def test_the_page_lists_the_names_of_properties_in_their_order(fact):
    (row,) = re.findall(rf"^\| {re.escape(fact)} \| (.*) \|$", PAGE, re.MULTILINE)
    assert [name for name in re.findall(r"`([^`]+)`", row) if name in PROPERTIES[fact]] == list(PROPERTIES[fact])


def test_the_page_lists_the_properties_that_tell_another_product():
    for name in PROPERTIES["product type"]:
        assert f"`{name}`" in PAGE
