"""Bounding boxes in degrees of longitude and latitude."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from kiln.errors import ConfigError

Bounds = tuple[float, float, float, float]  # west, south, east, north in degrees; west > east crosses the antimeridian


class BoundingBox(NamedTuple):
    """West, south, east, north in degrees. A box with west > east crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    def parts(self) -> list["BoundingBox"]:
        """Return the box, or its parts on both sides of the antimeridian, the eastern hemisphere's first."""
        if self.west <= self.east:
            return [self]
        return [part for part in (self._replace(east=180.0), self._replace(west=-180.0)) if part.west < part.east]


def check_bounding_box(
    values: Sequence[float], where: str = "bbox", *, may_cross_antimeridian: bool = True
) -> BoundingBox:
    """Return four numbers as a bounding box.

    Args:
        values: West, south, east, north in degrees.
        where: Name of the setting, for errors.
        may_cross_antimeridian: Whether west > east is allowed.

    Returns:
        The bounding box.

    Raises:
        ConfigError: If the values are not four finite numbers on the Earth, or the box has no area.
    """
    expected = "west < east" if not may_cross_antimeridian else "west and east that differ"
    if len(values) == 4 and all(map(math.isfinite, values)):
        box = BoundingBox(*map(float, values))
        on_earth = -180 <= box.west <= 180 and -180 <= box.east <= 180 and -90 <= box.south < box.north <= 90
        if on_earth and (box.west < box.east or (may_cross_antimeridian and box.west != box.east)):
            return box
    raise ConfigError(
        f"{where}: expected [west, south, east, north] in degrees, south < north, {expected}, got {list(values)}. "
        "Correct it."
    )
