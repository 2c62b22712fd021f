"""Vectors in files: their kinds, columns and dtypes, and how they become float32 again.

The config's `embedding` decides what the column `embeddings` holds: the class token or the mean of the patch tokens.
With `both`, `embeddings` holds the class token and `embeddings_mean` the mean. An int8 vector has its own scale in
another column: number = int8 * scale.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from kiln.errors import ConfigError
from kiln.formats.arrays import AnyArray, BoolArray, Float32Array, Int8Array
from kiln.formats.columns import ColumnSpec

VectorDtype = Literal["float32", "float16", "int8"]
Embedding = Literal["class", "mean", "both"]
VECTOR_DTYPES: tuple[str, ...] = get_args(VectorDtype)
EMBEDDINGS: tuple[str, ...] = get_args(Embedding)
ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a number
KINDS = {  # kind of vectors by column, for each embedding
    "class": {"embeddings": "class"},
    "mean": {"embeddings": "mean"},
    "both": {"embeddings": "class", "embeddings_mean": "mean"},
}
MEANINGS = {"class": "class token of the encoder", "mean": "mean of the encoder's patch tokens"}  # by kind
SCALES = {"embeddings": "scale", "embeddings_mean": "scale_mean"}  # column of the scales by column of the vectors
MAX_LEVEL = 127  # of an int8; -128 is not used, so that both signs have the same range
MIN_SCALE = np.finfo(np.float32).tiny  # smaller numbers become zero

Columns = dict[str, AnyArray]  # arrays of n rows by column: vectors [n, D], scales [n]


def fields(dimensions: int, vector_dtype: VectorDtype, embedding: Embedding) -> list[ColumnSpec]:
    """Return the columns of vectors; int8 vectors are each followed by their scale."""
    columns = []
    element = pa.field("element", ARROW_TYPES[vector_dtype], nullable=False)
    for name, kind in KINDS[embedding].items():
        meaning = f"vector of the chip: {MEANINGS[kind]}"
        if vector_dtype == "int8":
            meaning += f"; the numbers are {name} * {SCALES[name]}"
        columns.append(ColumnSpec(name, pa.list_(element, dimensions), meaning))
        if vector_dtype == "int8":
            columns.append(ColumnSpec(SCALES[name], pa.float32(), f"factor of the integers in {name}"))
    return columns


def store(columns: Columns, vector_dtype: VectorDtype) -> Columns:
    """Return vectors in the dtype of a file.

    Args:
        columns: Vectors [n, D] float32 by column. Other columns are returned unchanged.
        vector_dtype: Dtype of the file.

    Returns:
        Vectors [n, D], and scales [n] float32 of int8 vectors. A vector that is not finite in `vector_dtype` is not
        finite here either (int8: its scale is NaN), so that `finite_rows` finds it.
    """
    stored: Columns = {}
    with np.errstate(over="ignore"):  # too large numbers become infinite, which `finite_rows` finds
        for name, values in columns.items():
            if name not in SCALES:
                stored[name] = values
            elif vector_dtype == "int8":
                stored[name], stored[SCALES[name]] = quantise(values)
            else:
                stored[name] = values.astype(vector_dtype)
    return stored


def quantise(values: Float32Array) -> tuple[Int8Array, Float32Array]:
    """Return vectors [n, D] as int8 [n, D] and scales [n] float32, half rounded to even.

    The scale is the largest magnitude over 127. A vector of zeros has scale 1, one that is not finite has scale NaN.
    """
    magnitude = np.abs(values).max(axis=1, initial=0).astype(np.float32)
    scale = np.where(magnitude > 0, np.maximum(magnitude / np.float32(MAX_LEVEL), MIN_SCALE), np.float32(1))
    scale[~np.isfinite(magnitude)] = np.nan
    divisor = np.where(np.isnan(scale), np.float32(1), scale)[:, None]
    levels = np.rint(np.where(np.isnan(scale)[:, None], np.float32(0), values) / divisor)
    return np.clip(levels, -MAX_LEVEL, MAX_LEVEL).astype(np.int8), scale


def concatenate(pieces: Sequence[Columns]) -> Columns:
    """Return the rows of all pieces, which have the same columns."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def select_rows(columns: Columns, rows: AnyArray | slice) -> Columns:
    """Return the rows at the positions or mask `rows`."""
    return {name: values[rows] for name, values in columns.items()}


def finite_rows(columns: Columns) -> BoolArray:
    """Return which rows [n] have only finite numbers, scales included."""
    finite: BoolArray = np.logical_and.reduce(
        [np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in columns.values()]
    )
    return finite


def to_arrow(columns: Columns, schema: pa.Schema) -> dict[str, pa.Array]:
    """Return the columns as Arrow arrays of the schema's types."""
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        kind = schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)
        else:
            arrays[name] = pa.array(values, kind)
    return arrays


def read(rows: pa.RecordBatch | pa.Table, column: str = "embeddings") -> Float32Array:
    """Return the vectors [n, D] of a file's rows as float32, int8 multiplied by its scale."""

    def one_chunk(name: str) -> pa.Array:
        values = rows[name]
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values

    lists = one_chunk(column)
    values: Float32Array = np.asarray(lists.flatten()).reshape(len(lists), lists.type.list_size).astype(np.float32)
    if pa.types.is_int8(lists.type.value_type):
        values *= np.asarray(one_chunk(SCALES[column]))[:, None]
    return values


def select_kind(embedding: Embedding, kind: str | None, where: str) -> str:
    """Return the kind of vectors to search with.

    Args:
        embedding: What the file holds.
        kind: `class` or `mean`; None takes the kind in the column `embeddings`.
        where: Name of the file, for the error.

    Raises:
        ConfigError: If the file does not hold that kind.
    """
    kinds = list(KINDS[embedding].values())
    if kind is not None and kind not in kinds:
        raise ConfigError(
            f"{where}: expected vectors of kind {kind}, got {' and '.join(kinds)}. Change index.select.embedding, or "
            "embed with `embedding: both`."
        )
    return kind or kinds[0]


def vector_column(names: Sequence[str], kind: str | None) -> str:
    """Return the column of a file that holds the kind of vectors which `select_kind` returned."""
    return "embeddings_mean" if kind == "mean" and "embeddings_mean" in names else "embeddings"


def searched_columns(names: Sequence[str], kind: str | None, unused: Sequence[str]) -> list[str]:
    """Return a file's columns without the unused ones and without vectors and scales of the other kind."""
    column = vector_column(names, kind)
    dropped = {*unused, *SCALES, *SCALES.values()} - {column, SCALES[column]}
    return [name for name in names if name not in dropped]


def dequantisation_metadata(vector_dtype: str, embedding: str) -> dict[str, Any]:
    """Return the entry of the `kiln` metadata that states how int8 becomes numbers; an empty dict for floats."""
    if vector_dtype != "int8":
        return {}
    return {"dequantisation": {name: f"{name} * {SCALES[name]}" for name in KINDS[embedding]}}
