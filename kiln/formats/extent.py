"""The extent of many chips: the smallest bounding box, which may cross the antimeridian, and the geometry types."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from kiln.formats.arrays import Float64Array
from kiln.formats.bounding_box import MAX_CROSSING_WIDTH, BoundingBox

JOINED_GAP = 0.1  # degrees of longitude; narrower gaps between chips cannot bound a box


def _no_longitudes() -> Float64Array:
    return np.empty((0, 2))


@dataclass(frozen=True)
class Extent:
    """The extent of chips.

    Attributes:
        south: Smallest latitude in degrees; infinite without chips.
        north: Largest latitude in degrees; minus infinite without chips.
        longitudes: Disjoint intervals [m, 2] of longitude in degrees that hold the chips, from west to east.
        types: Geometry types of the footprints.
    """

    south: float = np.inf
    north: float = -np.inf
    longitudes: Float64Array = field(default_factory=_no_longitudes)
    types: frozenset[str] = frozenset()

    @classmethod
    def of_boxes(cls, boxes: Float64Array, types: frozenset[str]) -> Self:
        """Return the extent of bounding boxes.

        Args:
            boxes: West, south, east, north [n, 4] in degrees; west > east across the antimeridian.
            types: Geometry types of the footprints.
        """
        if not len(boxes):
            return cls()
        crosses = boxes[:, 0] > boxes[:, 2]
        intervals = boxes[:, [0, 2]]
        east_of_antimeridian = intervals[crosses] * [0, 1] + [-180, 0]
        intervals[crosses, 1] = 180
        intervals = np.concatenate([intervals, east_of_antimeridian])
        return cls(float(boxes[:, 1].min()), float(boxes[:, 3].max()), _joined(intervals), types)

    def union(self, other: Self) -> Self:
        """Return the extent of the chips of both."""
        return type(self)(
            min(self.south, other.south),
            max(self.north, other.north),
            _joined(np.concatenate([self.longitudes, other.longitudes])),
            self.types | other.types,
        )

    @property
    def bbox(self) -> BoundingBox | None:
        """The smallest bounding box of all chips, as RFC 7946 (5.2) and GeoParquet define it; None without chips.

        It crosses the antimeridian, with west > east, if that makes it smaller and at most half the world wide. Chips
        around the world have the box from -180 to 180.
        """
        if not len(self.longitudes):
            return None
        starts, ends = self.longitudes[:, 0], self.longitudes[:, 1]
        plain = BoundingBox(float(starts[0]), self.south, float(ends[-1]), self.north)
        if len(starts) > 1:
            widest = int(np.argmax(starts[1:] - ends[:-1]))
            crossing = BoundingBox(float(starts[widest + 1]), self.south, float(ends[widest]), self.north)
            if crossing.width < plain.width and crossing.width <= MAX_CROSSING_WIDTH:
                return crossing
        return plain


def _joined(intervals: Float64Array) -> Float64Array:
    """Return intervals [n, 2] sorted, with those joined that overlap or are less than JOINED_GAP apart."""
    if not len(intervals):
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reached = np.maximum.accumulate(intervals[:, 1])
    begins = np.concatenate([[True], intervals[1:, 0] > reached[:-1] + JOINED_GAP])
    last_of_group = np.concatenate([begins[1:], [True]])
    return np.stack([intervals[begins, 0], reached[last_of_group]], axis=1)
