"""Names and addresses of Sentinel-2 items, footprints of their tiles, and filters of items."""

import json

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import shape

from kiln.archives.sentinel2 import item_name
from kiln.archives.sentinel2.item_name import ItemFilter, footprint, locate, parse_name
from tests.support.inventories import FOLDER, item_id


def test_an_id_is_parsed_to_platform_tile_and_day():
    name = parse_name("S2A_29RKH_20200219_0_L2A")
    assert (name.platform, name.tile, name.partition, name.day) == ("S2A", "29RKH", "29R-2020-02", 19)
    assert name.path == "29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json"
    collection1 = parse_name("S2B_T05QKB_20230415T084353_L2A")
    assert (collection1.tile, collection1.partition) == ("05QKB", "05Q-2023-04")
    assert collection1.path.startswith("5/Q/KB/2023/4/")
    assert parse_name("S2C_1WCP_20250131_12_L2A").tile == "01WCP"


@pytest.mark.parametrize(
    "name",
    [
        *("", "29RKH", "S2A_29RKH_20200219_0_L1C", "S2E_29RKH_20200219_0_L2A", "S2A_61RKH_20200219_0_L2A"),
        *(
            "S2A_0RKH_20200219_0_L2A",
            "S2A_29IKH_20200219_0_L2A",
            "S2A_29RKH_20201319_0_L2A",
            "s2a_29rkh_20200219_0_l2a",
        ),
        *("S2A_29RAH_20200219_0_L2A", "S2A_29RKW_20200219_0_L2A", "S2A_29RKH_20200200_0_L2A"),
    ],
)
def test_any_other_id_is_none(name):
    assert parse_name(name) is None


@pytest.mark.parametrize("root", ["", FOLDER, "s3://sentinel-cogs/" + FOLDER, "/data/x/", "http://h/y/"])
def test_an_address_in_the_layout_is_located_as_root_and_name(root):
    name = parse_name(item_id(1))
    assert locate(root + name.path) == (root, name)


@pytest.mark.parametrize(
    "path",
    [
        "29/R/KH/2020/02/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        "29/R/KH/2020/3/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        "30/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        "2019/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        "x29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        "29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/B02.tif",
    ],
)
def test_an_address_outside_the_layout_is_none(path):
    assert locate(FOLDER + path) is None


def real_items(shared):
    if shared is None:
        pytest.skip("needs the folder of real items")
    paths = [*(shared / "archive" / "stac").glob("*.json"), *(shared / "archive" / "sentinel-cogs").rglob("*.json")]
    assert len(paths) == 4
    return [json.loads(p.read_text()) for p in paths]


def test_footprints_of_real_items_lie_in_their_tiles_and_full_ones_fill_them(shared):
    for item in real_items(shared):
        tile, real = footprint(parse_name(item["id"]).tile), shape(item["geometry"])
        assert real.difference(tile).area < 1e-6 * tile.area
        if item["properties"]["s2:nodata_pixel_percentage"] == 0 and item["id"].startswith("S2A_29RKH"):
            assert real.area > 0.998 * tile.area


def test_canonical_links_of_real_items_match_their_names(shared):
    for item in real_items(shared):
        canonical = next(k["href"] for k in item["links"] if k["rel"] == "canonical")
        assert locate(canonical) == ("s3://sentinel-cogs/" + FOLDER, parse_name(item["id"]))


@pytest.mark.parametrize(
    ("tile", "lon", "lat"),
    [
        ("31UFT", 5.387, 52.155),  # Amersfoort
        ("10SEG", -122.42, 37.77),  # San Francisco
        ("56HLH", 151.21, -33.87),  # Sydney
        ("33XWG", 15.63, 78.22),  # Longyearbyen
        ("32VNM", 10.75, 59.91),  # Oslo, in the wide zone
        ("60KXF", 178.44, -18.14),  # Suva
        ("01KAB", 179.9, -16.8),  # beyond the antimeridian
    ],
)
def test_places_lie_in_their_tiles(tile, lon, lat):
    point = shapely.Point(lon, lat).buffer(0.001)
    assert ItemFilter(region=point).matches(parse_name(item_id(1, tile)))
    assert not ItemFilter(region=shapely.Point(lon + 5, lat).buffer(0.001)).matches(parse_name(item_id(1, tile)))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.floats(-79.9, 83.9), st.floats(-2.9, 2.9))
def test_any_point_lies_in_its_tile_of_the_grid(zone, lat, east_of_centre):
    lon = 6 * zone - 183 + east_of_centre
    south = lat < 0
    transformer = Transformer.from_crs(4326, (32700 if south else 32600) + zone, always_xy=True)
    east, north = transformer.transform(lon, lat)
    column = item_name.SQUARE_COLUMNS[zone % 3][int(east // 100_000) - 1]
    letter = item_name.SQUARE_ROWS[(int(north // 100_000) + 5 * (zone % 2 == 0)) % 20]
    band = item_name.LATITUDE_BANDS[min(19, int((lat + 80) // 8))]
    tile = footprint(f"{zone:02d}{band}{column}{letter}")
    assert tile.contains(shapely.Point(lon, lat))
    assert tile.bounds[3] - tile.bounds[1] < 6


def test_a_region_across_the_antimeridian_matches_tiles_on_both_sides():
    across = shapely.union_all([shapely.box(179.5, -19, 180, -16), shapely.box(-180, -19, -179.5, -16)])
    for tile, taken in {"60KYF": True, "01KAB": True, "60KXF": False, "01KCB": False, "31NAA": False}.items():
        assert ItemFilter(region=across).matches(parse_name(item_id(1, tile))) is taken, tile


@pytest.mark.parametrize(
    ("keep", "taken"),
    [
        (ItemFilter(years=frozenset({2020})), True),
        (ItemFilter(years=frozenset({2019, 2021})), False),
        (ItemFilter(months=frozenset({2})), True),
        (ItemFilter(months=frozenset({1, 3})), False),
        (ItemFilter(tiles=("29RKH",)), True),
        (ItemFilter(tiles=("30", "29R")), True),
        (ItemFilter(tiles=("29S", "29RKJ")), False),
        (ItemFilter(days=(20200202, 20200202)), True),
        (ItemFilter(days=(20200203, 20201231)), False),
        (ItemFilter(region=shapely.box(-11.5, 24.5, -11.4, 24.6)), True),
        (ItemFilter(region=shapely.box(-10.8, 24.5, -10.7, 24.6)), False),
        (ItemFilter(years=frozenset({2020}), tiles=("30",)), False),
    ],
)
def test_an_item_matches_if_every_filter_matches(keep, taken):
    assert keep.matches(parse_name("S2A_29RKH_20200202_0_L2A")) is taken
