"""Search results as text, JSON, GeoJSON, GeoParquet and GeoDataFrame; sets of marks from GeoJSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import shapely
import shapely.geometry
from numpy.typing import NDArray

from kiln.errors import ConfigError
from kiln.explorer.chips import ChipFacts, Hit
from kiln.explorer.footprints import Footprints
from kiln.explorer.matrix import BOX, Matrix, Rows
from kiln.formats import geoparquet
from kiln.formats.bounding_box import BoundingBox
from kiln.formats.columns import BBOX
from kiln.formats.extent import Extent
from kiln.formats.parquet import write_table

if TYPE_CHECKING:
    import geopandas as gpd

MARKS = ("like", "dislike")
Vectors = NDArray[np.float16]


def as_text(reference: ChipFacts, hits: Sequence[Hit]) -> str:
    """Return aligned lines: rank, similarity, place, year, id; the chip that stands for the query first."""
    lines = [f"{'':>4}  {'cosine':>7}  {'lon':>11}  {'lat':>10}  {'year':>4}  chip"]
    for rank, (chip, similarity) in enumerate([(reference, 1.0), *((h.chip, h.similarity) for h in hits)]):
        place = f"{chip.lon:>11.5f}  {chip.lat:>10.5f}  {chip.year or '':>4}"
        lines.append(f"{rank or 'like':>4}  {similarity:>7.4f}  {place}  {chip.chip_id}")
    return "\n".join(lines)


def as_json(reference: ChipFacts, hits: Sequence[Hit]) -> dict[str, Any]:
    """Return `query`, the facts of the chip that stands for the query, and `results`, facts with similarity."""
    return {"query": reference.to_json(), "results": [hit.to_json() for hit in hits]}


def as_geojson(
    hits: Sequence[Hit], footprints: Footprints, *, reference: ChipFacts | None = None, vectors: Vectors | None = None
) -> dict[str, Any]:
    """Return a FeatureCollection of the hits' footprints, in order, with their rank.

    Args:
        hits: m hits.
        footprints: Those of the hits, and of the reference.
        reference: A chip to add as rank 0.
        vectors: The hits' vectors [m, D], to add as lists `embeddings`.
    """
    properties: list[dict[str, Any]] = [{"rank": rank, **hit.to_json()} for rank, hit in enumerate(hits, 1)]
    if vectors is not None:
        for values, vector in zip(properties, vectors, strict=True):
            values["embeddings"] = [float(v) for v in vector]
    if reference is not None:
        properties.insert(0, {"rank": 0, **reference.to_json()})
    features = []
    for values in properties:
        chip_id, bbox = values["chip_id"], values.pop("bbox")
        geometry = shapely.geometry.mapping(footprints.geometries[chip_id])
        feature = {"type": "Feature", "id": chip_id, "bbox": bbox, "geometry": geometry}
        features.append({**feature, "properties": {**values, "footprint": footprints.kind}})
    return {"type": "FeatureCollection", "features": features}


def outlines(matrix: Matrix, rows: Rows) -> dict[str, Any]:
    """Return a FeatureCollection of the boxes of rows, with chip_id, dataset and year.

    They are for the map and come from memory, so they are boxes and not footprints, which only the table has.
    """
    boxes = np.stack([np.round(matrix[n][rows], 7) for n in BOX], axis=1).tolist()
    names = (matrix.ids(rows), matrix["dataset"][rows].tolist(), matrix["year"][rows].tolist())
    features = [
        {
            "type": "Feature",
            "geometry": BoundingBox(*box).to_geojson(),
            "properties": {"chip_id": chip_id, "dataset": matrix.datasets[dataset], "year": year or None},
        }
        for box, chip_id, dataset, year in zip(boxes, *names, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def to_table(hits: Sequence[Hit], footprints: Footprints, vectors: Vectors | None = None) -> pa.Table:
    """Return hits as an Arrow table.

    Args:
        hits: m hits, best first.
        footprints: Those of the hits.
        vectors: The hits' vectors [m, D], to add as column `embeddings`.

    Returns:
        Columns chip_id, rank, dataset, item_id, source, year, datetime, nodata_fraction, cloud_fraction, similarity,
        lon, lat, footprint (`exact` or `box`), bbox (struct) and geometry (WKB), and `embeddings` (float16 list of one
        length).
    """
    chips = [hit.chip for hit in hits]
    geometries = [footprints.geometries[chip.chip_id] for chip in chips]
    boxes = [dict(zip(BOX, chip.bbox, strict=True)) for chip in chips]
    columns: dict[str, pa.Array] = {
        "chip_id": pa.array([c.chip_id for c in chips], pa.string()),
        "rank": pa.array(range(1, len(chips) + 1), pa.int32()),
        "dataset": pa.array([c.dataset for c in chips], pa.string()),
        "item_id": pa.array([c.item_id for c in chips], pa.string()),
        "source": pa.array([c.source for c in chips], pa.string()),
        "year": pa.array([c.year for c in chips], pa.int16()),
        "datetime": pa.array([c.datetime for c in chips], pa.timestamp("ms", tz="UTC")),
        "nodata_fraction": pa.array([c.nodata_fraction for c in chips], pa.float32()),
        "cloud_fraction": pa.array([c.cloud_fraction for c in chips], pa.float32()),
        "similarity": pa.array([hit.similarity for hit in hits], pa.float32()),
        "lon": pa.array([c.lon for c in chips], pa.float64()),
        "lat": pa.array([c.lat for c in chips], pa.float64()),
        "footprint": pa.array([footprints.kind] * len(chips), pa.string()),
        "bbox": pa.array(boxes, BBOX),
        "geometry": pa.array([shapely.to_wkb(g, byte_order=1) for g in geometries], pa.binary()),
    }
    if vectors is not None:
        flat = pa.array(np.ascontiguousarray(vectors, np.float16).ravel())
        columns["embeddings"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(columns)


def write_geoparquet(
    path: Path,
    hits: Sequence[Hit],
    footprints: Footprints,
    metadata: Mapping[str, Any],
    vectors: Vectors | None = None,
) -> None:
    """Write hits as GeoParquet 1.1.

    Args:
        path: The file.
        hits: m hits, best first.
        footprints: Those of the hits.
        metadata: The database's `kiln` metadata by dataset.
        vectors: The hits' vectors [m, D], to add as column `embeddings`.
    """
    table = to_table(hits, footprints, vectors)
    boxes = [hit.chip.bbox for hit in hits]
    types = frozenset(footprints.geometries[hit.chip.chip_id].geom_type for hit in hits)
    geo = geoparquet.geo_metadata("geometry", Extent.of_boxes(np.array(boxes), types), covering=True)
    table = table.replace_schema_metadata({"geo": json.dumps(geo), "kiln": json.dumps(metadata, sort_keys=True)})
    write_table(table, path, compression="zstd", compression_level=3)


def to_geodataframe(hits: Sequence[Hit], footprints: Footprints) -> "gpd.GeoDataFrame":
    """Return hits as a GeoDataFrame in EPSG:4326: the columns of `to_table` without `bbox`, footprints as geometry."""
    import geopandas as gpd
    import pandas as pd

    table = to_table(hits, footprints)
    frame = table.drop_columns(["bbox", "geometry"]).to_pandas(types_mapper={pa.int16(): pd.Int16Dtype()}.get)
    return gpd.GeoDataFrame(frame, geometry=shapely.from_wkb(table["geometry"].to_pylist()), crs="EPSG:4326")


def read_marks(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the likes and dislikes of a set of marks.

    Args:
        value: A GeoJSON FeatureCollection whose features have the properties `chip_id` and `mark` (like or dislike).

    Raises:
        ConfigError: It is not such a collection.
    """
    features = value.get("features") if isinstance(value, Mapping) else None
    if not isinstance(features, list) or value.get("type") != "FeatureCollection":
        raise ConfigError("marks: expected a GeoJSON FeatureCollection of marked chips, as the explorer saves it.")
    ids: dict[str, list[str]] = {mark: [] for mark in MARKS}
    for n, feature in enumerate(features):
        properties = feature.get("properties") if isinstance(feature, Mapping) else None
        if not isinstance(properties, Mapping):
            properties = {}
        chip_id, mark = properties.get("chip_id"), properties.get("mark")
        if not isinstance(chip_id, str) or mark not in MARKS:
            raise ConfigError(f"marks: expected chip_id and mark (like or dislike), got others in feature {n + 1}.")
        ids[mark].append(chip_id)
    likes, dislikes = (tuple(dict.fromkeys(ids[mark])) for mark in MARKS)
    return likes, dislikes
