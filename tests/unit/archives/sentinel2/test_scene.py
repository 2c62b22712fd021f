"""Parts of a Sentinel-2 scene: the grid of chips, footprints, and the rule and evidence for the offset."""

import json

import numpy as np
import pyproj
import pytest
import shapely
from rasterio.transform import from_origin

from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.scene import (
    PASSES,
    TOO_CLOUDY,
    TOO_EMPTY,
    SceneGrid,
    count_in_blocks,
    cut_at_antimeridian,
    dark_fraction,
    judge_chips,
    offset_rule,
    repeat_pixels,
    sample_step,
    subtract,
)
from tests.support.items import CORNER
from tests.support.sentinel2_scenes import OFFSET_FLAG

# -------------------------------------------------------------------------------------------------- grid and footprints


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_coarse_pixels_are_repeated_and_fine_ones_counted(ratio):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 9000, (12, 20)).astype(np.uint16)
    fine = np.empty((12 * ratio, 20 * ratio), np.uint16)
    repeat_pixels(coarse, ratio, fine)
    assert np.array_equal(fine, coarse.repeat(ratio, 0).repeat(ratio, 1))
    scl_mask = rng.random(fine.shape) < 0.3
    want = scl_mask.reshape(12, ratio, 20, ratio).sum(axis=(1, 3))
    assert np.array_equal(count_in_blocks(scl_mask, ratio), want)


def test_a_chip_that_only_touches_the_antimeridian_is_one_polygon():
    ring = np.array([[179.9, 1.0], [179.9, 0.9], [-180.0, 0.9], [-180.0, 1.0]])
    shape = cut_at_antimeridian(ring)
    assert (shape.geom_type, shape.bounds) == ("Polygon", (179.9, 0.9, 180.0, 1.0))


def test_a_full_tile_has_42_by_42_chips_that_do_not_overlap(tmp_path):
    grid = SceneGrid(10_980, 10_980, from_origin(*CORNER, 10, 10), "EPSG:32629", 256)
    footprints, centers = grid.footprints()
    assert footprints.shape == centers.shape[:2] == (42, 42)
    assert len({tuple(c) for c in centers.reshape(-1, 2)}) == 42 * 42
    metres = shapely.transform(
        footprints.ravel(), pyproj.Transformer.from_crs(4326, 32629, always_xy=True).transform, interleaved=False
    )
    assert shapely.area(metres) == pytest.approx(2560**2)
    assert shapely.union_all(shapely.set_precision(metres, 0.001)).area == pytest.approx(42 * 42 * 2560**2)


# --------------------------------------------------------------------------------------------------------------- offset


@pytest.mark.parametrize(
    ("name", "flag", "subtracted", "notes"),
    [
        ("S2A_33TWN_20220122_0_L2A", "as it is", False, ("no_offset",)),
        ("S2B_33TWN_20220226_0_L2A", "as it is", True, ()),
        ("S2B_33TWN_20220226_0_L2A", None, True, ("offset_flag_missing",)),
        ("S2A_12RWT_20240106_0_L2A", "as it is", False, ("offset_applied_by_producer",)),
        ("S2A_12RWT_20240106_0_L2A", False, True, ()),
    ],
)
def test_the_offset_rule_of_real_items(shared, name, flag, subtracted, notes):
    if not shared:
        pytest.skip("no real items here")
    item = json.loads((shared / "archive" / "stac" / f"{name}.json").read_text())
    if flag != "as it is":
        item["properties"][OFFSET_FLAG] = flag
    assert offset_rule(read_item(item, name)) == (subtracted, notes)


@pytest.mark.parametrize("cls", range(12))
def test_only_clear_classes_are_evidence_about_the_offset(cls):
    dark = np.full((3, 8, 8), 500, np.uint16)
    assert dark_fraction(dark, np.full((4, 4), cls, np.uint8), 2, 1) == (cls in (2, 4, 5, 6, 7))


def test_a_pixel_is_dark_if_all_three_visible_bands_are_and_nodata_is_not_counted():
    visible = np.full((3, 2, 2), 500, np.uint16)
    visible[0, 0, 0] = 1500
    visible[:, 1, 1] = 0
    assert dark_fraction(visible, np.full((1, 1), 4, np.uint8), 2, 1) == 2 / 3
    assert dark_fraction(np.zeros((3, 2, 2), np.uint16), np.full((1, 1), 4, np.uint8), 2, 1) == 0


def test_a_sample_is_compared_with_the_class_at_its_place():
    scl = np.full((5490, 5490), 9, np.uint8)
    scl[:, :2745] = 4
    grid = SceneGrid(10_980, 10_980, from_origin(*CORNER, 10, 10), "EPSG:32629", 256)
    step = sample_step(grid)
    visible = np.full((3, 687, 687), 2000, np.uint16)
    visible[:, :, 344:] = 500
    assert (step, -(-10_980 // step)) == (16, 687)
    assert dark_fraction(visible, scl, 2, step) == 0


def test_subtraction_keeps_pixels_valid_and_nodata_as_nodata():
    before = np.array([0, 1, 999, 1000, 1001, 1002, 10_000, 65_535], np.uint16)
    assert subtract(before).tolist() == [0, 1, 1, 1, 1, 2, 9000, 64_535]
    assert subtract(before).dtype == np.uint16


# ------------------------------------------------------------------------------------------------------ classes of SCL


@pytest.mark.parametrize(
    ("empty", "cloudy", "max_nodata", "max_cloud", "verdict"),
    [
        (0, 8, 0.0, 0.5, PASSES),
        (0, 9, 0.0, 0.5, TOO_CLOUDY),
        (8, 4, 0.5, 0.5, PASSES),  # of the valid pixels, not of all
        (8, 5, 0.5, 0.5, TOO_CLOUDY),
        (8, 0, 0.5, 0.5, PASSES),  # as much as is allowed
        (9, 0, 0.5, 0.5, TOO_EMPTY),
        (9, 7, 0.5, 0.0, TOO_EMPTY),  # judged before clouds
        (16, 0, 1.0, 1.0, TOO_EMPTY),  # no valid pixel at all
    ],
)
def test_a_chip_passes_up_to_its_fractions_of_nodata_and_of_clouds(empty, cloudy, max_nodata, max_cloud, verdict):
    scl = np.full(16, 4, np.uint8)
    scl[:empty], scl[empty : empty + cloudy] = 0, 9
    grid = SceneGrid(8, 8, from_origin(*CORNER, 10, 10), "EPSG:32629", 8)
    assert judge_chips(scl.reshape(4, 4), 2, grid, max_nodata, max_cloud).tolist() == [[verdict]]
