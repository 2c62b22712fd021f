"""The time of a whole shard, compared with the published way, with its encoder alone and with its reading alone.

    python -m tests.bench.shard [--rounds 2] [--side 2000] [--units 3] [--sizes tiny middle] [--datasets naip ...]

With the tiny encoder, reading is the bottleneck. With the middle and the full one, encoding is. `--sizes full` is the
published size, with whole batches. Every vector is first compared with that of the published way. `over the slower` is
the time of the whole job, without imports, by the time of its encoder alone or of its reading alone, whichever takes
longer. It should be at most 1.05 if that is the encoder, and 1.1 if it is reading.

With few cores, encoder and reading compete for them. `over the work` therefore divides by the processor time of both,
spread over all cores, if that is longer. Last, the archive is on a store with 30 ms latency and `--far-mb` MB/s, where
reading waits and leaves the processors to the encoder. A chart of each thread's activities is written next to the
results.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kiln.engine import pipeline
from kiln.engine.read_ahead import read_ahead
from kiln.formats.records import Chip, Loaded, Read
from kiln.model import embedder
from kiln.model import weights as encoders
from tests.bench import published
from tests.bench.harness import in_rounds, publish, timed
from tests.bench.store import BUCKET, serving
from tests.bench.workload import MAKERS, SIZES, Workload, write_weights

BATCH, THREADS, AHEAD = 8, 2, 256 << 20
LATENCY_S = 0.03
ONE_BATCH = {  # shards of 8 chips for the published size
    "naip": {"side": 600, "units": 2},
    "sentinel2": {"side": 600, "units": 2},
    "worldcover": {"side": 2400, "columns": 1},
}
FLAGS = ("--batch-size", str(BATCH), "--read-threads", str(THREADS), "--read-ahead-mb", str(AHEAD >> 20))
FLAGS += ("--metadata", "zeros", "--vector-dtype", "float32")
TOLERANCE = 2e-4  # largest difference to the published way's vectors; its batches have other shapes


def chips_of(load: Workload, root: str | None = None, threads: int = THREADS) -> Iterator[Chip]:
    """Yield the chips of a shard, read and cut as in the engine. `root` is the URI of a copy of the archive."""
    source = load.source(root)
    source.check()
    with closing(read_ahead(source.reads(), threads, AHEAD)) as loaded:
        yield from (e for e in source.chips(loaded) if isinstance(e, Chip))


def encode(embed: embedder.Embedder, chips: list[Chip]) -> None:
    """Encode chips that have been read."""
    embedder.keep_memory()  # as in a job; the published way sets malloc's default
    for first in range(0, len(chips), BATCH):
        embed(chips[first : first + BATCH])


def check(load: Workload, ours: Path, theirs: np.ndarray) -> tuple[int, float]:
    """Return the number of chips and the largest difference to the published way's vectors.

    Raises AssertionError above TOLERANCE.
    """
    rows = pq.read_table(ours, columns=["embeddings", "item_id", "row", "col"])
    rows = rows.sort_by([(c, "ascending") for c in published.ORDER[load.dataset]])
    vectors = np.stack(rows["embeddings"].to_numpy(zero_copy_only=False))
    assert vectors.shape == theirs.shape, f"{load.dataset}: expected {len(theirs)} vectors, got {len(vectors)}"
    difference = float(np.abs(vectors - theirs).max())
    assert difference < TOLERANCE, f"{load.dataset}: vectors differ by {difference:.1e}"
    return len(vectors), difference


def compare(load: Workload, size: str, folder: Path, rounds: int, warm: bool) -> dict[str, Any]:
    """Return one row of the table: seconds and ratios for a dataset and an encoder's size, measured in turn."""
    weights = write_weights(folder, size)
    sensor = load.source().info.sensor
    embed = embedder.Embedder(encoders.load_encoder(weights), sensor, embedder.EmbedPolicy("zeros", sensor.gsd), BATCH)
    chips = list(chips_of(load))
    made: dict[str, Any] = {}

    def job() -> None:
        made["ours"] = load.embed(weights, folder / "ours", *FLAGS)

    def published_way() -> None:
        made["theirs"] = published.embed(load, weights, folder / "theirs.parquet")

    ways = [job, published_way, lambda: encode(embed, chips), lambda: sum(1 for _ in chips_of(load))]
    if warm:
        in_rounds(ways, 1)
    seconds = np.array(in_rounds(ways, rounds))  # [ways, rounds]
    count, difference = check(load, made["ours"], made["theirs"])
    began = time.process_time()
    encode(embed, chips), sum(1 for _ in chips_of(load))
    work = (time.process_time() - began) / len(os.sched_getaffinity(0))
    ours, theirs, encoder, reading = seconds
    slower = np.maximum(encoder, reading)
    return {
        "dataset": load.dataset,
        "encoder": size,
        "chips": count,
        "kiln s": float(np.median(ours)),
        "published s": float(np.median(theirs)),
        "times faster": float(np.median(theirs / ours)),
        "encoder alone s": float(np.median(encoder)),
        "reading alone s": float(np.median(reading)),
        "over the slower": float(np.median(ours / slower)),
        "over the work": float(np.median(ours / np.maximum(slower, work))),
        "difference": difference,
    }


def compare_far(load: Workload, root: str, folder: Path, rounds: int, what: str) -> dict[str, Any]:
    """Return a row for the tiny encoder and an archive on a store with latency, which the job waits for."""
    weights = write_weights(folder, "tiny")
    sensor = load.source().info.sensor
    embed = embedder.Embedder(encoders.load_encoder(weights), sensor, embedder.EmbedPolicy("zeros", sensor.gsd), BATCH)
    far, chips = load.copied_to(root), list(chips_of(load))
    ways = [
        lambda: far.embed(weights, folder / "far", *FLAGS),
        lambda: encode(embed, chips),
        lambda: sum(1 for _ in chips_of(load, root)),
    ]
    far_rows, near_rows = (pq.read_table(x.embed(weights, folder / f"{n}", *FLAGS)) for n, x in enumerate((far, load)))
    vectors = [np.asarray(t["embeddings"].combine_chunks().flatten()) for t in (far_rows, near_rows)]
    assert np.array_equal(*vectors), f"{load.dataset}: the store gave other vectors than the folder"
    ours, encoder, reading = np.array(in_rounds(ways, rounds))
    row: dict[str, Any] = {
        "dataset": load.dataset,
        "encoder": what,
        "chips": len(far_rows),
        "kiln s": float(np.median(ours)),
    }
    row |= {"published s": None, "times faster": None}
    row |= {"encoder alone s": float(np.median(encoder)), "reading alone s": float(np.median(reading))}
    return row | {"over the slower": float(np.median(ours / reading)), "over the work": None, "difference": 0.0}


@dataclass(frozen=True)
class Span:
    """An activity of a thread, in seconds from the start."""

    what: str
    thread: str
    start: float
    end: float


@contextmanager
def record_spans(load: Workload) -> Iterator[tuple[list[Span], Callable[[], Any]]]:
    """Time reads, cuts and batches. Yield a list that spans are added to, and a function that returns the source."""
    spans: list[Span] = []
    began = time.perf_counter()

    @contextmanager
    def span(what: str) -> Iterator[None]:
        start = time.perf_counter() - began
        yield
        spans.append(Span(what, threading.current_thread().name, start, time.perf_counter() - began))

    source = load.source()
    reads, chips, start = source.reads, source.chips, embedder.Embedder.start

    def timed_reads() -> Iterator[Read]:
        for read in reads():

            def load_it(read: Read = read) -> Any:
                with span("read and decode"):
                    return read.load()

            yield replace(read, load=load_it)

    def timed_chips(loaded: Iterator[Loaded]) -> Iterator[Any]:
        events = chips(loaded)
        while True:
            with span("cut, and wait for reads"):
                event = next(events, None)
            if event is None:
                return
            yield event

    def timed_start(self: embedder.Embedder, some: list[Chip]) -> Any:
        with span("encode"):
            return start(self, some)

    source.reads, source.chips = timed_reads, timed_chips  # type: ignore[method-assign]
    embedder.Embedder.start = timed_start  # type: ignore[method-assign]
    try:
        yield spans, lambda: source
    finally:
        embedder.Embedder.start = start  # type: ignore[method-assign]


def profile(load: Workload, size: str, folder: Path, picture: Path) -> None:
    """Embed a shard and draw a chart of the activities of each thread."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    weights = write_weights(folder, size)
    about = encoders.read_metadata(weights)
    with record_spans(load) as (spans, source):
        timed_source = source()
        timed_source.check()
        sensor = timed_source.info.sensor
        wall = timed(
            lambda: pipeline.embed(
                timed_source,
                lambda: encoders.load_encoder(weights),
                about["geometry"]["dim"],
                folder / "profile.parquet",
                {},
                policy=embedder.EmbedPolicy("zeros", sensor.gsd),
                budget=pipeline.Budget(BATCH, THREADS, AHEAD),
                max_failed_fraction=0.0,
            )
        )
    colours = {"read and decode": "#3b7dd8", "cut, and wait for reads": "#b9c7d9", "encode": "#d9772b"}
    rows = sorted({s.thread for s in spans}, key=lambda t: (t == "MainThread", t))
    figure, axes = pyplot.subplots(figsize=(10, 0.7 + 0.5 * len(rows)), layout="constrained")
    for what, colour in colours.items():
        for n, row in enumerate(rows):
            bars = [(s.start, max(s.end - s.start, wall / 2000)) for s in spans if s.thread == row and s.what == what]
            axes.broken_barh(bars, (n - 0.35, 0.7), facecolors=colour, label=what if n == len(rows) - 1 else None)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()]
    axes.legend(handles, colours, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.set_yticks(range(len(rows)), [{"MainThread": "encoder", "chips": "cutter"}.get(r, r) for r in rows])
    axes.set_xlabel(f"seconds; {load.dataset}, {size} encoder, {sum(s.what == 'encode' for s in spans)} batches")
    axes.set_xlim(0, None)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.shard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--side", type=int, default=2000, help="pixels of a scene's or tile's side; a divisor of 12000")
    p.add_argument("--units", type=int, default=3, help="scenes or items of a shard; WorldCover has one tile")
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "middle"], help="sizes of the encoder")
    p.add_argument("--datasets", nargs="+", choices=MAKERS, default=list(MAKERS))
    p.add_argument("--far-mb", type=float, default=20, help="MB/s of the store with latency; 0 leaves it out")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    rows = []
    for size in args.sizes:
        for name in args.datasets:
            with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
                shape = ONE_BATCH[name] if size == "full" else {"side": args.side, "units": args.units}
                load = MAKERS[name](Path(folder) / "archive", **shape)
                row = compare(load, size, Path(folder), args.rounds, warm=size != "full")
                rows.append(row)
                print(*(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in row.items()), sep=", ", flush=True)
                if size == "middle":
                    profile(load, size, Path(folder), args.out / f"shard-{name}.png")
    for name in args.datasets if args.far_mb else []:
        with tempfile.TemporaryDirectory(prefix="kiln-bench-") as temporary:
            folder = Path(temporary)
            load = MAKERS[name](folder / "archive" / name, args.side, args.units)
            with serving(folder / "archive", LATENCY_S, args.far_mb * 1e6):
                what = f"tiny, {args.far_mb:g} MB/s"
                rows.append(compare_far(load, f"s3://{BUCKET}/{name}", folder, args.rounds, what))
    notes = [f"vectors differ by at most {max(r['difference'] for r in rows):.1e}; charts: {args.out}/shard-*.png"]
    publish("shard", rows, notes, args.out)


if __name__ == "__main__":
    main()
