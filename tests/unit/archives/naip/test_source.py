"""NAIP scenes: pixels and places of chips, nodata, and reads in strips."""

import itertools
import weakref

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from kiln.archives import raster_reading
from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.source import NaipSource
from kiln.engine.read_ahead import read_ahead
from kiln.formats.records import Opened
from tests.support.naip_scenes import (
    CHIP_SIZE,
    COLOURS,
    GRID_CORNER,
    KEY,
    OTHER_KEY,
    UNDATED,
    comparable,
    make_source,
    read_chips,
    read_dropped,
    read_events,
    scene_pixels,
    write_scene,
)

# ----------------------------------------------------------------------------------------------- chips and their places


@pytest.mark.parametrize(
    ("edge", "height", "width", "rows", "cols"),
    [
        ("drop", 40, 56, [0, 16], [0, 16, 32]),
        ("align", 40, 56, [0, 16, 24], [0, 16, 32, 40]),
        ("align", 32, 48, [0, 16], [0, 16, 32]),
        ("align", 33, 47, [0, 16, 17], [0, 16, 31]),
        ("drop", 16, 31, [0], [0]),
        ("align", 16, 17, [0], [0, 1]),
    ],
)
def test_chips_from_the_top_left_equal_a_windowed_read_of_the_file(tmp_path, edge, height, width, rows, cols):
    path = write_scene(tmp_path, KEY, scene_pixels(height, width))
    chips = read_chips(make_source(tmp_path, edge=edge))
    unit = "naip:nd:2019:m_4709963_se_14_1_20190904"
    places = [(y, x, r, c) for r, y in enumerate(rows) for c, x in enumerate(cols)]
    assert [c.chip_id for c in chips] == [f"{unit}:{c}:{r}" for _, _, r, c in places]
    with rasterio.open(path) as file:
        for chip, (y, x, row, col) in zip(chips, places, strict=True):
            assert np.array_equal(chip.pixels, file.read(window=Window(x, y, CHIP_SIZE, CHIP_SIZE)))
            assert (chip.col, chip.row) == (col, row)
            assert (chip.x0, chip.y0) == file.xy(y, x, offset="ul")


@pytest.mark.parametrize("gsd", [0.5, 0.6, 1.0, 5.0])
@pytest.mark.parametrize("epsg", [26910, 26914, 26919])
def test_footprints_and_centres_follow_the_files_own_transform_and_crs(tmp_path, gsd, epsg):
    transform = from_origin(612_345.25, 4_207_739.5, gsd, gsd)
    path = write_scene(tmp_path, KEY, scene_pixels(), crs=f"EPSG:{epsg}", transform=transform)
    chips = read_chips(make_source(tmp_path, edge="align"))
    assert len(chips) == 12
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    with rasterio.open(path) as file:
        for chip in chips:
            row, col = file.index(chip.x0 + gsd / 2, chip.y0 - gsd / 2)
            corners = [(row, col), (row + CHIP_SIZE, col), (row + CHIP_SIZE, col + CHIP_SIZE), (row, col + CHIP_SIZE)]
            ring = [to_degrees(*file.xy(r, c, offset="ul")) for r, c in corners]
            np.testing.assert_allclose(shapely.get_coordinates(chip.footprint)[:4], ring, rtol=0, atol=1e-10)
            assert chip.footprint.exterior.is_ccw
            middle = to_degrees(*file.xy(row + CHIP_SIZE / 2, col + CHIP_SIZE / 2, offset="ul"))
            assert chip.center == pytest.approx(middle, abs=1e-10)
            assert (chip.crs, chip.pixel_size) == (f"EPSG:{epsg}", pytest.approx(gsd))


def test_a_chip_has_its_scene_state_year_and_day(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(16, 16))
    (chip,) = read_chips(make_source(tmp_path))
    assert (chip.unit_id, chip.item_id) == (
        "naip:nd:2019:m_4709963_se_14_1_20190904",
        "m_4709963_se_14_1_20190904",
    )
    assert chip.extra == {"state": "nd", "year": 2019}
    assert chip.datetime.isoformat() == "2019-09-04T00:00:00+00:00"
    assert (chip.source, chip.sources) == (f"{tmp_path}/{KEY}", (f"{tmp_path}/{KEY}",))
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0, None)


def test_a_name_that_occurs_in_two_states_gives_different_ids(tmp_path):
    twice = [KEY, KEY.replace("nd/", "mn/"), KEY.replace("2019/", "2020/")]
    for key in twice:
        write_scene(tmp_path, key, scene_pixels())
    ids = [c.chip_id for c in read_chips(make_source(tmp_path, *twice, edge="align"))]
    assert len(ids) == len(set(ids)) == 36


@pytest.mark.parametrize(("gsd", "noted"), [(1.0, False), (1.19, False), (0.81, False), (1.25, True), (0.6, True)])
def test_the_pixel_size_of_the_file_overrides_that_of_the_key_with_a_note(tmp_path, gsd, noted):
    write_scene(tmp_path, KEY, scene_pixels(16, 16), transform=from_origin(0, 5e6, gsd, gsd), crs="EPSG:26914")
    opened, chip = read_events(make_source(tmp_path))
    assert chip.pixel_size == pytest.approx(gsd)
    assert opened.notes == ((f"pixels of {gsd:g} m, expected 1 m from the key",) if noted else ())


def test_an_opened_scene_has_its_number_of_chips(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(40, 56))
    source = make_source(tmp_path)
    opened = read_events(source)[0]
    (unit,) = source.units()
    assert (unit.expected, unit.expected_known) == (ChipCounts(CHIP_SIZE).about(parse_key(KEY)), False)
    assert opened == Opened(unit.unit_id, 6, "", ())


def test_a_scene_without_a_date_has_no_datetime_and_a_note(tmp_path):
    write_scene(tmp_path, UNDATED, scene_pixels(16, 16))
    opened, chip = read_events(make_source(tmp_path, UNDATED))
    assert chip.datetime is None
    assert opened.notes == ("no date in the name",)


def test_a_scene_smaller_than_a_chip_expects_none_and_has_a_reason(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(15, 40))
    opened, *rest = read_events(make_source(tmp_path, edge="align"))
    assert opened.expected == 0
    assert [(d.kind, d.count) for d in rest] == [("nodata", 0)]
    assert "smaller than a chip" in rest[0].reason


# --------------------------------------------------------------------------------------------------------------- nodata


def test_nodata_is_where_all_four_bands_are_zero(tmp_path):
    pixels = scene_pixels(16, 64)
    pixels[:, :, :2] = 0  # an eighth of the first chip
    pixels[:, 0, 16:28] = 0  # 12 of 256 pixels of the second: just within the limit
    pixels[:, 0, 32:45] = 0  # 13 of the third: just beyond
    pixels[:3, :, 48:] = 0  # three bands of the fourth are dark water
    write_scene(tmp_path, KEY, pixels, nodata=0)
    assert [(c.col, c.nodata_fraction) for c in read_chips(make_source(tmp_path))] == [(1, 12 / 256), (3, 0)]
    assert (
        read_dropped(make_source(tmp_path))
        == [(parse_key(KEY).unit_id, "nodata", 1, "more nodata than max_nodata")] * 2
    )


def test_an_empty_chip_is_dropped_regardless_of_the_limit(tmp_path):
    pixels = scene_pixels(16, 32)
    pixels[:, :, :16] = 0
    pixels[:, 1:, 16:] = 0
    write_scene(tmp_path, KEY, pixels)
    assert [c.col for c in read_chips(make_source(tmp_path, max_nodata=1.0))] == [1]


def test_zeros_in_a_band_tagged_alpha_remove_no_chip(tmp_path):
    pixels = scene_pixels(32, 32)
    pixels[3] = 0
    path = write_scene(tmp_path, KEY, pixels, (*COLOURS, ColorInterp.alpha))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
        assert not file.dataset_mask().any()  # a reader that trusts the mask would lose all pixels
    chips = read_chips(make_source(tmp_path))
    assert [c.nodata_fraction for c in chips] == [0] * 4
    assert np.array_equal(chips[3].pixels, pixels[:, 16:, 16:])


def test_a_real_scene_whose_band_4_is_tagged_alpha_gives_all_its_chips(shared):
    if not shared:
        pytest.skip("no real scenes here")
    path = shared / "archive" / "naip-analytic" / OTHER_KEY
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
        whole = file.read()
    chips = read_chips(make_source(shared / "archive" / "naip-analytic", OTHER_KEY, chip=64))
    assert len(chips) == (510 // 64) * (597 // 64)
    for chip in chips:
        assert np.array_equal(chip.pixels, whole[:, chip.row * 64 :, chip.col * 64 :][:, :64, :64])


# --------------------------------------------------------------------------------------------------------------- strips


@pytest.mark.parametrize("how", [{}, {"edge": "align"}, {"lattice": "utm"}, {"lattice": "utm", "lattice_gsd": 1.5}])
@pytest.mark.parametrize("blocks", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}, {"interleave": "band"}])
def test_strips_are_whole_blocks_read_once_and_give_the_chips_of_a_whole_read(tmp_path, monkeypatch, how, blocks):
    path = write_scene(tmp_path, KEY, scene_pixels(217, 80), transform=from_origin(*GRID_CORNER, 1, 1), **blocks)
    source = make_source(tmp_path, **how)
    whole = [comparable(c) for c in read_chips(source)]
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    strips = []
    load = NaipSource._load
    monkeypatch.setattr(NaipSource, "_load", lambda s, k, strip: strips.append(strip) or load(s, k, strip))
    assert [comparable(c) for c in read_chips(source)] == whole
    assert len(whole) >= 18
    with rasterio.open(path) as file:
        block, height = file.block_shapes[0][0], file.height
    strips.sort()
    assert len(strips) >= 3
    assert [s.first for s in strips] == list(range(0, len(strips) * block, block))
    assert all(s.last == n.first for s, n in itertools.pairwise(strips))
    assert strips[-1].last == (208 if how == {} else height)


@pytest.mark.parametrize("how", [{}, {"lattice": "utm", "lattice_gsd": 2.0}])
def test_strips_in_memory_stay_within_the_budget_and_the_rows_in_work(tmp_path, monkeypatch, how):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    write_scene(tmp_path, KEY, scene_pixels(1600, 64), transform=from_origin(*GRID_CORNER, 1, 1), blockysize=16)
    source = make_source(tmp_path, **how)
    source.check()
    strips, load = [], NaipSource._load

    def loaded(*args):
        pixels = load(*args)
        strips.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(NaipSource, "_load", loaded)
    peak = 0
    for event in source.chips(read_ahead(source.reads(), 2, 5 * 16 * 64 * 4)):
        del event
        peak = max(peak, sum(s() is not None for s in strips))
    assert len(strips) == 100
    assert peak <= 5 + 3 * (3 if how else 1)  # strips of the budget, and of the rows in work: three on a lattice
