"""What a search or a map leaves out: typed values in, a condition for LanceDB and a mask for NumPy out.

Nothing of a request is pasted into a query: dates, numbers and names are parsed here, and what does not parse is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import shapely
import shapely.geometry
from shapely.errors import GEOSException

from kiln.errors import ConfigError
from kiln.explorer.database import Filters, quote

MOST_VERTICES = 10_000  # of an area
MOST_NAMES = 200  # datasets or years of a filter
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Where:
    """What a chip must be: every field that is set. Boxes are west, south, east, north in degrees.

    `bbox` and `area` hold the chip's centre; west > east is a box across the antimeridian. `first` and `last` are days,
    both included: a chip without a date is no chip of a day. A chip whose nodata or
    cloud is unknown passes their limits.
    """

    datasets: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    first: date | None = None
    last: date | None = None
    bbox: Box | None = None
    area: shapely.Geometry | None = None
    max_nodata: float | None = None
    max_cloud: float | None = None

    def boxes(self) -> list[Box] | None:
        """Boxes with west < east of which one holds the centre, by `bbox` alone; None: anywhere."""
        return None if self.bbox is None else halves(self.bbox)

    def times(self) -> tuple[datetime | None, datetime | None]:
        """The first moment, and the moment that is too late."""
        first = datetime(self.first.year, self.first.month, self.first.day, tzinfo=UTC) if self.first else None
        last = datetime(self.last.year, self.last.month, self.last.day, tzinfo=UTC) if self.last else None
        return first, last + timedelta(days=1) if last else None

    def sql(self) -> str | None:
        """The condition for LanceDB. An area is its box here: who asks tests the centres against it afterwards."""
        terms = [Filters(self.years, self.datasets).sql()]
        first, late = self.times()
        terms += [f"datetime >= timestamp '{first:%Y-%m-%d} 00:00:00'"] if first else []
        terms += [f"datetime < timestamp '{late:%Y-%m-%d} 00:00:00'"] if late else []
        if self.max_nodata is not None:
            terms.append(f"(nodata_fraction IS NULL OR nodata_fraction <= {float(self.max_nodata)!r})")
        if self.max_cloud is not None:
            terms.append(f"(cloud_fraction IS NULL OR cloud_fraction <= {float(self.max_cloud)!r})")
        for boxes in (self.boxes(), None if self.area is None else [_around(self.area)]):
            if boxes is not None:
                terms.append(" OR ".join(f"({Filters(bbox=b).sql()})" for b in boxes))
                terms[-1] = f"({terms[-1]})"
        return " AND ".join(t for t in terms if t) or None


def halves(bbox: Box) -> list[Box]:
    """A box as one or two boxes that do not cross the antimeridian."""
    west, south, east, north = bbox
    parts = [(west, south, east, north)] if west < east else [(west, south, 180.0, north), (-180.0, south, east, north)]
    return [p for p in parts if p[0] < p[2]]


def _around(area: shapely.Geometry) -> Box:
    """The box of an area, a little wider than the area: a box of no width holds nothing."""
    west, south, east, north = area.bounds
    return west - 1e-9, south - 1e-9, east + 1e-9, north + 1e-9


def parse_box(value: Any) -> Box:
    """A box of four numbers; longitudes of a map that was turned round the world are brought to -180..180.

    Raises ConfigError for what is none.
    """
    numbers = [_number(v, "bbox") for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 4:
        raise ConfigError(f"bbox {_short(value)}: want west, south, east, north in degrees")
    west, south, east, north = numbers
    south, north = max(south, -90.0), min(north, 90.0)
    if south >= north or abs(west) > 1080 or abs(east) > 1080 or (west == east):
        raise ConfigError(f"bbox {_short(value)}: want west, south, east, north in degrees, south < north")
    if east - west >= 360:
        return -180.0, south, 180.0, north
    west, east = ((v + 180) % 360 - 180 if not -180 <= v <= 180 else v for v in (west, east))
    return (west, south, east, north) if west != east else (-180.0, south, 180.0, north)


def parse_area(value: Any) -> shapely.Geometry:
    """The polygons of a GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection, as one geometry in degrees.

    Raises ConfigError for GeoJSON that is none, is not closed or crosses itself, or has too many vertices.
    """
    shapes = [_polygon(g) for g in _geometries(value)]
    if not shapes:
        raise ConfigError("area: there is no polygon in it")
    if (count := sum(shapely.get_num_coordinates(s) for s in shapes)) > MOST_VERTICES:
        raise ConfigError(f"area: {count} vertices are more than {MOST_VERTICES}; simplify it")
    area = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
    west, south, east, north = area.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise ConfigError(
            "area: its coordinates must be longitude -180 to 180, latitude -90 to 90; one across the antimeridian is "
            "a MultiPolygon of two parts (RFC 7946, 3.1.9)"
        )
    return area


def _geometries(value: Any) -> list[Any]:
    """The geometries of a GeoJSON object."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "FeatureCollection" and isinstance(value.get("features"), list):
        return [g for f in value["features"] for g in _geometries(f)]
    if kind == "Feature":
        return _geometries(value.get("geometry"))
    if kind in ("Polygon", "MultiPolygon"):
        return [value]
    raise ConfigError(f"area: want a GeoJSON Polygon or MultiPolygon, this is {_short(kind or value)}")


def _polygon(value: Mapping[str, Any]) -> shapely.Geometry:
    try:
        shape = shapely.geometry.shape(value)
        good, why = shapely.is_valid(shape), shapely.is_valid_reason(shape)
    except (GEOSException, ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
        raise ConfigError(f"area: the coordinates of this {value['type']} are none ({_short(str(e))})") from e
    if shape.is_empty:
        raise ConfigError(f"area: an empty {value['type']}")
    if not good or not all(map(math.isfinite, shape.bounds)):
        raise ConfigError(f"area: its polygon is not a valid one ({why})")
    return shapely.force_2d(shape)


def parse(values: Mapping[str, Any]) -> Where:
    """Filters of a request: datasets, years, from, to, bbox, area, max_nodata, max_cloud. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"filters: want an object, this is {_short(values)}")
    known = {"datasets", "years", "from", "to", "bbox", "area", "max_nodata", "max_cloud"}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"filters: {_short(unknown[0])} is none of {', '.join(sorted(known))}")
    given = {k: v for k, v in values.items() if v is not None}
    where = Where(
        datasets=tuple(sorted({_name(v) for v in _list(given.get("datasets", []), "datasets")})),
        years=tuple(sorted({_year(v) for v in _list(given.get("years", []), "years")})),
        first=_day(given["from"], "from") if "from" in given else None,
        last=_day(given["to"], "to") if "to" in given else None,
        bbox=parse_box(given["bbox"]) if "bbox" in given else None,
        area=parse_area(given["area"]) if "area" in given else None,
        max_nodata=_share(given["max_nodata"], "max_nodata") if "max_nodata" in given else None,
        max_cloud=_share(given["max_cloud"], "max_cloud") if "max_cloud" in given else None,
    )
    if where.first and where.last and where.first > where.last:
        raise ConfigError(f"filters: from {where.first} is after to {where.last}")
    return where


def parse_query(query: Mapping[str, str]) -> Where:
    """The same of an address: lists have commas between their values, and an empty value is none."""
    values: dict[str, Any] = {k: v for k, v in query.items() if v != ""}
    for name in ("datasets", "years", "bbox"):
        if name in values:
            values[name] = values[name].split(",")
    return parse(values)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_NAMES:
        raise ConfigError(f"filters: {name} {_short(value)}: want a list of at most {MOST_NAMES}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise ConfigError(f"filters: dataset {_short(value)}: want a name")
    return value


def _number(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name}: {_short(value)} is no number")
    return number


def _year(value: Any) -> int:
    number = _number(value, "years")
    if number != int(number) or not 0 < number < 10_000:
        raise ConfigError(f"filters: year {_short(value)}: want a year such as 2021")
    return int(number)


def _share(value: Any, name: str) -> float:
    number = _number(value, name)
    if not 0 <= number <= 1:
        raise ConfigError(f"filters: {name} {_short(value)}: want a share from 0 to 1")
    return number


def _day(value: Any, name: str) -> date:
    try:
        return date.fromisoformat(value[:10] if isinstance(value, str) and value[10:11] in ("", "T") else "")
    except ValueError:
        raise ConfigError(f"filters: {name} {_short(value)}: want a day such as 2021-06-30") from None


def _short(value: Any) -> str:
    """A value as it may be said: never a megabyte of it, never a control character."""
    text = repr(value) if not isinstance(value, str) else value
    clean = "".join(c if c.isprintable() else " " for c in text[:80])
    return clean + ("..." if len(text) > 80 else "") or "nothing"


def names_sql(datasets: Sequence[str]) -> str:
    """The condition of being one of these datasets."""
    return f"dataset IN ({', '.join(quote(d) for d in datasets)})"
