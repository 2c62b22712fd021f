"""The grid of a UTM zone: the cells that a scene touches, and its pixels on the grid."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.windows import from_bounds

from kiln.archives import utm_grid
from kiln.archives.naip.layout import RESAMPLING, chip_lattice, chip_layout
from kiln.errors import ConfigError, SourceError
from tests.conftest import ROOT

CHIP = 16
GRID = utm_grid.UtmGrid(14, CHIP, 1.0)
HERE = GRID.crs
WEST, NORTH = 31_250 * CHIP, 325_500 * CHIP  # a corner of four cells


def random_pixels(height=40, width=56, seed=1):
    """[4, height, width] above 0."""
    return np.random.default_rng(seed).integers(1, 255, (4, height, width)).astype(np.uint8)


def at(west, north, size=1.0, height=None):
    """Return the transform of pixels of a size, which are `height` metres high if that is given."""
    return from_origin(WEST + west, NORTH + north, size, height or size)


def pixels_between(aligned, west, north, east, south):
    """The aligned pixels between edges in metres from the corner (WEST, NORTH)."""
    window = from_bounds(WEST + west, NORTH + south, WEST + east, NORTH + north, aligned.transform)
    x, y, w, h = (round(v) for v in (window.col_off, window.row_off, window.width, window.height))
    return aligned.pixels[:, y : y + h, x : x + w]


def align(pixels, transform, crs, grid, rows=None):
    """Align a scene to the grid and compute its pixels, `rows` at a time."""
    aligned = utm_grid.align(*pixels.shape[1:], transform, crs, grid)
    height = aligned.height

    def stretch(first, last):
        low, high = aligned.needs(first, last)

        def read(a, b):
            assert low <= a < b <= high
            return pixels[:, a:b]

        return aligned.image(first, last, read)

    rows_of_image = [stretch(a, min(a + (rows or height), height)) for a in range(0, height, rows or height)]
    return SimpleNamespace(**vars(aligned), pixels=np.concatenate(rows_of_image, axis=1))


def places(aligned):
    return {(c.col, c.row) for c in aligned.cells}


# ------------------------------------------------------------------------------------------------------------- the grid


def test_a_cell_is_counted_east_and_north_from_the_zones_origin():
    grid = utm_grid.UtmGrid(14, 256, 0.6)
    assert (grid.crs, grid.name) == ("EPSG:26914", "utm14:0.6")
    assert (grid.x0(0), grid.y0(-1)) == (0, 0)
    assert grid.x0(10) == pytest.approx(10 * 153.6)
    assert grid.y0(10) == pytest.approx(11 * 153.6)
    assert pyproj.CRS(utm_grid.UtmGrid(23, 256, 1).crs).name == "NAD83 / UTM zone 23N"
    assert pyproj.CRS(utm_grid.UtmGrid(1, 256, 1).crs).name == "NAD83 / UTM zone 1N"


@pytest.mark.parametrize(
    ("crs", "zone"),
    [("EPSG:26914", 14), ("EPSG:32614", 14), ("EPSG:6343", 14), ("EPSG:32702", 2), ("EPSG:5070", None)],
)
def test_the_zone_is_known_on_every_datum(crs, zone):
    assert utm_grid.zone_of(crs) == zone
    assert utm_grid.zone_of(rasterio.CRS.from_string(crs).to_wkt()) == zone


@settings(max_examples=60, deadline=None)
@given(
    west=st.floats(-50, 50),
    north=st.floats(-50, 50),
    size=st.sampled_from([0.3, 0.5, 0.6, 1.0, 1.7, 5.0]),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    gsd=st.sampled_from([0.6, 1.0, 2.0]),
)
def test_the_cells_of_a_scene_are_those_its_extent_touches(west, north, size, height, width, gsd):
    grid = utm_grid.UtmGrid(14, CHIP, gsd)
    side = CHIP * gsd
    transform = from_origin(west, north, size, size)
    aligned = align(random_pixels(height, width), transform, HERE, grid)
    low, high = np.array([west, north - height * size]), np.array([west + width * size, north])
    first, last = np.floor(low / side).astype(int) - 1, np.ceil(high / side).astype(int) + 1
    right = {
        (c, r)
        for c in range(first[0], last[0])
        for r in range(first[1], last[1])
        if min(high[0], (c + 1) * side) - max(low[0], c * side) > utm_grid.POSITION_TOLERANCE_PX * gsd
        and min(high[1], (r + 1) * side) - max(low[1], r * side) > utm_grid.POSITION_TOLERANCE_PX * gsd
    }
    assert places(aligned) == right
    for cell in aligned.cells:
        assert aligned.transform * (cell.x, cell.y) == pytest.approx((grid.x0(cell.col), grid.y0(cell.row)))
        assert aligned.pixels[:, cell.y :, cell.x :].shape[1] >= CHIP
        assert aligned.pixels[:, cell.y :, cell.x :].shape[2] >= CHIP


# --------------------------------------------------------------------------------------------------- pixels on the grid


@pytest.mark.parametrize("off", [0, 1e-4, -1e-4])
@pytest.mark.parametrize(("west", "north"), [(0, 0), (5, -3), (-20, 40)])
def test_pixels_on_the_grid_are_copied_and_the_rest_of_their_cells_is_nodata(west, north, off):
    pixels = random_pixels()
    aligned = align(pixels, at(west + off, north - off), HERE, GRID)
    assert aligned.resampling == ""
    assert np.array_equal(pixels_between(aligned, west, north, west + 56, north - 40), pixels)
    assert np.count_nonzero(aligned.pixels) == pixels.size
    assert len(aligned.cells) * CHIP**2 == aligned.pixels[0].size


def test_two_scenes_of_different_origins_agree_where_they_overlap():
    ground = random_pixels(80, 80)
    one = align(ground[:, :50, :50], at(3, -5), HERE, GRID)
    two = align(ground[:, 20:, 30:], at(33, -25), HERE, GRID)
    shared = places(one) & places(two)
    assert shared
    for cell in shared:
        a, b = (
            next(x.pixels[:, c.y : c.y + CHIP, c.x : c.x + CHIP] for c in x.cells if (c.col, c.row) == cell)
            for x in (one, two)
        )
        both = a.any(axis=0) & b.any(axis=0)
        assert np.array_equal(a[:, both], b[:, both])


# ----------------------------------------------------------------------------------------------------------- resampling


def test_pixels_of_half_a_metre_become_the_mean_of_their_four():
    pixels = random_pixels(80, 96)
    aligned = align(pixels, at(5, -3, 0.5), HERE, GRID)
    mean = pixels.reshape(4, 40, 2, 48, 2).mean(axis=(2, 4))
    assert aligned.resampling == "resampled from 0.5 m (average)"
    assert np.array_equal(pixels_between(aligned, 5, -3, 53, -43), np.rint(mean).astype(np.uint8))
    assert np.count_nonzero(aligned.pixels) == mean.size


def test_pixels_of_60_centimetres_are_weighted_by_their_overlap_with_a_metre():
    pixels = random_pixels(50, 50)
    aligned = align(pixels, at(0, 0, 0.6), HERE, GRID)
    fine = pixels.repeat(3, axis=1).repeat(3, axis=2)  # of 20 cm, a common divisor
    mean = fine.reshape(4, 30, 5, 30, 5).mean(axis=(2, 4))
    assert np.abs(pixels_between(aligned, 0, 0, 30, -30) - mean).max() <= 0.5 + 1e-4


def test_pixels_half_a_pixel_off_become_the_mean_of_their_neighbours():
    pixels = random_pixels(40, 40)
    aligned = align(pixels, at(0.5, -0.5), HERE, GRID)
    wide = pixels.astype(float)
    mean = (wide[:, :-1, :-1] + wide[:, 1:, :-1] + wide[:, :-1, 1:] + wide[:, 1:, 1:]) / 4
    assert aligned.resampling == "resampled from 1 m (bilinear)"
    assert np.array_equal(pixels_between(aligned, 1, -1, 40, -40), np.rint(mean).astype(np.uint8))


@pytest.mark.parametrize(("size", "west", "north"), [(5.0, 2.5, -1.5), (1.0, 0.3, 0.8), (0.6, 0.1, 0.4), (0.7, 3, 3)])
def test_a_scene_of_one_crs_is_resampled_as_gdal_does(size, west, north):
    pixels = random_pixels(40, 40)
    aligned = align(pixels, at(west, north, size), HERE, GRID)
    right = np.zeros(aligned.pixels.shape, np.float32)
    kernel = rasterio.warp.Resampling["average" if size < 1 else "bilinear"]
    rasterio.warp.reproject(
        pixels.astype(np.float32), right, src_transform=at(west, north, size), src_crs=HERE, tolerance=0,
        dst_transform=aligned.transform, dst_crs=HERE, resampling=kernel,
    )  # fmt: skip
    inner = slice(3, 20), slice(4, 21)
    x, y = (round(v) for v in ~aligned.transform * (WEST + west, NORTH + north))
    here = (slice(None), *(slice(s.start + o, s.stop + o) for s, o in zip(inner, (y, x), strict=True)))
    assert right[here].all()
    assert np.abs(aligned.pixels[here] - right[here]).max() <= 0.51


@pytest.mark.parametrize(("width", "height"), [(0.6, 0.6012), (0.6012, 0.6), (1.0, 1.01), (1.01, 1.0), (2.0, 1.99)])
def test_pixels_that_are_not_square_are_resampled_as_gdal_does(width, height):
    pixels, transform = random_pixels(60, 60), at(0.3, -0.2, width, height)
    aligned = align(pixels, transform, HERE, GRID)
    kernel = "average" if width < 0.99 else "bilinear"
    assert aligned.resampling == f"resampled from {width:g} x {height:g} m ({kernel})"
    right = np.zeros(aligned.pixels.shape, np.float32)
    rasterio.warp.reproject(
        pixels.astype(np.float32), right, src_transform=transform, src_crs=HERE, tolerance=0,
        dst_transform=aligned.transform, dst_crs=HERE, resampling=rasterio.warp.Resampling[kernel],
    )  # fmt: skip
    x, y = (round(v) for v in ~aligned.transform * (WEST + 0.3, NORTH - 0.2))
    inner = (slice(None), slice(y + 3, y + 30), slice(x + 3, x + 30))
    assert right[inner].all()
    assert np.abs(aligned.pixels[inner] - right[inner]).max() <= 0.51
    extent = (width * 60, height * 60)
    assert np.count_nonzero(aligned.pixels.any(axis=0)) == pytest.approx(extent[0] * extent[1], rel=0.05)


@pytest.mark.parametrize("crs", [HERE, "EPSG:32614", "EPSG:26913", "ESRI:102720"])  # the last in US survey feet
def test_pixels_that_are_not_square_come_to_their_place_from_any_crs(crs):
    metre = pyproj.CRS(crs).axis_info[0].unit_conversion_factor
    east, north = pyproj.Transformer.from_crs(HERE, crs, always_xy=True).transform(WEST, NORTH)
    transform = from_origin(east, north, 0.6 / metre, 0.606 / metre)
    pixels = np.rint(slope(transform, crs, 300, 350)).astype(np.uint8)
    aligned = align(pixels, transform, crs, GRID)
    assert aligned.resampling.startswith("resampled from 0.6 x 0.606 m")
    right, valid = slope(aligned.transform, HERE, *aligned.pixels.shape[1:]), aligned.pixels.any(axis=0)
    assert np.abs(aligned.pixels[:, valid] - right[:, valid]).max() < 0.8
    assert np.count_nonzero(valid) == pytest.approx(350 * 0.6 * 300 * 0.606, rel=0.01)


def test_pixels_that_are_square_within_the_tolerance_count_as_square():
    pixels = random_pixels()
    for size in (0.6, 1.0, 1.3):
        square, other = (align(pixels, at(0.5, 0.5, size, height), HERE, GRID) for height in (size, size * (1 + 5e-7)))
        assert np.array_equal(square.pixels, other.pixels)
        assert other.resampling == f"resampled from {size:g} m ({'average' if size < 1 else 'bilinear'})"


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(0, 300),
    y=st.floats(0, 300),
    size=st.sampled_from([0.5, 0.6, 0.9, 1.0, 2.5]),
    crs=st.sampled_from([HERE, "EPSG:32614"]),
)
def test_ground_of_one_colour_keeps_it_and_nodata_does_not_bleed_in(x, y, size, crs):
    pixels = np.zeros((4, 60, 60), np.uint8)
    pixels[:, 7:50, 11:53] = np.array([200, 3, 90, 1])[:, None, None]
    aligned = align(pixels, at(x, y, size), crs, GRID)
    valid = aligned.pixels.any(axis=0)
    assert {tuple(p) for p in aligned.pixels[:, valid].T.tolist()} == {(200, 3, 90, 1)}
    area = 43 * 42 * size**2
    assert abs(np.count_nonzero(valid) - area) < 2 * (43 + 42) * size + 4  # the same area, up to its border


def test_a_dark_pixel_stays_valid_and_zeros_in_one_band_remove_nothing():
    dark = np.zeros((4, 64, 64), np.uint8)
    dark[3, ::2, ::2] = 1  # a quarter of the pixels has the value 1: the mean rounds to 0
    dark[2, 1::2] = dark[2, :, 1::2] = 1
    dark[2, :32, :32] = 0
    dark[0, :32, :32] = 1
    aligned = align(dark, at(0, 0, 0.5), HERE, GRID)
    assert aligned.pixels.any(axis=0).all()
    alpha = random_pixels(64, 64)
    alpha[3] = 0
    resampled = align(alpha, at(0, 0, 0.5), HERE, GRID).pixels
    assert resampled[:3].all()
    assert not resampled[3].any()


@pytest.mark.parametrize(("valid", "mean"), [(4, 100), (3, 100), (2, 100), (1, 0)])
def test_a_pixel_is_the_mean_of_the_valid_ones_where_they_are_half_of_its_area(valid, mean):
    pixels = np.zeros((4, 4, 4), np.uint8)
    for y, x in [(0, 0), (0, 1), (1, 0), (1, 1)][:valid]:
        pixels[:, y, x] = 100
    assert align(pixels, at(0, 0, 0.5), HERE, GRID).pixels[:, 0, 0].tolist() == [mean] * 4


def test_a_valid_pixel_that_rounds_to_zero_becomes_one_in_the_first_band():
    pixels = np.zeros((4, 4, 4), np.uint8)
    for n, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        pixels[n, y, x] = 1  # four valid pixels, whose mean is a quarter in each band
    aligned = align(pixels, at(0, 0, 0.5), HERE, GRID)
    assert aligned.pixels[:, 0, 0].tolist() == [1, 0, 0, 0]
    assert np.count_nonzero(aligned.pixels) == 1


@pytest.mark.parametrize(
    ("crs", "size"),
    [(HERE, 1.0), (HERE, 0.6), (HERE, 2.5), ("EPSG:32614", 0.6), ("EPSG:5070", 2.0), ("EPSG:26913", 1.0)],
)
def test_rows_resampled_separately_equal_those_of_the_whole_image(monkeypatch, crs, size):
    pixels = random_pixels(330, 110)
    pixels[:, 40:60, 30:70] = 0
    west, north = pyproj.Transformer.from_crs(HERE, crs, always_xy=True).transform(WEST + 3.3, NORTH + 1.2)
    place = (from_origin(west, north, size, size), crs, GRID)
    whole = align(pixels, *place).pixels
    assert whole.any()
    apart = [align(pixels, *place, rows=CHIP).pixels]
    monkeypatch.setattr(utm_grid, "STRIPE_BYTES", 40_000)
    apart += [align(pixels, *place).pixels, align(pixels, *place, rows=CHIP).pixels]
    for other in apart:
        off = np.abs(other.astype(int) - whole)
        if crs in (HERE, "EPSG:32614"):
            assert not off.any()
        assert off.max() <= 1  # the last bits of a warp decide values halfway between two integers
        assert np.count_nonzero(off) < 1e-4 * off.size


# ----------------------------------------------------------------------------------------------------------- other CRSs


def test_wgs84_of_the_same_zone_is_the_same_ground():
    pixels = random_pixels()
    aligned = align(pixels, at(5, -3), "EPSG:32614", GRID)
    assert aligned.resampling == "resampled from 1 m in EPSG:32614 (bilinear)"
    assert np.array_equal(pixels_between(aligned, 5, -3, 61, -43), pixels)
    assert places(aligned) == places(align(pixels, at(5, -3), HERE, GRID))


def slope(transform, crs, height, width):
    """[4, height, width] whose first two bands are a pixel's x and y in the grid's zone, in steps of 10 m."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    east, north = transform * (x, y)
    east, north = pyproj.Transformer.from_crs(crs, HERE, always_xy=True).transform(east, north)
    return np.stack([(east - WEST) / 10 + 100, (north - NORTH) / 10 + 100, x * 0 + 50, x * 0 + 200])


@pytest.mark.parametrize("crs", ["EPSG:5070", "EPSG:26913", "EPSG:6343", "ESRI:102720"])
@pytest.mark.parametrize("size", [0.6, 1.0, 2.0])
def test_a_scene_in_another_crs_is_warped_to_its_place(crs, size):
    height, width = 300, 350
    metre = pyproj.CRS(crs).axis_info[0].unit_conversion_factor
    east, north = pyproj.Transformer.from_crs(HERE, crs, always_xy=True).transform(WEST, NORTH)
    transform = from_origin(east, north, size / metre, size / metre)
    pixels = np.rint(slope(transform, crs, height, width)).astype(np.uint8)
    aligned = align(pixels, transform, crs, GRID)
    assert f"from {size:g} m in {crs if crs.startswith('EPSG') else ''}" in aligned.resampling
    assert ("average" in aligned.resampling) == (size < 1)
    right = slope(aligned.transform, HERE, *aligned.pixels.shape[1:])
    valid = aligned.pixels.any(axis=0)
    assert np.abs(aligned.pixels[:, valid] - right[:, valid]).max() < 0.8  # 0.5 by rounding, then 0.1 per metre
    extent = shapely.Polygon(
        [
            pyproj.Transformer.from_crs(crs, HERE, always_xy=True).transform(*(transform * p))
            for p in ((0, 0), (width, 0), (width, height), (0, height))
        ]
    )
    assert np.count_nonzero(valid) == pytest.approx(extent.area, rel=0.01)
    boxes = {(c, r): shapely.box(c * CHIP, r * CHIP, (c + 1) * CHIP, (r + 1) * CHIP) for c, r in places(aligned)}
    assert all(extent.intersects(b) for b in boxes.values())
    assert extent.difference(shapely.union_all(list(boxes.values()))).area < 0.1  # slivers


def test_a_scene_far_from_its_zone_is_refused():
    for place in (from_origin(12_000_000, 3_000_000, 1, 1), from_origin(-9_000_000, 3_000_000, 1, 1)):
        with pytest.raises(SourceError, match="expected a scene near UTM zone 14"):
            align(random_pixels(), place, "EPSG:3857", GRID)


# ----------------------------------------------------------------------------------------------------------- the layout


def test_the_layout_of_the_scene_lattice_is_stable():
    assert chip_layout(256) == {"chip_size": 256, "lattice": "scene", "edge": "drop"}
    assert chip_layout(16, "scene", 0.6, "align") == {"chip_size": 16, "lattice": "scene", "edge": "align"}


def test_the_layout_of_the_common_lattice_contains_anchor_and_resampling():
    right = {"chip_size": 256, "lattice": "utm", "lattice_gsd": 1.0, "anchor": [0, 0], "resampling": RESAMPLING}
    assert chip_layout(256, "utm", 1) == chip_layout(256, "utm", 1.0) == right
    assert isinstance(chip_layout(256, "utm", 1)["lattice_gsd"], float)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((256, "utm", 1.0, "align"), "edge: expected drop with lattice utm"),
        ((256, "utm", 0.0), "got 0.0"),
        ((256, "utm", -1.0), "got -1.0"),
        ((256, "utm", float("nan")), "got nan"),
        ((250, "utm"), "multiple of the model's patch"),
        ((0, "scene"), "multiple of the model's patch"),
        ((256, "mgrs"), "expected scene or utm"),
        ((256, "scene", 1.0, "wrap"), "expected drop or align"),
    ],
)
def test_an_impossible_layout_is_a_config_error(args, message):
    with pytest.raises(ConfigError, match=message):
        chip_layout(*args)


@pytest.mark.parametrize(("lattice", "is_error"), [("utm", False), ("scene", True)])
def test_deduplicate_needs_the_common_lattice(lattice, is_error):
    section = {"chip_size": 256, "lattice": lattice, "lattice_gsd": 1.0, "edge": "drop", "deduplicate": True}
    if not is_error:
        assert chip_lattice(section) == chip_layout(256, "utm")
        return
    with pytest.raises(ConfigError, match=r"naip.deduplicate: expected lattice utm.*got scene"):
        chip_lattice(section)
    assert chip_lattice(section | {"deduplicate": False}) == chip_layout(256)


def test_the_layout_imports_no_heavy_packages():
    code = "import sys, kiln.archives.naip.layout; print({'numpy', 'rasterio', 'torch', 'pyproj'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_an_image_of_whole_cells_lies_on_the_grid():
    aligned = align(random_pixels(), at(5, -3, 0.6), HERE, GRID)
    assert aligned.transform == Affine(1, 0, WEST, 0, -1, NORTH)
