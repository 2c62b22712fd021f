"""A whole shard: against the published way of working, against its encoder alone and its reading alone.

    python -m tests.bench.shard [--rounds 2] [--side 2000] [--units 3] [--sizes tiny middle] [--datasets naip ...]

With the tiny encoder reading is the bottleneck, with the middle one (and, asked for by `--sizes full`, the published
size, of whole batches) the encoder. Every vector is checked against the published way's first. `over the slower` is
the whole job's time, imports aside, over that of its encoder or of its reading alone, whichever takes longer; wanted
are at most 1.05 where it is the encoder, and 1.1 where it is reading. On few cores both want all of them: `over the
work` is over what all cores need for the processor time of both, if that is more. Where the archive is a store 30 ms
away, on a line of `--far-mb`, reading waits and leaves the processors to the encoder. A picture of where the time goes
is written beside the figures.
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
LATE = 0.03  # seconds
WHOLE = {  # shards of 8 chips, one batch, for the published size
    "naip": {"side": 600, "units": 2},
    "sentinel2": {"side": 600, "units": 2},
    "worldcover": {"side": 2400, "columns": 1},
}
FLAGS = ("--batch-size", str(BATCH), "--read-threads", str(THREADS), "--read-ahead-mb", str(AHEAD >> 20))
FLAGS += ("--metadata", "zeros", "--vector-dtype", "float32")
CLOSE = 2e-4  # largest difference of a vector's number from the published way's; its batches have other shapes


def chips_of(load: Workload, root: str | None = None, threads: int = THREADS) -> Iterator[Chip]:
    """Reading and cutting alone, as the engine does it; from a copy's URI where one is given."""
    source = load.source(root)
    source.check()
    with closing(read_ahead(source.reads(), threads, AHEAD)) as loaded:
        yield from (e for e in source.chips(loaded) if isinstance(e, Chip))


def encode(embed: embedder.Embedder, chips: list[Chip]) -> None:
    """The encoder alone, over chips that are there."""
    embedder.keep_memory()  # as in a job; the published way had malloc give it back
    for first in range(0, len(chips), BATCH):
        embed(chips[first : first + BATCH])


def check(load: Workload, ours: Path, theirs: np.ndarray) -> tuple[int, float]:
    """Chips of the shard, and the largest difference between its vectors and the published way's.

    Raises AssertionError above CLOSE.
    """
    rows = pq.read_table(ours, columns=["embeddings", "item_id", "row", "col"])
    rows = rows.sort_by([(c, "ascending") for c in published.ORDER[load.dataset]])
    made = np.stack(rows["embeddings"].to_numpy(zero_copy_only=False))
    assert made.shape == theirs.shape, f"{load.dataset}: {len(made)} vectors, the published way has {len(theirs)}"
    apart = float(np.abs(made - theirs).max())
    assert apart < CLOSE, f"{load.dataset}: vectors are {apart:.1e} apart"
    return len(made), apart


def compare(load: Workload, size: str, folder: Path, rounds: int, warm: bool) -> dict[str, Any]:
    """One row of the table: seconds and ratios for a dataset and an encoder's size, all of it measured in turn."""
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
    count, apart = check(load, made["ours"], made["theirs"])
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
        "apart": apart,
    }


def from_afar(load: Workload, root: str, folder: Path, rounds: int, what: str) -> dict[str, Any]:
    """The same row for the tiny encoder and an archive on a store, which the job waits for, not for processors."""
    weights = write_weights(folder, "tiny")
    sensor = load.source().info.sensor
    embed = embedder.Embedder(encoders.load_encoder(weights), sensor, embedder.EmbedPolicy("zeros", sensor.gsd), BATCH)
    far, chips = load.elsewhere(root), list(chips_of(load))
    ways = [
        lambda: far.embed(weights, folder / "far", *FLAGS),
        lambda: encode(embed, chips),
        lambda: sum(1 for _ in chips_of(load, root)),
    ]
    made, near = (pq.read_table(x.embed(weights, folder / f"{n}", *FLAGS)) for n, x in enumerate((far, load)))
    vectors = [np.asarray(t["embeddings"].combine_chunks().flatten()) for t in (made, near)]
    assert np.array_equal(*vectors), f"{load.dataset}: other vectors come from the store than from a folder"
    ours, encoder, reading = np.array(in_rounds(ways, rounds))
    row: dict[str, Any] = {
        "dataset": load.dataset,
        "encoder": what,
        "chips": len(made),
        "kiln s": float(np.median(ours)),
    }
    row |= {"published s": None, "times faster": None}
    row |= {"encoder alone s": float(np.median(encoder)), "reading alone s": float(np.median(reading))}
    return row | {"over the slower": float(np.median(ours / reading)), "over the work": None, "apart": 0.0}


@dataclass(frozen=True)
class Span:
    """Something that a thread did, in seconds from the start."""

    what: str
    thread: str
    start: float
    end: float


@contextmanager
def watched(load: Workload) -> Iterator[tuple[list[Span], Callable[[], Any]]]:
    """Spans that fill as the shard is embedded, and the source to embed: its reads, cuts and batches are timed."""
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
    """Draw what each thread did while a shard was embedded."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    weights = write_weights(folder, size)
    about = encoders.read_metadata(weights)
    with watched(load) as (spans, source):
        made = source()
        made.check()
        sensor = made.info.sensor
        wall = timed(
            lambda: pipeline.embed(
                made,
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
    p.add_argument("--side", type=int, default=2000, help="pixels of a scene's or tile's side; divides 12000")
    p.add_argument("--units", type=int, default=3, help="scenes or items of a shard; of WorldCover it has one tile")
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "middle"], help="of encoders")
    p.add_argument("--datasets", nargs="+", choices=MAKERS, default=list(MAKERS))
    p.add_argument("--far-mb", type=float, default=20, help="MB/s of the store that is far away; 0 leaves it out")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    rows = []
    for size in args.sizes:
        for name in args.datasets:
            with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
                shape = WHOLE[name] if size == "full" else {"side": args.side, "units": args.units}
                load = MAKERS[name](Path(folder) / "archive", **shape)
                row = compare(load, size, Path(folder), args.rounds, warm=size != "full")
                rows.append(row)
                print(*(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in row.items()), sep=", ", flush=True)
                if size == "middle":
                    profile(load, size, Path(folder), args.out / f"shard-{name}.png")
    for name in args.datasets if args.far_mb else []:
        with tempfile.TemporaryDirectory(prefix="kiln-bench-") as made:
            folder = Path(made)
            load = MAKERS[name](folder / "archive" / name, args.side, args.units)
            with serving(folder / "archive", LATE, args.far_mb * 1e6):
                what = f"tiny, {args.far_mb:g} MB/s"
                rows.append(from_afar(load, f"s3://{BUCKET}/{name}", folder, args.rounds, what))
    notes = [f"vectors at most {max(r['apart'] for r in rows):.1e} apart; pictures: {args.out}/shard-*.png"]
    publish("shard", rows, notes, args.out)


if __name__ == "__main__":
    main()
