"""Rows of many files put in a given order with little memory: first to buckets on disk, then bucket by bucket.

Vectors are nearly all of a row, and travel as bytes: gathered for the bucket, read back, gathered in order into a
buffer that is used again, with no copy besides, none in the page cache. The other columns go as Arrow.
"""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from kiln.formats.parquet import open_file, parquet_errors, read_batches

READ_BYTES = 64 << 20  # of rows read at a time, about
PAGE = 4096  # bytes that files are read and written directly by
STAGE, LEAST_STAGE = 4 << 20, 64 << 10  # bytes that wait for a bucket before they are written
T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, none of them None, the next one made in a thread while one is used."""
    with ThreadPoolExecutor(1, "ahead") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def row_bytes(columns: pa.Schema) -> int:
    """Bytes of a row's vectors."""
    return sum(_width(f) for f in columns if pa.types.is_fixed_size_list(f.type))


def _width(column: pa.Field) -> int:
    return column.type.list_size * column.type.value_type.bit_width // 8


def _bytes(vectors: pa.FixedSizeListArray, width: int) -> np.ndarray:
    """The bytes [n, width] of a column of vectors, in place."""
    values = vectors.flatten()
    start = values.offset * values.type.bit_width // 8
    size = len(vectors) * width
    return np.frombuffer(values.buffers()[1], np.uint8, size, start).reshape(len(vectors), width)


class Spill:
    """Rows of equal width on their way to a file, past the page cache: they are read once, and soon.

    Memory goes by pages of the disk, so that the file can be written and read directly where its system allows it.
    """

    def __init__(self, path: Path, width: int, memory: int) -> None:
        self.path, self.width, self.rows = path, width, 0
        unit = PAGE // math.gcd(width, PAGE)  # rows that fill pages
        self._stage = pages(max(1, memory // (unit * width)) * unit, width)
        self._waiting = 0  # rows in the stage

    def add(self, block: np.ndarray, rows: np.ndarray) -> None:
        """Gather some rows of a block [n, width]."""
        while len(rows):
            count = min(len(self._stage) - self._waiting, len(rows))
            np.take(block, rows[:count], axis=0, out=self._stage[self._waiting : self._waiting + count], mode="clip")
            self._waiting, rows = self._waiting + count, rows[count:]
            if self._waiting == len(self._stage):
                self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        size = -(-self._waiting * self.width // PAGE) * PAGE
        left = memoryview(self._stage).cast("B")[:size]
        at = self.rows * self.width
        with _direct(self.path, os.O_WRONLY | os.O_CREAT) as file:
            while left:
                wrote = os.pwrite(file, left, at)
                left, at = left[wrote:], at + wrote
        self.rows, self._waiting = self.rows + self._waiting, 0

    def read(self, memory: np.ndarray) -> np.ndarray:
        """All rows [n, width], which lie in `memory`, made by `pages`; the file is gone then."""
        self._write()
        left = memoryview(memory).cast("B")[: -(-self.rows * self.width // PAGE) * PAGE]
        with _direct(self.path, os.O_RDONLY) as file:
            while left and (got := os.readv(file, [left])):
                left = left[got:]
        self.path.unlink()
        return memory[: self.rows]


def pages(rows: int, width: int) -> np.ndarray:
    """Memory [rows or some more, width] that begins and ends with a page of the disk."""
    unit = PAGE // math.gcd(width, PAGE)
    rows = -(-rows // unit) * unit
    return np.frombuffer(mmap.mmap(-1, rows * width), np.uint8).reshape(rows, width)


@contextmanager
def _direct(path: Path, flags: int) -> Iterator[int]:
    """A file, open without the page cache; with it on systems that know no other way."""
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
    """Files in a folder that hold `per_bucket` rows each, by rank, in whatever order they came."""

    def __init__(self, folder: Path, columns: pa.Schema, per_bucket: int, count: int, memory: int) -> None:
        self.folder, self.columns, self.per_bucket = folder, columns, per_bucket
        self.vectors = [f for f in columns if pa.types.is_fixed_size_list(f.type)]
        facts = [f.with_type(_plain(f.type)) for f in columns if f not in self.vectors]
        self.facts = pa.schema([*facts, pa.field("rank", pa.int64())])
        stage = max(LEAST_STAGE, min(STAGE, memory // (8 * count)))
        self._spills = [
            [Spill(folder / f"{bucket}.{n}", _width(f), stage) for n, f in enumerate(self.vectors)]
            for bucket in range(count)
        ]

    def add(self, batch: pa.RecordBatch, rank: np.ndarray) -> None:
        """Put rows where their ranks say; -1 leaves one out."""
        facts = [batch[f.name].cast(f.type) for f in self.facts if f.name != "rank"]
        table_ = pa.RecordBatch.from_arrays([*facts, pa.array(rank)], schema=self.facts)
        blocks = [_bytes(batch[f.name], _width(f)) for f in self.vectors]
        where = np.where(rank >= 0, rank // self.per_bucket, -1)
        by_bucket = np.argsort(where, kind="stable")
        numbers, starts = np.unique(where[by_bucket], return_index=True)
        for bucket, rows in zip(numbers.tolist(), np.split(by_bucket, starts[1:]), strict=True):
            if bucket < 0:
                continue
            with self._path(bucket).open("ab") as file, pa.ipc.new_stream(file, self.facts) as stream:
                stream.write_batch(table_.take(pa.array(rows)))
            for spill, block in zip(self._spills[bucket], blocks, strict=True):
                spill.add(block, rows)

    def read(self, bucket: int, memory: list[np.ndarray]) -> tuple[pa.Table, list[np.ndarray]]:
        """The facts of a bucket, and its vectors [n, width], which lie in `memory`; its files are gone then."""
        path = self._path(bucket)
        batches: list[pa.RecordBatch] = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                batches.extend(pa.ipc.open_stream(file))
        path.unlink()
        facts = pa.Table.from_batches(batches, self.facts).combine_chunks()
        spills, self._spills[bucket] = self._spills[bucket], []  # and their memory
        return facts, [spill.read(whole) for spill, whole in zip(spills, memory, strict=True)]

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket}.arrow"


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type on the way through the buckets, where each row group still makes its own dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def in_order(
    files: Sequence[Path], starts: Sequence[int], rank: np.ndarray, rows: int, row_group: int, memory: int
) -> Iterator[pa.Table]:
    """The rows of all files whose rank is not -1, in order, as tables of `row_group` rows, in about `memory` bytes.

    File n begins with row `starts[n]` of `rank`. A table is good until the next one is asked for.
    """
    if not rows:
        return
    with parquet_errors(files[0]):
        columns = open_file(files[0]).schema_arrow.remove_metadata()
    width = row_bytes(columns) + 1024  # and what the other columns take, about
    per_bucket = max(1, memory // (4 * row_group * width)) * row_group
    with tempfile.TemporaryDirectory(prefix="kiln-merge-") as scratch:
        number = -(-rows // per_bucket)
        buckets = Buckets(Path(scratch), columns, per_bucket, number, memory)
        count = max(1, READ_BYTES // width)
        for path, start in zip(files, starts, strict=True):
            at = start
            for batch in ahead(read_batches(path, count)):
                buckets.add(batch, rank[at : at + len(batch)])
                at += len(batch)
        yield from ahead(_sorted(buckets, number, min(rows, per_bucket), row_group))


def _sorted(buckets: Buckets, count: int, most: int, row_group: int) -> Iterator[pa.Table]:
    """Row groups bucket by bucket; their vectors lie in two buffers that take turns."""
    widths = [_width(f) for f in buckets.vectors]
    whole = [pages(most, w) for w in widths]
    turns = [[np.empty((min(most, row_group), w), np.uint8) for w in widths] for _ in range(2)]
    turn = 0
    for bucket in range(count):
        facts, blocks = buckets.read(bucket, whole)
        order = np.argsort(np.asarray(facts["rank"]))
        facts = facts.drop_columns("rank")
        for first in range(0, len(order), row_group):
            some = order[first : first + row_group]
            made = dict(zip(facts.column_names, facts.take(pa.array(some)).combine_chunks().columns, strict=True))
            for f, block, out in zip(buckets.vectors, blocks, turns[turn], strict=True):
                np.take(block, some, axis=0, out=out[: len(some)], mode="clip")
                values = pa.Array.from_buffers(
                    f.type.value_type, len(some) * f.type.list_size, [None, pa.py_buffer(out)]
                )
                made[f.name] = pa.FixedSizeListArray.from_arrays(values, type=f.type)
            turn = 1 - turn
            names = buckets.columns.names
            yield pa.table([made[n] for n in names], names=names)
