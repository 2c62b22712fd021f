"""Sort the rows of many files with bounded memory: first into buckets on disk, then bucket by bucket.

Vectors are nearly all of a row. They travel as bytes: gathered per bucket, read back, and gathered in order into a
buffer that is reused, without other copies and without the page cache. The other columns travel as Arrow.
"""

import errno
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kiln.formats.parquet import open_file, parquet_errors, read_batches
from kiln.io import storage

READ_BYTES = 64 << 20  # rows read at a time, about
PAGE_BYTES = 4096  # direct I/O reads and writes multiples of it
MAX_STAGE_BYTES, MIN_STAGE_BYTES = 4 << 20, 64 << 10  # bytes that wait for a bucket before they are written
OTHER_COLUMNS_BYTES = 1024  # of a row without its vectors, about

Bytes = NDArray[np.uint8]
Item = TypeVar("Item")


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, none of which is None, and compute the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1, "prefetch") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def vector_bytes(columns: pa.Schema) -> int:
    """Return the bytes of a row's vectors."""
    return sum(_width(field) for field in columns if pa.types.is_fixed_size_list(field.type))


def _width(column: pa.Field) -> int:
    """Return the bytes of one vector of a column."""
    return int(column.type.list_size * column.type.value_type.bit_width // 8)


def _as_bytes(vectors: pa.FixedSizeListArray, width: int) -> Bytes:
    """Return the bytes [n, width] of a column of vectors, without a copy."""
    values = vectors.flatten()
    start = values.offset * values.type.bit_width // 8
    size = len(vectors) * width
    return np.frombuffer(values.buffers()[1], np.uint8, size, start).reshape(len(vectors), width)


class Spill:
    """Vectors of equal width on their way through a file, past the page cache: they are read once, and soon.

    The buffer holds complete pages of the disk, so that direct I/O can be used where the system has it.
    """

    def __init__(self, path: Path, width: int, buffer_bytes: int) -> None:
        self.path, self.width, self.rows = path, width, 0
        unit = PAGE_BYTES // math.gcd(width, PAGE_BYTES)  # rows that fill pages
        self._buffer = allocate_pages(max(1, buffer_bytes // (unit * width)) * unit, width)
        self._buffered = 0  # rows in the buffer

    def add(self, block: Bytes, rows: NDArray[np.int64]) -> None:
        """Append some rows of a block [n, width]."""
        while len(rows):
            count = min(len(self._buffer) - self._buffered, len(rows))
            out = self._buffer[self._buffered : self._buffered + count]
            np.take(block, rows[:count], axis=0, out=out, mode="clip")
            self._buffered, rows = self._buffered + count, rows[count:]
            if self._buffered == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        if not self._buffered:
            return
        size = -(-self._buffered * self.width // PAGE_BYTES) * PAGE_BYTES
        data = self._buffer.data.cast("B")[:size]
        position = self.rows * self.width
        with _open_direct(self.path, os.O_WRONLY | os.O_CREAT) as file:
            while data:
                written = os.pwrite(file, data, position)
                data, position = data[written:], position + written
        self.rows, self._buffered = self.rows + self._buffered, 0

    def read(self, memory: Bytes) -> Bytes:
        """Read all rows [n, width] into `memory`, which `allocate_pages` returned, and delete the file."""
        self._flush()
        free = memory.data.cast("B")[: -(-self.rows * self.width // PAGE_BYTES) * PAGE_BYTES]
        with _open_direct(self.path, os.O_RDONLY) as file:
            while free and (count := os.readv(file, [free])):
                free = free[count:]
        self.path.unlink()
        return memory[: self.rows]


def allocate_pages(rows: int, width: int) -> Bytes:
    """Return memory [rows or some more, width] that begins and ends with a page of the disk."""
    unit = PAGE_BYTES // math.gcd(width, PAGE_BYTES)
    rows = -(-rows // unit) * unit
    return np.frombuffer(mmap.mmap(-1, rows * width), np.uint8).reshape(rows, width)


@contextmanager
def _open_direct(path: Path, flags: int) -> Iterator[int]:
    """Yield a file descriptor that bypasses the page cache, or an ordinary one where the file system has no such."""
    try:
        file = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


class Buckets:
    """Files in a folder that hold `bucket_rows` rows each, by rank, in the order of arrival."""

    def __init__(self, folder: Path, columns: pa.Schema, bucket_rows: int, count: int, memory: int) -> None:
        self.folder, self.columns, self.bucket_rows = folder, columns, bucket_rows
        self.vectors = [field for field in columns if pa.types.is_fixed_size_list(field.type)]
        others = [field.with_type(_plain(field.type)) for field in columns if field not in self.vectors]
        self.others = pa.schema([*others, pa.field("rank", pa.int64())])
        buffer_bytes = max(MIN_STAGE_BYTES, min(MAX_STAGE_BYTES, memory // (8 * count)))
        self._spills = [
            [Spill(folder / f"{bucket}.{n}", _width(field), buffer_bytes) for n, field in enumerate(self.vectors)]
            for bucket in range(count)
        ]

    def add(self, batch: pa.RecordBatch, rank: NDArray[np.int64]) -> None:
        """Append the rows of a batch to the buckets of their ranks [n]; rows of rank -1 are left out."""
        columns = [batch[field.name].cast(field.type) for field in self.others if field.name != "rank"]
        others = pa.RecordBatch.from_arrays([*columns, pa.array(rank)], schema=self.others)
        blocks = [_as_bytes(batch[field.name], _width(field)) for field in self.vectors]
        bucket_of_row = np.where(rank >= 0, rank // self.bucket_rows, -1)
        by_bucket = np.argsort(bucket_of_row, kind="stable")
        numbers, starts = np.unique(bucket_of_row[by_bucket], return_index=True)
        for bucket, rows in zip(numbers.tolist(), np.split(by_bucket, starts[1:]), strict=True):
            if bucket < 0:
                continue
            with self._path(bucket).open("ab") as file, pa.ipc.new_stream(file, self.others) as stream:
                stream.write_batch(others.take(pa.array(rows)))
            for spill, block in zip(self._spills[bucket], blocks, strict=True):
                spill.add(block, rows)

    def read(self, bucket: int, memory: Sequence[Bytes]) -> tuple[pa.Table, list[Bytes]]:
        """Return the other columns of a bucket and its vectors [n, width], read into `memory`; delete its files."""
        path = self._path(bucket)
        batches: list[pa.RecordBatch] = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                batches.extend(pa.ipc.open_stream(file))
        path.unlink()
        others = pa.Table.from_batches(batches, self.others).combine_chunks()
        spills, self._spills[bucket] = self._spills[bucket], []  # frees their buffers
        return others, [spill.read(block) for spill, block in zip(spills, memory, strict=True)]

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket}.arrow"


def _plain(dtype: pa.DataType) -> pa.DataType:
    """Return the type that travels through the buckets: no dictionary, since each row group builds its own."""
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def sort_rows(
    files: Sequence[Path], starts: Sequence[int], rank: NDArray[np.int64], rows: int, row_group: int, memory: int
) -> Iterator[pa.Table]:
    """Yield the ranked rows of all files in order, as tables of `row_group` rows.

    A table is valid until the next one is requested.

    Args:
        files: Embeddings files of one schema.
        starts: Number of each file's first row in `rank`.
        rank: Rank [n] of every row, -1 for one that is left out.
        rows: Number of ranked rows.
        row_group: Rows of a table.
        memory: Bytes to sort in, about.

    Raises:
        SourceError: If a file is damaged.
        StorageError: If TMPDIR has no space for all rows, uncompressed, or cannot be written.
    """
    if not rows:
        return
    with parquet_errors(files[0]):
        columns = open_file(files[0]).schema_arrow.remove_metadata()
    width = vector_bytes(columns) + OTHER_COLUMNS_BYTES
    bucket_rows = max(1, memory // (4 * row_group * width)) * row_group
    with storage.temporary_folder("kiln-merge-") as scratch, storage.write_errors(Path(scratch)):
        storage.check_free_space(Path(scratch), rows * width, f"to sort {rows:,} rows")
        bucket_count = -(-rows // bucket_rows)
        buckets = Buckets(Path(scratch), columns, bucket_rows, bucket_count, memory)
        batch_rows = max(1, READ_BYTES // width)
        for path, start in zip(files, starts, strict=True):
            row = start
            for batch in prefetch(read_batches(path, batch_rows)):
                buckets.add(batch, rank[row : row + len(batch)])
                row += len(batch)
        yield from prefetch(_sorted_groups(buckets, bucket_count, min(rows, bucket_rows), row_group))


def _sorted_groups(buckets: Buckets, bucket_count: int, max_rows: int, row_group: int) -> Iterator[pa.Table]:
    """Yield row groups bucket by bucket; their vectors lie in two buffers that are used in turn."""
    widths = [_width(field) for field in buckets.vectors]
    memory = [allocate_pages(max_rows, width) for width in widths]
    outputs = [[np.empty((min(max_rows, row_group), width), np.uint8) for width in widths] for _ in range(2)]
    turn = 0
    for bucket in range(bucket_count):
        others, blocks = buckets.read(bucket, memory)
        order = np.argsort(np.asarray(others["rank"]))
        others = others.drop_columns("rank")
        for first in range(0, len(order), row_group):
            rows = order[first : first + row_group]
            arrays = dict(zip(others.column_names, others.take(pa.array(rows)).combine_chunks().columns, strict=True))
            for field, block, out in zip(buckets.vectors, blocks, outputs[turn], strict=True):
                np.take(block, rows, axis=0, out=out[: len(rows)], mode="clip")
                values = pa.Array.from_buffers(
                    field.type.value_type, len(rows) * field.type.list_size, [None, pa.py_buffer(out)]
                )
                arrays[field.name] = pa.FixedSizeListArray.from_arrays(values, type=field.type)
            turn = 1 - turn
            names = buckets.columns.names
            yield pa.table([arrays[name] for name in names], names=names)
