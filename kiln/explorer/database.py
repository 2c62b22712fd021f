"""The explorer database: LanceDB table `chips`, its columns, how it is opened and searched.

Writers build, index and check a version, then move the tag `ready` to it; readers open the tag and never see half a
build. Vectors are float16 and compared by cosine.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("LANCEDB_LOG", "error")  # read once, when lancedb is imported: it warns of every new table
import lancedb
import numpy as np
import pyarrow as pa
from lancedb.table import Table

from kiln.errors import ConfigError
from kiln.io import storage

TABLE = "chips"
TAG = "ready"
VECTOR = "vector"
METRIC = "cosine"
PARTITION = 8192  # rows, in the mean, of a partition of the index, as LanceDB makes them
LEAST_PROBES = 20  # partitions that a query looks into
REFINE = 5  # times k candidates compared again with their full vectors
MOST_CELLS = 400  # of a box, named in a filter; a larger box is compared alone
FACTS = (
    "chip_id", "dataset", "year", "datetime", "item_id", "source", "nodata_fraction", "cloud_fraction",
    "lon", "lat", "xmin", "ymin", "xmax", "ymax",
)  # fmt: skip


def chips_schema(dim: int, about: dict[str, Any]) -> pa.Schema:
    """Columns of the explorer table; `about` is what the products' `kiln` metadata says, by dataset."""
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
        ],
        metadata={"kiln": json.dumps(about, sort_keys=True)},
    )


def space(about: dict[str, Any]) -> tuple[Any, ...]:
    """What tells spaces of vectors apart, of a dataset's `kiln` metadata."""
    return tuple(about.get(n) for n in ("model", "weights_sha256", "embedding", "dimensions"))


def probes(rows: int) -> int:
    """Partitions of the index of so many rows that a query looks into: half of them.

    The nearest few would do for the vector of a chip (20 of 122 found all of the best 10 in 40 searches), but a mean of
    likes less dislikes lies away from all chips, where near partitions tell little: 24 searches found 0.94 of them, one
    of these a tenth. With half of them, all.
    """
    return max(LEAST_PROBES, math.ceil(rows / PARTITION / 2))


def cells(lon: np.ndarray, lat: np.ndarray) -> list[str]:
    """The one-degree cell of each point, named after its south-west corner: `N45W002`."""
    south, west = np.floor(lat).astype(int), np.floor(lon).astype(int)
    return [_cell(s, w) for s, w in zip(south.tolist(), west.tolist(), strict=True)]


def _cell(south: int, west: int) -> str:
    return f"{'S' if south < 0 else 'N'}{abs(south):02d}{'W' if west < 0 else 'E'}{abs(west):03d}"


def connect(uri: str) -> lancedb.DBConnection:
    """The database at a path or s3:// URI, with the AWS_* settings that the rest of Kiln uses."""
    options: dict[str, str] = {}
    if storage.is_s3(uri) and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        options = {"endpoint": endpoint, "allow_http": "true"}
    return lancedb.connect(uri, storage_options=options or None)


def check_bbox(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees; west > east goes over the antimeridian, and is half the world wide at most.

    Raises ConfigError for a box that holds nothing or has its sides swapped.
    """
    west, south, east, north = (float(v) for v in bbox)
    finite = all(map(math.isfinite, (west, south, east, north)))
    over = -180 <= east < west <= 180 and west - east >= 180
    if not finite or south >= north or not (over or west < east):
        raise ConfigError(
            f"bbox {tuple(bbox)}: want west < east and south < north in degrees; "
            "west > east goes over the antimeridian, from -180 to 180 and half the world wide at most"
        )
    return west, south, east, north


@dataclass(frozen=True)
class Filters:
    """What a result must be: every field that is set. `bbox` [west, south, east, north] holds the chip's centre.

    West > east goes over the antimeridian.
    """

    years: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None

    def sql(self) -> str | None:
        """The condition for LanceDB, built from typed values alone."""
        terms = []
        if self.years:
            if bad := [y for y in self.years if not 0 < int(y) < 10_000]:
                raise ConfigError(f"year {bad[0]}: want a year such as 2021")
            terms.append(f"year IN ({', '.join(str(int(y)) for y in self.years)})")
        if self.datasets:
            quoted = ", ".join(quote(d) for d in self.datasets)
            terms.append(f"dataset IN ({quoted})")
        if self.bbox is not None:
            west, south, east, north = check_bbox(self.bbox)
            spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
            rows = range(math.floor(south), math.floor(north) + 1)
            cols = [w for a, b in spans for w in range(math.floor(a), math.floor(b) + 1)]
            span = [(s, w) for s in rows for w in cols] if len(rows) * len(cols) <= MOST_CELLS else []
            if span:  # the bitmap index of cells is the cheapest spatial filter
                terms.append(f"cell IN ({', '.join(quote(_cell(s, w)) for s, w in span)})")
            within = f"lon >= {west} {'AND' if west < east else 'OR'} lon <= {east}"
            terms.append(f"({within}) AND lat >= {south} AND lat <= {north}")
        return " AND ".join(terms) or None


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class Explorer:
    """The tagged version of an explorer database, for reading."""

    def __init__(self, uri: str) -> None:
        """Open it. Raises ConfigError if there is no finished explorer database at `uri`."""
        self.uri = uri
        if not storage.is_s3(uri) and not os.path.isdir(uri):  # noqa: PTH112 (connect would create the folder)
            raise ConfigError(f"{uri}: no explorer database there; make it with `snakemake index`")
        try:
            self.table: Table = connect(uri).open_table(TABLE)
            self.table.checkout(TAG)
        except (ValueError, RuntimeError, FileNotFoundError, OSError) as e:
            raise ConfigError(f"{uri}: no finished explorer database there ({_first_line(e)})") from e
        self.about: dict[str, Any] = json.loads((self.table.schema.metadata or {}).get(b"kiln", b"{}"))
        self.indexed = any(VECTOR in i.columns for i in self.table.list_indices())

    @property
    def untrained(self) -> bool:
        """Whether the vectors come from random weights."""
        return any(a.get("untrained") for a in self.about.values())

    def chip(self, chip_id: str) -> dict[str, Any]:
        """A chip's facts and `vector`. Raises ConfigError if it is not in the database."""
        rows = self.table.search().where(f"chip_id = {quote(chip_id)}").limit(1).to_list()
        if not rows:
            raise ConfigError(f"{self.uri}: no chip {chip_id!r}")
        return rows[0]

    def at(self, lon: float, lat: float, filters: Filters = Filters()) -> dict[str, Any]:
        """The chip that covers a point, the newest if several do, then the one whose centre is nearest.

        Raises ConfigError, naming the nearest chip within a degree, if none covers it.
        """
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise ConfigError(f"{lon}, {lat} is no place: want longitude -180 to 180, latitude -90 to 90")
        across = [  # the antimeridian is one place with two longitudes
            f"(xmin <= xmax AND xmin <= {x} AND xmax >= {x}) OR (xmin > xmax AND (xmin <= {x} OR xmax >= {x}))"
            for x in ((lon,) if abs(lon) < 180 else (-180.0, 180.0))
        ]
        inside = f"({' OR '.join(across)}) AND ymin <= {lat} AND ymax >= {lat}"
        extra = Filters(filters.years, filters.datasets).sql()
        where = f"{inside} AND {extra}" if extra else inside
        rows = self.table.search().where(where).limit(1000).to_list()

        def distance(r: dict[str, Any]) -> float:
            east = math.remainder(r["lon"] - lon, 360)  # the short way round
            return math.hypot(east * math.cos(math.radians(lat)), r["lat"] - lat)

        if rows:
            return min(rows, key=lambda r: (-(r["year"] or 0), distance(r), r["chip_id"]))
        near = self.table.search().where(
            f"((lon >= {lon - 1} AND lon <= {lon + 1}) OR lon >= {lon + 359} OR lon <= {lon - 359})"
            f" AND lat >= {lat - 1} AND lat <= {lat + 1}" + (f" AND {extra}" if extra else "")
        )
        rows = near.limit(10_000).select(["chip_id", "lon", "lat"]).to_list()
        hint = ""
        if rows:
            best = min(rows, key=distance)
            hint = f"; the nearest is {best['chip_id']}, {distance(best) * 111.2:.1f} km away"
        raise ConfigError(f"{self.uri}: no chip covers {lon}, {lat}{hint}")

    def comparable(self, dataset: str, filters: Filters = Filters()) -> Filters:
        """The filters, narrowed to datasets whose vectors can be compared with those of `dataset`.

        Raises ConfigError where they leave none.
        """
        spaces = {name: space(a) for name, a in self.about.items()}
        mine = spaces.get(dataset)
        alike = tuple(sorted(n for n in filters.datasets or spaces if spaces.get(n, mine) == mine))
        if not alike:
            raise ConfigError(
                f"{', '.join(filters.datasets)}: of another model than {dataset}; they cannot be compared"
            )
        return filters if len(set(spaces.values())) <= 1 else replace(filters, datasets=alike)

    def similar(
        self,
        vector: Sequence[float] | np.ndarray,
        k: int,
        filters: Filters = Filters(),
        *,
        exact: bool = False,
    ) -> list[dict[str, Any]]:
        """The k nearest chips, most alike first (ties by chip_id), with their facts and `similarity` (cosine).

        Raises ConfigError for a vector of another length, or filters that leave datasets of several models.
        """
        if len(vector) != (dim := self.table.schema.field(VECTOR).type.list_size):
            raise ConfigError(f"{self.uri}: a vector of {len(vector)} numbers; this database's have {dim}")
        if len({space(a) for n, a in self.about.items() if not filters.datasets or n in filters.datasets}) > 1:
            raise ConfigError(f"{self.uri}: datasets of several models cannot be searched together; choose some of one")
        return nearest(self.table, vector, k, filters, exact=exact)


def nearest(
    table: Table, vector: Sequence[float] | np.ndarray, k: int, filters: Filters = Filters(), *, exact: bool = False
) -> list[dict[str, Any]]:
    """What `Explorer.similar` does, for any version of the table."""
    query = table.search(np.asarray(vector, np.float32), vector_column_name=VECTOR).distance_type(METRIC)
    query = query.bypass_vector_index() if exact else query.nprobes(probes(table.count_rows())).refine_factor(REFINE)
    if where := filters.sql():
        query = query.where(where, prefilter=True)
    rows = query.limit(k).select([*FACTS, "_distance"]).to_list()
    for row in rows:
        row["similarity"] = 1 - row.pop("_distance")
    return sorted(rows, key=lambda r: (-r["similarity"], r["chip_id"]))


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:160]
