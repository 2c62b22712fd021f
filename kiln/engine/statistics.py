"""Progress of a shard, and where its time went."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kiln.engine.accounting import Ledger
from kiln.formats.records import Loaded
from kiln.io.disk_reads import thread_read_bytes
from kiln.io.memory import peak_memory
from kiln.io.progress import Progress

T = TypeVar("T")
log = logging.getLogger(__name__)


class ShardStatistics:
    """Counts of a shard under way: chips (as progress), reads, bytes of pixels and seconds.

    Attributes:
        progress: Counts chips as they are accounted for.
        reads: Reads that hold pixels; headers do not count.
        read_bytes: Bytes of these reads in memory.
        encoding_s: Seconds that the main thread encoded.
        waiting_s: Seconds that it waited for chips while the encoder was loaded.
        reading_s: Seconds of all reading threads together.
        disk_bytes: Bytes that they read from local files.
        chip_px: Side in pixels of an encoded chip; 0 if none was encoded.
    """

    def __init__(self, name: str, ledger: Ledger, checkpointed: frozenset[str]) -> None:
        self.progress = Progress(ledger.expected, name)
        self.reads = self.read_bytes = 0
        self.encoding_s = self.waiting_s = self.reading_s = 0.0
        self.disk_bytes = self.chip_px = 0
        self._reading = threading.Lock()
        if checkpointed:
            log.info("%d of %d units have checkpoints of an earlier try", len(checkpointed), len(ledger))
            self.progress.resume(sum(ledger[unit_id].unit.expected for unit_id in checkpointed))

    def count_reads(self, loaded: Iterator[Loaded]) -> Iterator[Loaded]:
        """Yield the reads, counted."""
        for piece in loaded:
            self.reads += piece.read.nbytes > 0
            self.read_bytes += piece.read.nbytes
            yield piece

    def measure_read(self, load: Callable[[], T]) -> T:
        """Return what `load` returns. Count its seconds, and the bytes that it reads from local files."""
        start, before = time.monotonic(), thread_read_bytes()
        try:
            return load()
        finally:
            with self._reading:
                self.reading_s += time.monotonic() - start
                self.disk_bytes += thread_read_bytes() - before

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Count the seconds of the block as encoding."""
        start = time.monotonic()
        yield
        self.encoding_s += time.monotonic() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds of the block as waiting for chips."""
        start = time.monotonic()
        yield
        self.waiting_s += time.monotonic() - start

    def log_summary(self, rows: int) -> None:
        """End the progress and log the counts."""
        self.progress.close()
        log.info(
            "%d rows; encoding %.1f s, waiting for reads %.1f s; %d reads, %.1f MB of pixels; peak memory %.0f MB",
            rows, self.encoding_s, self.waiting_s, self.reads, self.read_bytes / 1e6, peak_memory() / 1e6,
        )  # fmt: skip
