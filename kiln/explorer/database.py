"""The explorer database: LanceDB table `chips`, its columns, and the reader of its tagged version.

A writer builds, indexes and checks a version, then moves the tag `ready` to it. Readers open the tag, so they never see
a half-built version. Vectors are float16 and compared by cosine. All datasets of a database share one vector space
(weights, kind and length of vectors).
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

os.environ.setdefault("LANCEDB_LOG", "error")  # read once, when lancedb is imported: it warns of every new table
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table as Table
from numpy.typing import NDArray

from kiln.errors import ConfigError, TransientError
from kiln.explorer.chips import ChipFacts, UnknownChipError
from kiln.explorer.filters import EVERY_CHIP, ChipFilter, cell_name, quote
from kiln.explorer.matrix import KM_PER_DEGREE, check_place, raise_for_unknown
from kiln.formats.bounding_box import Bounds
from kiln.formats.fingerprint import digest
from kiln.io import lance, storage
from kiln.io.fault import setup_error

TABLE = "chips"
TAG = "ready"
VECTOR = "vector"
FOOTPRINT = "geometry"
METRIC: Final = "cosine"
PARTITION_ROWS = 8192  # rows of a partition of the vector index, in the mean, as LanceDB makes them
MIN_PROBES = 20  # partitions that a query looks into
REFINE_FACTOR = 5  # this times k candidates are compared again by their full vectors
MAX_COVERING = 1000  # chips read that cover one point
MAX_NEARBY = 10_000  # chips read around a point that no chip covers
FACTS = (
    "chip_id", "dataset", "year", "datetime", "item_id", "source", "nodata_fraction", "cloud_fraction",
    "lon", "lat", "xmin", "ymin", "xmax", "ymax",
)  # fmt: skip


def chips_schema(dim: int, metadata: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of the explorer table.

    Args:
        dim: Length D of the vectors.
        metadata: The products' `kiln` metadata by dataset.
    """
    return pa.schema(
        [
            pa.field("chip_id", pa.string(), nullable=False),
            pa.field(VECTOR, pa.list_(pa.float16(), dim), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("year", pa.int16()),
            pa.field("datetime", pa.timestamp("ms", tz="UTC")),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("nodata_fraction", pa.float32()),
            pa.field("cloud_fraction", pa.float32()),
            *(pa.field(n, pa.float64(), nullable=False) for n in ("lon", "lat", "xmin", "ymin", "xmax", "ymax")),
            pa.field("cell", pa.string(), nullable=False),
            pa.field(FOOTPRINT, pa.binary(), nullable=False),
        ],
        metadata={"kiln": json.dumps(metadata, sort_keys=True)},
    )


def vector_space(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies the vector space of a dataset's `kiln` metadata."""
    return tuple(metadata.get(n) for n in ("model", "weights_sha256", "embedding", "dimensions"))


def probes(rows: int) -> int:
    """Return how many partitions of the vector index a query looks into, for a table of `rows` rows: half of them.

    For the vector of a chip a few would do (20 of 122 gave all of the best 10 in 40 searches). A mean of likes less
    dislikes lies away from all chips, where near partitions say little: in 24 searches 20 partitions gave 0.94 of the
    best 10, in one a tenth. Half of the partitions gave all.
    """
    return max(MIN_PROBES, math.ceil(rows / PARTITION_ROWS / 2))


def cells(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> list[str]:
    """Return the names of the one-degree cells of points [n] in degrees."""
    south, west = np.floor(lat).astype(int), np.floor(lon).astype(int)
    return [cell_name(s, w) for s, w in zip(south.tolist(), west.tolist(), strict=True)]


def connect(uri: str) -> lancedb.DBConnection:
    """Return the database at a path or s3:// URI, with the settings of S3 that the rest of Kiln uses."""
    return lancedb.connect(uri, storage_options=lance.storage_options(uri) if storage.is_s3(uri) else None)


def vectors_of(rows: pa.Table) -> NDArray[np.float16]:
    """Return the vectors [n, D] of rows of the explorer table."""
    column = rows[VECTOR].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float16).reshape(len(rows), column.type.list_size)


def nearest(
    table: Table,
    vector: Sequence[float] | NDArray[Any],
    limit: int,
    columns: Sequence[str],
    *,
    where: str | None = None,
    nprobes: int | None = None,
    exact: bool = False,
) -> pa.Table:
    """Return the rows nearest to a vector by cosine, nearest first, with `_distance` (1 - cosine).

    Args:
        table: Any version of the explorer table.
        vector: [D].
        limit: Number of rows.
        columns: Columns to return; `_rowid` is LanceDB's row id.
        where: SQL condition.
        nprobes: Partitions of the vector index to look into; None: those of `probes`.
        exact: Compare every row instead of using the vector index.
    """
    query = cast(
        LanceVectorQueryBuilder, table.search(np.asarray(vector, np.float32), vector_column_name=VECTOR)
    ).distance_type(METRIC)
    if exact:
        query = query.bypass_vector_index()
    else:
        refine = REFINE_FACTOR if limit <= 1000 else 2
        query = query.nprobes(nprobes or probes(table.count_rows())).refine_factor(refine)
    if where:
        query = query.where(where, prefilter=True)
    query = query.limit(limit).with_row_id("_rowid" in columns)
    return query.select([*(c for c in columns if c != "_rowid"), "_distance"]).to_arrow()


class ExplorerDatabase:
    """The tagged version of an explorer database, for reading.

    Attributes:
        uri: Path or s3:// URI.
        table: The LanceDB table at the tagged version.
        metadata: The products' `kiln` metadata by dataset.
        indexed: Whether the vectors have an index; small databases have none.
    """

    def __init__(self, uri: str) -> None:
        """Open the database. Raise ConfigError unless there is a finished one with one vector space."""
        self.uri = uri
        if not storage.is_s3(uri) and not Path(uri).is_dir():  # connect would create the folder
            raise ConfigError(f"{uri}: no explorer database there; make it with `snakemake index`")
        try:
            self.table: Table = connect(uri).open_table(TABLE)
            self.table.checkout(TAG)
        except (ValueError, RuntimeError, FileNotFoundError, OSError) as e:
            raise lance.store_error(uri, e) or ConfigError(
                f"{uri}: no finished explorer database there ({first_line(e)})"
            ) from e
        self.metadata: dict[str, Any] = json.loads((self.table.schema.metadata or {}).get(b"kiln", b"{}"))
        spaces = {vector_space(m) for m in self.metadata.values()}
        if len(spaces) > 1:
            raise ConfigError(f"{uri}: expected vectors of one model, got {len(spaces)}. Build the index again.")
        self.indexed = any(VECTOR in index.columns for index in self.table.list_indices())

    @property
    def untrained(self) -> bool:
        """Whether the vectors come from random weights."""
        return any(m.get("untrained") for m in self.metadata.values())

    @property
    def has_footprints(self) -> bool:
        """Whether the table has the chips' footprints. Tables of Kiln 0.2 and older have boxes only."""
        return FOOTPRINT in self.table.schema.names

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, sorted."""
        return sorted(self.metadata)

    def count(self, chip_filter: ChipFilter = EVERY_CHIP) -> int:
        """Return the number of chips that pass a filter; an area counts as its bounding box."""
        with answers(self.uri):
            return self.table.count_rows(chip_filter.sql())

    def chips(self, chip_ids: Sequence[str]) -> tuple[list[ChipFacts], NDArray[np.float16]]:
        """Return facts and vectors of chips.

        Args:
            chip_ids: m ids, without duplicates.

        Returns:
            m facts and vectors [m, D], in the order of the ids.

        Raises:
            UnknownChipError: The database does not have one of them.
        """
        rows = self.rows(chip_ids, (*FACTS, VECTOR))
        return facts_of(rows), vectors_of(rows)

    def rows(self, chip_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return columns of chips, in the order of the ids.

        Args:
            chip_ids: m ids, without duplicates.
            columns: The columns to read, `chip_id` among them.

        Returns:
            m rows.

        Raises:
            UnknownChipError: The database does not have one of them.
            TransientError: The database does not answer.
        """
        condition = f"chip_id IN ({', '.join(map(quote, chip_ids))})" if chip_ids else "false"
        with answers(self.uri):
            query = self.table.search().where(condition).limit(max(1, len(chip_ids)))
            rows = query.select(list(columns)).to_arrow()
        places = {chip_id: n for n, chip_id in enumerate(rows["chip_id"].to_pylist())}
        raise_for_unknown([c for c in chip_ids if c not in places])
        return rows.take(pa.array([places[c] for c in chip_ids], pa.int64()))

    def at(self, lon: float, lat: float, chip_filter: ChipFilter = EVERY_CHIP) -> ChipFacts:
        """Return the chip that covers a point: the newest, then the one with the nearest centre, then by id.

        Args:
            lon: Longitude in degrees.
            lat: Latitude in degrees.
            chip_filter: Conditions of the chip; box and area do not count.

        Raises:
            UnknownChipError: No chip covers the point; names the nearest chip within a degree.
            ConfigError: The coordinates are out of range.
        """
        check_place(lon, lat)
        covers = [
            f"(xmin <= xmax AND xmin <= {x} AND xmax >= {x}) OR (xmin > xmax AND (xmin <= {x} OR xmax >= {x}))"
            for x in ((lon,) if abs(lon) < 180 else (-180.0, 180.0))  # the antimeridian has two longitudes
        ]
        condition = chip_filter.without_place().sql()
        and_condition = f" AND {condition}" if condition else ""
        here = f"({' OR '.join(covers)}) AND ymin <= {lat} AND ymax >= {lat}{and_condition}"

        def distance(chip: ChipFacts) -> float:
            east = math.remainder(chip.lon - lon, 360)
            return math.hypot(east * math.cos(math.radians(lat)), chip.lat - lat)

        if chips := self._facts_where(here, MAX_COVERING):
            return min(chips, key=lambda c: (-(c.year or 0), distance(c), c.chip_id))
        nearby = self._facts_where(
            f"((lon >= {lon - 1} AND lon <= {lon + 1}) OR lon >= {lon + 359} OR lon <= {lon - 359})"
            f" AND lat >= {lat - 1} AND lat <= {lat + 1}{and_condition}",
            MAX_NEARBY,
        )
        hint = ""
        if nearby:
            best = min(nearby, key=distance)
            hint = f"; the nearest is {best.chip_id}, {distance(best) * KM_PER_DEGREE:.1f} km away"
        raise UnknownChipError(f"{self.uri}: no chip covers {lon}, {lat}{hint}")

    def _facts_where(self, condition: str, limit: int) -> list[ChipFacts]:
        with answers(self.uri):
            return facts_of(self.table.search().where(condition).limit(limit).select(list(FACTS)).to_arrow())

    def column(self, name: str, chip_filter: ChipFilter = EVERY_CHIP, limit: int | None = None) -> pa.ChunkedArray:
        """Return one column of the chips that pass a filter, or of the first `limit` of them."""
        with answers(self.uri):
            query = self.table.search().where(chip_filter.sql() or "true").select([name])
            return query.limit(limit or max(1, self.table.count_rows())).to_arrow()[name]

    def bounds(self) -> Bounds:
        """Return the box around all chips."""
        west, south = (pc.min(self.column(name)).as_py() for name in ("xmin", "ymin"))
        east, north = (pc.max(self.column(name)).as_py() for name in ("xmax", "ymax"))
        return west, south, east, north

    def identity(self) -> str:
        """Return what identifies the open version, also among versions of one number in a database built again.

        Raises:
            TransientError: The database does not answer.
        """
        with answers(self.uri):
            tags: Mapping[str, Any] = self.table.tags.list()
        state = storage.join(self.uri, "state", f"{self.table.version}.json")
        state_text = storage.read_bytes(state).decode() if storage.stat(state) else ""
        return digest([self.table.version, tags.get(TAG, {}).get("manifest_size"), state_text])[:16]


def facts_of(rows: pa.Table) -> list[ChipFacts]:
    """Return the facts of rows of the explorer table."""
    return [ChipFacts.from_row(row) for row in rows.select(list(FACTS)).to_pylist()]


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Raise TransientError for the errors of LanceDB's reads inside the block, ConfigError for those of settings."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as e:
        raise setup_error(uri, str(e)) or no_answer(uri, e) from e


def no_answer(uri: str, error: Exception) -> TransientError:
    """Return the error for a database whose reads fail."""
    return TransientError(f"{uri}: the database does not answer: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
