"""NAIP's keys: the fields of a name, the place of its quarter quadrangle, and names that are not scenes."""

from datetime import UTC, datetime

import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform_bounds

from kiln.archives.naip.keys import SceneKey, parse_key

PLAIN = "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif"


def at(quad, quarter, *, cm=100, prefix="m_"):
    """The scene of a quarter quadrangle."""
    scene = parse_key(f"tx/2014/{cm}cm/rgbir_cog/{quad[:5]}/{prefix}{quad}_{quarter}_14_1_20140101.tif")
    assert scene is not None
    return scene


# --------------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (PLAIN, ("nd", 2019, 100, "m_4709963_se_14_1_20190904", "4709963", "se", 14, "20190904", "")),
        (
            "nd/2018/60cm/rgbir_cog/48097/m_4809732_nw_14_060_20180901_20190211.tif",
            ("nd", 2018, 60, "m_4809732_nw_14_060_20180901_20190211", "4809732", "nw", 14, "20180901", "20190211"),
        ),
        (
            "id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif",
            ("id", 2015, 100, "m_4811716_se_11_1", "4811716", "se", 11, "", ""),
        ),
        (
            "id/2015/100cm/rgbir_cog/44112/4411233_nw_12_1.tif",
            ("id", 2015, 100, "4411233_nw_12_1", "4411233", "nw", 12, "", ""),
        ),
        (
            "ny/2015/50cm/rgbir_cog/44074/m_4407403_sw_18_h_20150523.tif",
            ("ny", 2015, 50, "m_4407403_sw_18_h_20150523", "4407403", "sw", 18, "20150523", ""),
        ),
        (
            "ca/2022/30cm/rgbir_cog/37122/m_3712230_ne_10_030_20220524_20221001.tif",
            ("ca", 2022, 30, "m_3712230_ne_10_030_20220524_20221001", "3712230", "ne", 10, "20220524", "20221001"),
        ),
        (  # acquired in the year after the path's: the path's year is the partition
            "tx/2016/100cm/rgbir_cog/26098/m_2609819_nw_14_1_20170104.tif",
            ("tx", 2016, 100, "m_2609819_nw_14_1_20170104", "2609819", "nw", 14, "20170104", ""),
        ),
    ],
    ids=["one date", "two dates, 060", "no date", "no date, no m_", "h", "030", "next year"],
)
def test_every_field_of_a_key_is_parsed(key, fields):
    assert parse_key(key) == SceneKey(key, *fields)


def test_a_partition_is_the_state_and_year_of_the_path_and_ids_carry_both():
    scene = parse_key("tx/2016/100cm/rgbir_cog/26098/m_2609819_nw_14_1_20170104.tif")
    assert scene.partition == "tx-2016"
    assert scene.unit_id == "naip:tx:2016:m_2609819_nw_14_1_20170104"
    assert scene.when == datetime(2017, 1, 4, tzinfo=UTC)


def test_the_acquisition_date_is_the_first_of_two_dates_and_none_without_a_date():
    two = parse_key("nd/2018/60cm/rgbir_cog/48097/m_4809732_nw_14_060_20180901_20190211.tif")
    assert two.when == datetime(2018, 9, 1, tzinfo=UTC)
    assert parse_key("id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif").when is None


def test_releases_of_one_scene_share_its_name_and_other_scenes_do_not():
    stem = "nd/2018/60cm/rgbir_cog/48097/m_4809732_nw_14_060_20180901"
    first, second = parse_key(f"{stem}.tif"), parse_key(f"{stem}_20190211.tif")
    assert first.scene == second.scene == "naip:nd:2018:m_4809732_nw_14_060_20180901"
    assert first.unit_id != second.unit_id
    others = [stem.replace("20180901", "20180902"), stem.replace("_nw_", "_ne_"), stem.replace("nd/", "sd/")]
    assert len({first.scene, *(parse_key(f"{o}_20190211.tif").scene for o in others)}) == 4


def test_a_key_without_a_date_keeps_its_whole_name_as_the_scene():
    assert parse_key("mt/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif").scene.endswith(":m_4811716_se_11_1")


@pytest.mark.parametrize(
    "key",
    [
        PLAIN.replace("20190904", "20190931"),
        PLAIN.replace("20190904", "20190229"),
        PLAIN.replace("20190904", "20191301"),
        PLAIN.replace("20190904", "20190001"),
        PLAIN.replace("20190904", "00000000"),
        PLAIN.replace("20190904", "19000101"),
        PLAIN.replace("20190904", "20190904_20191131"),
        PLAIN.replace("20190904", "20190904_20190905_20190906"),
        PLAIN.replace("20190904", "2019090"),
        PLAIN.replace("20190904", "2019090a"),
        PLAIN.replace("4709963", "4709900"),
        PLAIN.replace("4709963", "4709965"),
        PLAIN.replace("4709963", "4709999"),
        PLAIN.replace("4709963", "470996"),
        PLAIN.replace("4709963", "47099630"),
        PLAIN.replace("_se_", "_sx_"),
        PLAIN.replace("_se_", "_es_"),
        PLAIN.replace("_se_", "_SE_"),
        PLAIN.replace("_14_1_", "_14_2_"),
        PLAIN.replace("_14_1_", "_1_1_"),
        PLAIN.replace("m_", "n_"),
        PLAIN.replace("nd/2019", "ndx/2019"),
        PLAIN.replace("nd/2019", "nd/19"),
        PLAIN.replace("100cm", "1m"),
        PLAIN.replace("rgbir_cog", "rgbir"),
        PLAIN.replace("rgbir_cog", "rgb"),
        PLAIN.replace(".tif", ".tiff"),
        PLAIN.replace(".tif", ".tif.aux.xml"),
        PLAIN.replace(".tif", ""),
        f"s3://naip-analytic/{PLAIN}",
        f" {PLAIN}",
        f"{PLAIN}\n",
        f"{PLAIN}{PLAIN}",
        "",
        "manifest.txt",
    ],
)
def test_a_key_that_is_no_scene_or_has_an_impossible_date_or_quadrangle_is_none(key):
    assert parse_key(PLAIN) is not None
    assert parse_key(key) is None


@pytest.mark.parametrize("quad", ["9000001", "9909963", "4718001", "4799963"])
def test_a_quadrangle_beyond_the_globe_is_none(quad):
    assert parse_key(PLAIN.replace("4709963", quad).replace("47099", quad[:5])) is None


def test_digits_of_other_scripts_are_no_digits():
    assert parse_key(PLAIN.replace("2019/", "२०१९/")) is None


def test_the_29th_of_february_is_a_day_only_in_leap_years():
    assert parse_key(PLAIN.replace("20190904", "20200229")).when == datetime(2020, 2, 29, tzinfo=UTC)
    assert parse_key(PLAIN.replace("20190904", "20210229")) is None


@given(st.text(max_size=80) | st.text("nd/2019cmrgbi_47stf.", max_size=80))
def test_any_text_is_a_scene_or_none(text):
    scene = parse_key(text)
    assert scene is None or scene.key == text


# --------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("quad", "quarter", "west", "north"),
    [
        ("4709963", "se", -99.1875, 47.0625),  # row 7, column 6 of the degree 99-100 W, 47-48 N
        ("3607824", "se", -78.0625, 36.6875),  # row 2, column 7
        ("3707801", "ne", -78.9375, 38.0),  # the degree's north-west corner
        ("3707801", "nw", -79.0, 38.0),
        ("3707801", "sw", -79.0, 37.9375),
        ("3707801", "se", -78.9375, 37.9375),
        ("3008508", "ne", -85.0625, 31.0),  # end of the first row
        ("3008509", "nw", -86.0, 30.875),  # start of the second
        ("3008557", "sw", -86.0, 30.0625),  # start of the last
        ("3008564", "se", -85.0625, 30.0625),  # the degree's south-east corner
    ],
)
def test_the_corner_of_a_quarter_quadrangle_follows_from_its_name(quad, quarter, west, north):
    assert at(quad, quarter).corner == (west, north)
    assert at(quad, quarter, prefix="").corner == (west, north)


def test_bounds_are_the_quarter_quadrangle_and_300_metres_on_every_side():
    west, south, east, north = at("4709963", "se").bounds
    up, side = 300 / 111_195, 300 / 111_195 / 0.6812  # cos of 47.0625 degrees
    assert north == pytest.approx(47.0625 + up)
    assert south == pytest.approx(47.0 - up)
    assert west == pytest.approx(-99.1875 - side, abs=1e-6)
    assert east == pytest.approx(-99.125 + side, abs=1e-6)


def test_the_256_quarter_quadrangles_of_a_degree_tile_it_without_gap_or_overlap():
    corners = {at(f"30085{n:02d}", q).corner for n in range(1, 65) for q in ("nw", "ne", "sw", "se")}
    assert corners == {(-86 + c / 16, 31 - r / 16) for c in range(16) for r in range(16)}


def test_real_scenes_lie_within_the_bounds_of_their_keys_except_for_rotated_corners(shared):
    """A scene is a rectangle of its UTM zone, turned by up to 2.3 degrees against the meridian: 300 m at corners."""
    if shared is None:
        pytest.skip("needs the folder of real pixels")
    root = shared / "archive" / "naip-analytic"
    files = sorted(root.glob("*/*/*/rgbir_cog/*/*.tif"))
    assert len(files) == 4
    for file in files:
        west, south, east, north = parse_key(file.relative_to(root).as_posix()).bounds
        with rasterio.open(file) as scene:
            left, bottom, right, top = transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
        turned = 300 / 80_000, 300 / 111_195
        assert west - turned[0] <= left < right <= east + turned[0]
        assert south - turned[1] <= bottom < top <= north + turned[1]


# --------------------------------------------------------------------------------------------------------------- extent


@given(st.integers(24, 49), st.integers(66, 124), st.integers(1, 64), st.sampled_from(["nw", "ne", "sw", "se"]))
def test_the_extent_of_a_scene_is_that_of_its_padded_quadrangle_in_utm(lat, lon, eighth, quarter):
    scene = at(f"{lat}{lon:03d}{eighth:02d}", quarter)
    zone = int((180 - lon - 1) // 6) + 1
    scene = scene._replace(zone=zone)
    left, bottom, right, top = transform_bounds("EPSG:4326", f"EPSG:{26900 + zone}", *scene.bounds)
    assert scene.extent_m == pytest.approx((right - left, top - bottom), rel=1e-3)


def test_finer_pixels_are_more_bytes():
    size = {cm: at("3910001", "nw", cm=cm).pixel_bytes for cm in (30, 50, 60, 100)}
    assert size[50] == pytest.approx(4 * size[100], rel=1e-6)
    assert size[30] == pytest.approx(4 * size[60], rel=1e-6)


def test_a_wrong_zone_gives_a_plausible_extent():
    right, wrong = at("3910001", "nw"), at("3910001", "nw")._replace(zone=60)
    assert wrong.extent_m == pytest.approx(right.extent_m, rel=0.2)
