"""Bounding boxes in degrees of longitude and latitude."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from kiln.errors import ConfigError

MAX_CROSSING_WIDTH = 180.0  # degrees
Bounds = tuple[float, float, float, float]  # west, south, east, north in degrees; west > east crosses the antimeridian


class BoundingBox(NamedTuple):
    """West, south, east, north in degrees. A box with west > east crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    @property
    def crosses_antimeridian(self) -> bool:
        """Whether the box reaches from the eastern to the western hemisphere over 180 degrees."""
        return self.west > self.east

    @property
    def width(self) -> float:
        """Degrees of longitude from west to east."""
        return self.east - self.west + (360 if self.crosses_antimeridian else 0)

    def parts(self) -> list["BoundingBox"]:
        """Return the box, or its parts on both sides of the antimeridian, the eastern hemisphere's first."""
        if not self.crosses_antimeridian:
            return [self]
        return [part for part in (self._replace(east=180.0), self._replace(west=-180.0)) if part.west < part.east]


def check_bounding_box(
    values: Sequence[float],
    where: str = "bbox",
    *,
    may_cross_antimeridian: bool = True,
    max_crossing_width: float = MAX_CROSSING_WIDTH,
) -> BoundingBox:
    """Return four numbers as a bounding box.

    Args:
        values: West, south, east, north in degrees.
        where: Name of the setting, for errors.
        may_cross_antimeridian: Whether west > east is allowed.
        max_crossing_width: Degrees of longitude of such a box; a wider one has its west and east swapped.

    Returns:
        The bounding box.

    Raises:
        ConfigError: If the values are not four finite numbers on the Earth, the box has no area, or it crosses the
            antimeridian and is wider than `max_crossing_width`.
    """
    expected = "west < east" if not may_cross_antimeridian else "west and east that differ"
    if len(values) == 4 and all(map(math.isfinite, values)):
        box = BoundingBox(*map(float, values))
        on_earth = -180 <= box.west <= 180 and -180 <= box.east <= 180 and -90 <= box.south < box.north <= 90
        if on_earth and (box.west < box.east or (may_cross_antimeridian and box.west != box.east)):
            if box.crosses_antimeridian and box.width > max_crossing_width:
                raise ConfigError(f"{where}: {swapped(box)}")
            return box
    raise ConfigError(
        f"{where}: expected [west, south, east, north] in degrees, south < north, {expected}, got {list(values)}. "
        "Correct it."
    )


def swapped(box: BoundingBox, content: str = "") -> str:
    """Return the message about a box whose west and east were probably swapped, and what would be in it."""
    return (
        f"expected west < east, or a box of at most {MAX_CROSSING_WIDTH:g} degrees across the antimeridian, got "
        f"{list(box)}, which is {box.width:g} degrees wide{content}. Swap west and east."
    )
