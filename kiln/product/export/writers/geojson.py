"""Exported rows as GeoJSON (RFC 7946), a feature a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from kiln.formats.columns import BBOX
from kiln.product.export.writers.exported_rows import LAYER, ExportedRows
from kiln.product.export.writers.flat_columns import finite, iso_times, shortest, vector_texts, without_dictionary

COMPACT = (",", ":")  # separators


def write(path: Path, rows: ExportedRows) -> None:
    """Write a FeatureCollection. Its member `kiln` states the products, and whether their weights are random."""
    head = {"type": "FeatureCollection", "name": LAYER, "kiln": rows.facts()}
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        separator = "\n"
        for batch in rows.batches:
            for feature in _features(batch, rows):
                file.write(separator + feature)
                separator = ",\n"
        file.write("\n]}\n")


def _features(batch: pa.Table, rows: ExportedRows) -> Iterator[str]:
    """Yield the text of each feature."""
    properties = pa.table({name: _json_column(batch[name]) for name in rows.plain}).to_pylist() or [{}] * len(batch)
    vectors = {name: vector_texts(batch, name).to_pylist() for name in rows.vectors}
    boxes = batch["bbox"].combine_chunks()
    sides = np.stack([np.asarray(boxes.field(side.name)) for side in BBOX], axis=1).tolist()
    geometries = shapely.to_geojson(shapely.from_wkb(np.asarray(batch["geometry"], dtype=object)))
    ids = batch["chip_id"].to_pylist()
    for n, values in enumerate(properties):
        members = [f"{json.dumps(name)}:{_dump(value)}" for name, value in values.items()]
        members += [f"{json.dumps(name)}:[{texts[n]}]" for name, texts in vectors.items()]
        yield (
            f'{{"type":"Feature","id":{_dump(ids[n])},"bbox":{_dump(sides[n])},"geometry":{geometries[n]},'
            f'"properties":{{{",".join(members)}}}}}'
        )


def _json_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column whose Python values JSON can hold."""
    column = without_dictionary(column)
    if pa.types.is_timestamp(column.type):
        return iso_times(column)
    if pa.types.is_floating(column.type):
        return shortest(finite(column)) if pa.types.is_float32(column.type) else finite(column)
    return column


def _dump(value: Any) -> str:
    return json.dumps(value, separators=COMPACT, ensure_ascii=False, allow_nan=False)
