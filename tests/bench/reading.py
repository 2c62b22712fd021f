"""Reading alone: what a core decodes, and what comes through an object store that answers late.

    python -m tests.bench.reading [--rounds 3] [--side 3000] [--latency-ms 30]

`decode` is the plain decoder, one thread, whole files from memory: what a core can deliver at most. `disk` and `store`
are Kiln's sources, read and cut as the engine does it, from a folder and from an object store in a process of its own
on this machine, which waits before it answers each request (tests/bench/store.py). Beside the store stands the plain
way: each file fetched whole by one request, then decoded, and not cut. The store counts what it sends: every byte of
the archive's pixels should come once, and those of overviews never.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
from rasterio.io import MemoryFile

from kiln.engine.pipeline import Budget
from kiln.io import gdal as raster
from tests.bench.harness import in_turn, publish, timed
from tests.bench.shard import chips_of
from tests.bench.store import BUCKET, Store, serving
from tests.bench.workload import MAKERS, Workload

THREADS = Budget().read_threads
STRIPS = """\
import sys, time, rasterio
from rasterio.windows import Window
with rasterio.Env(GDAL_CACHEMAX=int(sys.argv[2])), rasterio.open(sys.argv[1]) as file:
    began = time.perf_counter()
    for first in range(0, file.height, 512):
        file.read(window=Window(0, first, file.width, min(512, file.height - first)))
    print(time.perf_counter() - began)
"""
UNITS = 3  # scenes or items; of WorldCover one tile


def files_of(folder: Path) -> list[Path]:
    """The rasters of an archive."""
    return sorted(folder.rglob("*.tif"))


def decode(data: bytes) -> int:
    """Bytes of pixels of a raster that is in memory."""
    with MemoryFile(data) as memory, memory.open() as raster:
        return raster.read().nbytes


def plainly(load: Workload) -> int:
    """Each file fetched whole by one request, then decoded, one after the other."""
    client = boto3.client("s3")
    return sum(
        decode(client.get_object(Bucket=BUCKET, Key=f"{load.dataset}/{p.relative_to(load.folder)}")["Body"].read())
        for p in files_of(load.folder)
    )


def consume(load: Workload, root: str | None = None) -> int:
    """Bytes of the chips that a source gives."""
    return sum(c.pixels.nbytes for c in chips_of(load, root, THREADS))


def in_strips(path: Path, cache_mb: int) -> float:
    """Seconds of a process of its own that reads a raster in strips, GDAL keeping so many decoded blocks."""
    done = subprocess.run(
        [sys.executable, "-c", STRIPS, str(path), str(cache_mb << 20)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def cache_ratio(path: Path, rounds: int) -> float:
    """How many times faster strips are read with Kiln's cache of blocks than with one of 256 MB."""
    ours = raster.OPTIONS["GDAL_CACHEMAX"] >> 20
    pairs = [(in_strips(path, ours), in_strips(path, 256)) for _ in range(rounds)]
    return statistics.median(large / small for small, large in pairs)


def measure(load: Workload, store: Store, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    files = files_of(load.folder)
    data = [p.read_bytes() for p in files]
    pixels = sum(map(decode, data))
    core = min(timed(lambda: [decode(d) for d in data]) for _ in range(rounds))
    root = f"s3://{BUCKET}/{load.dataset}"
    cut = consume(load)
    disk = min(timed(lambda: consume(load)) for _ in range(rounds))
    store.counted()
    assert consume(load, root) == cut, f"{load.dataset}: other pixels come from the store"
    requests, sent = store.counted()
    pair = in_turn(lambda: consume(load, root), lambda: plainly(load), rounds)
    return {
        "dataset": load.dataset,
        "MB of pixels": pixels / 1e6,
        "decode MB/s a core": pixels / core / 1e6,
        "disk MB/s": pixels / disk / 1e6,
        "store MB/s": pixels / pair.medians[0] / 1e6,
        "plain MB/s": pixels / pair.medians[1] / 1e6,
        "times plain": pair.ratio,
        "small cache": cache_ratio(files[0], rounds),
        "requests": requests,
        "sent": sent / sum(map(len, data)),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.reading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--side", type=int, default=3000, help="pixels of the scene's or tile's side; divides 12000")
    p.add_argument("--latency-ms", type=float, default=30.0, help="before each answer of the store")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as made:
        folder = Path(made)
        loads = [make(folder / name, args.side, UNITS) for name, make in MAKERS.items()]
        with serving(folder, args.latency_ms / 1000) as store:
            rows = [measure(load, store, args.rounds) for load in loads]
    notes = [
        f"{args.latency_ms:g} ms before each answer; {THREADS} threads read, and the store shares the machine with"
        " them. A GPU at 600 chips/s eats 160 MB/s of NAIP, 800 MB/s of Sentinel-2.",
        "sent: bytes that the store sent over those of the archive's files; of NAIP and WorldCover a quarter are"
        " overviews. small cache: how many times faster a file is read in strips with Kiln's GDAL_CACHEMAX than with"
        " 256 MB.",
    ]
    publish("reading", rows, notes, args.out)


if __name__ == "__main__":
    main()
