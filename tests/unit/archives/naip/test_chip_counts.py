"""Chips of scenes by their keys, compared with scenes of exactly that extent, wherever they begin."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.utm_grid import UtmGrid, align

LAYOUTS = [
    ChipCounts(256), ChipCounts(256, edge="align"), ChipCounts(256, "utm", 1.0), ChipCounts(256, "utm", 0.6),
    ChipCounts(128, "utm", 2.0), ChipCounts(512),
]  # fmt: skip


def scene(cm=100, quad="4709963"):
    res = {100: "1", 60: "060", 30: "030"}[cm]
    return parse_key(f"nd/2019/{cm}cm/rgbir_cog/{quad[:5]}/m_{quad}_se_14_{res}_20190904.tif")


def true_count(chips, of, east_px, north_px):
    """Return the chips of a scene of the key's extent that begins at these pixels."""
    size = of.cm / 100
    width, height = (int(side / size) for side in of.extent_m)
    if chips.lattice == "scene":
        along = [len(range(0, side - chips.chip + 1, chips.chip)) for side in (width, height)]
        more = [chips.edge == "align" and n * chips.chip < s for n, s in zip(along, (width, height), strict=True)]
        return (along[0] + more[0]) * (along[1] + more[1])
    transform = from_origin(5e5 + east_px * size, 5.2e6 + north_px * size, size, size)
    return len(align(height, width, transform, "EPSG:26914", UtmGrid(14, chips.chip, chips.lattice_gsd)).cells)


@pytest.mark.parametrize("chips", LAYOUTS, ids=str)
@given(east_px=st.integers(0, 999), north_px=st.integers(0, 999), cm=st.sampled_from([30, 60, 100]))
def test_the_estimate_is_close_and_the_bound_holds(chips, east_px, north_px, cm):
    key = scene(cm)
    count = true_count(chips, key, east_px, north_px)
    assert count <= chips.at_most(key)
    assert chips.about(key) == pytest.approx(count, rel=0.11)


@pytest.mark.parametrize("cm", [60, 100])
@pytest.mark.parametrize("gsd", [0.6, 1.0])
def test_on_the_common_lattice_the_estimate_follows_the_grid_and_not_the_scene(cm, gsd):
    assert ChipCounts(256, "utm", gsd).about(scene(cm)) == ChipCounts(256, "utm", gsd).about(scene(100))
    starts = itertools.product(range(0, 256, 64), range(0, 256, 64))
    counts = [true_count(ChipCounts(256, "utm", gsd), scene(cm), *start) for start in starts]
    assert ChipCounts(256, "utm", gsd).about(scene(cm)) == pytest.approx(sum(counts) / len(counts), rel=0.03)


def test_a_scene_smaller_than_a_chip_is_estimated_at_no_chips():
    assert ChipCounts(8192).about(scene()) == 0
    assert ChipCounts(8192, edge="align").about(scene()) == 0
