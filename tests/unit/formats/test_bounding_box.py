"""Bounding boxes: what is one, its width, and its parts on both sides of the antimeridian."""

import math

import pytest

from kiln.errors import ConfigError
from kiln.formats.bounding_box import BoundingBox, check_bounding_box


@pytest.mark.parametrize(
    ("box", "width", "parts"),
    [
        ([-1, 43, 1, 44], 2, [(-1, 43, 1, 44)]),
        ([170, -20, -170, -10], 20, [(170, -20, 180, -10), (-180, -20, -170, -10)]),
        ([180, 0, -179, 1], 1, [(-180, 0, -179, 1)]),
        ([-180, -90, 180, 90], 360, [(-180, -90, 180, 90)]),
        ([90, 0, -90, 1], 180, [(90, 0, 180, 1), (-180, 0, -90, 1)]),
    ],
)
def test_a_box_has_a_width_and_parts(box, width, parts):
    checked = check_bounding_box(box)
    assert checked == tuple(box)
    assert checked.width == width
    assert checked.parts() == [BoundingBox(*part) for part in parts]


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 0], [-181, 0, 1, 1], [0, 0, 1, 91], [0, 0, math.nan, 1]],
)
def test_what_is_no_box_is_refused(values):
    with pytest.raises(ConfigError, match=r"naip\.bbox: expected \[west, south, east, north\] in degrees"):
        check_bounding_box(values, "naip.bbox")


def test_swapped_west_and_east_are_refused_with_the_width():
    with pytest.raises(ConfigError, match=r"got \[1, 43, -1, 44\], which is 358 degrees wide. A box across"):
        check_bounding_box([1, 43, -1, 44])
    with pytest.raises(ConfigError, match="west < east and south < north, got"):
        check_bounding_box([179, 0, -179, 1], may_cross_antimeridian=False)
