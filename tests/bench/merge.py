"""Rate and memory of a merge, compared with reading and rewriting the same shards with pyarrow.

    python -m tests.bench.merge [--gb 1 4] [--rounds 2] [--storage float32] [--folder DIR]

The bench writes shards of WorldCover columns, with 1024 normal random numbers per chip at places of the published
lattice. Each round merges and rewrites them in turn, each in a separate process, so that a busy machine slows both. The
result is the ratio of the median rates; the ratio of processor times is printed too. The rewrite reads one shard after
the other and writes one file with Kiln's codecs, synced to disk like the files of the merge.

Memory is the process's own at its peak (RssAnon), and everything that is mapped (VmHWM). The latter counts pages of
files that the system can free at any time. A merge with a quarter of the memory must write the same files.

The disk needs four times the largest --gb. Limits: half the rate of the rewrite, and 2 GB at any size.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats import embeddings_file, vectors
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.ledger import LedgerEntry, ledger_name, ledger_table, write_ledger
from kiln.formats.records import Unit
from kiln.product.merge import MergeOptions, merge
from tests.support.products import WORLD, shard_metadata

DIM, DEEP, ACROSS = 1024, 585, 28  # numbers of a vector; chips of a column; columns of a shard
MEMORY = 1000  # MB, the default for sorting in a merge job
MIN_RATIO, MAX_MB = 0.5, 2000
POLL_S = 0.02  # between readings of the memory


def shard_rows(first: int, values: np.ndarray, columns: pa.Schema, storage: vectors.VectorDtype) -> pa.Table:
    """Return the rows of ACROSS columns, starting with column `first`, with vectors [n, DIM]."""
    col, row = (a.ravel() for a in np.meshgrid(np.arange(first, first + ACROSS), np.arange(DEEP), indexing="ij"))
    side = WORLD.chip / WORLD.ppd
    west, north = -125 + (col % 1359) * side, 50 - row * side
    boxes = np.stack([west, north - side, west + side, north], axis=1)
    n = len(col)
    tile = np.char.add("s3://esa-worldcover-s2/rgbnir/2021/", (col // 24).astype(str))
    facts: dict[str, Any] = {
        "chip_id": [f"worldcover:2021:512:x{c:07d}:y{r:07d}" for c, r in zip(col.tolist(), row.tolist(), strict=True)],
        "geometry": shapely.to_wkb(shapely.box(*boxes.T), byte_order=1),
        "crs": ["EPSG:4326"] * n,
        "x0": west,
        "y0": north,
        "pixel_size": np.full(n, 1 / WORLD.ppd),
        "col": col,
        "row": row,
        "datetime": [datetime(2021, 6, 1, tzinfo=UTC)] * n,
        "item_id": tile,
        "source": tile,
        "sources": [[t] for t in tile.tolist()],
        "nodata_fraction": np.zeros(n),
        "cloud_fraction": [None] * n,
        "year": np.full(n, 2021),
    }
    arrays: dict[str, Any] = vectors.to_arrow(vectors.store({"embeddings": values}, storage), columns)
    arrays["bbox"] = pa.StructArray.from_arrays(
        [pa.array(boxes[:, i]) for i in range(4)], fields=list(columns.field("bbox").type)
    )
    table_columns = [arrays[f.name] if f.name in arrays else pa.array(facts[f.name], f.type) for f in columns]
    return pa.table(table_columns, schema=columns)


def make_shards(folder: Path, size: float, storage: vectors.VectorDtype) -> list[str]:
    """Write shards of about `size` bytes in total; return their names. All have the same vectors in another order."""
    kiln = shard_metadata(dimensions=DIM, vector_dtype=storage)
    columns = embeddings_file.schema(DIM, storage, COLUMNS, kiln)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ACROSS * DEEP, DIM), np.float32)
    names: list[str] = []
    written = 0
    while written < size:
        name = f"shard-{len(names):04d}"
        path = folder / f"{name}.parquet"
        rows = shard_rows(len(names) * ACROSS, np.roll(values, len(names), axis=0), columns, storage)
        with GeoParquetWriter(path, columns) as out:
            out.write(rows, embeddings_file.extent(rows))
        entry = LedgerEntry(Unit(name, len(rows), "s3://esa-worldcover-s2", "e"), embedded=len(rows))
        write_ledger(folder / ledger_name(path.name), ledger_table([entry]))
        written += path.stat().st_size
        names.append(name)
    return names


def plain(paths: list[Path], out: Path) -> None:
    """Read one shard after the other and write one file with Kiln's codecs."""
    columns = pq.read_schema(paths[0])
    with GeoParquetWriter(out, columns) as file:
        for path in paths:
            file.write(pq.read_table(path), Extent())
    with out.open("rb+") as f:
        os.fsync(f.fileno())


def status(name: str, pid: int | str = "self") -> float:
    """Return a value of /proc/PID/status in MB; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0) / 1000


def one(kind: str, folder: str, out: str, memory_mb: int) -> None:
    """Merge or rewrite the shards and print the cost as JSON. `measure` calls this in a separate process."""
    names = sorted(p.name.removesuffix(".parquet") for p in Path(folder).glob("shard-????.parquet"))
    began = time.perf_counter()
    if kind == "plain":
        plain([Path(folder) / f"{n}.parquet" for n in names], Path(out))
    else:
        merge(names, folder, folder, out, options=MergeOptions(memory_bytes=memory_mb << 20))
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "hwm_mb": status("VmHWM")}))


def measure(kind: str, folder: Path, out: Path, memory_mb: int = MEMORY) -> dict[str, float]:
    """Run `one` in a separate process and return its cost, with the peak of its own memory."""
    command = [sys.executable, "-m", "tests.bench.merge", "--one", kind, str(folder), str(out), str(memory_mb)]
    environment = {**os.environ, "TMPDIR": str(folder.parent), "KILN_LOG": "WARNING"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, status("RssAnon", process.pid))
        time.sleep(POLL_S)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{kind} failed with {process.returncode}")
    return json.loads(output.splitlines()[-1]) | {"anon_mb": peak}


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a product."""
    digests_by_name = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            digests_by_name[str(path.relative_to(folder))] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests_by_name


def compare(gb: float, rounds: int, storage: vectors.VectorDtype, folder: Path) -> dict[str, Any]:
    """Merge and rewrite shards in turn, merge them again with a quarter of the memory, and return one row."""
    shards = folder / "shards"
    shards.mkdir()
    names = make_shards(shards, gb * 1e9, storage)
    size = sum(p.stat().st_size for p in shards.glob("shard-????.parquet"))
    ours, theirs = [], []
    expected: dict[str, str] = {}
    for n in range(rounds):
        for kind in ("merge", "plain") if n % 2 == 0 else ("plain", "merge"):
            out = folder / kind
            (ours if kind == "merge" else theirs).append(measure(kind, shards, out))
            if kind == "merge":
                expected = expected or digests(out)
                shutil.rmtree(out)
            else:
                out.unlink()
    with_quarter = measure("merge", shards, folder / "quarter", MEMORY // 4)
    same = digests(folder / "quarter") == expected
    shutil.rmtree(folder / "quarter")
    shutil.rmtree(shards)
    seconds, cpu = ([statistics.median(c[of] for c in some) for some in (ours, theirs)] for of in ("seconds", "cpu"))
    return {
        "gb": round(size / 1e9, 2),
        "shards": len(names),
        "merge_mb_s": round(size / 1e6 / seconds[0], 1),
        "plain_mb_s": round(size / 1e6 / seconds[1], 1),
        "ratio": round(seconds[1] / seconds[0], 3),
        "cpu_ratio": round(cpu[1] / cpu[0], 3),
        "anon_mb": round(max(c["anon_mb"] for c in [*ours, with_quarter])),
        "hwm_mb": round(max(c["hwm_mb"] for c in [*ours, with_quarter])),
        "plain_anon_mb": round(max(c["anon_mb"] for c in theirs)),
        "same_bytes": same,
    }


def main(argv: list[str] | None = None) -> None:
    """Print a table and a line of JSON; exit with 1 above a limit."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--gb", type=float, nargs="+", default=[1.0], help="gigabytes of shards; each size is measured")
    p.add_argument("--rounds", type=int, default=2, help="merges and rewrites (default: %(default)s)")
    p.add_argument("--storage", choices=vectors.VECTOR_DTYPES, default="float32", help="type of the vectors")
    p.add_argument("--folder", help="folder for the files (default: a temporary folder)")
    p.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.one:
        one(*args.one[:3], int(args.one[3]))
        return
    print(f"merge of {args.storage} vectors, sorting in {MEMORY} MB; memory in MB: own (RssAnon), all mapped (VmHWM)")
    print(f"{'shards':>9} {'merge':>10} {'rewrite':>10} {'rate':>5} {'cpu':>5} {'own':>6} {'mapped':>7}  same bytes")
    found = []
    for gb in args.gb:
        with tempfile.TemporaryDirectory(prefix="kiln-bench-", dir=args.folder) as folder:
            f = compare(gb, args.rounds, args.storage, Path(folder))
        found.append(f)
        print(
            f"{f['gb']:6.2f} GB {f['merge_mb_s']:5.0f} MB/s {f['plain_mb_s']:5.0f} MB/s {f['ratio']:5.2f}"
            f" {f['cpu_ratio']:5.2f} {f['anon_mb']:6} {f['hwm_mb']:7}  {'yes' if f['same_bytes'] else 'NO'}",
            flush=True,
        )
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "pyarrow": pa.__version__}
    print(json.dumps({"bench": "merge", **machine, "storage": args.storage, "merges": found}))
    bad = [f for f in found if f["ratio"] < MIN_RATIO or f["hwm_mb"] > MAX_MB or not f["same_bytes"]]
    if bad:
        raise SystemExit(f"limits exceeded (ratio {MIN_RATIO}, {MAX_MB} MB, the same bytes): {bad}")


if __name__ == "__main__":
    main()
