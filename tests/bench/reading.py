"""Reading alone: what a core decodes, and what comes through an object store that answers late.

    python -m tests.bench.reading [--rounds 3] [--side 4000] [--latency-ms 30]

`decode` is the plain decoder, one thread, whole files from memory: what a core can deliver at most. `disk` and `store`
are Kiln's sources, read and cut as the engine does it, from a folder and from an S3 server on this machine that waits
before it answers each request; beside the store stands the plain way, each file fetched whole by one request and then
decoded. The server counts what it sends: every byte of the archive should come once.
"""

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from rasterio.io import MemoryFile

from scripts.kiln import storage
from tests.bench.harness import in_turn, publish, timed
from tests.bench.shard import chips_of
from tests.bench.workload import MAKERS, Workload

BUCKET = "bench"


@dataclass
class Store:
    """An S3 server on loopback: requests and bytes that it answered with, `late` seconds each."""

    late: float
    requests: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, app: Any) -> Any:
        """The application, waiting and counting."""

        def answer(environ: dict, start: Any) -> Iterable[bytes]:
            time.sleep(self.late)
            body = app(environ, start)
            with self.lock:
                self.requests += 1
                self.sent += sum(map(len, body)) if isinstance(body, list) else 0
            return body

        return answer


@contextmanager
def serving(late: float) -> Iterator[Store]:
    """The server, with every client of this process pointed at it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store(late)

    def app(environ: dict, start: Any) -> Iterable[bytes]:
        return [b"".join(inner(environ, start))]

    inner = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, store.wrap(app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
    told |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    storage.s3_client.cache_clear()
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield store
    finally:
        server.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        storage.s3_client.cache_clear()


def files_of(folder: Path) -> list[Path]:
    """The rasters of an archive."""
    return sorted(folder.rglob("*.tif"))


def decode(data: bytes) -> int:
    """Bytes of pixels of a raster that is in memory."""
    with MemoryFile(data) as memory, memory.open() as raster:
        return raster.read().nbytes


def upload(load: Workload) -> str:
    """The same archive in the store; returns its URI."""
    client = boto3.client("s3")
    for path in (p for p in load.folder.rglob("*") if p.is_file()):
        client.upload_file(str(path), BUCKET, f"{load.dataset}/{path.relative_to(load.folder)}")
    return f"s3://{BUCKET}/{load.dataset}"


def plainly(load: Workload) -> int:
    """Each file fetched whole by one request, then decoded, one after the other."""
    client = boto3.client("s3")
    return sum(
        decode(client.get_object(Bucket=BUCKET, Key=f"{load.dataset}/{p.relative_to(load.folder)}")["Body"].read())
        for p in files_of(load.folder)
    )


def consume(load: Workload, root: str | None = None) -> int:
    """Bytes of the chips that a source gives."""
    return sum(c.pixels.nbytes for c in chips_of(load, root))


def measure(load: Workload, store: Store, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    files = files_of(load.folder)
    data = [p.read_bytes() for p in files]
    pixels = sum(map(decode, data))
    core = min(timed(lambda: [decode(d) for d in data]) for _ in range(rounds))
    root = upload(load)
    cut = consume(load)
    disk = min(timed(lambda: consume(load)) for _ in range(rounds))
    store.requests = store.sent = 0
    assert consume(load, root) == cut, f"{load.dataset}: other pixels come from the store"
    requests, sent = store.requests, store.sent
    pair = in_turn(lambda: consume(load, root), lambda: plainly(load), rounds)
    return {
        "dataset": load.dataset,
        "MB of pixels": pixels / 1e6,
        "decode MB/s a core": pixels / core / 1e6,
        "disk MB/s": pixels / disk / 1e6,
        "store MB/s": pixels / pair.medians[0] / 1e6,
        "plain MB/s": pixels / pair.medians[1] / 1e6,
        "times plain": pair.ratio,
        "requests": requests,
        "sent once": sent / sum(map(len, data)),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.reading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--side", type=int, default=4000, help="pixels of the scene's or tile's side; divides 12000")
    p.add_argument("--latency-ms", type=float, default=30.0, help="before each answer of the store")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder, serving(args.latency_ms / 1000) as store:
        rows = [measure(make(Path(folder) / n, args.side), store, args.rounds) for n, make in MAKERS.items()]
    notes = [
        f"{args.latency_ms:g} ms before each answer; the server shares the cores with its readers. A GPU at 600 chips/s"
        " eats 160 MB/s of NAIP, 800 MB/s of Sentinel-2.",
        "sent once: bytes that the server sent over bytes of the archive, tile's borders included.",
    ]
    publish("reading", rows, notes, args.out)


if __name__ == "__main__":
    main()
