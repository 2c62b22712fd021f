"""Areas: GeoJSON with and without polygons."""

import math

import pytest

from kiln.errors import ConfigError
from kiln.formats.area import parse_area

SQUARE = {"type": "Polygon", "coordinates": [[[-10, 40], [10, 40], [10, 50], [-10, 50], [-10, 40]]]}


@pytest.mark.parametrize(
    "area",
    [
        None, 3, "Polygon", [], {}, {"type": "Point", "coordinates": [0, 0]}, {"type": "Polygon"},
        {"type": "Polygon", "coordinates": 3}, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [1, 0], ["a", 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[170, 0], [190, 0], [190, 5], [170, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e400, 0], [1, 5], [0, 0]]]},
        {"type": "FeatureCollection", "features": []}, {"type": "FeatureCollection", "features": [3]},
        {"type": "Feature", "geometry": None}, {"type": "GeometryCollection", "geometries": [SQUARE]},
    ],
)  # fmt: skip
def test_geojson_without_an_area_is_refused(area):
    with pytest.raises(ConfigError, match="area"):
        parse_area(area)


def test_features_and_collections_are_areas_too():
    feature = {"type": "Feature", "geometry": SQUARE, "properties": {}}
    other = {"type": "MultiPolygon", "coordinates": [[[[20, 0], [21, 0], [21, 1], [20, 0]]]]}
    assert parse_area(SQUARE).equals(parse_area(feature))
    assert parse_area(
        {"type": "FeatureCollection", "features": [feature, {"type": "Feature", "geometry": other}]}
    ).area == (pytest.approx(200.5))


def test_too_many_vertices_are_refused():
    def circle(n):
        ring = [[math.cos(2 * math.pi * k / n), math.sin(2 * math.pi * k / n)] for k in range(n)]
        return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}

    assert parse_area(circle(99), 100).is_valid
    with pytest.raises(ConfigError, match="expected at most 100 vertices, got 101"):
        parse_area(circle(100), 100)
    assert parse_area(circle(100)).is_valid
