"""STAC items of Sentinel-2: the fields of their three spellings, and documents that are not items."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from kiln.archives.sentinel2.item import Item, read_item
from kiln.archives.sentinel2.spellings import ASSET_NAMES
from kiln.errors import SourceError
from tests import ROOT
from tests.support.items import NAME
from tests.support.sentinel2_items import ASSET_HREFS, ITEM_URL, make_item, make_version


@pytest.mark.parametrize("style", ["v0", "v1", "c1"])
def test_the_three_spellings_give_the_same_item(style):
    item = read_item(make_item(style), ITEM_URL)
    assert (item.item_id, item.href, item.platform, item.baseline) == (NAME, ITEM_URL, "sentinel-2a", "02.14")
    assert (item.zone, item.band, item.square, item.epsg, item.cloud_cover) == (29, "R", "KH", 32629, 4.05)
    assert item.datetime == datetime(2020, 2, 19, 11, 34, 25, 405_000, tzinfo=UTC)
    assert (item.tile, item.partition, item.unit_id) == ("29RKH", "29R-2020-02", f"sentinel2:{NAME}")
    assert item.product == ("29RKH", "sentinel-2a", "2020-02-19")
    assert item.generation_time == "2020-02-19T12:39:47.000000+00:00"
    assert item.assets == ASSET_HREFS
    assert item.sensing == ("" if style == "v0" else "20200219T113105")
    assert item.sun_elevation == (None if style == "v0" else 48.25)


@pytest.mark.parametrize(
    ("style", "name", "flag"),
    [
        ("v0", "sentinel:boa_offset_applied", True),
        ("v0", "sentinel:boa_offset_applied", False),
        ("v1", "earthsearch:boa_offset_applied", True),
        ("v1", "earthsearch:boa_offset_applied", False),
        ("v1", "earthsearch:boa_offset_applied", None),
        ("c1", "another", True),
    ],
)
def test_the_offset_flag_is_read_under_both_names_and_none_if_missing(style, name, flag):
    item = read_item(make_item(style, **{name: flag}), ITEM_URL)
    assert item.offset_applied is (None if name == "another" else flag)


@pytest.mark.parametrize(
    ("style", "properties", "baseline"),
    [
        ("v0", {"sentinel:processing_baseline": "04.00"}, "04.00"),
        ("v0", {}, "02.14"),
        ("v0", {"sentinel:product_id": None}, ""),
        ("c1", {"s2:processing_baseline": "05.10"}, "05.10"),
        ("c1", {"s2:processing_baseline": None, "processing:version": "05.11"}, "05.11"),
        ("c1", {"s2:processing_baseline": None}, "02.14"),
        ("c1", {"s2:processing_baseline": "five", "s2:product_uri": None}, ""),
    ],
)
def test_the_baseline_is_a_property_or_part_of_the_product_name(style, properties, baseline):
    assert read_item(make_item(style, **properties), ITEM_URL).baseline == baseline


def test_jpeg_2000_assets_are_used_only_if_there_is_no_other():
    item = make_item("v1")
    item["assets"] |= {f"{b}-jp2": {"href": f"s3://other/{b}.jp2"} for b in ASSET_HREFS}
    del item["assets"]["swir16"], item["assets"]["scl"]
    assert read_item(item, ITEM_URL).assets == ASSET_HREFS | {
        "swir16": "s3://other/swir16.jp2",
        "scl": "s3://other/scl.jp2",
    }


@pytest.mark.parametrize("where", ["https://host/x", "s3://bucket/x", "/disk/x"])
def test_relative_hrefs_are_relative_to_the_item(where):
    item = make_item("v1")
    item["assets"]["blue"]["href"] = "./B02.tif"
    item["assets"]["green"]["href"] = "../y/B03.tif"
    assets = read_item(item, f"{where}/item.json").assets
    assert (assets["blue"], assets["green"]) == (f"{where}/B02.tif", f"{where[:-1]}y/B03.tif")


def test_an_item_with_missing_or_malformed_assets_is_read():
    item = make_item("v1")
    del item["assets"]["scl"]
    item["assets"] |= {"blue": "a string", "nir": {"href": None}, "swir22": {}}
    assert set(ASSET_HREFS) - set(read_item(item, ITEM_URL).assets) == {"scl", "blue", "nir", "swir22"}


@pytest.mark.parametrize("grid", [{"grid:code": "MGRS-1CCV"}, {"s2:mgrs_tile": "01CCV"}, {}])
def test_the_tile_is_read_from_any_property_or_the_name_and_has_two_digits(grid):
    item = make_item("v1", **{"grid:code": None} | {f"mgrs:{n}": None for n in ("utm_zone", "latitude_band")} | grid)
    item["id"] = "S2A_1CCV_20200219_0_L2A" if not grid else "anything"
    assert read_item(item, ITEM_URL).tile == "01CCV"
    assert read_item(item, ITEM_URL).partition == "01C-2020-02"


def test_tile_and_platform_are_read_from_a_collection_1_name():
    item = make_item("c1", **{"grid:code": None, "platform": None} | {f"mgrs:{n}": None for n in ("utm_zone",)})
    item["id"] = "S2B_T29RKH_20200219T113105_L2A"
    assert (read_item(item, ITEM_URL).tile, read_item(item, ITEM_URL).platform) == ("29RKH", "sentinel-2b")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"type": "Feature"', "not JSON"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page or XML"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page or XML"),
        (b"[]", "not a Feature (list)"),
        (b'{"type": "FeatureCollection", "features": []}', "not a Feature (FeatureCollection)"),
        (b'{"message": "not found"}', "not a Feature (no type)"),
        (b'{"type": "Feature", "properties": {}, "assets": {}}', "a Feature without id"),
        (b'{"type": "Feature", "id": "a", "assets": {}}', "a Feature without properties"),
        (b'{"type": "Feature", "id": "a", "properties": {}, "assets": []}', "a Feature without assets"),
        (json.dumps(make_item("v1", datetime=None)).encode(), "expected datetime"),
        (json.dumps(make_item("v1", datetime="yesterday")).encode(), "'yesterday'"),
        (json.dumps(make_item("v1", datetime=20200219)).encode(), "20200219"),
        (json.dumps(make_item("v1", datetime="0001-01-01T00:00:00+10:00")).encode(), "expected datetime"),
        (json.dumps(make_item("v1", datetime="2020-02-19 11:34:25 UTC")).encode(), "expected datetime"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_a_document_that_is_not_an_item_is_refused_with_a_reason(data, message):
    with pytest.raises(SourceError) as e:
        read_item(data, ITEM_URL)
    assert str(e.value).startswith(f"{ITEM_URL}: ")
    assert message in str(e.value)


@pytest.mark.parametrize(("gone", "field"), [("grid", "MGRS tile"), ("platform", "platform")])
def test_an_item_without_tile_or_platform_is_refused(gone, field):
    item = make_item("v1", **{"platform": None, "grid:code": None, "mgrs:utm_zone": None})
    item["id"] = "S2A_scene" if gone == "grid" else "a_29RKH_b"
    with pytest.raises(SourceError, match=f"expected an? {field}"):
        read_item(item, ITEM_URL)


def test_real_items_of_three_situations_are_read(shared):
    if not shared:
        pytest.skip("no real items here")
    items = [read_item(p.read_bytes(), str(p)) for p in sorted((shared / "archive" / "stac").glob("*.json"))]
    assert {i.item_id: (i.baseline, i.offset_applied, i.raster_offset) for i in items} == {
        "S2A_12RWT_20240106_0_L2A": ("05.10", True, -0.1),
        "S2A_33TWN_20220122_0_L2A": ("03.01", False, 0.0),
        "S2B_33TWN_20220226_0_L2A": ("04.00", False, -0.1),
    }
    assert [i.sensing for i in items] == ["20240106T180527", "20220122T095356", "20220226T095155"]
    assert all(len(i.assets) == 11 for i in items)


def test_items_import_no_heavy_packages():
    code = (
        "import sys, kiln.archives.sentinel2.item, kiln.archives.sentinel2.layout\n"
        "print({'numpy', 'rasterio', 'pyarrow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_items_are_comparable_and_hashable():
    assert len({make_version(), make_version(), make_version(baseline="05.00")}) == 2
    assert isinstance(make_version(), Item)


PRODUCT_ID = "S2A_MSIL2A_20190105T113431_N0211_R080_T29RKH_20190105T123456"


def cdse_item():
    """Return an item as the Copernicus Data Space spells it, with bands in several resolutions."""
    item = make_item("v1")
    hrefs = {band: item["assets"][band]["href"] for band in ASSET_NAMES}
    item["assets"] = {}
    for band, name in ASSET_NAMES.items():
        for metres in (10, 20, 60):
            own = metres == (20 if ASSET_NAMES[band] in ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL") else 10)
            item["assets"][f"{name}_{metres}m"] = {"href": hrefs[band] if own else f"s3://eodata/{name}_{metres}m.jp2"}
    return item


def test_bands_of_the_copernicus_data_space_are_taken_in_their_own_resolution():
    assert read_item(cdse_item(), ITEM_URL).assets == ASSET_HREFS


def test_a_baseline_may_stand_in_the_id_alone():
    item = make_item("v1")
    for name in ("s2:processing_baseline", "s2:product_uri", "processing:version"):
        item["properties"].pop(name, None)
    assert read_item(item, ITEM_URL).baseline == ""
    read = read_item({**item, "id": PRODUCT_ID}, ITEM_URL)
    assert (read.baseline, read.tile, read.platform) == ("02.11", "29RKH", "sentinel-2a")


def test_the_suns_elevation_follows_from_its_zenith():
    item = make_item("v1")
    del item["properties"]["view:sun_elevation"]
    item["properties"].pop("s2:mean_solar_zenith", None)
    assert read_item(item, ITEM_URL).sun_elevation is None
    item["properties"]["s2:mean_solar_zenith"] = 41.75
    assert read_item(item, ITEM_URL).sun_elevation == 48.25
    item["properties"]["view:sun_elevation"] = 50.0
    assert read_item(item, ITEM_URL).sun_elevation == 50


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2020-02-19T17:04:25+05:30", "2020-02-19T11:34:25"),
        ("2020-02-19T03:34:25.5-08:00", "2020-02-19T11:34:25.500000"),
        ("2020-02-20T01:00:00+05:30", "2020-02-19T19:30:00"),
        ("2020-02-19T11:34:25", "2020-02-19T11:34:25"),
        ("2020-02-19t11:34:25z", "2020-02-19T11:34:25"),
        ("2020-02-19 11:34:25Z", "2020-02-19T11:34:25"),
        ("2020-02-19T11:34:25.123456789Z", "2020-02-19T11:34:25.123456"),
        ("2020-02-19", "2020-02-19T00:00:00"),
    ],
)
def test_times_are_brought_to_utc_and_one_without_zone_is_utc(text, instant):
    item = {**make_item("v1", datetime=text), "id": "scene_29RKH"}
    read = read_item(item, ITEM_URL)
    assert read.datetime.isoformat() == f"{instant}+00:00"
    assert f"{read.day}" == "2020-02-19"
    item["properties"]["s2:generation_time"] = text
    assert read_item(item, ITEM_URL).generation_time.startswith(instant)


def spanned(first, last):
    return make_item("v1", datetime=None) | {"id": "scene_29RKH"}, {"start_datetime": first, "end_datetime": last}


def test_an_item_whose_datetime_is_null_has_its_first_instant():
    item, span = spanned("2020-02-19T13:34:25+02:00", "2020-02-19T11:34:39Z")
    item["properties"] |= span
    for properties in (item["properties"], item["properties"] | {"datetime": None}):
        read = read_item(item | {"properties": properties}, ITEM_URL)
        assert read.datetime.isoformat() == "2020-02-19T11:34:25+00:00"
    properties = item["properties"] | {"datetime": "2020-02-19T11:34:30Z"}
    assert read_item(item | {"properties": properties}, ITEM_URL).datetime.second == 30


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (
            "2020-02-01T00:00:00Z",
            "2020-03-01T00:00:00Z",
            "of one acquisition, got none, and a span from 2020-02-01 00:0",
        ),
        (
            "2020-02-19T11:00:00Z",
            "2020-02-19T10:00:00Z",
            "of one acquisition, got none, and a span from 2020-02-19 11:0",
        ),
        ("9999-12-31T23:00:00Z", "2020-02-19T10:00:00Z", "of one acquisition, got none"),
        ("2020-02-19T11:00:00Z", "later", "expected end_datetime, got 'later'"),
        ("2020-02-19T11:00:00Z", None, "expected datetime, got None"),
    ],
)
def test_a_composite_or_a_span_without_an_end_is_refused(first, last, message):
    item, span = spanned(first, last)
    item["properties"] |= span
    with pytest.raises(SourceError, match=message):
        read_item(item, ITEM_URL)


@pytest.mark.parametrize("text", ["05.10", "0510", "N0510", "N05.10"])
def test_a_baseline_is_known_in_every_spelling(text):
    assert read_item(make_item("v1", **{"s2:processing_baseline": text}), ITEM_URL).baseline == "05.10"


@pytest.mark.parametrize("text", ["sentinel-2a", "Sentinel-2A", "SENTINEL-2A", "Sentinel 2A", "S2A", "sentinel_2_a"])
def test_a_platform_is_known_in_every_spelling(text):
    assert read_item(make_item("v1", platform=text), ITEM_URL).platform == "sentinel-2a"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", f"1{'0' * 400}", "true", '"48.2"'])
def test_a_number_that_is_none_is_unknown(text):
    item = json.dumps(make_item("v1", **{"view:sun_elevation": "X", "eo:cloud_cover": "X"})).replace('"X"', text)
    read = read_item(item.encode(), ITEM_URL)
    assert (read.sun_elevation, read.cloud_cover) == (None, None)
