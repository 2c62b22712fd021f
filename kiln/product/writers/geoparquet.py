"""Exported rows as GeoParquet: the columns and types of the product."""

import json
from pathlib import Path

import pyarrow as pa

from kiln.formats.embeddings_file import ShardWriter
from kiln.product.writers.exported_rows import ExportedRows

ALWAYS = ("geometry", "bbox")  # columns that GeoParquet needs


def write(path: Path, rows: ExportedRows) -> None:
    """Write the rows, their footprints and bounding boxes. At most two row groups are held in memory."""
    names = [*rows.columns, *ALWAYS]
    metadata = {"kiln": json.dumps(rows.metadata, sort_keys=True)}
    schema = pa.schema([rows.schema.field(name) for name in names], metadata=metadata)
    with ShardWriter(path, schema) as file:
        for batch in rows.batches:
            file.append_rows(batch.select(names))
