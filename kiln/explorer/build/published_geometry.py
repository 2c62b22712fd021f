"""Geometries of published files: their boxes, and footprints in degrees that are cut at the antimeridian."""

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from shapely.affinity import translate

from kiln.errors import SourceError
from kiln.formats import embeddings_file
from kiln.formats.arrays import BoolArray, Float64Array, ObjectArray

MAX_WIDTH = 180.0  # degrees; a wider polygon was drawn the long way round the world
WEST_HALF, EAST_HALF = shapely.box(0, -90, 180, 90), shapely.box(180, -90, 360, 90)  # of longitudes 0 to 360


def geometries_of(column: pa.Array, project: pyproj.Transformer | None, uri: str) -> ObjectArray:
    """Return geometries in degrees, of whatever type the file has.

    Args:
        column: n geometries as WKB.
        project: Projects them to degrees; None: they are in degrees.
        uri: The file, for messages.

    Returns:
        Geometries [n]; None where there is none.

    Raises:
        SourceError: A geometry is not WKB.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise SourceError(f"{uri}: expected WKB geometries, got {column.type}.")
    try:
        shapes: ObjectArray = shapely.from_wkb(np.array(column.to_pylist(), dtype=object))
    except shapely.errors.GEOSException as e:
        raise SourceError(f"{uri}: expected WKB geometries, got others ({e}).") from e
    if project is not None:
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(project.transform(*xy.T)))
    return shapes


def boxes_of(shapes: ObjectArray, uri: str) -> tuple[Float64Array, BoolArray]:
    """Return boxes of geometries, and which have a place.

    Args:
        shapes: Geometries [n] as from `geometries_of`.
        uri: The file, for messages.

    Returns:
        Boxes [n, 4] in degrees, west > east across the antimeridian, and the mask [n].

    Raises:
        SourceError: A geometry is not in degrees.
    """
    has_place = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    boxes = np.full((len(shapes), 4), np.nan)
    boxes[has_place] = embeddings_file.bounding_boxes(shapes[has_place])
    if (np.abs(boxes[has_place]) > [180 + 1e-6, 90 + 1e-6] * 2).any() or not np.isfinite(boxes[has_place]).all():
        raise SourceError(f"{uri}: expected geometries in degrees, or a CRS in the metadata, got neither.")
    for n in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > MAX_WIDTH):  # the footprint was drawn the long way round
        lon = shapely.get_coordinates(shapes[n])[:, 0]
        boxes[n, [0, 2]] = lon[lon > 0].min(), lon[lon <= 0].max()
    return boxes, has_place


def footprints_of(shapes: ObjectArray, boxes: Float64Array) -> pa.Array:
    """Return geometries [n] as the explorer table stores them: WKB in two dimensions, cut at the antimeridian.

    Args:
        shapes: Geometries [n] as from `geometries_of`, with a place.
        boxes: Their boxes [n, 4] as from `boxes_of`.
    """
    cut = shapes.copy()
    for n in np.flatnonzero(boxes[:, 0] > boxes[:, 2]):
        cut[n] = cut_at_antimeridian(shapes[n])
    return pa.array(shapely.to_wkb(cut, byte_order=1, output_dimension=2), pa.binary())


def cut_at_antimeridian(shape: shapely.Geometry) -> shapely.Geometry:
    """Return polygons with those cut at the antimeridian that were drawn the long way round; other types unchanged."""
    parts = shapely.get_parts(shape)
    widths = np.ptp(shapely.bounds(parts)[:, [0, 2]], axis=1)
    if (shapely.get_type_id(parts) != shapely.GeometryType.POLYGON).any() or (widths <= MAX_WIDTH).all():
        return shape
    pieces = []
    for part, width in zip(parts, widths, strict=True):
        if width <= MAX_WIDTH:
            pieces.append(part)
            continue
        turned = shapely.make_valid(shapely.transform(part, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]])))
        halves = [turned & WEST_HALF, translate(turned & EAST_HALF, xoff=-360)]
        pieces += [piece for half in halves for piece in shapely.get_parts(half) if piece.area > 0]
    if not pieces:  # it goes around the world
        return shape
    return pieces[0] if len(pieces) == 1 else shapely.MultiPolygon(pieces)
