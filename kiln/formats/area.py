"""Areas: polygons in degrees, parsed from GeoJSON."""

import math
from collections.abc import Mapping
from typing import Any

import shapely
import shapely.geometry
from shapely.errors import GEOSException

from kiln.errors import ConfigError
from kiln.io.text_table import shorten


def parse_area(value: Any, max_vertices: int | None = None) -> shapely.Geometry:
    """Parse a GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection into one geometry in degrees.

    Args:
        value: The GeoJSON object.
        max_vertices: Maximum number of vertices; None is no limit.

    Returns:
        A valid Polygon or MultiPolygon in EPSG:4326.

    Raises:
        ConfigError: No polygon, a ring that is not closed or crosses itself, or too many vertices.
    """
    shapes = [_polygon(g) for g in _geometries(value)]
    if not shapes:
        raise ConfigError("area: expected a polygon, got none.")
    count = sum(shapely.get_num_coordinates(s) for s in shapes)
    if max_vertices is not None and count > max_vertices:
        raise ConfigError(f"area: expected at most {max_vertices} vertices, got {count}. Simplify it.")
    area = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
    west, south, east, north = area.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise ConfigError(
            "area: expected longitudes from -180 to 180 and latitudes from -90 to 90, got others. "
            "Write an area across the antimeridian as a MultiPolygon of two parts (RFC 7946, 3.1.9)."
        )
    return area


def _geometries(value: Any) -> list[Any]:
    """Return the geometries of a GeoJSON object."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "FeatureCollection" and isinstance(value.get("features"), list):
        return [g for f in value["features"] for g in _geometries(f)]
    if kind == "Feature":
        return _geometries(value.get("geometry"))
    if kind in ("Polygon", "MultiPolygon"):
        return [value]
    raise ConfigError(f"area: expected a GeoJSON Polygon or MultiPolygon, got {shorten(kind or value)}.")


def _polygon(value: Mapping[str, Any]) -> shapely.Geometry:
    """Return a GeoJSON geometry as a valid polygon. Raise ConfigError for another."""
    try:
        shape = shapely.geometry.shape(value)
        is_valid, why = shapely.is_valid(shape), shapely.is_valid_reason(shape)
    except (GEOSException, ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
        raise ConfigError(f"area: expected coordinates of a {value['type']}, got others ({shorten(str(e))}).") from e
    if shape.is_empty:
        raise ConfigError(f"area: expected a polygon, got an empty {value['type']}.")
    if not is_valid or not all(map(math.isfinite, shape.bounds)):
        raise ConfigError(f"area: expected a valid polygon, got one with a defect ({why}).")
    return shapely.force_2d(shape)
