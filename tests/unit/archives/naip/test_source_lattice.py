"""NAIP scenes on the UTM lattice: the same chips in every year, notes about resampling, and scenes off the grid."""

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.errors import ConfigError
from kiln.formats.records import Chip, Dropped
from tests.support.naip_scenes import (
    CHIP_SIZE,
    COLOURS,
    GRID_CORNER,
    KEY,
    OTHER_KEY,
    comparable,
    make_source,
    read_chips,
    read_dropped,
    read_events,
    scene_pixels,
    write_scene,
)

NEXT_YEAR_KEY = KEY.replace("2019", "2021")


def on_lattice(root, *keys, max_nodata=0.0, **more):
    return make_source(root, *keys, max_nodata=max_nodata, lattice="utm", **more)


def position(chip):
    return chip.col, chip.row, chip.x0, chip.y0, chip.pixel_size, chip.crs, chip.center, chip.footprint.wkb


def test_the_same_ground_is_the_same_chip_in_every_year_resolution_and_neighbouring_scene(tmp_path):
    west, north = GRID_CORNER
    for key, place, size in (
        (KEY, from_origin(west - 7, north + 9, 1, 1), (70, 80)),
        (NEXT_YEAR_KEY, from_origin(west - 20.3, north + 12.1, 0.6, 0.6), (120, 140)),
        (KEY.replace("63_se", "63_sw"), from_origin(west - 4, north + 30, 1, 1), (66, 90)),
    ):
        write_scene(tmp_path, key, scene_pixels(*size), transform=place)
    scenes = {}
    for chip in read_chips(on_lattice(tmp_path, KEY, NEXT_YEAR_KEY, KEY.replace("63_se", "63_sw"))):
        scenes.setdefault(chip.unit_id, {})[chip.col, chip.row] = chip
    first, *others = scenes.values()
    both = set(first).intersection(*others)
    assert len(both) >= 6
    for place in both:
        assert {position(s[place]) for s in others} == {position(first[place])}
        assert len({s[place].chip_id for s in scenes.values()}) == 3
    chip = first[31_250, 325_499]
    assert (chip.x0, chip.y0, chip.pixel_size, chip.crs) == (west, north, 1.0, "EPSG:26914")
    assert chip.chip_id == "naip:utm14:1.0:31250:325499:nd:2019:m_4709963_se_14_1_20190904"
    assert chip.unit_id == "naip:nd:2019:m_4709963_se_14_1_20190904"


def test_chips_on_the_grid_equal_a_windowed_read_of_the_file(tmp_path):
    west, north = GRID_CORNER
    path = write_scene(tmp_path, KEY, scene_pixels(70, 80), transform=from_origin(west - 7, north + 9, 1, 1))
    chips = read_chips(on_lattice(tmp_path))
    assert {(c.col - 31_250, c.row - 325_500) for c in chips} == {(c, -r) for c in range(4) for r in (1, 2, 3)}
    with rasterio.open(path) as file:
        for chip in chips:
            window = rasterio.windows.from_bounds(
                chip.x0, chip.y0 - CHIP_SIZE, chip.x0 + CHIP_SIZE, chip.y0, file.transform
            ).round()
            assert np.array_equal(chip.pixels, file.read(window=window))
            to_degrees = pyproj.Transformer.from_crs(26914, 4326, always_xy=True).transform
            assert chip.center == pytest.approx(to_degrees(chip.x0 + 8, chip.y0 - 8), abs=1e-9)


def test_cells_that_a_scene_barely_touches_are_expected_and_skipped_as_nodata(tmp_path):
    west, north = GRID_CORNER
    write_scene(tmp_path, KEY, scene_pixels(20, 36), transform=from_origin(west - 4, north, 1, 1))
    opened, *rest = read_events(on_lattice(tmp_path))
    assert (opened.expected, opened.notes) == (6, ())
    assert sum(isinstance(e, Chip) for e in rest) == 2
    assert read_dropped(on_lattice(tmp_path)) == [(opened.unit_id, "nodata", 1, "more nodata than max_nodata")] * 4
    graze = {c.col - 31_250: c.nodata_fraction for c in read_chips(on_lattice(tmp_path, max_nodata=0.75))}
    assert graze == {-1: 0.75, 0: 0.75, 1: 0.75}
    (unit,) = on_lattice(tmp_path).units()
    assert (unit.expected, unit.expected_known) == (ChipCounts(CHIP_SIZE, "utm").about(parse_key(KEY)), False)


@pytest.mark.parametrize(
    ("profile", "notes"),
    [
        ({}, ()),
        ({"crs": "EPSG:32614"}, ("resampled from 1 m in EPSG:32614 (bilinear)",)),
        ({"transform": from_origin(5e5, 5.2e6, 0.6, 0.6)}, NOTED := ("pixels of 0.6 m, expected 1 m from the key",)),
        ({"crs": "EPSG:26913"}, ("in UTM zone 13, expected 14 from the key",)),
    ],
)
def test_resampling_and_an_unexpected_zone_are_noted(tmp_path, profile, notes):
    write_scene(tmp_path, KEY, scene_pixels(), **profile)
    resampled = ("resampled from 0.6 m (average)",) if notes is NOTED else ()
    assert read_events(on_lattice(tmp_path))[0].notes == (*notes, *resampled)


@pytest.mark.parametrize("height", [0.6012, 0.606, 0.594])
def test_pixels_up_to_a_hundredth_off_square_are_resampled(tmp_path, height):
    pixels = np.full((4, 200, 200), 90, np.uint8)
    place = from_origin(*GRID_CORNER, 0.6, height)
    write_scene(tmp_path, KEY.replace("100cm", "060cm"), pixels, transform=place)
    opened, *rest = read_events(on_lattice(tmp_path, KEY.replace("100cm", "060cm")))
    assert opened.notes == (f"resampled from 0.6 x {height:g} m (average)",)
    chips = [event for event in rest if isinstance(event, Chip)]
    assert len(chips) == (120 // CHIP_SIZE) * (int(200 * height) // CHIP_SIZE)
    assert all((chip.pixels == 90).all() and chip.pixel_size == 1.0 for chip in chips)


@pytest.mark.parametrize(("unit", "metres"), [("us-ft", 1200 / 3937), ("ft", 0.3048)])
def test_a_scene_in_feet_becomes_one_in_metres(tmp_path, unit, metres):
    size, (east, north) = 1 / metres, GRID_CORNER
    crs = f"+proj=utm +zone=14 +datum=NAD83 +units={unit} +type=crs"
    transform = from_origin(east * size, north * size, size, size)
    pixels = scene_pixels(64, 64)
    write_scene(tmp_path, KEY, pixels, crs=crs, transform=transform)
    opened, *rest = read_events(on_lattice(tmp_path))
    chips = [event for event in rest if isinstance(event, Chip)]
    assert opened.notes == ("resampled from 1 m in unknown (bilinear)",), "no note: the key states 1 m too"
    assert {(chip.crs, chip.pixel_size) for chip in chips} == {("EPSG:26914", 1.0)}
    assert len(chips) == 16
    for chip in chips:
        x, y = round(chip.x0 - east), round(north - chip.y0)
        assert np.array_equal(chip.pixels, pixels[:, y : y + CHIP_SIZE, x : x + CHIP_SIZE])


def test_a_file_in_another_zone_than_its_key_is_on_the_grid_of_its_own_zone(tmp_path):
    path = write_scene(tmp_path, KEY, scene_pixels(64, 64), crs="EPSG:26913")
    chips = read_chips(on_lattice(tmp_path))
    assert {c.crs for c in chips} == {"EPSG:26913"}
    assert {c.chip_id[:15] for c in chips} == {"naip:utm13:1.0:"}
    assert all(c.x0 == c.col * CHIP_SIZE and c.y0 == (c.row + 1) * CHIP_SIZE for c in chips)
    with rasterio.open(path) as file:
        extent = shapely.box(*rasterio.warp.transform_bounds(file.crs, 4326, *file.bounds)).buffer(1e-5)
    assert all(extent.contains(c.footprint) for c in chips)


def test_a_file_that_is_not_in_utm_is_on_the_grid_of_its_keys_zone(tmp_path):
    place = pyproj.Transformer.from_crs(26914, 5070, always_xy=True).transform(*GRID_CORNER)
    write_scene(tmp_path, KEY, scene_pixels(128, 128), crs="EPSG:5070", transform=from_origin(*place, 1, 1))
    opened, *rest = read_events(on_lattice(tmp_path))
    chips = [e for e in rest if isinstance(e, Chip)]
    assert opened.notes == ("resampled from 1 m in EPSG:5070 (bilinear)",)
    assert {c.crs for c in chips} == {"EPSG:26914"}
    assert len(chips) > 30
    assert len(chips) + sum(e.count for e in rest if isinstance(e, Dropped)) == opened.expected


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"crs": "EPSG:32655"}, "NAD83, 1 to 23, got zone 55"),
        ({"crs": "EPSG:3857"}, "expected a scene near UTM zone 14"),
    ],
)
def test_a_file_outside_every_grid_fails_with_a_reason(tmp_path, profile, message):
    write_scene(tmp_path, KEY, scene_pixels(), **profile)
    (event,) = read_events(on_lattice(tmp_path))
    assert event.kind == "failed"
    assert event.reason.startswith(f"{tmp_path}/{KEY}: ")
    assert message in event.reason


def test_zeros_in_a_band_tagged_alpha_remove_no_chip_when_resampled(tmp_path):
    pixels = scene_pixels(80, 80)
    pixels[3] = 0
    place = from_origin(*GRID_CORNER, 0.6, 0.6)
    path = write_scene(tmp_path, KEY, pixels, (*COLOURS, ColorInterp.alpha), transform=place)
    with rasterio.open(path) as file:
        assert not file.dataset_mask().any()
    chips = read_chips(on_lattice(tmp_path))
    assert len(chips) == 9
    assert all(c.pixels[:3].all() and not c.pixels[3].any() for c in chips)


def test_lattice_chips_over_http_equal_local_ones(tmp_path, scene_server):
    local_chips = read_chips(on_lattice(tmp_path, KEY))
    assert local_chips
    assert [comparable(c) for c in read_chips(on_lattice(scene_server.url, KEY))] == [
        comparable(c) for c in local_chips
    ]


def test_the_real_scenes_of_two_years_share_their_chips(shared):
    if not shared:
        pytest.skip("no real scenes here")
    keys = [KEY, "nd/2014/100cm/rgbir_cog/47099/m_4709963_se_14_1_20140720.tif"]
    source = make_source(shared / "archive" / "naip-analytic", *keys, chip=64, lattice="utm", lattice_gsd=5.0)
    years = {}
    for chip in read_chips(source):
        years.setdefault(chip.extra["year"], {})[chip.col, chip.row] = chip
    both = set(years[2019]) & set(years[2014])
    assert len(both) > 100
    for place in both:
        assert position(years[2019][place]) == position(years[2014][place])


@pytest.mark.parametrize("key", [OTHER_KEY, "nc/2016/100cm/rgbir_cog/36078/m_3607824_se_17_1_20160620.tif"])
def test_the_real_scenes_of_a_metre_give_chips_of_the_grid(shared, key):
    if not shared:
        pytest.skip("no real scenes here")
    root = shared / "archive" / "naip-analytic"
    with rasterio.open(root / key) as file:
        left, top = file.transform.c, file.transform.f
        whole = file.read()
    chips = read_chips(make_source(root, key, chip=64, lattice="utm"))
    assert len(chips) > 6
    for chip in chips:
        x, y = int(chip.x0 - left), int(top - chip.y0)
        assert np.array_equal(chip.pixels, whole[:, y : y + 64, x : x + 64])


def test_aligned_edges_on_the_common_lattice_are_a_config_error():
    with pytest.raises(ConfigError, match="edge: expected drop"):
        make_source("/nowhere", lattice="utm", edge="align")
