"""The extent of chips: the smallest box, also across the antimeridian, in whatever order rows come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.formats.extent import JOINED_GAP, Extent


def extent_of(*boxes):
    return Extent.of_boxes(np.array(boxes, float).reshape(-1, 4), frozenset({"Polygon"}))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(10, 0, 11, 1), (20, 2, 21, 3)], (10, 0, 21, 3)),
        ([(177, 66, 178, 67), (-178, 66, -177, 68)], (177, 66, -177, 68)),
        ([(179.5, 0, -179.5, 1)], (179.5, 0, -179.5, 1)),
        ([(179, 0, 180, 1), (-180, 0, -179, 1)], (179, 0, -179, 1)),
        ([(179, 0, 180, 1)], (179, 0, 180, 1)),
        ([(-180, 0, -179, 1)], (-180, 0, -179, 1)),
        ([(-10, 0, 10, 1)], (-10, 0, 10, 1)),
        ([(170, 0, 175, 1), (5, 0, 6, 1), (-175, 0, -170, 1)], (-175, 0, 175, 1)),  # else wider than half the world
        ([(w, 0, w + 1, 1) for w in range(-180, 180)], (-180, 0, 180, 1)),
        ([(120, 0, 121, 1), (-70, 0, -69, 1)], (120, 0, -69, 1)),
    ],
)
def test_the_box_is_the_smallest_of_at_most_half_the_world_or_a_plain_one(boxes, expected):
    assert extent_of(*boxes).bbox == expected


def test_no_chips_have_no_box():
    assert Extent().bbox is None
    assert extent_of().bbox is None
    assert Extent().union(extent_of((1, 2, 3, 4))).bbox == (1, 2, 3, 4)


def test_types_are_joined():
    assert Extent(types=frozenset({"Polygon"})).union(Extent(types=frozenset({"MultiPolygon"}))).types == {
        "MultiPolygon",
        "Polygon",
    }


degrees = st.integers(-1800, 1799).map(lambda n: n / 10)


@given(st.lists(st.tuples(degrees, st.integers(1, 50)), min_size=1, max_size=12), st.data())
def test_boxes_hold_every_chip_however_they_are_grouped(places, data):
    boxes = []
    for west, tenths in places:
        east = west + tenths / 10
        boxes.append((west, 0.0, east if east <= 180 else east - 360, 1.0))
    everything = extent_of(*boxes).bbox
    cut = data.draw(st.integers(0, len(boxes)))
    assert extent_of(*boxes[cut:]).union(extent_of(*boxes[:cut])).bbox == everything
    for west, _, east, _ in boxes:
        for lon in (west, east):
            if everything.crosses_antimeridian:
                assert lon >= everything.west or lon <= everything.east
            else:
                assert everything.west <= lon <= everything.east
    assert not everything.crosses_antimeridian or everything.width <= 180


def test_gaps_between_neighbours_do_not_grow_the_extent():
    chips = [(n * 1.05, 0, n * 1.05 + 1, 1) for n in range(100)]
    assert JOINED_GAP > 1.05 - 1
    assert extent_of(*chips).longitudes.shape == (1, 2)
