"""The streaming loop of every dataset: reads ahead in threads, fills batches across units, encodes, writes.

    reads (threads, bounded bytes) -> chips (one thread) -> batches (short queue) -> encoder -> row groups

The encoder never waits for a read it could have had, and memory depends on the budget, not on the shard.
"""

import itertools
import logging
import queue
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch

from scripts.kiln import table
from scripts.kiln.chips import Chip, Dropped, Loaded, Opened, Read, Source
from scripts.kiln.clay import ClayEncoder, encode_latlon, encode_time
from scripts.kiln.errors import SourceError, TooManyFailuresError
from scripts.kiln.progress import Progress
from scripts.kiln.sensors import Sensor

QUEUE = 2  # batches made ready while one is encoded
PATIENCE = 3.0  # seconds a read may take to notice that the job ends
TELL = 1024  # chips dropped before they are told, even if no batch is full
NO_PIXELS = np.empty((0, 0, 0), np.uint8)
MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of one ru_maxrss
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How a job uses its machine; no vector depends on it beyond the last bits of float arithmetic."""

    batch: int = 8
    read_threads: int = 4
    read_ahead: int = 512 << 20  # bytes read or being read and not yet cut into chips


@dataclass(frozen=True)
class Policy:
    """What the encoder is told besides pixels; part of the fingerprint."""

    metadata: Literal["zeros", "as_trained"] = "as_trained"
    gsd: float = 10.0
    storage: table.Storage = "float32"


def read_ahead(reads: Iterable[Read], threads: int, budget: int) -> Iterator[Loaded]:
    """The reads, loaded by `threads` at a time and at most `budget` bytes ahead, in their order.

    A SourceError comes as the value of its read; anything else ends the job. A read over the budget goes alone.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    waiting: deque[tuple[Read, Future]] = deque()
    upcoming = iter(reads)
    following = next(upcoming, None)
    held = 0
    try:
        while following is not None or waiting:
            while following is not None and (not waiting or held + following.nbytes <= budget):
                held += following.nbytes
                waiting.append((following, pool.submit(following.load)))
                following = next(upcoming, None)
            read, future = waiting.popleft()
            try:
                yield Loaded(read, future.result())
            except SourceError as e:
                yield Loaded(read, None, e)
            held -= read.nbytes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_thread(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The items, made in a thread of their own, at most `ahead` of them waiting; its exceptions are raised here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put("item", item):
                        return
            put("end", None)
        except BaseException as e:  # handed to the thread that asks, which raises it
            put("error", e)

    thread = threading.Thread(target=work, name="chips", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join(PATIENCE)


@dataclass
class Batch:
    """Chips to encode together and what was dropped on the way to them."""

    chips: list[Chip]
    dropped: list[Dropped | Opened]


def _batches(events: Iterator[Chip | Dropped | Opened], size: int) -> Iterator[Batch]:
    """Batches filled across tiles and units; long stretches without a chip are reported as they go."""
    chips: list[Chip] = []
    dropped: list[Dropped | Opened] = []
    for event in events:
        if isinstance(event, Chip):
            chips.append(event)
        else:
            dropped.append(event)
        if len(chips) == size:
            yield Batch(chips, dropped)
            chips, dropped = [], []
        elif len(dropped) >= TELL:
            yield Batch([], dropped)
            dropped = []
    if chips or dropped:
        yield Batch(chips, dropped)


class Embedder:
    """The encoder with one sensor's normalisation and one run's policy."""

    def __init__(self, encoder: ClayEncoder, sensor: Sensor, policy: Policy, size: int) -> None:
        self.encoder, self.policy, self.size = encoder, policy, size
        device = encoder.cls_token.device
        self.mean = torch.tensor(sensor.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(sensor.std, device=device).view(-1, 1, 1)
        self.wavelengths = torch.tensor(sensor.wavelengths)

    def __call__(self, chips: list[Chip]) -> np.ndarray:
        """Class tokens [n, D], float32. The batch is padded to its full size, so that a vector is the same in any."""
        n = len(chips)
        pixels = np.zeros((self.size, *chips[0].pixels.shape), chips[0].pixels.dtype)
        time_, place = np.zeros((2, self.size, 4), np.float32)
        for i, chip in enumerate(chips):
            pixels[i] = chip.pixels
            if self.policy.metadata == "as_trained" and chip.datetime is not None:  # unknown together or not at all
                time_[i], place[i] = encode_time(chip.datetime), encode_latlon(*chip.center)
        with torch.inference_mode():
            x = torch.from_numpy(pixels).to(self.mean.device).to(torch.float32)
            tokens = self.encoder(
                (x - self.mean) / self.std,
                wavelengths=self.wavelengths,
                gsd=self.policy.gsd,
                time=torch.from_numpy(time_),
                latlon=torch.from_numpy(place),
            )
            return tokens[:n, 0].float().cpu().numpy()


@dataclass(frozen=True)
class Outcome:
    """What a shard came to: rows written and its ledger."""

    rows: int
    ledger: pa.Table


def embed(
    source: Source,
    load: Callable[[], ClayEncoder],
    dim: int,
    path: Path,
    about: dict[str, Any],
    *,
    policy: Policy,
    budget: Budget,
    max_failed_fraction: float,
) -> Outcome:
    """Stream a source through the encoder into the embeddings file `path`; the caller puts file and ledger in place.

    `load` is called when the first chip is there, while reading goes on; a shard without chips loads no weights.
    Raises TooManyFailuresError, with the ledger in the log, if more than `max_failed_fraction` of the units failed (a
    partly failed one counts by its share), and TransientError for what another try may mend.
    """
    entries = {u.unit_id: table.Entry(u) for u in source.units()}
    reads = [0, 0]  # count, bytes

    def counted() -> Iterator[Read]:
        for read in source.reads():
            reads[0] += 1
            reads[1] += read.nbytes
            yield read

    def events() -> Iterator[Chip | Dropped | Opened]:
        with closing(read_ahead(counted(), budget.read_threads, budget.read_ahead)) as loaded:
            yield from source.chips(loaded)

    columns = table.schema(dim, policy.storage, source.columns, {**about, "sources": source.provenance()})
    progress = Progress(sum(e.unit.expected for e in entries.values()), path.name.lstrip(".").split(".")[0])
    embedder: Embedder | None = None
    waited = encoded = 0.0
    with table.ShardWriter(path, columns) as out:
        batches = _in_thread(_batches(events(), budget.batch), QUEUE)
        with closing(batches):
            while True:
                began = time.monotonic()
                batch = next(batches, None)
                if batch is None:
                    break
                got = time.monotonic()
                for event in batch.dropped:
                    entry = entries[event.unit_id]
                    if isinstance(event, Opened):
                        progress.grow(event.expected - entry.unit.expected)
                        entry.open(event)
                    else:
                        entry.drop(event)
                        progress.advance(event.count)
                if not batch.chips:
                    continue
                if embedder is None:
                    embedder = Embedder(load(), source.sensor, policy, budget.batch)
                    got = time.monotonic()
                else:
                    waited += got - began
                vectors = embedder(batch.chips).astype(policy.storage)
                encoded += time.monotonic() - got
                finite = np.isfinite(vectors).all(axis=1)
                for chip, good in zip(batch.chips, finite, strict=True):
                    chip.pixels = NO_PIXELS  # rows wait for their row group without pixels
                    if good:
                        entries[chip.unit_id].embedded += 1
                    else:
                        entries[chip.unit_id].drop(
                            Dropped(chip.unit_id, "failed", 1, f"vector not finite in {policy.storage}")
                        )
                out.append(list(itertools.compress(batch.chips, finite)), vectors[finite])
                progress.advance(len(batch.chips), embedded=int(finite.sum()))
    progress.close()
    ledger = table.ledger_table(list(entries.values()))
    log.info(
        "%d rows; encoding %.1f s, waiting for reads %.1f s; %d reads, %.1f MB of pixels; peak memory %.0f MB",
        out.rows, encoded, waited, reads[0], reads[1] / 1e6,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT / 1e6,
    )  # fmt: skip
    assert out.rows == sum(e.embedded for e in entries.values())
    share = sum(e.failed_share for e in entries.values()) / max(len(entries), 1)
    if share > max_failed_fraction:
        log.error("the ledger of this shard:\n%s", table.ledger_text(ledger))
        reason = next(e.reasons[0] for e in entries.values() if e.reasons)
        raise TooManyFailuresError(
            f"{share:.0%} of the shard failed, more than max_failed_fraction {max_failed_fraction:.0%}; the first "
            f"reason: {reason}. Its ledger is in the log above. Mend the source, or raise the limit"
        )
    return Outcome(out.rows, ledger)
