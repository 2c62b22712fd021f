"""A version of an explorer database as memory-mapped NumPy arrays, for what looks at every chip: classifiers, maps.

Made once per version in the cache folder (about 2.2 kB a chip of 1024 numbers) and opened by every later start. Rows
lie along a Z-order curve of web mercator, so that the chips of a map tile, or of a box, are a few runs of rows.
"""

import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kiln.errors import ConfigError, SourceError, StorageError, TransientError
from kiln.explorer import colours, database
from kiln.explorer.database import Explorer
from kiln.explorer.filters import Where, halves
from kiln.formats.fingerprint import digest
from kiln.io import storage
from kiln.io.progress import Progress

RECIPE = 2  # raised when the files of a cached matrix change
BATCH = 4096  # rows read at a time
LEVEL = 24  # of the Z-order curve: cells of 2.4 m at the equator
POLE = 85.051128779806604  # degrees: the edge of web mercator
NO_TIME = np.iinfo(np.int64).min
TEXTS = ("chip_id", "item_id", "source")
BOX = ("xmin", "ymin", "xmax", "ymax")
log = logging.getLogger(__name__)


class UnknownChipError(ConfigError):
    """Chips that the database does not have, or a place that no chip covers."""


def default_cache() -> Path:
    """Where matrices and pictures are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kiln" / "explorer"


@dataclass(frozen=True)
class Matrix:
    """n chips: `vectors` [n, D] float16, `columns` name -> array [n], `texts` of TEXTS.

    A column may be: dataset (number of `datasets`), year (0: none), time (ms since 1970, NO_TIME: none), nodata, cloud
    (NaN: unknown), lon, lat, xmin, ymin, xmax, ymax (degrees; xmin > xmax across the antimeridian), norm, mercator_y
    (share of the map's height), morton, colour [n, 3], and the sorted look-ups rowid with rowid_row, hash with
    hash_row.
    """

    vectors: np.ndarray
    columns: Mapping[str, np.ndarray]
    texts: pa.Table
    datasets: tuple[str, ...]
    spaces: Mapping[str, Sequence[str]]
    half: tuple[float, float]  # of the largest chip, as shares of the map's width
    size: float  # of the usual chip's longer side, the same

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def rows_of(self, chip_ids: Sequence[str]) -> np.ndarray:
        """The rows [m] of chips. Raises UnknownChipError that names those that are not there."""
        hashes = _hashes(chip_ids)
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
        if len(missing := [chip_ids[n] for n in np.flatnonzero(rows < 0)]):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UnknownChipError(f"no chip {missing[0][:120]!r}{more} in this database")
        return rows

    def of_row_ids(self, ids: np.ndarray) -> np.ndarray:
        """The rows [m] of LanceDB's row ids."""
        return np.asarray(self["rowid_row"][np.searchsorted(self["rowid"], ids)], np.int64)

    def mask(self, where: Where) -> np.ndarray | None:
        """Which chips the filters leave, [n]; None: all of them. Raises ConfigError for an unknown dataset."""
        keep: list[np.ndarray] = []
        if where.datasets:
            if unknown := sorted(set(where.datasets) - set(self.datasets)):
                raise ConfigError(f"filters: no dataset {unknown[0]!r} here; there is {', '.join(self.datasets)}")
            keep.append(np.isin(self["dataset"], [self.datasets.index(d) for d in where.datasets]))
        if where.years:
            keep.append(np.isin(self["year"], where.years))
        first, late = where.times()
        if first:
            keep.append(self["time"] >= int(first.timestamp() * 1000))
        if late:
            keep.append((self["time"] < int(late.timestamp() * 1000)) & (self["time"] != NO_TIME))
        if where.max_nodata is not None:
            keep.append(~(self["nodata"] > np.float32(where.max_nodata)))
        if where.max_cloud is not None:
            keep.append(~(self["cloud"] > np.float32(where.max_cloud)))
        if where.bbox is not None:
            keep.append(np.any([self._inside(b) for b in halves(where.bbox)], axis=0))
        if where.area is not None:
            keep.append(self._in_area(where.area))
        return np.logical_and.reduce(keep) if keep else None

    def _inside(self, box: Sequence[float]) -> np.ndarray:
        west, south, east, north = box
        lon, lat = self["lon"], self["lat"]
        return (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)

    def _in_area(self, area: Any) -> np.ndarray:
        import shapely

        keep = self._inside(area.bounds)
        near = np.flatnonzero(keep)
        shapely.prepare(area)
        keep[near] = shapely.intersects_xy(area, self["lon"][near], self["lat"][near])
        return keep

    def touching(self, west: float, north: float, east: float, south: float) -> list[tuple[int, int]]:
        """Runs of rows that hold every chip that may touch a box of the map (shares of its side, from the north-west).

        They hold others too: whoever asks tests the chips' own boxes.
        """
        half_x, half_y = self.half
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

    def in_view(self, bbox: Sequence[float], mask: np.ndarray | None) -> np.ndarray:
        """Rows of the chips whose boxes touch a box of degrees, west > east across the antimeridian; `mask` as said."""
        found = [np.empty(0, np.int64)]
        parts = halves(tuple(bbox))  # type: ignore[arg-type]
        for west, south, east, north in parts:
            (x0, x1), (y1, y0) = map_x(np.array([west, east])), map_y(np.array([south, north]))
            for first, last in self.touching(x0, y0, x1, y1):
                left, right = self["xmin"][first:last], self["xmax"][first:last]
                across = left > right
                touches = np.where(across, (left <= east) | (right >= west), (left <= east) & (right >= west))
                touches &= (self["ymin"][first:last] <= north) & (self["ymax"][first:last] >= south)
                if mask is not None:
                    touches &= mask[first:last]
                found.append(np.flatnonzero(touches) + first)
        rows = np.concatenate(found)  # of one part they come once, and in order
        return rows if len(parts) == 1 else np.unique(rows)

    def at(self, lon: float, lat: float, mask: np.ndarray | None) -> int:
        """The row of the chip that covers a point, the newest if several do, then the nearest centre, then by id.

        Raises UnknownChipError, naming the nearest chip within a degree, if none covers it; ConfigError for no place.
        """
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise ConfigError(f"{lon}, {lat} is no place: want longitude -180 to 180, latitude -90 to 90")

        def distance(rows: np.ndarray) -> np.ndarray:
            east = (self["lon"][rows] - lon + 180) % 360 - 180
            return np.hypot(east * np.cos(np.radians(lat)), self["lat"][rows] - lat)

        if len(rows := self.in_view((lon - 1e-12, lat - 1e-12, lon + 1e-12, lat + 1e-12), mask)):
            keys = zip(-self["year"][rows].astype(int), distance(rows), self.ids(rows), rows.tolist(), strict=True)
            return min(keys)[-1]
        west, east = ((v + 180) % 360 - 180 for v in (lon - 1, lon + 1))
        hint = ""
        if len(rows := self.in_view((west, max(lat - 1, -90.0), east, min(lat + 1, 90.0)), mask)):
            best = rows[np.argmin(distance(rows))]
            hint = f"; the nearest is {self.ids([best])[0]}, {float(distance(best)) * 111.2:.1f} km away"
        raise UnknownChipError(f"no chip covers {lon}, {lat}{hint}")

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The chip_ids of rows."""
        return self.texts["chip_id"].take(pa.array(rows, pa.int64())).to_pylist()


def map_x(lon: np.ndarray) -> np.ndarray:
    """Web mercator: the share of the map's width west of a longitude."""
    return (np.asarray(lon) + 180) / 360


def map_y(lat: np.ndarray) -> np.ndarray:
    """Web mercator: the share of the map's height north of a latitude."""
    sine = np.sin(np.radians(np.clip(lat, -POLE, POLE)))
    return 0.5 - np.arctanh(sine) / (2 * np.pi)


def _span(first: float, last: float, level: int) -> np.ndarray:
    """The columns, or rows, of cells that a span of the map touches."""
    start, end = (int(np.clip(np.floor(v * 2**level), 0, 2**level - 1)) for v in (first, last))
    return np.arange(start, end + 1)


def interleave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Z-order codes, uint64: the bits of x and y [n] in turn, up to 32 of each."""

    def spread(v: np.ndarray) -> np.ndarray:
        v = v.astype(np.uint64)
        for shift, kept in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
                            (2, 0x3333333333333333), (1, 0x5555555555555555)):  # fmt: skip
            v = (v | v << np.uint64(shift)) & np.uint64(kept)
        return v

    return spread(x) | spread(y) << np.uint64(1)


def _hashes(texts: Sequence[str]) -> np.ndarray:
    raw = b"".join(blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts)
    return np.frombuffer(raw, "<u8")


def identity(db: Explorer) -> str:
    """What tells the open version from every other, also from one of the same number in a database made anew.

    Raises TransientError if the database does not answer.
    """
    try:
        tag = db.table.tags.list().get(database.TAG, {})
    except (RuntimeError, ValueError, OSError) as e:
        raise TransientError(f"{db.uri}: the database does not answer: {str(e).splitlines()[0][:160]}") from e
    state = storage.join(db.uri, "state", f"{db.table.version}.json")
    said = storage.read_bytes(state).decode() if storage.stat(state) else ""
    return digest([db.table.version, tag.get("manifest_size"), said])[:16]


def check(db: Explorer) -> int:
    """The dimension D. Raises ConfigError for a table that is not an explorer's, or not what its metadata says."""
    schema = db.table.schema
    if missing := [n for n in (*database.FACTS, database.VECTOR) if n not in schema.names]:
        raise ConfigError(f"{db.uri}: its table has no column {missing[0]}: made by something else, or an older Kiln")
    kind = schema.field(database.VECTOR).type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise ConfigError(f"{db.uri}: its vectors are {kind}, not lists of one length; build the index again")
    for dataset, kiln in db.about.items():
        if kiln.get("dimensions", kind.list_size) != kind.list_size:
            raise ConfigError(
                f"{db.uri}: {dataset} is said to have {kiln['dimensions']} dimensions, the table has {kind.list_size}: "
                "a database of another model; build the index again"
            )
    return kind.list_size


def open_matrix(db: Explorer, cache: Path) -> Matrix:
    """The matrix of the open version, made if the cache has none; those of the database's older versions go.

    Raises ConfigError (another kind of table), StorageError (no room), TransientError (the database does not answer).
    """
    dim = check(db)
    home = cache / "matrix" / digest(db.uri if storage.is_s3(db.uri) else str(Path(db.uri).resolve()))[:16]
    folder = home / digest([RECIPE, identity(db)])[:16]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            if not (folder / "record.json").exists():
                for old in home.glob("*/"):  # nobody else is building: we have the lock
                    shutil.rmtree(old)
                partial = home / f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial"
                try:
                    _make(db, dim, partial)
                    partial.replace(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            return load(folder)
    except OSError as e:
        if e.errno is None:  # Lance's own, which has no number
            raise TransientError(f"{db.uri}: the database does not answer: {str(e).splitlines()[0][:160]}") from e
        if e.errno not in storage.DISK_ERRNOS:
            raise
        raise StorageError(f"{folder}: cannot be written: {os.strerror(e.errno)}; say another --cache") from e


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / "lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def load(folder: Path) -> Matrix:
    """Open what was made."""
    record = json.loads((folder / "record.json").read_text())
    how = "c" if record["rows"] else None  # torch wants what could be written; nothing written would reach the files
    arrays = {p.stem: np.load(p, mmap_mode=how) for p in sorted(folder.glob("*.npy"))}
    with pa.memory_map(str(folder / "texts.arrow")) as mapped:
        texts = pa.ipc.open_file(mapped).read_all()
    return Matrix(
        arrays.pop("vectors"), arrays, texts, tuple(record["datasets"]), record["spaces"],
        tuple(record["half"]), record["size"],
    )  # fmt: skip


def _make(db: Explorer, dim: int, folder: Path) -> None:
    """Write the arrays of a version into a new folder, the record last."""
    rows = db.table.count_rows()
    folder.mkdir()
    need, room = rows * (2 * dim + 500), shutil.disk_usage(folder).free
    if need > room:
        raise StorageError(f"{folder.parent}: {need >> 20} MB are wanted, {room >> 20} are free; say another --cache")
    fitted = colours.read(db.uri, db.table.version)
    if fitted is None:
        log.info("%s: no colours are stored with this version: they are fitted now", db.uri)
        fitted = colours.fit_table(db.table, db.about)
    try:
        found = db.table.search().select(list(database.FACTS)).with_row_id(True).limit(max(1, rows)).to_arrow()
    except (RuntimeError, ValueError, OSError) as e:
        raise TransientError(f"{db.uri}: the database does not answer: {str(e).splitlines()[0][:160]}") from e
    columns, texts, datasets = _facts(found)
    del found
    with pa.OSFile(str(folder / "texts.arrow"), "wb") as f, pa.ipc.new_file(f, texts.schema) as out:
        out.write_table(texts)
    del texts
    record = {
        "rows": len(columns["lon"]),
        "datasets": datasets,
        "spaces": colours.spaces({d: db.about.get(d, {}) for d in datasets}),
        **_sizes(columns),
    }
    _vectors(db, dim, folder, columns, record, fitted)
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    (folder / "record.json").write_text(json.dumps(record, sort_keys=True))


def _facts(found: pa.Table) -> tuple[dict[str, np.ndarray], pa.Table, list[str]]:
    """Columns [n] of the table's rows along the curve, their texts, and the datasets that `dataset` counts."""
    west, east = (found[n].to_numpy() for n in ("xmin", "xmax"))
    across = west > east
    lon = np.where(across, (west + east + 360) / 2, found["lon"].to_numpy())
    lon = np.where(lon > 180, lon - 360, lon)
    lat = found["lat"].to_numpy()
    cell = [np.clip(v * 2**LEVEL, 0, 2**LEVEL - 1).astype(np.uint64) for v in (map_x(lon), map_y(lat))]
    morton = interleave(*cell)
    order = np.argsort(morton, kind="stable")
    coded = found["dataset"].combine_chunks().dictionary_encode()
    datasets = sorted(coded.dictionary.to_pylist())
    renumber = np.array([datasets.index(d) for d in coded.dictionary.to_pylist()] or [0], np.uint8)
    codes = coded.indices.to_numpy(zero_copy_only=False)
    time = found["datetime"].cast(pa.int64())
    columns = {
        "dataset": renumber[codes] if len(codes) else np.empty(0, np.uint8),
        "year": pc.fill_null(found["year"], 0).to_numpy(),
        "time": pc.fill_null(time, pa.scalar(int(NO_TIME), pa.int64())).to_numpy(),
        "nodata": found["nodata_fraction"].to_numpy().astype(np.float32),
        "cloud": found["cloud_fraction"].to_numpy().astype(np.float32),
        "lon": lon,
        "lat": lat,
        **{n: found[n].to_numpy() for n in BOX},
        "mercator_y": map_y(lat),
        "morton": morton,
    }
    columns = {n: c[order] for n, c in columns.items()}
    texts = found.select(list(TEXTS)).take(pa.array(order)).combine_chunks()
    texts = texts.cast(pa.schema([(n, pa.large_string()) for n in TEXTS]))
    hashes, ids = _hashes(texts["chip_id"].to_pylist()), found["_rowid"].to_numpy()[order]
    for name, keys in (("hash", hashes), ("rowid", ids)):
        by = np.argsort(keys, kind="stable")
        columns[name], columns[f"{name}_row"] = keys[by], by.astype(np.uint32)
    return columns, texts, datasets


def _sizes(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Half of the largest chip, and the usual chip's longer side, as shares of the map's width."""
    if not len(columns["lon"]):
        return {"half": [0.0, 0.0], "size": 0.0}
    width = (columns["xmax"] - columns["xmin"]) % 360 / 360
    height = map_y(columns["ymin"]) - map_y(columns["ymax"])
    return {"half": [float(width.max()) / 2, float(height.max())], "size": float(np.median(np.maximum(width, height)))}


def _vectors(
    db: Explorer, dim: int, folder: Path, columns: dict[str, np.ndarray], record: Mapping[str, Any],
    fitted: Mapping[str, colours.Colours],
) -> None:  # fmt: skip
    """Write the vectors; adds norm and colour to `columns`."""
    rows = record["rows"]
    vectors = _new(folder / "vectors.npy", np.float16, (rows, dim))
    columns["norm"] = np.zeros(rows, np.float32)
    columns["colour"] = np.full((rows, 3), 128, np.uint8)
    space = {d: s for s, names in record["spaces"].items() for d in names}
    progress, seen = Progress(rows, "the chips as a matrix"), 0
    try:
        batches = db.table.search().select([database.VECTOR]).with_row_id(True).limit(max(1, rows)).to_batches(BATCH)
        for batch in batches:
            place = columns["rowid_row"][np.searchsorted(columns["rowid"], batch["_rowid"].to_numpy())]
            values = batch[database.VECTOR].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            wide = values.astype(np.float32)
            norm = np.linalg.norm(wide, axis=1)
            vectors[place], columns["norm"][place] = values.astype(np.float16), norm
            for code, dataset in enumerate(record["datasets"]):
                mine = columns["dataset"][place] == code
                if mine.any() and (of := fitted.get(space[dataset])) is not None:
                    if len(of.mean) != dim:
                        raise SourceError(
                            f"{db.uri}: its colours are of {len(of.mean)} dimensions, not {dim}; index again"
                        )
                    columns["colour"][place[mine]] = of.rgb(wide[mine])
            seen += len(values)
            progress.advance(len(values), embedded=len(values))
    except (RuntimeError, ValueError) as e:
        raise TransientError(f"{db.uri}: the database does not answer: {str(e).splitlines()[0][:160]}") from e
    finally:
        progress.close()
    if seen != rows:
        raise SourceError(f"{db.uri}: {seen} vectors for {rows} chips; build the index again")
    if isinstance(vectors, np.memmap):
        vectors.flush()


def _new(path: Path, kind: Any, shape: tuple[int, int]) -> np.ndarray:
    """A new .npy to be filled; without rows there is nothing that could be mapped."""
    if shape[0]:
        return np.lib.format.open_memmap(path, "w+", kind, shape)
    np.save(path, np.empty(shape, kind))
    return np.empty(shape, kind)
