"""Filters of chips: parsed from the page's JSON, an address or options; applied as SQL (LanceDB) or as a mask (NumPy).

No text of a request reaches a query: dates, numbers and names are parsed here, and SQL is built from typed values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from kiln.errors import ConfigError
from kiln.explorer.matrix import NO_TIME, Matrix
from kiln.formats.area import parse_area
from kiln.formats.bounding_box import BoundingBox, Bounds
from kiln.formats.days import day_bounds, parse_day
from kiln.io.text_table import shorten

MAX_VERTICES = 10_000  # of an area
MAX_NAMES = 200  # datasets or years of a filter
MAX_CELLS = 400  # of a box, listed in a filter; a larger box is compared by its edges alone


@dataclass(frozen=True)
class ChipFilter:
    """Conditions that a chip must meet: every field that is set.

    Attributes:
        datasets: Names of datasets.
        years: Years from 1 to 9999.
        first_day: Acquired on this day or later; a chip without a date does not pass.
        last_day: Acquired on this day or earlier; a chip without a date does not pass.
        bbox: Box of the chip's centre: west, south, east, north in degrees; west > east crosses the antimeridian.
        area: Area of the chip's centre, in degrees.
        max_nodata: Maximum fraction of pixels without data; an unknown fraction passes.
        max_cloud: Maximum fraction of cloudy pixels; an unknown fraction passes.
    """

    datasets: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    first_day: date | None = None
    last_day: date | None = None
    bbox: Bounds | None = None
    area: shapely.Geometry | None = None
    max_nodata: float | None = None
    max_cloud: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no chip can have."""
        for year in self.years:
            if not 0 < int(year) < 10_000:
                raise ConfigError(f"filters: expected a year such as 2021, got {year}.")
        for name, fraction in (("max_nodata", self.max_nodata), ("max_cloud", self.max_cloud)):
            if fraction is not None and not 0 <= fraction <= 1:
                raise ConfigError(f"filters: expected {name} from 0 to 1, got {fraction}.")
        if self.first_day and self.last_day and self.first_day > self.last_day:
            raise ConfigError(f"filters: expected from <= to, got {self.first_day} and {self.last_day}.")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ChipFilter":
        """Parse the filters of a request.

        Args:
            values: Any of datasets, years, from, to, bbox, area (GeoJSON), max_nodata, max_cloud; null is not set.

        Raises:
            ConfigError: An unknown name, or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"filters: expected an object, got {shorten(values)}.")
        known = {"datasets", "years", "from", "to", "bbox", "area", "max_nodata", "max_cloud"}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"filters: expected some of {', '.join(sorted(known))}, got {shorten(unknown[0])}.")
        given = {name: value for name, value in values.items() if value is not None}
        return cls(
            datasets=tuple(sorted({_name(v) for v in _list(given.get("datasets", []), "datasets")})),
            years=tuple(sorted({_year(v) for v in _list(given.get("years", []), "years")})),
            first_day=parse_day(given["from"], "from") if "from" in given else None,
            last_day=parse_day(given["to"], "to") if "to" in given else None,
            bbox=parse_box(given["bbox"]) if "bbox" in given else None,
            area=parse_area(given["area"], MAX_VERTICES) if "area" in given else None,
            max_nodata=_number(given["max_nodata"], "max_nodata") if "max_nodata" in given else None,
            max_cloud=_number(given["max_cloud"], "max_cloud") if "max_cloud" in given else None,
        )

    @classmethod
    def from_address(cls, parameters: Mapping[str, str]) -> "ChipFilter":
        """Parse the filters of an address: lists have commas between their values; an empty value is not set."""
        values: dict[str, Any] = {name: text for name, text in parameters.items() if text != ""}
        for name in ("datasets", "years", "bbox"):
            if name in values:
                values[name] = values[name].split(",")
        return cls.from_json(values)

    def without_place(self) -> "ChipFilter":
        """Return the filter without its box and its area."""
        return replace(self, bbox=None, area=None)

    def check_datasets(self, known: Sequence[str]) -> None:
        """Raise ConfigError for a dataset that is not among those of a database."""
        if unknown := sorted(set(self.datasets) - set(known)):
            raise ConfigError(f"filters: expected a dataset of {', '.join(known)}, got {shorten(unknown[0])!r}.")

    def sql(self) -> str | None:
        """Return the condition for LanceDB; None: no condition. An area is replaced by its bounding box."""
        terms = []
        if self.years:
            terms.append(f"year IN ({', '.join(str(int(y)) for y in self.years)})")
        if self.datasets:
            terms.append(f"dataset IN ({', '.join(map(quote, self.datasets))})")
        first, too_late = day_bounds(self.first_day, self.last_day)
        terms += [f"datetime >= timestamp '{first:%Y-%m-%d} 00:00:00'"] if first else []
        terms += [f"datetime < timestamp '{too_late:%Y-%m-%d} 00:00:00'"] if too_late else []
        for column, limit in (("nodata_fraction", self.max_nodata), ("cloud_fraction", self.max_cloud)):
            if limit is not None:
                terms.append(f"({column} IS NULL OR {column} <= {float(limit)!r})")
        for box in (self.bbox, None if self.area is None else _around(self.area)):
            if box is not None:
                terms.append(f"({' OR '.join(f'({_box_sql(part)})' for part in BoundingBox(*box).parts())})")
        return " AND ".join(terms) or None

    def mask(self, matrix: Matrix) -> NDArray[np.bool_] | None:
        """Return which of a matrix's n chips pass, [n]; None: all. Raise ConfigError for an unknown dataset."""
        passes: list[NDArray[np.bool_]] = []
        if self.datasets:
            self.check_datasets(matrix.datasets)
            passes.append(np.isin(matrix["dataset"], [matrix.datasets.index(d) for d in self.datasets]))
        if self.years:
            passes.append(np.isin(matrix["year"], self.years))
        first, too_late = day_bounds(self.first_day, self.last_day)
        if first:
            passes.append(matrix["time"] >= int(first.timestamp() * 1000))
        if too_late:
            passes.append((matrix["time"] < int(too_late.timestamp() * 1000)) & (matrix["time"] != NO_TIME))
        for column, limit in (("nodata", self.max_nodata), ("cloud", self.max_cloud)):
            if limit is not None:
                passes.append(~(matrix[column] > np.float32(limit)))
        if self.bbox is not None:
            passes.append(np.any([_inside(matrix, part) for part in BoundingBox(*self.bbox).parts()], axis=0))
        if self.area is not None:
            passes.append(_inside_area(matrix, self.area))
        return np.logical_and.reduce(passes) if passes else None


EVERY_CHIP = ChipFilter()


def _inside(matrix: Matrix, box: Bounds) -> NDArray[np.bool_]:
    west, south, east, north = box
    lon, lat = matrix["lon"], matrix["lat"]
    inside: NDArray[np.bool_] = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return inside


def _inside_area(matrix: Matrix, area: shapely.Geometry) -> NDArray[np.bool_]:
    inside = _inside(matrix, area.bounds)
    candidates = np.flatnonzero(inside)
    shapely.prepare(area)
    inside[candidates] = shapely.intersects_xy(area, matrix["lon"][candidates], matrix["lat"][candidates])
    return inside


def _box_sql(box: Bounds) -> str:
    """Return the condition of a centre in a box with west < east."""
    west, south, east, north = box
    rows, columns = (range(math.floor(a), math.floor(b) + 1) for a, b in ((south, north), (west, east)))
    condition = f"lon >= {west} AND lon <= {east} AND lat >= {south} AND lat <= {north}"
    if len(rows) * len(columns) > MAX_CELLS:
        return condition
    names = ", ".join(quote(cell_name(s, w)) for s in rows for w in columns)
    return f"cell IN ({names}) AND {condition}"  # the bitmap index of cells is the cheapest spatial filter


def cell_name(south: int, west: int) -> str:
    """Return the name of a one-degree cell, after its south-west corner: `N45W002`."""
    return f"{'S' if south < 0 else 'N'}{abs(south):02d}{'W' if west < 0 else 'E'}{abs(west):03d}"


def quote(text: str) -> str:
    """Return a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _around(area: shapely.Geometry) -> Bounds:
    """Return the box of an area, a little wider than the area: a box without width is empty."""
    west, south, east, north = area.bounds
    return west - 1e-9, south - 1e-9, east + 1e-9, north + 1e-9


def parse_box(value: Any) -> Bounds:
    """Parse a box of four numbers. Raise ConfigError for another value.

    A map that was turned round the world has longitudes beyond 180; they are brought to -180..180.
    """
    numbers = [_number(v, "bbox") for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 4:
        raise ConfigError(f"bbox: expected west, south, east, north in degrees, got {shorten(value)}.")
    west, south, east, north = numbers
    south, north = max(south, -90.0), min(north, 90.0)
    if south >= north or abs(west) > 1080 or abs(east) > 1080 or (west == east):
        raise ConfigError(
            f"bbox: expected west, south, east, north in degrees with south < north, got {shorten(value)}."
        )
    if east - west >= 360:
        return -180.0, south, 180.0, north
    west, east = ((v + 180) % 360 - 180 if not -180 <= v <= 180 else v for v in (west, east))
    return (west, south, east, north) if west != east else (-180.0, south, 180.0, north)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise ConfigError(f"filters: expected {name} as a list of at most {MAX_NAMES}, got {shorten(value)}.")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise ConfigError(f"filters: expected a dataset's name, got {shorten(value)}.")
    return value


def _number(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name}: expected a number, got {shorten(value)}.")
    return number


def _year(value: Any) -> int:
    number = _number(value, "years")
    if number != int(number) or not 0 < number < 10_000:
        raise ConfigError(f"filters: expected a year such as 2021, got {shorten(value)}.")
    return int(number)
