"""Chips as others take them: facts in JSON, GeoJSON and GeoParquet; sets of marks in, as GeoJSON."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import shapely.geometry

from kiln.errors import ConfigError
from kiln.explorer.matrix import BOX, NO_TIME, Matrix
from kiln.formats import geoparquet

MARKS = ("like", "dislike")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def facts(matrix: Matrix, rows: Sequence[int] | np.ndarray, scores: np.ndarray | None = None) -> list[dict[str, Any]]:
    """What is known of chips; with `scores` also `similarity`."""
    rows = np.asarray(rows, np.int64)
    texts = matrix.texts.take(pa.array(rows)).to_pydict()
    plain = {n: matrix[n][rows].tolist() for n in ("dataset", "year", "time", "nodata", "cloud", "lon", "lat", *BOX)}
    told = []
    for n in range(len(rows)):
        when = plain["time"][n]
        told.append(
            {
                "chip_id": texts["chip_id"][n],
                "dataset": matrix.datasets[plain["dataset"][n]],
                "year": plain["year"][n] or None,
                "datetime": datetime_text(when),
                "item_id": texts["item_id"][n],
                "source": texts["source"][n],
                "nodata_fraction": _share(plain["nodata"][n]),
                "cloud_fraction": _share(plain["cloud"][n]),
                "lon": plain["lon"][n],
                "lat": plain["lat"][n],
                "bbox": [plain[c][n] for c in BOX],
            }
        )
        if scores is not None:
            told[-1]["similarity"] = round(float(scores[n]), 6)
    return told


def _share(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def datetime_text(when: int) -> str | None:
    """Milliseconds since 1970 as ISO 8601; None for NO_TIME."""
    return None if when == NO_TIME else f"{EPOCH + timedelta(milliseconds=when):%Y-%m-%dT%H:%M:%SZ}"


def outline(bbox: Sequence[float]) -> dict[str, Any]:
    """A box as a GeoJSON polygon, anticlockwise; cut in two at the antimeridian (RFC 7946, 3.1.9) if west > east."""
    west, south, east, north = bbox

    def ring(w: float, e: float) -> list[list[float]]:
        return [[w, south], [e, south], [e, north], [w, north], [w, south]]

    if west <= east:
        return {"type": "Polygon", "coordinates": [ring(west, east)]}
    return {"type": "MultiPolygon", "coordinates": [[ring(west, 180.0)], [ring(-180.0, east)]]}


def outlines(matrix: Matrix, rows: np.ndarray) -> dict[str, Any]:
    """A FeatureCollection of boxes with chip_id, dataset and year."""
    boxes = np.stack([np.round(matrix[n][rows], 7) for n in BOX], axis=1).tolist()
    names = (matrix.ids(rows), matrix["dataset"][rows].tolist(), matrix["year"][rows].tolist())
    features = [
        {
            "type": "Feature",
            "geometry": outline(box),
            "properties": {"chip_id": chip_id, "dataset": matrix.datasets[dataset], "year": year or None},
        }
        for box, chip_id, dataset, year in zip(boxes, *names, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def as_geojson(results: Sequence[Mapping[str, Any]], embeddings: np.ndarray | None = None) -> dict[str, Any]:
    """A FeatureCollection of results, in order, with their rank; `embeddings` [m, D] become lists."""
    features = []
    for n, row in enumerate(results):
        properties = {"rank": n + 1, **{k: v for k, v in row.items() if k != "bbox"}}
        if embeddings is not None:
            properties["embeddings"] = [float(v) for v in embeddings[n]]
        features.append(
            {
                "type": "Feature",
                "id": row["chip_id"],
                "bbox": row["bbox"],
                "geometry": outline(row["bbox"]),
                "properties": properties,
            }
        )
    return {"type": "FeatureCollection", "features": features}


def as_geoparquet(
    results: Sequence[Mapping[str, Any]], path: Path, about: Mapping[str, Any], embeddings: np.ndarray | None = None
) -> None:
    """Write results as GeoParquet 1.1 with their rank; `embeddings` [m, D] float16 as a fixed-size list."""
    strings = ("chip_id", "dataset", "item_id", "source")
    floats = ("nodata_fraction", "cloud_fraction", "similarity")
    times = [datetime.fromisoformat(r["datetime"]) if r["datetime"] else None for r in results]
    shapes = [shapely.geometry.shape(outline(r["bbox"])) for r in results]
    boxes = [dict(zip(BOX, r["bbox"], strict=True)) for r in results]
    columns: dict[str, pa.Array] = {
        "chip_id": pa.array([r["chip_id"] for r in results], pa.string()),
        "rank": pa.array(range(1, len(results) + 1), pa.int32()),
        **{n: pa.array([r.get(n) for r in results], pa.string()) for n in strings[1:]},
        "year": pa.array([r["year"] for r in results], pa.int16()),
        "datetime": pa.array(times, pa.timestamp("ms", tz="UTC")),
        **{n: pa.array([r.get(n) for r in results], pa.float32()) for n in floats},
        **{n: pa.array([r[n] for r in results], pa.float64()) for n in ("lon", "lat")},
        "bbox": pa.array(boxes, geoparquet.BBOX),
        "geometry": pa.array([shapely.to_wkb(s) for s in shapes], pa.binary()),
    }
    if embeddings is not None:
        flat = pa.array(np.ascontiguousarray(embeddings, np.float16).ravel())
        columns["embeddings"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    edges = [r["bbox"] for r in results]
    bounds = (
        [*(min(b[i] for b in edges) for i in (0, 1)), *(max(b[i] for b in edges) for i in (2, 3))]
        if edges
        else [math.inf] * 4
    )
    if any(b[0] > b[2] for b in edges):
        bounds[0], bounds[2] = -180.0, 180.0
    geo = geoparquet.geo_metadata("geometry", {s.geom_type for s in shapes}, bounds, covering=True)
    made = pa.table(columns).replace_schema_metadata(
        {"geo": json.dumps(geo), "kiln": json.dumps(about, sort_keys=True)}
    )
    pq.write_table(made, path, compression="zstd", compression_level=3)


def read_marks(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Likes and dislikes of a set: a FeatureCollection whose features have `chip_id` and `mark`. Raises ConfigError."""
    features = value.get("features") if isinstance(value, Mapping) else None
    if not isinstance(features, list) or value.get("type") != "FeatureCollection":
        raise ConfigError("marks: want a GeoJSON FeatureCollection of marked chips, as the explorer saves it")
    found: dict[str, list[str]] = {m: [] for m in MARKS}
    for n, feature in enumerate(features):
        told = feature.get("properties") if isinstance(feature, Mapping) else None
        chip_id, mark = (told.get("chip_id"), told.get("mark")) if isinstance(told, Mapping) else (None, None)
        if not isinstance(chip_id, str) or mark not in MARKS:
            raise ConfigError(f"marks: feature {n + 1} has no chip_id, or its mark is neither like nor dislike")
        found[mark].append(chip_id)
    likes, dislikes = (tuple(dict.fromkeys(found[m])) for m in MARKS)
    return likes, dislikes
