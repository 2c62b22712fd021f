"""Embedding files that others published, read as they are: their columns as those of Kiln's own products.

A layout says which column is what; what a row does not tell is taken from the file's footer or name, or stays null.
Rows without a vector that fits float16, or without a place, are dropped and counted.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely

from kiln.archives.registry import archives
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file
from kiln.formats.fingerprint import digest
from kiln.formats.geoparquet import BBOX
from kiln.formats.parquet import parquet_errors, read_batches
from kiln.io import storage

BATCH = 2048  # rows read at a time
SUFFIXES = (".parquet", ".geoparquet", ".gpq")  # of the files taken from a folder
TIME = pa.timestamp("ms", tz="UTC")


@dataclass(frozen=True)
class Columns:
    """Which column is what; without `id`, rows are numbered."""

    vector: str
    geometry: str = "geometry"
    id: str | None = None
    datetime: str | None = None
    item: str | None = None


LAYOUTS = {
    "clay-worldcover-v002": Columns("embeddings"),  # worldcover_embeddings_{year}_{column}_v002.gpq
    "clay-v1": Columns("embeddings"),  # NAIP and Sentinel-2: date, gsd and uri of the scene in the footer
    "earth-index": Columns("embedding", id="id"),  # {tile}_{first day}_{last day}.parquet
    "major-tom": Columns("embedding", id="unique_id", datetime="timestamp", item="product_id"),
}
YEARS = {  # of a file's name
    "clay-worldcover-v002": re.compile(r"worldcover_embeddings_(\d{4})_"),
    "earth-index": re.compile(r"_(\d{4})-\d\d-\d\d_\d{4}-\d\d-\d\d\."),
}
COMPOSITES = ("clay-worldcover-v002",)  # carry June 1st of their year, as Kiln's own do


@dataclass(frozen=True)
class Entry:
    """One of `index.published`: files of one model, which become one dataset called `name`.

    `model` names the space of the vectors: only datasets of one model are searched together, and of one `weights`
    (sha256 of the checkpoint) and `embedding` where those are known.
    """

    name: str
    files: str  # folder, s3:// prefix, pattern, or one file
    model: str
    layout: str | None = None
    columns: Columns | None = None
    year: int | None = None
    weights: str | None = None
    embedding: str | None = None  # `class` for the class token

    @property
    def mapping(self) -> Columns:
        """Which column is what."""
        return self.columns or LAYOUTS[self.layout or ""]

    @property
    def space(self) -> str:
        """What stands for the digest of the weights: that of the model's name where they are not known."""
        return self.weights or digest(["published", self.model])

    def about(self, dim: int) -> dict[str, Any]:
        """What the table's `kiln` metadata says of this dataset, D = `dim`."""
        told = {f.name: getattr(self, f.name) for f in fields(Entry) if f.name != "columns"}
        columns = {f.name: getattr(self.mapping, f.name) for f in fields(Columns)}
        return {
            "dataset": self.name,
            "fingerprint": digest([told, columns, dim]),
            "model": self.model,
            "weights_sha256": self.space,
            "embedding": self.embedding,
            "dimensions": dim,
            "untrained": False,
            "published": {"files": self.files, "layout": self.layout, "columns": columns},
        }


def entries(told: Any) -> list[Entry]:
    """The entries of `index.published`. Raises ConfigError that names what is wrong with which."""
    if not isinstance(told, list) or not all(isinstance(t, dict) for t in told):
        raise ConfigError("index.published: want a list of entries with name, files, model and layout")
    made = [_entry(t) for t in told]
    if twice := [n for n, count in Counter(e.name for e in made).items() if count > 1]:
        raise ConfigError(f"index.published: two entries called {twice[0]}")
    return made


def _entry(told: dict[str, Any]) -> Entry:
    where = f"index.published: {told.get('name', 'an entry without name')}"
    given = {k: v for k, v in told.items() if v is not None}
    if unknown := set(given) - {f.name for f in fields(Entry)}:
        raise ConfigError(f"{where}: unknown {', '.join(sorted(unknown))}")
    if missing := [n for n in ("name", "files", "model") if not isinstance(given.get(n), str) or not given[n]]:
        raise ConfigError(f"{where}: {missing[0]} is missing")
    if given["name"] in archives():
        raise ConfigError(f"{where}: that is a dataset of Kiln's own; choose another name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", given["name"]):
        raise ConfigError(f"{where}: a name is of a-z, 0-9, dot, dash and underscore")
    if ("layout" in given) == ("columns" in given):
        raise ConfigError(f"{where}: want a layout, of {', '.join(LAYOUTS)}, or columns")
    if "layout" in given and given["layout"] not in LAYOUTS:
        raise ConfigError(f"{where}: layout {given['layout']!r} is none of {', '.join(LAYOUTS)}")
    if "columns" in given:
        try:
            given["columns"] = Columns(**given["columns"])
        except TypeError as e:
            raise ConfigError(f"{where}: columns: want vector, and geometry, id, datetime, item if any ({e})") from e
    return Entry(**given)


@dataclass(frozen=True)
class File:
    """A published file; what the index asks of a product."""

    entry: Entry
    uri: str
    place: str  # below the folder, without suffix
    size: int
    version: str  # ETag; of a local file the digest of its footer, which tells the sizes and statistics of all columns
    dim: int

    @property
    def record(self) -> dict[str, Any]:
        """Dataset and partition, as a product's record says."""
        return {"dataset": self.entry.name, "partition": self.place}

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, partition and digest: what tells files and their versions apart."""
        return self.entry.name, self.place, digest([self.uri, self.size, self.version])

    def about(self) -> dict[str, Any]:
        """The `kiln` metadata of its dataset."""
        return self.entry.about(self.dim)

    @cached_property
    def dropped(self) -> Counter[str]:
        """Rows without vector or place, by reason; filled while the file is read."""
        return Counter()

    def read(self) -> Iterator[pa.RecordBatch]:
        """The file's rows as a product has them, vectors in float16. Raises SourceError that names the file."""
        self.dropped.clear()
        with storage.local_copy(self.uri) as path:
            facts = _Facts.of(self.entry, path, self.uri)
            first = 0
            for batch in read_batches(path, BATCH, facts.wanted):
                yield self._rows(batch, facts, first)
                first += len(batch)

    def _rows(self, batch: pa.RecordBatch, facts: "_Facts", first: int) -> pa.RecordBatch:
        """A batch's rows; `first` is the number of its first in the file."""
        columns = self.entry.mapping
        vectors, whole = floats(batch[columns.vector], self.uri)
        if whole.any() and vectors.shape[1] != self.dim:
            raise SourceError(f"{self.uri}: vectors of {vectors.shape[1]} numbers, not {self.dim} as in the first file")
        boxes, placed = boxes_of(batch[facts.geometry], facts.project, self.uri)
        reasons = {"the vector is missing, not finite or beyond float16": ~whole, "no geometry": whole & ~placed}
        self.dropped.update({why: int(lost.sum()) for why, lost in reasons.items() if lost.any()})
        keep = whole & placed
        rows, count = np.flatnonzero(keep), int(keep.sum())
        times = (
            _times(batch[columns.datetime], self.uri) if columns.datetime else pa.array([facts.time] * len(batch), TIME)
        )
        times = times.take(pa.array(rows))
        known = facts.year or self.entry.year
        year = pa.array([known] * count, pa.int16()) if known else pc.year(times).cast(pa.int16())
        items = batch[columns.item].cast(pa.string()).take(pa.array(rows)) if columns.item else [facts.item] * count
        values = pa.array(vectors[keep].reshape(-1))
        return pa.RecordBatch.from_pydict(
            {
                "chip_id": pa.array(self._ids(batch, rows, first)),
                "embeddings": pa.FixedSizeListArray.from_arrays(values, self.dim),
                "bbox": pa.StructArray.from_arrays([pa.array(boxes[keep, i]) for i in range(4)], fields=list(BBOX)),
                "year": year,
                "datetime": times,
                "item_id": pc.coalesce(items, facts.item) if columns.item else pa.array(items, pa.string()),
                "source": pa.array([facts.source] * count, pa.string()),
                "nodata_fraction": pa.nulls(count, pa.float32()),
                "cloud_fraction": pa.nulls(count, pa.float32()),
            }
        )

    def _ids(self, batch: pa.RecordBatch, rows: np.ndarray, first: int) -> list[str]:
        name, column = self.entry.name, self.entry.mapping.id
        if column is None:
            return [f"{name}:{self.place}:{first + n}" for n in rows.tolist()]
        ids = batch[column].take(pa.array(rows))
        if ids.null_count:
            raise SourceError(f"{self.uri}: {ids.null_count} rows without {column}; leave `id` out to number them")
        return [f"{name}:{i}" for i in ids.to_pylist()]


@dataclass(frozen=True)
class _Facts:
    """What a file says of all its rows: geometry column, CRS, time, year, item and source."""

    wanted: list[str]
    geometry: str
    project: pyproj.Transformer | None
    time: datetime | None
    year: int | None
    item: str
    source: str

    @classmethod
    def of(cls, entry: Entry, path: Path, uri: str) -> "_Facts":
        """Raises SourceError for a file without the columns, or whose footer is not what it should be."""
        columns, layout = entry.mapping, entry.layout or ""
        with parquet_errors(path):
            schema = pq.read_schema(path)
        footer = {k.decode(): v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}
        try:
            geo = json.loads(footer.get("geo", "{}"))
            geometry = columns.geometry
            if geometry not in schema.names and layout:  # a layout's name for it changed over time
                geometry = geo.get("primary_column", geometry)
            crs = geo.get("columns", {}).get(geometry, {}).get("crs")
            known = pyproj.CRS.from_user_input(crs) if crs else None
        except (ValueError, AttributeError, pyproj.exceptions.CRSError) as e:
            raise SourceError(f"{uri}: its GeoParquet metadata cannot be read ({str(e)[:120]})") from e
        wanted = [c for c in (columns.id, columns.vector, geometry, columns.datetime, columns.item) if c]
        if missing := [c for c in wanted if c not in schema.names]:
            raise SourceError(
                f"{uri}: no column {', '.join(missing)}, which {layout or 'index.published'} names; "
                f"it has {', '.join(schema.names)}"
            )
        project = None
        if known is not None and not known.is_geographic:
            project = pyproj.Transformer.from_crs(known, "EPSG:4326", always_xy=True)
        name = uri.rpartition("/")[2]
        time = _time(footer["date"], uri) if layout == "clay-v1" and footer.get("date") else None
        found = YEARS[layout].search(name) if layout in YEARS else None
        year = int(found[1]) if found else None
        if layout in COMPOSITES and (year or entry.year):
            time = datetime(year or entry.year or 0, 6, 1, tzinfo=UTC)
        source = footer.get("uri", uri) if layout == "clay-v1" else uri
        return cls(wanted, geometry, project, time, year, PurePosixPath(source).stem, source)


def floats(column: pa.Array, uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, D] of a column in float16, and which of them are there and finite [n].

    The column is a tensor of the Arrow extension, a fixed-size list or a list, of any kind of number. Raises
    SourceError for another, or vectors of several lengths.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise SourceError(f"{uri}: its vectors are {kind}, no lists of numbers")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise SourceError(f"{uri}: its vectors are lists of {kind.value_type}, not of numbers")
    there = np.asarray(column.is_valid())
    lengths = np.unique(np.asarray(pc.list_value_length(column).drop_null()))
    if len(lengths) > 1:
        raise SourceError(f"{uri}: vectors of {' and '.join(map(str, lengths[:2]))} numbers in one file")
    dim = int(lengths[0]) if len(lengths) else 0
    made = np.zeros((len(column), dim), np.float16)
    with np.errstate(over="ignore"):  # becomes infinite, and is counted
        values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
        made[there] = values.astype(np.float16).reshape(-1, dim) if dim else made[there]
    return made, there & np.isfinite(made).all(axis=1) & (dim > 0)


def boxes_of(column: pa.Array, project: pyproj.Transformer | None, uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] of geometries, degrees, west > east over the antimeridian, and which have a place [n].

    Raises SourceError for a geometry that is not WKB, or not in degrees once projected.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise SourceError(f"{uri}: its geometry is {column.type}, not WKB")
    try:
        shapes = shapely.from_wkb(np.array(column.to_pylist(), dtype=object))
    except shapely.errors.GEOSException as e:
        raise SourceError(f"{uri}: its geometry is no WKB ({e})") from e
    if project is not None:
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(project.transform(*xy.T)))
    placed = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    boxes = np.full((len(shapes), 4), np.nan)
    boxes[placed] = embeddings_file.bounding_boxes(shapes[placed])
    if (np.abs(boxes[placed]) > [180 + 1e-6, 90 + 1e-6] * 2).any() or not np.isfinite(boxes[placed]).all():
        raise SourceError(f"{uri}: its geometry is not in degrees, and its metadata names no other CRS")
    for n in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > 180):  # drawn the long way round
        lon = shapely.get_coordinates(shapes[n])[:, 0]
        boxes[n, [0, 2]] = lon[lon > 0].min(), lon[lon <= 0].max()
    return boxes, placed


def _time(text: str, uri: str) -> datetime:
    """A time as published files write it: 20200101 or 2020-01-01, maybe a time of day; UTC if it names no zone."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as e:
        raise SourceError(f"{uri}: {text!r} is no date") from e
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when


def _times(column: pa.Array, uri: str) -> pa.Array:
    """A column of times, dates or texts of them."""
    if pa.types.is_timestamp(column.type) and column.type.tz is None:
        return pc.assume_timezone(column.cast(pa.timestamp("ms"), safe=False), "UTC")
    if pa.types.is_temporal(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(TIME) if column.type != TIME else column
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise SourceError(f"{uri}: its times are {column.type}")
    known = {text: _time(text, uri) for text in pc.unique(column.drop_null()).to_pylist()}
    return pa.array([known.get(text) for text in column.to_pylist()], TIME)


def found(entry: Entry) -> list[File]:
    """The files of an entry, in order. Raises ConfigError where there are none, SourceError for a broken first one."""
    root, pattern = _root(entry.files)
    listed = storage.listing(root) if root else {}
    if pattern:
        listed = {u: s for u, s in listed.items() if fnmatchcase(u, pattern)}
    else:
        listed = {u: s for u, s in listed.items() if u.endswith(SUFFIXES)}
    if not root and (one := storage.stat(entry.files)):
        root, listed = entry.files.rpartition("/")[0], {entry.files: one}
    if not listed:
        raise ConfigError(f"index.published: {entry.name}: no file of {', '.join(SUFFIXES)} in {entry.files}")
    dim = 0
    for uri in listed:
        if dim := _dim(uri, entry):
            break
    if not dim:
        raise ConfigError(f"index.published: {entry.name}: no vector in the {len(listed)} files of {entry.files}")
    return [
        File(entry, uri, uri.removeprefix(root).lstrip("/").rpartition(".")[0], s.size, s.etag or _footer(uri), dim)
        for uri, s in listed.items()
    ]


def _root(files: str) -> tuple[str, str]:
    """The folder to list, empty for a single file, and the pattern of full names in it, empty for all."""
    plain = re.split(r"[*?\[]", files, maxsplit=1)[0]
    if plain != files:
        folder, slash, _ = plain.rpartition("/")
        return (folder or "/", files) if slash else (".", f"./{files}")
    return ("" if files.endswith(SUFFIXES) and not Path(files).is_dir() else files.rstrip("/")), ""


def _dim(uri: str, entry: Entry) -> int:
    """Length D of a file's vectors; 0 if it has none."""
    with storage.local_copy(uri) as path:
        facts = _Facts.of(entry, path, uri)
        for batch in read_batches(path, BATCH, facts.wanted):
            vectors, whole = floats(batch[entry.mapping.vector], uri)
            if whole.any():
                return vectors.shape[1]
    return 0


def _footer(uri: str) -> str:
    """sha256 of a local Parquet file's footer. Raises SourceError for a file that has none."""
    with Path(uri).open("rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 8))
        end = f.read(8)
        length = int.from_bytes(end[:4], "little") + 8
        if end[4:] != b"PAR1" or length > size:
            raise SourceError(f"{uri}: not a whole Parquet file; fetch it again")
        f.seek(size - length)
        return hashlib.sha256(f.read(length)).hexdigest()


def files_of(told: Sequence[Entry]) -> list[File]:
    """The files of all entries."""
    return [file for entry in told for file in found(entry)]
