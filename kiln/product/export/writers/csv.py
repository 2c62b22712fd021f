"""Exported rows as CSV: a column per number of a vector, the footprint as WKT."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import shapely

from kiln.formats import vectors
from kiln.formats.embeddings_file import box_centres
from kiln.product.export.writers.exported_rows import ExportedRows
from kiln.product.export.writers.flat_columns import iso_times, joined, plain_type, without_dictionary

SEPARATOR = ";"  # of the values of a list


def write(path: Path, rows: ExportedRows) -> None:
    """Write UTF-8 with a header: columns, centre, vectors, and the footprint last.

    Rows of untrained weights have a column `untrained`, since CSV has no metadata.
    """
    schema = _schema(rows)
    with pa.csv.CSVWriter(path, schema) as file:
        for batch in rows.batches:
            file.write_table(_table(batch, rows, schema))


def _centres(rows: ExportedRows) -> list[str]:
    """Return the columns of the centre that the rows do not have; the results of a search have them."""
    return [name for name in ("lon", "lat") if name not in rows.plain]


def _schema(rows: ExportedRows) -> pa.Schema:
    fields = []
    for name in rows.plain:
        dtype = plain_type(rows.schema.field(name).type)
        is_text = pa.types.is_list(dtype) or pa.types.is_timestamp(dtype)
        fields.append(pa.field(name, pa.string() if is_text else dtype))
    fields += [pa.field("untrained", pa.bool_())] if rows.untrained else []
    fields += [pa.field(name, pa.float64()) for name in _centres(rows)]
    for name in rows.vectors:
        fields += [pa.field(f"{name}_{n}", pa.float32()) for n in range(rows.dimensions(name))]
    return pa.schema([*fields, pa.field("geometry", pa.string())])


def _table(batch: pa.Table, rows: ExportedRows, schema: pa.Schema) -> pa.Table:
    arrays: list[Any] = []
    for name in rows.plain:
        column = without_dictionary(batch[name])
        if pa.types.is_list(column.type):
            column = joined(column, SEPARATOR)
        arrays.append(iso_times(column) if pa.types.is_timestamp(column.type) else column)
    if rows.untrained:
        arrays.append(pa.array([True] * len(batch)))
    centre = dict(zip(("lon", "lat"), box_centres(batch["bbox"].combine_chunks()), strict=True))
    arrays += [pa.array(centre[name]) for name in _centres(rows)]
    for name in rows.vectors:
        arrays += [pa.array(column) for column in np.ascontiguousarray(vectors.read(batch, name).T)]
    footprints = shapely.from_wkb(np.asarray(batch["geometry"], dtype=object))
    arrays.append(pa.array(shapely.to_wkt(footprints, rounding_precision=-1), pa.string()))
    return pa.table(arrays, schema=schema)
