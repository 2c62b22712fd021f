"""Embedding files that others published, read with the columns of Kiln's own products.

A layout names the columns. What a row does not hold is taken from the file's footer or name, or stays null. Rows
without a place, or without a vector that fits float16, are dropped and counted.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyproj
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError
from kiln.explorer.build.published_geometry import boxes_of, footprints_of, geometries_of
from kiln.explorer.build.published_sets import PublishedSet
from kiln.formats.columns import BBOX
from kiln.formats.fingerprint import digest
from kiln.formats.parquet import read_batches, read_schema
from kiln.io import storage

BATCH_ROWS = 2048
FETCH_AGAIN = "Fetch it again."
SUFFIXES = (".parquet", ".geoparquet", ".gpq")  # of the files taken from a folder
TIME = pa.timestamp("ms", tz="UTC")
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PublishedFile:
    """A published file, a source of rows of the explorer table.

    Attributes:
        entry: The set that the file belongs to.
        uri: Path or URI.
        partition: Path below the set's folder, without suffix.
        size: Bytes.
        version: ETag; of a local file the digest of its footer, which holds sizes and statistics of all columns.
        dim: Length D of the set's vectors.
    """

    entry: PublishedSet
    uri: str
    partition: str
    size: int
    version: str
    dim: int

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.entry.name

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, partition and digest of the content."""
        return self.entry.name, self.partition, digest([self.uri, self.size, self.version])

    @property
    def expected_rows(self) -> int:
        """0: the number of rows is not known without reading the file."""
        return 0

    def metadata(self, embedding: str | None) -> dict[str, Any]:
        """Return the `kiln` metadata of its dataset; `embedding` selects columns of Kiln's own products alone."""
        return self.entry.metadata(self.dim)

    def vector_column(self, names: Sequence[str], embedding: str | None) -> str:
        """Return the column of vectors in the batches of `read`."""
        return "embeddings"

    @cached_property
    def dropped(self) -> Counter[str]:
        """Rows without vector or place, by reason; counted while the file is read."""
        return Counter()

    def read_ids(self) -> Iterator[pa.RecordBatch]:
        """Read the file's rows; all columns, since the vectors decide which rows there are."""
        return self.read()

    def read(self, embedding: str | None = None) -> Iterator[pa.RecordBatch]:
        """Read the file's rows with a product's columns, vectors in float16. Raise SourceError that names the file."""
        self.dropped.clear()
        with storage.local_copy(self.uri) as path:
            facts = _FileFacts.of(self.entry, path, self.uri)
            first = 0
            for batch in read_batches(path, BATCH_ROWS, facts.columns, self.uri, FETCH_AGAIN):
                yield self._rows(batch, facts, first)
                first += len(batch)

    def _rows(self, batch: pa.RecordBatch, facts: "_FileFacts", first: int) -> pa.RecordBatch:
        """Return a batch's rows; `first` is the number of its first row in the file."""
        columns = self.entry.mapping
        vectors, has_vector = floats(batch[columns.vector], self.uri)
        if has_vector.any() and vectors.shape[1] != self.dim:
            raise SourceError(
                f"{self.uri}: expected vectors of {self.dim} numbers as in the first file, got {vectors.shape[1]}."
            )
        shapes = geometries_of(batch[facts.geometry], facts.project, self.uri)
        boxes, has_place = boxes_of(shapes, self.uri)
        reasons = {
            "the vector is missing, not finite or beyond float16": ~has_vector,
            "no geometry": has_vector & ~has_place,
        }
        self.dropped.update({why: int(lost.sum()) for why, lost in reasons.items() if lost.any()})
        keep = has_vector & has_place
        rows, count = np.flatnonzero(keep), int(keep.sum())
        times = (
            _times(batch[columns.datetime], self.uri) if columns.datetime else pa.array([facts.time] * len(batch), TIME)
        )
        times = times.take(pa.array(rows))
        fixed_year = facts.year or self.entry.year
        year = pa.array([fixed_year] * count, pa.int16()) if fixed_year else pc.year(times).cast(pa.int16())
        items = batch[columns.item].cast(pa.string()).take(pa.array(rows)) if columns.item else [facts.item] * count
        values = pa.array(vectors[keep].reshape(-1))
        return pa.RecordBatch.from_pydict(
            {
                "chip_id": pa.array(self._ids(batch, rows, first)),
                "embeddings": pa.FixedSizeListArray.from_arrays(values, self.dim),
                "geometry": footprints_of(shapes[keep], boxes[keep]),
                "bbox": pa.StructArray.from_arrays([pa.array(boxes[keep, i]) for i in range(4)], fields=list(BBOX)),
                "year": year,
                "datetime": times,
                "item_id": pc.coalesce(items, facts.item) if columns.item else pa.array(items, pa.string()),
                "source": pa.array([facts.source] * count, pa.string()),
                "nodata_fraction": pa.nulls(count, pa.float32()),
                "cloud_fraction": pa.nulls(count, pa.float32()),
            }
        )

    def _ids(self, batch: pa.RecordBatch, rows: NDArray[np.int64], first: int) -> list[str]:
        name, column = self.entry.name, self.entry.mapping.id
        if column is None:
            return [f"{name}:{self.partition}:{first + n}" for n in rows.tolist()]
        ids = batch[column].take(pa.array(rows))
        if ids.null_count:
            raise SourceError(f"{self.uri}: {ids.null_count} rows without {column}. Leave `id` out to number them.")
        return [f"{name}:{i}" for i in ids.to_pylist()]


@dataclass(frozen=True)
class _FileFacts:
    """What holds for all rows of a file: columns to read, geometry column, CRS, time, year, item and source."""

    columns: list[str]
    geometry: str
    project: pyproj.Transformer | None
    time: datetime | None
    year: int | None
    item: str
    source: str

    @classmethod
    def of(cls, entry: PublishedSet, path: Path, uri: str) -> "_FileFacts":
        """Read a file's footer. Raise SourceError unless it has the columns and valid GeoParquet metadata."""
        columns, layout = entry.mapping, entry.facts
        schema = read_schema(path, uri, FETCH_AGAIN)
        footer = {k.decode(): v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}
        try:
            geo = json.loads(footer.get("geo", "{}"))
            geometry = columns.geometry
            if geometry not in schema.names and entry.layout:  # publishers renamed the column of a layout over time
                geometry = geo.get("primary_column", geometry)
            crs = geo.get("columns", {}).get(geometry, {}).get("crs")
            file_crs = pyproj.CRS.from_user_input(crs) if crs else None
        except (ValueError, AttributeError, pyproj.exceptions.CRSError) as e:
            raise SourceError(f"{uri}: expected GeoParquet metadata, got {str(e)[:120]}.") from e
        names = [c for c in (columns.id, columns.vector, geometry, columns.datetime, columns.item) if c]
        if missing := [c for c in names if c not in schema.names]:
            raise SourceError(
                f"{uri}: no column {', '.join(missing)}, which {entry.layout or 'index.published'} names; "
                f"it has {', '.join(schema.names)}"
            )
        project = None
        if file_crs is not None and not file_crs.is_geographic:
            project = pyproj.Transformer.from_crs(file_crs, "EPSG:4326", always_xy=True)
        date = footer.get(layout.date_in_footer or "")
        time = _time(date, uri) if date else None
        match = layout.year_in_name.search(uri.rpartition("/")[2]) if layout.year_in_name else None
        year = int(match[1]) if match else None
        if layout.composite and (year or entry.year):
            time = datetime(year or entry.year or 0, 6, 1, tzinfo=UTC)
        source = footer.get(layout.source_in_footer or "", uri)
        return cls(names, geometry, project, time, year, PurePosixPath(source).stem, source)


def floats(column: pa.Array, uri: str) -> tuple[NDArray[np.float16], Mask]:
    """Return vectors [n, D] of a column in float16, and which of them are present and finite, [n].

    Args:
        column: A tensor of the Arrow extension, a fixed-size list or a list, of any kind of number.
        uri: The file, for messages.

    Raises:
        SourceError: Another kind of column, or vectors of several lengths.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise SourceError(f"{uri}: expected vectors as lists of numbers, got {kind}.")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise SourceError(f"{uri}: expected vectors as lists of numbers, got lists of {kind.value_type}.")
    is_valid = np.asarray(column.is_valid())
    lengths = np.unique(np.asarray(pc.list_value_length(column).drop_null()))
    if len(lengths) > 1:
        raise SourceError(f"{uri}: expected vectors of one length, got {' and '.join(map(str, lengths[:2]))} numbers.")
    dim = int(lengths[0]) if len(lengths) else 0
    vectors = np.zeros((len(column), dim), np.float16)
    with np.errstate(over="ignore"):  # becomes infinite, and is counted
        values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors[is_valid] = values.astype(np.float16).reshape(-1, dim) if dim else vectors[is_valid]
    return vectors, is_valid & np.isfinite(vectors).all(axis=1) & (dim > 0)


def _time(text: str, uri: str) -> datetime:
    """Parse 20200101 or 2020-01-01, with or without a time of day; UTC without a zone."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as e:
        raise SourceError(f"{uri}: expected a date, got {text!r}.") from e
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when


def _times(column: pa.Array, uri: str) -> pa.Array:
    """Return a column of times, dates or their texts as times."""
    if pa.types.is_timestamp(column.type) and column.type.tz is None:
        return pc.assume_timezone(column.cast(pa.timestamp("ms"), safe=False), "UTC")
    if pa.types.is_temporal(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(TIME) if column.type != TIME else column
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise SourceError(f"{uri}: expected times, got {column.type}.")
    known = {text: _time(text, uri) for text in pc.unique(column.drop_null()).to_pylist()}
    return pa.array([known.get(text) for text in column.to_pylist()], TIME)


def list_files(entry: PublishedSet) -> list[PublishedFile]:
    """Return the files of a set, in order. Raise ConfigError if there are none, SourceError for a broken first one."""
    root, pattern = _root(entry.files)
    listed = storage.listing(root) if root else {}
    if pattern:
        listed = {u: s for u, s in listed.items() if fnmatchcase(u, pattern)}
    else:
        listed = {u: s for u, s in listed.items() if u.endswith(SUFFIXES)}
    if not root and (one := storage.stat(entry.files)):
        root, listed = entry.files.rpartition("/")[0], {entry.files: one}
    if not listed:
        raise ConfigError(f"index.published: {entry.name}: no file of {', '.join(SUFFIXES)} in {entry.files}.")
    dim = 0
    for uri in listed:
        if dim := _dim(uri, entry):
            break
    if not dim:
        raise ConfigError(f"index.published: {entry.name}: no vector in the {len(listed)} files of {entry.files}.")
    return [
        PublishedFile(
            entry, uri, uri.removeprefix(root).lstrip("/").rpartition(".")[0], s.size, s.etag or _footer(uri), dim
        )
        for uri, s in listed.items()
    ]


def _root(files: str) -> tuple[str, str]:
    """Return the folder to list, empty for a single file, and the pattern of full names in it, empty for all."""
    plain = re.split(r"[*?\[]", files, maxsplit=1)[0]
    if plain != files:
        folder, slash, _ = plain.rpartition("/")
        return (folder or "/", files) if slash else (".", f"./{files}")
    return ("" if files.endswith(SUFFIXES) and not Path(files).is_dir() else files.rstrip("/")), ""


def _dim(uri: str, entry: PublishedSet) -> int:
    """Return the length D of a file's vectors; 0 if it has none."""
    with storage.local_copy(uri) as path:
        facts = _FileFacts.of(entry, path, uri)
        for batch in read_batches(path, BATCH_ROWS, facts.columns, uri, FETCH_AGAIN):
            vectors, has_vector = floats(batch[entry.mapping.vector], uri)
            if has_vector.any():
                return int(vectors.shape[1])
    return 0


def _footer(uri: str) -> str:
    """Return the sha256 of a local Parquet file's footer. Raise SourceError for a file without one."""
    with Path(uri).open("rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 8))
        end = f.read(8)
        length = int.from_bytes(end[:4], "little") + 8
        if end[4:] != b"PAR1" or length > size:
            raise SourceError(f"{uri}: expected a complete Parquet file, got a broken one. Fetch it again.")
        f.seek(size - length)
        return hashlib.sha256(f.read(length)).hexdigest()


def files_of(sets: Sequence[PublishedSet]) -> list[PublishedFile]:
    """Return the files of all sets."""
    return [file for entry in sets for file in list_files(entry)]
