"""The matrix of a database version in the cache folder: built once per version, memory-mapped by every later start.

It takes about 2.2 kB a chip of 1024 numbers. The matrices of a database's older versions are removed. The record holds
a digest of every file, which is compared when the matrix is opened. A damaged matrix is built again.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError, StorageError
from kiln.explorer.colours import Colours, fit_table, read_colours
from kiln.explorer.database import FACTS, VECTOR, ExplorerDatabase, no_answer
from kiln.explorer.matrix import BOX, LEVEL, NO_TIME, TEXTS, Matrix, hash_texts, interleave, map_x, map_y
from kiln.formats.fingerprint import digest
from kiln.formats.json_digest import read_with_digest, with_digest
from kiln.io import storage
from kiln.io.progress import Progress
from kiln.io.storage.local import DISK_ERRNOS

RECIPE = 4  # raised when the files of a cached matrix change
BATCH_ROWS = 4096
RECORD = "record.json"  # of a matrix, written last
TEXTS_FILE = "texts.arrow"
CHUNK_BYTES = 16 << 20  # of a file, hashed by one thread
MAX_THREADS = 8
log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return the folder of matrices and pictures on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kiln" / "explorer"


def check_table(db: ExplorerDatabase) -> int:
    """Return the dimension D. Raise ConfigError unless the table has the columns and vectors of an explorer table."""
    schema = db.table.schema
    if missing := [n for n in (*FACTS, VECTOR) if n not in schema.names]:
        raise ConfigError(f"{db.uri}: expected an explorer table, got one without {missing[0]}. Build the index again.")
    kind = schema.field(VECTOR).type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise ConfigError(f"{db.uri}: expected vectors of one length, got {kind}. Build the index again.")
    dim = int(kind.list_size)
    for dataset, metadata in db.metadata.items():
        if metadata.get("dimensions", dim) != dim:
            raise ConfigError(
                f"{db.uri}: expected {metadata['dimensions']} dimensions as the metadata of {dataset}, got {dim}. "
                "Build the index again."
            )
    return dim


def matrix_home(db: str, cache: Path) -> Path:
    """Return the folder of a database's matrices in the cache."""
    return cache / "matrix" / digest(db if storage.is_s3(db) else str(Path(db).resolve()))[:16]


def open_matrix(db: ExplorerDatabase, cache: Path) -> Matrix:
    """Return the matrix of the open version; build it if the cache has none.

    Args:
        db: The database.
        cache: The cache folder, shared by all databases.

    Raises:
        ConfigError: The table is not an explorer table.
        StorageError: The cache has no space left, or cannot be written.
        TransientError: The database does not answer.
    """
    dim = check_table(db)
    home = matrix_home(db.uri, cache)
    folder = home / digest([RECIPE, db.identity()])[:16]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home):
            if (record := _intact_record(folder)) is None:
                for old in home.glob("*/"):  # safe: no other process builds while we hold the lock
                    shutil.rmtree(old)
                partial = home / f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial"
                try:
                    record = _build(db, dim, partial)
                    partial.replace(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            return _load(folder, record)
    except OSError as e:
        if e.errno is None:  # an error of Lance has no number
            raise no_answer(db.uri, e) from e
        if e.errno not in DISK_ERRNOS:
            raise
        raise StorageError(f"{folder}: cannot be written: {os.strerror(e.errno)}. Choose another --cache.") from e


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the lock of a database's matrices."""
    with (home / "lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _intact_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a cached matrix; None if there is no matrix, or a damaged one."""
    if not folder.is_dir():
        return None
    try:
        return read_matrix_record(folder)
    except SourceError as e:
        log.warning("%s", e)
        return None


def read_matrix_record(folder: Path) -> dict[str, Any]:
    """Return the record of a cached matrix, and compare its files with it.

    Raises:
        SourceError: A file is missing, unreadable, or has another content than when it was written.
    """
    try:
        record = read_with_digest((folder / RECORD).read_bytes())
        for name, written in record["files"].items():
            if file_digest(folder / name) != written:
                raise ValueError(f"{name} has another digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise SourceError(
            f"{folder}: expected a complete matrix, got a damaged one ({str(e)[:120]}). It is built again."
        ) from e
    return record


def file_digest(path: Path) -> str:
    """Return a digest of a file that several threads compute: sha256 of the sha256 of its chunks, in hex."""

    def of_chunk(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(CHUNK_BYTES)).digest()

    size = path.stat().st_size
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        chunks = pool.map(of_chunk, range(0, size, CHUNK_BYTES))
        return hashlib.sha256(b"".join([size.to_bytes(8, "little"), *chunks])).hexdigest()


def _load(folder: Path, record: Mapping[str, Any]) -> Matrix:
    """Open a matrix whose files are intact."""
    # Torch needs writable memory: copy-on-write, so that nothing reaches the files. No rows cannot be mapped.
    paths = [folder / name for name in record["files"] if name != TEXTS_FILE]
    arrays = {p.stem: np.load(p, mmap_mode="c" if record["rows"] else None) for p in paths}
    with pa.memory_map(str(folder / TEXTS_FILE)) as mapped:
        texts = pa.ipc.open_file(mapped).read_all()
    return Matrix(
        arrays.pop("vectors"), arrays, texts, tuple(record["datasets"]), tuple(record["half_chip"]), record["chip_side"]
    )


def _build(db: ExplorerDatabase, dim: int, folder: Path) -> dict[str, Any]:
    """Write the arrays of a version into a new folder, the record last. Return the record."""
    rows = db.table.count_rows()
    folder.mkdir()
    need, free = rows * (2 * dim + 500), shutil.disk_usage(folder).free
    if need > free:
        raise StorageError(
            f"{folder.parent}: expected {need >> 20} MB of free space, got {free >> 20}. Choose another --cache."
        )
    colours = read_colours(db.uri, db.table.version)
    if colours is None:
        log.info("%s: no colours are stored with this version: fitting them", db.uri)
        colours = fit_table(db.table)
    try:
        facts = db.table.search().select(list(FACTS)).with_row_id(True).limit(max(1, rows)).to_arrow()
    except (RuntimeError, ValueError, OSError) as e:
        raise no_answer(db.uri, e) from e
    columns, texts, datasets = _columns(facts)
    del facts
    with pa.OSFile(str(folder / TEXTS_FILE), "wb") as f, pa.ipc.new_file(f, texts.schema) as out:
        out.write_table(texts)
    del texts
    record = {"rows": len(columns["lon"]), "datasets": datasets, **_chip_sizes(columns)}
    _write_vectors(db, dim, folder, columns, colours)
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".arrow"))
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # before the rename: after a crash of the machine, the folder has all bytes
    record["files"] = {path.name: file_digest(path) for path in paths}
    storage.write_bytes(str(folder / RECORD), json.dumps(with_digest(record), sort_keys=True).encode())
    return record


def _columns(facts: pa.Table) -> tuple[dict[str, NDArray[Any]], pa.Table, list[str]]:
    """Return columns [n] and texts of the table's rows along the curve, and the datasets that `dataset` numbers."""
    west, east = (facts[n].to_numpy() for n in ("xmin", "xmax"))
    across = west > east
    lon = np.where(across, (west + east + 360) / 2, facts["lon"].to_numpy())
    lon = np.where(lon > 180, lon - 360, lon)
    lat = facts["lat"].to_numpy()
    cell = [np.clip(v * 2**LEVEL, 0, 2**LEVEL - 1).astype(np.uint64) for v in (map_x(lon), map_y(lat))]
    morton = interleave(*cell)
    order = np.argsort(morton, kind="stable")
    coded = facts["dataset"].combine_chunks().dictionary_encode()
    datasets = sorted(coded.dictionary.to_pylist())
    renumber = np.array([datasets.index(d) for d in coded.dictionary.to_pylist()] or [0], np.uint8)
    codes = coded.indices.to_numpy(zero_copy_only=False)
    time = facts["datetime"].cast(pa.int64())
    columns = {
        "dataset": renumber[codes] if len(codes) else np.empty(0, np.uint8),
        "year": pc.fill_null(facts["year"], 0).to_numpy(),
        "time": pc.fill_null(time, pa.scalar(int(NO_TIME), pa.int64())).to_numpy(),
        "nodata": facts["nodata_fraction"].to_numpy().astype(np.float32),
        "cloud": facts["cloud_fraction"].to_numpy().astype(np.float32),
        "lon": lon,
        "lat": lat,
        **{n: facts[n].to_numpy() for n in BOX},
        "mercator_y": map_y(lat),
        "morton": morton,
    }
    columns = {n: c[order] for n, c in columns.items()}
    texts = facts.select(list(TEXTS)).take(pa.array(order)).combine_chunks()
    texts = texts.cast(pa.schema([(n, pa.large_string()) for n in TEXTS]))
    hashes, ids = hash_texts(texts["chip_id"].to_pylist()), facts["_rowid"].to_numpy()[order]
    for name, keys in (("hash", hashes), ("rowid", ids)):
        by = np.argsort(keys, kind="stable")
        columns[name], columns[f"{name}_row"] = keys[by], by.astype(np.uint32)
    return columns, texts, datasets


def _chip_sizes(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the record's `half_chip` and `chip_side`, as fractions of the map's width."""
    if not len(columns["lon"]):
        return {"half_chip": [0.0, 0.0], "chip_side": 0.0}
    width = (columns["xmax"] - columns["xmin"]) % 360 / 360
    height = map_y(columns["ymin"]) - map_y(columns["ymax"])
    side = float(np.median(np.maximum(width, height)))
    return {"half_chip": [float(width.max()) / 2, float(height.max())], "chip_side": side}


def _write_vectors(
    db: ExplorerDatabase, dim: int, folder: Path, columns: dict[str, NDArray[Any]], colours: Colours | None
) -> None:
    """Write the vectors; add norm and colour to `columns`."""
    rows = len(columns["lon"])
    if colours is not None and len(colours.mean) != dim:
        raise SourceError(f"{db.uri}: expected colours of {dim} dimensions, got {len(colours.mean)}. Index again.")
    vectors = _new_array(folder / "vectors.npy", (rows, dim))
    columns["norm"] = np.zeros(rows, np.float32)
    columns["colour"] = np.full((rows, 3), 128, np.uint8)
    progress, count = Progress(rows, "the chips as a matrix", embeds=False), 0
    try:
        batches = db.table.search().select([VECTOR]).with_row_id(True).limit(max(1, rows)).to_batches(BATCH_ROWS)
        for batch in batches:
            place = columns["rowid_row"][np.searchsorted(columns["rowid"], batch["_rowid"].to_numpy())]
            values = batch[VECTOR].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            wide = values.astype(np.float32)
            vectors[place], columns["norm"][place] = values.astype(np.float16), np.linalg.norm(wide, axis=1)
            if colours is not None:
                columns["colour"][place] = colours.rgb(wide)
            count += len(values)
            progress.advance(len(values))
    except (RuntimeError, ValueError) as e:
        raise no_answer(db.uri, e) from e
    finally:
        progress.close()
    if count != rows:
        raise SourceError(f"{db.uri}: expected {rows} vectors, got {count}. Build the index again.")
    if isinstance(vectors, np.memmap):
        vectors.flush()


def _new_array(path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Return a new float16 .npy file to fill; a file without rows cannot be mapped."""
    if shape[0]:
        mapped: NDArray[np.float16] = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        return mapped
    np.save(path, np.empty(shape, np.float16))
    return np.empty(shape, np.float16)
