"""Exported rows as GeoParquet: the columns and types of the product."""

import json
from pathlib import Path

import pyarrow as pa

from kiln.formats.embeddings_file import ShardWriter
from kiln.formats.geoparquet import ROW_GROUP
from kiln.product.export.writers.exported_rows import FOOTPRINT_COLUMNS, ExportedRows


def write(path: Path, rows: ExportedRows) -> None:
    """Write the rows, their footprints and bounding boxes. At most two row groups are held in memory."""
    names = [*rows.columns, *(name for name in FOOTPRINT_COLUMNS if name not in rows.columns)]
    metadata = {"kiln": json.dumps(rows.metadata, sort_keys=True)}
    schema = pa.schema([rows.schema.field(name) for name in names], metadata=metadata)
    with ShardWriter(path, schema, ROW_GROUP) as file:
        for batch in rows.batches:
            file.append_rows(batch.select(names))
