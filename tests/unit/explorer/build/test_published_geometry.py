"""Footprints of published files at the antimeridian, and types of geometries."""

import numpy as np
import pyproj
import pytest
import shapely

from kiln.explorer.build.published_geometry import boxes_of, footprints_of


def stored(*shapes):
    """Return boxes [n, 4] and the geometries as they are stored."""
    shapes = np.array(shapes, dtype=object)
    boxes, has_place = boxes_of(shapes, "a.parquet")
    assert has_place.all()
    return boxes.tolist(), shapely.from_wkb(footprints_of(shapes, boxes).to_pylist())


@pytest.mark.parametrize(
    "shape",
    [
        shapely.Point(1, 2),
        shapely.box(1, 2, 3, 4),
        shapely.box(1, 2, 3, 4, ccw=False),
        shapely.Polygon([(0, 0), (3, 0), (3, 3), (0, 3)], [[(1, 1), (2, 1), (2, 2), (1, 2)]]),
        shapely.MultiPolygon([shapely.box(179.9, 0, 180, 1), shapely.box(-180, 0, -179.9, 1)]),
        shapely.MultiPolygon([shapely.box(179.8, 0, 179.9, 1), shapely.box(-179.9, 0, -179.8, 1)]),
        shapely.MultiPoint([(179.9, 0), (-179.9, 0)]),
        shapely.box(-180, -90, 180, 90),
    ],
)
def test_other_geometries_are_stored_as_they_are(shape):
    assert stored(shape)[1][0] == shape


def test_heights_are_left_out():
    assert stored(shapely.Point(1, 2, 3))[1][0] == shapely.Point(1, 2)


def test_a_utm_square_over_the_antimeridian_is_cut_there():
    project = pyproj.Transformer.from_crs("EPSG:32701", "EPSG:4326", always_xy=True)
    square = shapely.box(170_000, 8_115_000, 190_000, 8_117_560)
    ring = shapely.transform(square, lambda xy: np.column_stack(project.transform(*xy.T)))
    assert ring.bounds[2] - ring.bounds[0] > 359
    (box,), (footprint,) = stored(ring)
    assert box[0] > box[2]
    assert footprint.is_valid
    west, east = shapely.get_parts(footprint)
    assert (west.bounds[2], east.bounds[0]) == (180, -180)
    assert [west.bounds[0], east.bounds[2]] == pytest.approx([box[0], box[2]], abs=1e-9)
    turned = shapely.transform(ring, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))
    assert footprint.area == pytest.approx(turned.area, rel=1e-9)


def test_a_footprint_that_only_touches_the_antimeridian_stays_one_polygon():
    touching = shapely.Polygon([(-180, 0), (179.9, 0), (179.9, 1), (180, 1)])
    assert stored(touching)[1][0].geom_type == "Polygon"
