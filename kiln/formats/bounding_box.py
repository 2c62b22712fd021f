"""Bounding boxes in degrees of longitude and latitude."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

    def to_geojson(self) -> dict[str, Any]:
        """Return the box as GeoJSON: a polygon, or two across the antimeridian (RFC 7946, 3.1.9), anticlockwise."""
        rings = [
            [[[w, s], [e, s], [e, n], [w, n], [w, s]]]  # west, south, east, north
            for w, s, e, n in self.parts()
        ]
        if len(rings) == 1:
            return {"type": "Polygon", "coordinates": rings[0]}
        return {"type": "MultiPolygon", "coordinates": rings}


def check_bounding_box(
    values: Sequence[float],
    where: str = "bbox",
    *,
    may_cross_antimeridian: bool = True,
    content: Callable[[BoundingBox], str] = lambda box: "",
) -> BoundingBox:
    """Return four numbers as a bounding box.

    A box across the antimeridian that is wider than half the world has its west and east swapped.

    Args:
        values: West, south, east, north in degrees.
        where: Name of the setting, for errors.
        may_cross_antimeridian: Whether west > east is allowed.
        content: Returns what a box holds, as ` and holds 7 chips`, for the error about one that is too wide.

    Returns:
        The bounding box.

    Raises:
        ConfigError: If the values are not four finite numbers on the Earth, the box has no area, or it crosses the
            antimeridian and may not or is too wide.
    """
    width = ""
    if len(values) == 4 and all(map(math.isfinite, values)):
        box = BoundingBox(*map(float, values))
        on_earth = -180 <= box.west <= 180 and -180 <= box.east <= 180 and -90 <= box.south < box.north <= 90
        if on_earth and box.west < box.east:
            return box
        if on_earth and box.crosses_antimeridian and may_cross_antimeridian:
            if box.width <= MAX_CROSSING_WIDTH:
                return box
            width = f", which is {box.width:g} degrees wide{content(box)}"
    crossing = " A box across the antimeridian has west > east and is half the world wide at most."
    raise ConfigError(
        f"{where}: expected [west, south, east, north] in degrees with west < east and south < north, got "
        f"{list(values)}{width}.{crossing if may_cross_antimeridian else ''} Correct it."
    )
