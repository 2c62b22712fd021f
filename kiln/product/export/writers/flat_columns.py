"""Columns for formats without nested types: plain values, numbers of vectors, text."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kiln.formats import vectors

TIME = "%Y-%m-%dT%H:%M:%SZ"  # ISO 8601; Arrow adds the milliseconds to the seconds


def without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with its values in place of a dictionary's codes."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type of `without_dictionary`."""
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def joined(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Return lists of text as one text each."""
    return pc.binary_join(column, separator)


def iso_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as ISO 8601 text in UTC, such as 2021-06-30T12:00:00.000Z."""
    return pc.strftime(column, format=TIME)


def finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return numbers with null in place of those that are not finite."""
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def shortest(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return float32 as the float64 with the shortest text that gives the same float32: 0.1, not 0.10000000149."""
    return column.cast(pa.string()).cast(pa.float64())


def vector_bytes(rows: pa.Table, column: str) -> pa.Array:
    """Return vectors as bytes each: little-endian float32."""
    values = np.ascontiguousarray(vectors.read(rows, column), "<f4")
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1] * values.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def vector_texts(rows: pa.Table, column: str) -> pa.Array:
    """Return vectors as text each: their float32 numbers with commas between them."""
    values = vectors.read(rows, column)
    texts = pa.array(values.ravel()).cast(pa.string())
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), texts), ",")
