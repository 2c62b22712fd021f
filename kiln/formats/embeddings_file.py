"""The embeddings file and its ledger: the columns, metadata and accounts that every dataset shares."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from kiln.errors import SourceError
from kiln.formats import vectors
from kiln.formats.geoparquet import BBOX, ROW_GROUP, GeoParquetWriter
from kiln.formats.records import Chip, Dropped, Opened, Unit
from kiln.io.text_table import aligned

BUFFER = 1 << 20  # bytes of a file read at a time, so that a row group is never held whole
EDGE = 180 - 1e-9  # degrees: what lies beyond touches the antimeridian

LEDGER = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("expected", pa.int64(), nullable=False),
        pa.field("expected_known", pa.bool_(), nullable=False),
        pa.field("embedded", pa.int64(), nullable=False),
        pa.field("skipped_nodata", pa.int64(), nullable=False),
        pa.field("skipped_cloud", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("notes", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
    ]
)
COUNTS = ("expected", "embedded", "skipped_nodata", "skipped_cloud", "failed")


def ledger_name(shard: str) -> str:
    """The ledger beside a shard's file, by the file's name or URI."""
    return f"{shard.removesuffix('.parquet')}.ledger.parquet"


def schema(
    dim: int,
    storage: vectors.Storage,
    extra: Sequence[pa.Field],
    about: dict[str, Any],
    embedding: vectors.Embedding = "class",
) -> pa.Schema:
    """The columns of every embeddings file, `about` as its `kiln` metadata."""
    fields = [
        pa.field("chip_id", pa.string(), nullable=False),
        *vectors.fields(dim, storage, embedding),
        pa.field("geometry", pa.binary(), nullable=False),
        pa.field("bbox", BBOX, nullable=False),
        pa.field("crs", pa.string(), nullable=False),
        pa.field("x0", pa.float64(), nullable=False),
        pa.field("y0", pa.float64(), nullable=False),
        pa.field("pixel_size", pa.float64(), nullable=False),
        pa.field("col", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("datetime", pa.timestamp("ms", tz="UTC")),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sources", pa.list_(pa.string()), nullable=False),
        pa.field("nodata_fraction", pa.float32(), nullable=False),
        pa.field("cloud_fraction", pa.float32()),
        *extra,
    ]
    return pa.schema(fields, metadata={"kiln": json.dumps(about, sort_keys=True)})


def rows(chips: Sequence[Chip], stored: vectors.Columns, columns: pa.Schema) -> pa.Table:
    """Chips and their vectors, as `vectors.store` gives them, as a table."""
    footprints = np.array([c.footprint for c in chips], dtype=object)
    boxes = boxes_of(footprints)
    arrays: dict[str, Any] = {
        **vectors.arrays(stored, columns),
        "geometry": pa.array(shapely.to_wkb(footprints, byte_order=1), pa.binary()),
        "bbox": pa.StructArray.from_arrays([pa.array(boxes[:, i]) for i in range(4)], fields=list(BBOX)),
    }
    for f in columns:
        if f.name not in arrays:
            own = f.name in Chip.__dataclass_fields__
            arrays[f.name] = pa.array([getattr(c, f.name) if own else c.extra[f.name] for c in chips], f.type)
    return pa.table([arrays[f.name] for f in columns], schema=columns)


def boxes_of(footprints: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] of footprints as RFC 7946 has them: west, south, east, north; west > east over the antimeridian.

    A footprint that is cut there is a MultiPolygon that touches it from both sides.
    """
    boxes = shapely.bounds(footprints).reshape(-1, 4)
    several = shapely.get_type_id(footprints) == shapely.GeometryType.MULTIPOLYGON
    for n in np.flatnonzero(several & (boxes[:, 0] <= -EDGE) & (boxes[:, 2] >= EDGE)):
        parts = shapely.bounds(shapely.get_parts(footprints[n]))
        eastern = parts[:, 0] + parts[:, 2] > 0  # of the hemispheres; its part lies west of the antimeridian
        west, east = parts[eastern, 0].min(), parts[~eastern, 2].max()
        if west > east:  # else it is around the world
            boxes[n, [0, 2]] = west, east
    return boxes


def centres(box: pa.StructArray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes [n] of the middles of `bbox` values."""
    west, south, east, north = (np.asarray(box.field(f.name)) for f in BBOX)
    lon = (west + east) / 2
    over = west > east  # the antimeridian
    lon[over] += np.where(lon[over] > 0, -180, 180)
    return lon, (south + north) / 2


class ShardWriter:
    """Collects rows and writes a row group when one is full: memory does not grow with the shard.

    Every row group but the last has `row_group` rows, however the rows came: the file depends on them alone.
    """

    def __init__(self, path: Path, columns: pa.Schema, row_group: int = ROW_GROUP) -> None:
        self.schema, self.row_group = columns, row_group
        self._file = GeoParquetWriter(path, columns)
        self._stack = ExitStack()
        self._chips: list[Chip] = []
        self._vectors: list[vectors.Columns] = []
        self._tables: list[pa.Table] = []
        self.rows = 0  # given so far

    def append(self, chips: Sequence[Chip], stored: vectors.Columns) -> None:
        """Add rows; vectors as `vectors.store` gives them."""
        self._chips.extend(chips)
        self._vectors.append(stored)
        self.rows += len(chips)
        if len(self._chips) >= self.row_group:
            self._write(whole=False)

    def append_rows(self, table: pa.Table) -> None:
        """Add rows that `rows` made."""
        self._collect()
        self._tables.append(table.cast(self.schema))
        self.rows += len(table)
        if sum(map(len, self._tables)) >= self.row_group:
            self._write(whole=False)

    def _collect(self) -> None:
        if self._chips:
            self._tables.append(rows(self._chips, vectors.joined(self._vectors), self.schema))
        self._chips, self._vectors = [], []

    def _write(self, *, whole: bool) -> None:
        """Write the row groups that are full; at the end the last one too."""
        self._collect()
        waiting = pa.concat_tables([self.schema.empty_table(), *self._tables])
        first = 0
        while len(waiting) - first >= self.row_group or (whole and first < len(waiting)):
            group = waiting.slice(first, self.row_group)
            self._file.write(_canonical(group, self.schema), *extent(group))
            first += self.row_group
        self._tables = [waiting.slice(first)] if first < len(waiting) else []

    def __enter__(self) -> Self:
        self._stack.enter_context(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if kind is None:
                self._write(whole=True)
                if not self._file.rows:
                    empty = self.schema.empty_table()
                    self._file.write(empty, *extent(empty))


def _canonical(group: pa.Table, columns: pa.Schema) -> pa.Table:
    """The rows in one piece, each dictionary made of them alone, in order: equal rows are equal bytes."""
    plain = pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in columns])
    return group.cast(plain).combine_chunks().cast(columns)


def extent(group: pa.Table) -> tuple[list[float], set[str]]:
    """Bounds [xmin, ymin, xmax, ymax] of the rows' boxes and the types of their footprints.

    With a box over the antimeridian they go around the world: bounds of row groups and files are joined by least and
    greatest, and readers compare a file's bounds before anything else, few of them knowing of xmin > xmax.
    """
    if not len(group):
        return [np.inf, np.inf, -np.inf, -np.inf], set()
    box = group["bbox"].combine_chunks()
    sides = [np.asarray(box.field(f.name)) for f in BBOX]
    footprints = shapely.from_wkb(np.asarray(group["geometry"], dtype=object))
    bounds = [*(float(s.min()) for s in sides[:2]), *(float(s.max()) for s in sides[2:])]
    if (sides[0] > sides[2]).any():
        bounds[0], bounds[2] = -180.0, 180.0
    _, one_of_each = np.unique(shapely.get_type_id(footprints), return_index=True)
    return bounds, {footprints[n].geom_type for n in one_of_each}


@dataclass
class Entry:
    """What became of one unit so far."""

    unit: Unit
    embedded: int = 0
    skipped_nodata: int = 0
    skipped_cloud: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)  # of failures
    why_empty: list[str] = field(default_factory=list)  # why chips were skipped
    notes: list[str] = field(default_factory=list)

    def drop(self, what: Dropped) -> None:
        """Account for chips that get no row."""
        if what.kind == "failed":
            self.failed += what.count
        elif what.kind == "cloud":
            self.skipped_cloud += what.count
        else:
            self.skipped_nodata += what.count
        told = self.reasons if what.kind == "failed" else self.why_empty
        if what.reason and what.reason not in told:
            told.append(what.reason)

    def open(self, what: Opened) -> None:
        """Take what the unit turned out to be."""
        self.unit = replace(self.unit, expected=what.expected, expected_known=True, etag=what.etag or self.unit.etag)
        self.notes.extend(what.notes)

    @property
    def accounted(self) -> int:
        """Chips whose fate is known."""
        return self.embedded + self.skipped_nodata + self.skipped_cloud + self.failed

    @property
    def left(self) -> int:
        """Chips whose fate is not known yet."""
        return self.unit.expected - self.accounted

    @property
    def status(self) -> Literal["embedded", "empty", "failed"]:
        """`failed` if any of it failed: a half-done unit is not called done."""
        if self.failed or self.reasons:
            return "failed"
        return "embedded" if self.embedded else "empty"

    @property
    def failed_share(self) -> float:
        """Share of the unit that failed; 1 where nothing is known of it."""
        return 0.0 if self.status != "failed" else self.failed / self.unit.expected if self.unit.expected else 1.0

    def row(self) -> dict[str, Any]:
        """Its ledger row. Raises AssertionError if the account does not close."""
        expected = self.unit.expected
        assert self.accounted == expected, f"{self.unit.unit_id}: {self.accounted} of {expected} chips accounted for"
        reason = "; ".join(self.reasons if self.status == "failed" else self.why_empty)
        return {
            "unit_id": self.unit.unit_id,
            "status": self.status,
            "reason": "" if self.status == "embedded" else reason,
            "expected": expected,
            "expected_known": self.unit.expected_known,
            "embedded": self.embedded,
            "skipped_nodata": self.skipped_nodata,
            "skipped_cloud": self.skipped_cloud,
            "failed": self.failed,
            "notes": "; ".join(self.notes),
            "source": self.unit.source,
            "etag": self.unit.etag,
        }


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """SourceError, naming the file, for what Arrow says of a Parquet file that is not whole."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as e:
        raise SourceError(f"{path}: not a whole Parquet file ({str(e).splitlines()[0][:120]}); make it again") from e


def open_file(path: Path) -> pq.ParquetFile:
    """A file of embeddings, read in pieces. Raises SourceError if it is no whole Parquet file."""
    with reading(path):
        return pq.ParquetFile(path, buffer_size=BUFFER)


def read_batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A file's rows, at most `rows` at a time. Raises SourceError for a file that is not whole, or rotten pages."""
    batches = open_file(path).iter_batches(rows, columns=columns)
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def about_of(path: Path) -> dict[str, Any]:
    """The `kiln` metadata of an embeddings file. Raises SourceError for another file."""
    with reading(path):
        metadata = pq.read_schema(path).metadata or {}
    if b"kiln" not in metadata:
        raise SourceError(f"{path}: not an embeddings file of Kiln; remove it")
    return json.loads(metadata[b"kiln"])


def read_ledger(path: Path) -> pa.Table:
    """A ledger. Raises SourceError for a file that is none."""
    with reading(path):
        return pq.read_table(path, schema=LEDGER)


def ledger_table(entries: Sequence[Entry]) -> pa.Table:
    """The ledger of a shard."""
    return pa.Table.from_pylist([e.row() for e in entries], schema=LEDGER)


def write_ledger(path: Path, ledger: pa.Table) -> None:
    """A ledger as Parquet."""
    pq.write_table(ledger, path, compression="zstd")


def ledger_text(ledger: pa.Table) -> str:
    """A ledger as aligned text, for logs and terminals."""
    names = ["unit_id", "status", *COUNTS, "reason"]
    table = [names] + [[str(r[n]) for n in names] for r in ledger.to_pylist()]
    return "\n".join(aligned(table, left=range(len(names))))
