"""The chips of a database version as NumPy arrays, for operations over every chip: filters, classifiers, map tiles.

Rows lie along a Z-order curve of web mercator, so that the chips of a map tile, or of a box, are a few runs of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from kiln.errors import ConfigError
from kiln.explorer.chips import ChipFacts, UnknownChipError
from kiln.formats.bounding_box import BoundingBox, Bounds

LEVEL = 24  # of the Z-order curve: cells of 2.4 m at the equator
MAX_LATITUDE = 85.051128779806604  # degrees: the edge of web mercator
NO_TIME = int(np.iinfo(np.int64).min)
KM_PER_DEGREE = 111.2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = ("chip_id", "item_id", "source")
BOX = ("xmin", "ymin", "xmax", "ymax")
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """The n chips of a version.

    Attributes:
        vectors: [n, D] float16.
        columns: Arrays [n] by name: dataset (number in `datasets`), year (0: none), time (ms since 1970, NO_TIME:
            none), nodata and cloud (NaN: unknown), lon, lat, xmin, ymin, xmax, ymax (degrees; xmin > xmax across the
            antimeridian), norm, mercator_y (fraction of the map's height), morton, colour [n, 3], and the sorted
            look-up tables rowid with rowid_row, and hash with hash_row.
        texts: The columns of TEXTS.
        datasets: Names of the datasets.
        half_chip: Half of the largest chip's width and its height, as fractions of the map's width.
        chip_side: The longer side of the median chip, as a fraction of the map's width.
    """

    vectors: NDArray[np.float16]
    columns: Mapping[str, NDArray[Any]]
    texts: pa.Table
    datasets: tuple[str, ...]
    half_chip: tuple[float, float]
    chip_side: float

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def rows_of(self, chip_ids: Sequence[str]) -> Rows:
        """Return the rows [m] of chips. Raise UnknownChipError for an id that the matrix does not have."""
        hashes = hash_texts(chip_ids)
        at = np.searchsorted(self["hash"], hashes)
        rows = np.full(len(chip_ids), -1, np.int64)
        for n, (chip_id, value) in enumerate(zip(chip_ids, hashes.tolist(), strict=True)):
            place = int(at[n])
            while place < len(self) and int(self["hash"][place]) == value:  # more than once if two ids share a hash
                row = int(self["hash_row"][place])
                if self.texts["chip_id"][row].as_py() == chip_id:
                    rows[n] = row
                    break
                place += 1
        raise_for_unknown([chip_ids[int(n)] for n in np.flatnonzero(rows < 0)])
        return rows

    def rows_of_row_ids(self, ids: NDArray[np.uint64]) -> Rows:
        """Return the rows [m] of LanceDB's row ids."""
        return np.asarray(self["rowid_row"][np.searchsorted(self["rowid"], ids)], np.int64)

    def touching(self, west: float, north: float, east: float, south: float) -> list[tuple[int, int]]:
        """Return runs of rows (first, end) that hold every chip that may touch a box of the map.

        The runs hold other chips too: the caller must test the chips' own boxes.

        Args:
            west: Edges of the box as fractions of the map's side, from the north-west corner.
            north: See west.
            east: See west.
            south: See west.
        """
        half_x, half_y = self.half_chip
        west, east, north, south = west - half_x, east + half_x, north - half_y, south + half_y
        size = max(east - west, south - north)
        level = int(np.clip(np.floor(np.log2(4 / size)), 0, LEVEL)) if size > 0 else LEVEL
        columns = [_span(west, east, level)]
        columns += [_span(west + 1, 1, level)] if west < 0 else []  # what lies over the map's other edge
        columns += [_span(0, east - 1, level)] if east > 1 else []
        grid = np.meshgrid(np.unique(np.concatenate(columns)), _span(north, south, level))
        cells = np.sort(interleave(*(v.ravel() for v in grid)))
        shift = np.uint64(2 * (LEVEL - level))
        starts = np.searchsorted(self["morton"], cells << shift)
        ends = np.searchsorted(self["morton"], (cells + np.uint64(1)) << shift)
        runs: list[tuple[int, int]] = []
        for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
            if runs and runs[-1][1] == first:
                runs[-1] = (runs[-1][0], last)
            elif first < last:
                runs.append((first, last))
        return runs

    def in_view(self, bbox: Bounds, mask: Mask | None) -> Rows:
        """Return the rows [m] of the chips whose boxes touch a box in degrees; `mask` [n] as from ChipFilter.mask."""
        pieces: list[Rows] = [np.empty(0, np.int64)]
        parts = BoundingBox(*bbox).parts()
        for west, south, east, north in parts:
            (x0, x1), (y1, y0) = map_x(np.array([west, east])), map_y(np.array([south, north]))
            for first, last in self.touching(x0, y0, x1, y1):
                left, right = self["xmin"][first:last], self["xmax"][first:last]
                across = left > right
                touches = np.where(across, (left <= east) | (right >= west), (left <= east) & (right >= west))
                touches &= (self["ymin"][first:last] <= north) & (self["ymax"][first:last] >= south)
                if mask is not None:
                    touches &= mask[first:last]
                pieces.append(np.flatnonzero(touches) + first)
        rows = np.concatenate(pieces)  # one part gives each row once, in order
        return rows if len(parts) == 1 else np.unique(rows)

    def at(self, lon: float, lat: float, mask: Mask | None) -> int:
        """Return the row of the chip that covers a point: the newest, then the nearest centre, then by id.

        Args:
            lon: Longitude in degrees.
            lat: Latitude in degrees.
            mask: The chips to choose from, [n]; None: all.

        Raises:
            UnknownChipError: No chip covers the point; names the nearest chip within a degree.
            ConfigError: The coordinates are out of range.
        """
        check_place(lon, lat)

        def distance(rows: Rows) -> Floats:
            east = (self["lon"][rows] - lon + 180) % 360 - 180
            degrees: Floats = np.hypot(east * np.cos(np.radians(lat)), self["lat"][rows] - lat)
            return degrees

        if len(rows := self.in_view((lon - 1e-12, lat - 1e-12, lon + 1e-12, lat + 1e-12), mask)):
            keys = zip(-self["year"][rows].astype(int), distance(rows), self.ids(rows), rows.tolist(), strict=True)
            return int(min(keys)[-1])
        west, east = ((v + 180) % 360 - 180 for v in (lon - 1, lon + 1))
        hint = ""
        if len(rows := self.in_view((west, max(lat - 1, -90.0), east, min(lat + 1, 90.0)), mask)):
            best = rows[np.argmin(distance(rows))]
            km = float(distance(np.array([best]))[0]) * KM_PER_DEGREE
            hint = f"; the nearest is {self.ids([int(best)])[0]}, {km:.1f} km away"
        raise UnknownChipError(f"no chip covers {lon}, {lat}{hint}")

    def ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """Return the chip_ids of rows."""
        ids: list[str] = self.texts["chip_id"].take(pa.array(rows, pa.int64())).to_pylist()
        return ids

    def facts(self, rows: Sequence[int] | Rows) -> list[ChipFacts]:
        """Return the facts of rows."""
        rows = np.asarray(rows, np.int64)
        texts = self.texts.take(pa.array(rows)).to_pydict()
        names = ("dataset", "year", "time", "nodata", "cloud", "lon", "lat", *BOX)
        values = {name: self[name][rows].tolist() for name in names}
        return [
            ChipFacts.from_row(
                {
                    **{name: texts[name][n] for name in TEXTS},
                    **{name: values[name][n] for name in ("lon", "lat", *BOX)},
                    "dataset": self.datasets[values["dataset"][n]],
                    "year": values["year"][n] or None,
                    "datetime": moment(values["time"][n]),
                    "nodata_fraction": values["nodata"][n],
                    "cloud_fraction": values["cloud"][n],
                }
            )
            for n in range(len(rows))
        ]


def moment(time_ms: int) -> datetime | None:
    """Return milliseconds since 1970 as a time in UTC; None for NO_TIME."""
    return None if time_ms == NO_TIME else EPOCH + timedelta(milliseconds=time_ms)


def check_place(lon: float, lat: float) -> None:
    """Raise ConfigError for coordinates out of range."""
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ConfigError(f"place: expected longitude -180 to 180 and latitude -90 to 90, got {lon}, {lat}.")


def raise_for_unknown(chip_ids: Sequence[str]) -> None:
    """Raise UnknownChipError if any chip ids are missing."""
    if chip_ids:
        more = f" and {len(chip_ids) - 1} more" if len(chip_ids) > 1 else ""
        raise UnknownChipError(f"no chip {chip_ids[0][:120]!r}{more} in this database")


def map_x(lon: ArrayLike) -> Floats:
    """Return the fraction of a web mercator map's width that is west of longitudes."""
    return np.asarray((np.asarray(lon) + 180) / 360, np.float64)


def map_y(lat: ArrayLike) -> Floats:
    """Return the fraction of a web mercator map's height that is north of latitudes."""
    sine = np.sin(np.radians(np.clip(lat, -MAX_LATITUDE, MAX_LATITUDE)))
    return np.asarray(0.5 - np.arctanh(sine) / (2 * np.pi), np.float64)


def _span(first: float, last: float, level: int) -> Rows:
    """Return the columns, or rows, of cells that a span of the map touches."""
    start, end = (int(np.clip(np.floor(v * 2**level), 0, 2**level - 1)) for v in (first, last))
    return np.arange(start, end + 1)


def interleave(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.uint64]:
    """Return Z-order codes [n]: the bits of x and y [n] in turn, up to 32 of each."""

    def spread(values: NDArray[Any]) -> NDArray[np.uint64]:
        v = values.astype(np.uint64)
        for shift, bits in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
                            (2, 0x3333333333333333), (1, 0x5555555555555555)):  # fmt: skip
            v = (v | v << np.uint64(shift)) & np.uint64(bits)
        return v

    return spread(x) | spread(y) << np.uint64(1)


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return 64-bit hashes [n] of texts."""
    raw = b"".join(blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts)
    return np.frombuffer(raw, "<u8")
