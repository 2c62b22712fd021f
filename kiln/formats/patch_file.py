"""Patch vectors of chips, in their own file: hundreds of times the size of a shard's, and written on request.

A row is a chip, in the order of the shard's rows: `chip_id`, and `patches`, its patch tokens as float16 in one list.
The `kiln` metadata has their shape: rows from the north, columns from the west, dimensions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from kiln.formats.arrays import Float16Array
from kiln.formats.columns import CHIP, ColumnSpec, arrow_schema
from kiln.formats.parquet import close_writer, open_file, open_writer, parquet_errors
from kiln.io import storage

COLUMN = "patches"
ROW_GROUP_BYTES = 64 << 20  # before compression; held in memory


def patches_name(shard: str) -> str:
    """Return the name or URI of a shard's file of patches, given that of its embeddings file."""
    return f"{shard.removesuffix('.parquet')}.patches.parquet"


def patches_metadata(lattice: Mapping[str, Any], patch: int, dimensions: int) -> dict[str, Any]:
    """Return the entry `patches` of the `kiln` metadata.

    Args:
        lattice: The source's lattice, with `chip_size` in pixels.
        patch: Side of a patch in pixels.
        dimensions: Numbers of a vector.

    Returns:
        The shape [rows, columns, D] of a chip's patches, and their dtype.
    """
    side = lattice["chip_size"] // (2 if lattice.get("encode") == "quarters" else 1) // patch
    return {"shape": [side, side, dimensions], "vector_dtype": "float16"}


def schema(metadata: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of a file of patches with its `kiln` metadata, whose `patches` is `patches_metadata`."""
    size = int(np.prod(metadata["patches"]["shape"]))
    return arrow_schema(columns(size), {"kiln": json.dumps(metadata, sort_keys=True)})


def columns(size: int) -> list[ColumnSpec]:
    """Return the columns of a file of patches, with `size` numbers in all vectors of a chip."""
    patches = pa.list_(pa.field("element", pa.float16(), nullable=False), size)
    return [CHIP, ColumnSpec(COLUMN, patches, "vectors of all patches of the chip, row by row, north-west first")]


class PatchWriter:
    """A writer of a file of patches. It holds one row group in memory.

    Every row group but the last has as many rows, so the file depends on the rows alone and not on their batches.
    """

    def __init__(self, path: Path, file_schema: pa.Schema) -> None:
        self.schema = file_schema
        self._type = file_schema.field(COLUMN).type
        self._rows = max(1, ROW_GROUP_BYTES // (2 * self._type.list_size))
        self._block = np.empty((self._rows, self._type.list_size), np.float16)
        self._ids: list[str] = []
        self._path = path
        self._file = open_writer(
            path,
            file_schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=["chip_id"],
        )

    def append(self, chip_ids: Sequence[str], block: Float16Array) -> None:
        """Append n chips with their patches `block` [n, L * D]."""
        start = 0
        while start < len(chip_ids):
            first = len(self._ids)
            count = min(self._rows - first, len(chip_ids) - start)
            self._block[first : first + count] = block[start : start + count]
            self._ids += chip_ids[start : start + count]
            start += count
            if len(self._ids) == self._rows:
                self._write_row_group()

    def _write_row_group(self) -> None:
        values = pa.array(self._block[: len(self._ids)].reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, type=self._type)
        self._file.write_table(pa.table([pa.array(self._ids, pa.string()), rows], schema=self.schema))
        self._ids = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._ids:
                self._write_row_group()
        except BaseException:
            self._file.close()
            raise
        if kind is None:
            close_writer(self._file, self._path)
        else:  # the file is not kept
            self._file.close()


class Spool:
    """The file of an unfinished unit's patches, which appears at `uri` when the unit is finished."""

    def __init__(self, uri: str, file_schema: pa.Schema) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(PatchWriter(stack.enter_context(storage.atomic(uri)), file_schema))
            self._open = stack.pop_all()

    def append(self, chip_ids: Sequence[str], block: Float16Array) -> None:
        """Append n chips with their patches `block` [n, L * D]."""
        self._file.append(chip_ids, block)

    def finish(self) -> None:
        """Write the file to its URI. Raises StorageError if that fails."""
        self._open.close()

    def abandon(self) -> None:
        """Delete what was written, unless `finish` was called before."""
        with suppress(_AbandonedError), self._open:
            raise _AbandonedError


class _AbandonedError(Exception):
    """The end of a spool whose file must not appear."""


def read_patches(path: Path) -> Iterator[tuple[list[str], Float16Array]]:
    """Yield ids [n] and patches [n, L * D] of chips, one row group at a time. Raises SourceError for a damaged file."""
    file = open_file(path)
    for group in range(file.num_row_groups):
        with parquet_errors(path):
            rows = file.read_row_group(group)
        patches = rows[COLUMN].combine_chunks()
        yield rows["chip_id"].to_pylist(), np.asarray(patches.flatten()).reshape(len(rows), patches.type.list_size)
