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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from kiln.engine.checkpoints import Parts
from kiln.errors import SourceError, TooManyFailuresError
from kiln.formats import embeddings_file, vectors
from kiln.formats import patch_file as patches
from kiln.formats.ledger import LedgerEntry, ledger_table, ledger_text
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, Source, Unit
from kiln.io.progress import Progress
from kiln.model.clay import ClayEncoder
from kiln.model.embedder import Embedder, EmbedPolicy

QUEUE = 2  # batches made ready while one is encoded
PATIENCE = 3.0  # seconds a read may take to notice that the job ends
TELL = 1024  # chips dropped before they are told, even if no batch is full
NO_PIXELS = np.empty((0, 0, 0), np.uint8)
STATUS = Path("/proc/self/status")
MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of one ru_maxrss
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How a job uses its machine; no vector depends on it beyond the last bits of float arithmetic."""

    batch: int = 8
    read_threads: int = 4
    read_ahead: int = 512 << 20  # bytes read or being read and not yet cut into chips


@dataclass(eq=False)
class _Ahead:
    """A read in its place; `future` once a thread has it, `grown` once what follows from its value stands behind it."""

    read: Read
    future: Future | None = None
    grown: bool = False


def read_ahead(reads: Iterable[Read], threads: int, budget: int) -> Iterator[Loaded]:
    """The reads, loaded by `threads` at a time and at most `budget` bytes ahead, in their order.

    What follows from a read (`then`) has its place right behind it; of such reads at most `threads` are under way, so
    that a shard's files are opened one after the other. A SourceError comes as the value of its read; anything else
    ends the job. A read over the budget goes alone.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    line: deque[_Ahead] = deque()
    upcoming = iter(reads)
    following = next(upcoming, None)
    held = 0

    def grow() -> None:
        """Put what follows from finished reads behind them."""
        for place in range(len(line) - 1, -1, -1):
            ahead = line[place]
            if ahead.read.then and not ahead.grown and ahead.future and ahead.future.done():
                ahead.grown = True
                if ahead.future.exception() is None:
                    for n, read in enumerate(ahead.read.then(ahead.future.result())):
                        line.insert(place + 1 + n, _Ahead(read))

    def start() -> None:
        """Give the threads what the budget allows, in order."""
        nonlocal following, held
        opening = 0
        for place in itertools.count():
            if place == len(line):
                if following is None:
                    return
                line.append(_Ahead(following))
                following = next(upcoming, None)
            ahead = line[place]
            opening += ahead.read.then is not None and not ahead.grown
            if ahead.future is None:
                if (place and held + ahead.read.nbytes > budget) or opening > threads:
                    return
                held += ahead.read.nbytes
                ahead.future = pool.submit(ahead.read.load)

    try:
        while True:
            grow()
            start()
            if not line:
                return
            first = line[0]
            wait([first.future])
            grow()
            line.popleft()
            try:
                yield Loaded(first.read, first.future.result())
            except SourceError as e:
                yield Loaded(first.read, None, e)
            held -= first.read.nbytes
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


def _batches(events: Iterator[Chip | Dropped | Opened], size: int, *, one_gsd: bool = False) -> Iterator[Batch]:
    """Batches filled across tiles and units; long stretches without a chip are reported as they go.

    `one_gsd`: a batch holds chips of one pixel size alone.
    """
    chips: list[Chip] = []
    dropped: list[Dropped | Opened] = []
    for event in events:
        if isinstance(event, Chip):
            if one_gsd and chips and chips[-1].pixel_size != event.pixel_size:
                yield Batch(chips, dropped)
                chips, dropped = [], []
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


def peak_memory() -> int:
    """Most bytes that this process held. Linux tells it without what its parent held, which ru_maxrss begins with."""
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT


@dataclass(frozen=True)
class Outcome:
    """What a shard came to: rows written and its ledger."""

    rows: int
    ledger: pa.Table


class Account:
    """Rows and ledger of a shard as they come about: chips are counted, finished units kept as parts, in one order."""

    def __init__(
        self,
        units: Sequence[Unit],
        out: embeddings_file.ShardWriter,
        parts: Parts | None,
        beside: patches.PatchWriter | None,
    ) -> None:
        self.entries = {u.unit_id: LedgerEntry(u) for u in units}
        self.out, self.parts, self.beside = out, parts, beside
        found = parts.finished(units, out.schema) if parts else {}
        self.done = {unit_id: entry for unit_id, (_, entry) in found.items()}
        self._rows = {unit_id: rows for unit_id, (rows, _) in found.items()}  # let go as they are handed on
        self.entries |= self.done
        self._order = {unit_id: n for n, unit_id in enumerate(self.entries)}
        self._earlier = deque(sorted(self.done, key=self._order.__getitem__))  # parts whose rows are still to come
        self._open: str | None = None  # the unit whose rows are held until it is finished
        self._held: list[tuple[list[Chip], vectors.Columns]] = []
        self._spool: patches.Spool | None = None  # the patches of that unit, on their way into its part

    def drop(self, event: Dropped | Opened) -> None:
        """Account for what is no chip."""
        entry = self.entries[event.unit_id]
        if isinstance(event, Opened):
            entry.record_opened(event)
            return
        entry.record_dropped(event)
        if self.parts and self._finished(entry) and not entry.embedded:
            self.parts.keep(self.out.schema.empty_table(), entry)

    @staticmethod
    def _finished(entry: LedgerEntry) -> bool:
        """Whether all is known of a unit that can be kept as a part; a failed one is tried again instead."""
        unit = entry.unit
        return bool(unit.version) and unit.expected_known and entry.unaccounted == 0 and entry.status != "failed"

    def add(self, chips: list[Chip], stored: vectors.Columns) -> int:
        """Account for encoded chips, vectors as they are stored; one that is not finite has failed.

        Returns how many are good.
        """
        for chip in chips:
            chip.pixels = NO_PIXELS  # rows wait for their row group without pixels
        finite = vectors.finite_rows(stored)
        first = 0
        for unit_id, group in itertools.groupby(chips, key=lambda c: c.unit_id):
            size = len(list(group))
            here = slice(first, first + size)
            first += size
            entry = self.entries[unit_id]
            good = int(finite[here].sum())
            entry.embedded += good
            if good < size:
                kept_as = next(c.dtype for c in stored.values() if not np.isfinite(c[here]).all())
                entry.record_dropped(Dropped(unit_id, "failed", size - good, f"vector not finite in {kept_as}"))
            rows = np.flatnonzero(finite[here]) + here.start
            self._append(entry, [chips[i] for i in rows], vectors.select_rows(stored, rows))
        return int(finite.sum())

    def _append(self, entry: LedgerEntry, chips: list[Chip], stored: vectors.Columns) -> None:
        unit_id = entry.unit.unit_id
        if self.parts and self._open != unit_id:
            self.settle()
            self._earlier_rows(self._order[unit_id])
            self._open = unit_id if entry.unit.version else None
            if self._open and self.beside:
                self._spool = self.parts.spool(entry.unit, self.beside.schema)
        if self.beside:
            ids, block = [c.chip_id for c in chips], stored.pop(patches.COLUMN)
            self.beside.append(ids, block)
            if self._spool:
                self._spool.append(ids, block)
        if self._open is None:
            self.out.append(chips, stored)
        else:
            self._held.append((chips, stored))

    def settle(self) -> None:
        """Hand the held rows on; those of a unit that is finished become its part, so that no retry encodes them."""
        if self._open is None:
            return
        chips = [c for some, _ in self._held for c in some]
        rows = embeddings_file.chip_table(chips, vectors.concatenate([v for _, v in self._held]), self.out.schema)
        entry = self.entries[self._open]
        if self.parts and self._finished(entry) and len(rows) == entry.embedded:  # less: it was interrupted by another
            self.parts.keep(rows, entry, self._spool)
        elif self._spool:
            self._spool.abandon()
        self.out.append_rows(rows)
        self._open, self._held, self._spool = None, [], None

    def settle_if_finished(self) -> None:
        """The same, once nothing more of the unit can come."""
        if self._open is not None and self._finished(self.entries[self._open]):
            self.settle()

    def _earlier_rows(self, before: int) -> None:
        """Rows of the parts of units that come before the one of that place."""
        while self._earlier and self._order[self._earlier[0]] < before:
            unit_id = self._earlier.popleft()
            self.out.append_rows(self._rows.pop(unit_id))
            if self.beside and self.parts:
                entry = self.entries[unit_id]
                for ids, block in self.parts.patches_of(entry.unit, entry.embedded):
                    self.beside.append(ids, block)

    def close(self) -> list[LedgerEntry]:
        """Hand on all that is held; returns the ledger's entries."""
        self.settle()
        self._earlier_rows(len(self._order))
        return list(self.entries.values())


def embed(
    source: Source,
    load: Callable[[], ClayEncoder],
    dim: int,
    path: Path,
    about: dict[str, Any],
    *,
    policy: EmbedPolicy,
    budget: Budget,
    max_failed_fraction: float,
    parts: Parts | None = None,
    patch_file: Path | None = None,
) -> Outcome:
    """Stream a source through the encoder into the embeddings file `path`; the caller puts file and ledger in place.

    `load` is called when the first chip is there, while reading goes on; a shard without chips loads no weights.
    Units that `parts` holds from an earlier try are neither read nor encoded; the file is the same, byte by byte, and
    so is `patch_file`, the chips' patch vectors in the order of the rows, where `policy` keeps them.
    Raises TooManyFailuresError, with the ledger in the log, if more than `max_failed_fraction` of the units failed (a
    partly failed one counts by its share), and TransientError for what another try may mend.
    """
    about = {**about, "sources": source.provenance()}
    columns = embeddings_file.schema(dim, policy.vector_dtype, source.columns, about, policy.embedding)
    reads = [0, 0]  # count, bytes
    embedder: Embedder | None = None
    waited = encoded = 0.0
    beside = patches.PatchWriter(patch_file, patches.schema(about)) if patch_file else nullcontext()
    with parts or nullcontext(), beside as patch_writer, embeddings_file.ShardWriter(path, columns) as out:
        account = Account(source.units(), out, parts, patch_writer)
        entries = account.entries
        progress = Progress(sum(e.unit.expected for e in entries.values()), path.name.lstrip(".").split(".")[0])
        if account.done:
            log.info("%d of %d units are kept from an earlier try", len(account.done), len(entries))
            progress.resume(sum(e.unit.expected for e in account.done.values()))

        def counted(loaded: Iterator[Loaded]) -> Iterator[Loaded]:
            for piece in loaded:
                reads[0] += piece.read.nbytes > 0  # of headers nothing is kept
                reads[1] += piece.read.nbytes
                yield piece

        def events() -> Iterator[Chip | Dropped | Opened]:
            wanted = (r for r in source.reads() if r.unit_id not in account.done)
            with closing(read_ahead(wanted, budget.read_threads, budget.read_ahead)) as loaded:
                yield from source.chips(counted(loaded))

        def account_for(batch: Batch, collect: Callable[[], vectors.Columns] | None) -> None:
            nonlocal encoded
            for event in batch.dropped:
                if isinstance(event, Opened):
                    progress.grow(event.expected - entries[event.unit_id].unit.expected)
                else:
                    progress.advance(event.count)
                account.drop(event)
            if collect:
                began = time.monotonic()
                stored = vectors.store(collect(), policy.vector_dtype)
                encoded += time.monotonic() - began
                progress.advance(len(batch.chips), embedded=account.add(batch.chips, stored))
            account.settle_if_finished()

        under_way: deque[tuple[Batch, Callable[[], vectors.Columns] | None]] = deque()
        batches = _in_thread(_batches(events(), budget.batch, one_gsd=policy.gsd is None), QUEUE)
        with closing(batches):
            while True:
                began = time.monotonic()
                batch = next(batches, None)
                if batch is None:
                    break
                got = time.monotonic()
                collect = None
                if batch.chips:
                    if embedder is None:
                        embedder = Embedder(load(), source.sensor, policy, budget.batch)
                        got = time.monotonic()
                    else:
                        waited += got - began
                    collect = embedder.start(batch.chips)
                    encoded += time.monotonic() - got
                under_way.append((batch, collect))
                while len(under_way) > (embedder.ahead if embedder else 0):
                    account_for(*under_way.popleft())
            while under_way:
                account_for(*under_way.popleft())
        ledger_entries = account.close()
    progress.close()
    ledger = ledger_table(ledger_entries)
    log.info(
        "%d rows; encoding %.1f s, waiting for reads %.1f s; %d reads, %.1f MB of pixels; peak memory %.0f MB",
        out.rows, encoded, waited, reads[0], reads[1] / 1e6,
        peak_memory() / 1e6,
    )  # fmt: skip
    assert out.rows == sum(e.embedded for e in ledger_entries)
    share = sum(e.failed_fraction for e in ledger_entries) / max(len(ledger_entries), 1)
    if share > max_failed_fraction:
        log.error("the ledger of this shard:\n%s", ledger_text(ledger))
        reason = next(e.failure_reasons[0] for e in ledger_entries if e.failure_reasons)
        raise TooManyFailuresError(
            f"{share:.0%} of the shard failed, more than max_failed_fraction {max_failed_fraction:.0%}; the first "
            f"reason: {reason}. Its ledger is in the log above. Mend the source, or raise the limit"
        )
    return Outcome(out.rows, ledger)
