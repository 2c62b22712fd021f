"""Reading without an encoder: the decoding rate of a core, and the rate from an object store with latency.

    python -m tests.bench.reading [--rounds 3] [--side 3000] [--latency-ms 30]

`decode` is the rate at which one thread decodes whole files in memory: the maximum for one core. `disk` and `store` are
the rates of Kiln's sources, which read and cut as in the engine. They read from a folder, and from an object store in a
separate process on this machine that delays each response (tests/bench/store.py). `plain` is the rate of a simple way
with the same store: get each whole file with one request, then decode it, without cutting. The store counts the bytes
that it sends. Each byte of the archive's pixels should be sent once, and no byte of overviews.
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
    """Return the rasters of an archive."""
    return sorted(folder.rglob("*.tif"))


def decode(data: bytes) -> int:
    """Decode a raster in memory; return the size of its pixels in bytes."""
    with MemoryFile(data) as memory, memory.open() as raster:
        return raster.read().nbytes


def read_plainly(load: Workload) -> int:
    """Get each whole file with one request and decode it, one after the other."""
    client = boto3.client("s3")
    return sum(
        decode(client.get_object(Bucket=BUCKET, Key=f"{load.dataset}/{p.relative_to(load.folder)}")["Body"].read())
        for p in files_of(load.folder)
    )


def consume(load: Workload, root: str | None = None) -> int:
    """Read a source to its end; return the size of its chips in bytes."""
    return sum(c.pixels.nbytes for c in chips_of(load, root, THREADS))


def in_strips(path: Path, cache_mb: int) -> float:
    """Return the seconds in which a separate process reads a raster in strips, with a GDAL cache of `cache_mb`."""
    process = subprocess.run(
        [sys.executable, "-c", STRIPS, str(path), str(cache_mb << 20)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(process.stdout)


def cache_ratio(path: Path, rounds: int) -> float:
    """Return how many times faster strips are read with Kiln's GDAL cache than with one of 256 MB."""
    ours = raster.OPTIONS["GDAL_CACHEMAX"] >> 20
    pairs = [(in_strips(path, ours), in_strips(path, 256)) for _ in range(rounds)]
    return statistics.median(large / small for small, large in pairs)


def measure(load: Workload, store: Store, rounds: int) -> dict[str, Any]:
    """Return one row of the table."""
    files = files_of(load.folder)
    data = [p.read_bytes() for p in files]
    pixels = sum(map(decode, data))
    core = min(timed(lambda: [decode(d) for d in data]) for _ in range(rounds))
    root = f"s3://{BUCKET}/{load.dataset}"
    cut = consume(load)
    disk = min(timed(lambda: consume(load)) for _ in range(rounds))
    store.counted()
    assert consume(load, root) == cut, f"{load.dataset}: the store returned other pixels than the folder"
    requests, sent = store.counted()
    pair = in_turn(lambda: consume(load, root), lambda: read_plainly(load), rounds)
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
    p.add_argument("--side", type=int, default=3000, help="pixels of the scene's or tile's side; a divisor of 12000")
    p.add_argument("--latency-ms", type=float, default=30.0, help="delay of each response of the store")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as temporary:
        folder = Path(temporary)
        loads = [make(folder / name, args.side, UNITS) for name, make in MAKERS.items()]
        with serving(folder, args.latency_ms / 1000) as store:
            rows = [measure(load, store, args.rounds) for load in loads]
    notes = [
        f"{args.latency_ms:g} ms before each response; {THREADS} threads read, and the store runs on the same machine."
        " A GPU at 600 chips/s needs 160 MB/s of NAIP, 800 MB/s of Sentinel-2.",
        "sent: bytes that the store sent by bytes of the files; a quarter of NAIP and WorldCover is overviews."
        " small cache: how many times faster a file is read in strips with Kiln's GDAL_CACHEMAX than with 256 MB.",
    ]
    publish("reading", rows, notes, args.out)


if __name__ == "__main__":
    main()
