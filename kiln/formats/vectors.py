"""Vectors in files: which kinds a run keeps, under which names, in which type, and how they become numbers again.

`embeddings` holds what `embedding` of the config says, the class token or the mean of the patch tokens; with `both`,
`embeddings` is the class token and `embeddings_mean` the mean. Stored as int8, a vector has a scale of its own in the
column beside it: number = int8 * scale.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from kiln.errors import ConfigError

Storage = Literal["float32", "float16", "int8"]
Embedding = Literal["class", "mean", "both"]
STORAGES: tuple[str, ...] = get_args(Storage)
EMBEDDINGS: tuple[str, ...] = get_args(Embedding)
TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
BYTES = {"float32": 4, "float16": 2, "int8": 1}
KINDS = {  # by column
    "class": {"embeddings": "class"},
    "mean": {"embeddings": "mean"},
    "both": {"embeddings": "class", "embeddings_mean": "mean"},
}
SCALES = {"embeddings": "scale", "embeddings_mean": "scale_mean"}
LEVELS = 127  # of an int8 either side of zero; -128 is not used, so that signs are alike
LEAST = np.finfo(np.float32).tiny  # of a scale; smaller numbers become zero

Columns = dict[str, np.ndarray]  # by the file's column: vectors [n, D], scales [n]


def fields(dim: int, storage: Storage, embedding: Embedding) -> list[pa.Field]:
    """The columns of vectors, each with its scale after it where it is stored as int8."""
    made = []
    for name in KINDS[embedding]:
        made.append(pa.field(name, pa.list_(pa.field("element", TYPES[storage], nullable=False), dim), nullable=False))
        if storage == "int8":
            made.append(pa.field(SCALES[name], pa.float32(), nullable=False))
    return made


def store(found: Columns, storage: Storage) -> Columns:
    """Vectors [n, D] float32 as they are kept; what is not finite then is not, in the vector or in its scale.

    Other columns stay as they are.
    """
    made: Columns = {}
    with np.errstate(over="ignore"):  # becomes infinite, and is seen by `finite`
        for name, values in found.items():
            if name not in SCALES:
                made[name] = values
            elif storage == "int8":
                made[name], made[SCALES[name]] = quantise(values)
            else:
                made[name] = values.astype(storage)
    return made


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, D] float32 as int8 [n, D] and scales [n] float32, the largest magnitude over 127; half goes to even.

    A vector of zeros has scale 1. One that is not finite has a scale that is NaN.
    """
    most = np.abs(values).max(axis=1, initial=0).astype(np.float32)
    scale = np.where(most > 0, np.maximum(most / np.float32(LEVELS), LEAST), np.float32(1))
    scale[~np.isfinite(most)] = np.nan
    safe = np.where(np.isnan(scale), np.float32(1), scale)[:, None]
    levels = np.rint(np.where(np.isnan(scale)[:, None], np.float32(0), values) / safe)
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scale


def joined(pieces: Sequence[Columns]) -> Columns:
    """The rows of all pieces, which have the same columns."""
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}


def chosen(columns: Columns, rows: np.ndarray | slice) -> Columns:
    """Some of the rows."""
    return {name: values[rows] for name, values in columns.items()}


def finite(columns: Columns) -> np.ndarray:
    """Which rows [n] have only finite numbers, scales included."""
    return np.logical_and.reduce([np.isfinite(c).reshape(len(c), -1).all(axis=1) for c in columns.values()])


def arrays(columns: Columns, schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns as Arrow arrays of the types that the file's schema has."""
    made: dict[str, pa.Array] = {}
    for name, values in columns.items():
        kind = schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            made[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)
        else:
            made[name] = pa.array(values, kind)
    return made


def read(rows: pa.RecordBatch | pa.Table, column: str = "embeddings") -> np.ndarray:
    """Numbers [n, D] float32 of a file's rows; int8 times its scale."""

    def whole(name: str) -> pa.Array:
        values = rows[name]
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values

    vectors = whole(column)
    values = np.asarray(vectors.flatten()).reshape(len(vectors), vectors.type.list_size).astype(np.float32)
    if pa.types.is_int8(vectors.type.value_type):
        values *= np.asarray(whole(SCALES[column]))[:, None]
    return values


def kind_of(embedding: Embedding, kind: str | None, where: str) -> str:
    """Which kind of vectors of a file are searched with: the one asked for, or that in `embeddings`.

    Raises ConfigError, naming `where`, for a file without that kind.
    """
    kinds = list(KINDS[embedding].values())
    if kind is not None and kind not in kinds:
        raise ConfigError(
            f"{where}: its vectors are of kind {' and '.join(kinds)}, not {kind}: change index.select.embedding, or "
            "embed with `embedding: both`"
        )
    return kind or kinds[0]


def searched(names: Sequence[str], kind: str | None) -> str:
    """Of a file's columns that of the kind to search with, which `kind_of` found there."""
    return "embeddings_mean" if kind == "mean" and "embeddings_mean" in names else "embeddings"


def without_others(names: Sequence[str], kind: str | None, unused: Sequence[str]) -> list[str]:
    """A file's columns but the unused ones and vectors, with their scales, of the other kind."""
    column = searched(names, kind)
    left = {*unused, *SCALES, *SCALES.values()} - {column, SCALES[column]}
    return [n for n in names if n not in left]


def described(storage: str, embedding: str) -> dict[str, Any]:
    """Of the `kiln` metadata: how int8 becomes numbers; nothing for floats, which are what they say."""
    if storage != "int8":
        return {}
    return {"dequantisation": {name: f"{name} * {SCALES[name]}" for name in KINDS[embedding]}}
