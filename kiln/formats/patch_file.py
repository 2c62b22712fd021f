"""Patch vectors of chips, in a file of their own beside a shard's: hundreds of times its size, written if asked for.

A row is a chip, in the order of the shard's rows: `chip_id`, and `patches`, its patch tokens as float16 in one list.
The `kiln` entry tells their shape: rows from the north, columns from the west, dimensions.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kiln.formats import embeddings_file
from kiln.io import storage

COLUMN = "patches"
GROUP_BYTES = 64 << 20  # of a row group, before compression: what is held in memory


def file_name(shard: str) -> str:
    """The file of patches beside a shard's, by the shard's name or URI."""
    return f"{shard.removesuffix('.parquet')}.patches.parquet"


def described(lattice: dict[str, Any], patch: int, dim: int) -> dict[str, Any]:
    """Of the `kiln` metadata: the shape [rows, columns, D] of a chip's patches, and their type."""
    side = lattice["chip_size"] // (2 if lattice.get("encode") == "quarters" else 1) // patch
    return {"shape": [side, side, dim], "storage": "float16"}


def schema(about: dict[str, Any]) -> pa.Schema:
    """The columns of a file of patches; `about` is its `kiln` metadata, whose `patches` is as `described` gives it."""
    size = int(np.prod(about["patches"]["shape"]))
    fields = [
        pa.field("chip_id", pa.string(), nullable=False),
        pa.field(COLUMN, pa.list_(pa.field("element", pa.float16(), nullable=False), size), nullable=False),
    ]
    return pa.schema(fields, metadata={"kiln": json.dumps(about, sort_keys=True)})


class PatchWriter:
    """Writes a file of patches, a row group when one is full: memory does not grow with the shard.

    Every row group but the last has as many rows, however the rows came: the file depends on them alone.
    """

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.schema = columns
        self._kind = columns.field(COLUMN).type
        self._rows = max(1, GROUP_BYTES // (2 * self._kind.list_size))
        self._block = np.empty((self._rows, self._kind.list_size), np.float16)
        self._ids: list[str] = []
        self._file = pq.ParquetWriter(
            path,
            columns,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=["chip_id"],
            write_page_checksum=True,
        )

    def append(self, chip_ids: Sequence[str], block: np.ndarray) -> None:
        """Add chips; `block` [n, L * D] float16."""
        at = 0
        while at < len(chip_ids):
            first = len(self._ids)
            count = min(self._rows - first, len(chip_ids) - at)
            self._block[first : first + count] = block[at : at + count]
            self._ids += chip_ids[at : at + count]
            at += count
            if len(self._ids) == self._rows:
                self._write()

    def _write(self) -> None:
        values = pa.array(self._block[: len(self._ids)].reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, type=self._kind)
        self._file.write_table(pa.table([pa.array(self._ids, pa.string()), rows], schema=self.schema))
        self._ids = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._ids:
                self._write()
        finally:
            self._file.close()


class Spool:
    """The patches of a unit that is not finished yet, on their way to `uri`."""

    def __init__(self, uri: str, columns: pa.Schema) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(PatchWriter(stack.enter_context(storage.atomic(uri)), columns))
            self._open = stack.pop_all()

    def append(self, chip_ids: Sequence[str], block: np.ndarray) -> None:
        """Add chips, as `PatchWriter.append`."""
        self._file.append(chip_ids, block)

    def finish(self) -> None:
        """Put the file in place. Raises StorageError."""
        self._open.close()

    def abandon(self) -> None:
        """Leave nothing behind; after `finish` there is nothing to undo."""
        with suppress(_AbandonedError), self._open:
            raise _AbandonedError


class _AbandonedError(Exception):
    """Undoes a spool."""


def read(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Chips and their patches [n, L * D] float16, a row group at a time.

    Raises SourceError for a file that is not whole.
    """
    with embeddings_file.reading(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    for group in range(file.num_row_groups):
        with embeddings_file.reading(path):
            rows = file.read_row_group(group)
        values = rows[COLUMN].combine_chunks()
        yield rows["chip_id"].to_pylist(), np.asarray(values.flatten()).reshape(len(rows), values.type.list_size)
