"""Prefetch: reads done by threads within a memory budget."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from kiln.errors import SourceError
from kiln.formats.records import Loaded, Read

T = TypeVar("T")


def call(load: Callable[[], T]) -> T:
    """Return what `load` returns."""
    return load()


def read_ahead(
    reads: Iterable[Read], threads: int, max_bytes: int, run: Callable[[Callable[[], Any]], Any] = call
) -> Generator[Loaded, None, None]:
    """Yield the values of reads in the order of the reads, loaded ahead by threads.

    The reads that follow from a value (`Read.then`) come right behind it. At most `threads` reads with `then` are under
    way, so that the files of a shard are opened one after the other. A read that is larger than the budget is done
    alone.

    Args:
        reads: The reads. They are taken only as far as the budget allows.
        threads: Reads done at the same time, 1 or more.
        max_bytes: Bytes that may be read, or being read, before the reads' values are taken.
        run: Calls a read's `load` in its thread.

    Yields:
        Each read with its value, or with the SourceError that it raised.

    Raises:
        Exception: Any other exception of a read. All threads end when the generator is closed.
    """
    prefetcher = _Prefetcher(reads, threads, max_bytes, run)
    try:
        while (first := prefetcher.wait_for_first()) is not None:
            read, future = first
            try:
                yield Loaded(read, future.result())
            except SourceError as e:
                yield Loaded(read, None, e)
            prefetcher.release(read)
    finally:
        prefetcher.shut_down()


@dataclass(eq=False)
class _PendingRead:
    """A read in its place.

    Attributes:
        future: Its value; None until a thread is given the read.
        expanded: Whether the reads that follow from the value are in the line.
    """

    read: Read
    future: Future[Any] | None = None
    expanded: bool = False


class _Prefetcher:
    """The line of pending reads, and the threads that do them."""

    def __init__(
        self, reads: Iterable[Read], threads: int, max_bytes: int, run: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._threads, self._max_bytes, self._run = threads, max_bytes, run
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._line: deque[_PendingRead] = deque()
        self._upcoming = iter(reads)
        self._following = next(self._upcoming, None)
        self._held_bytes = 0

    def wait_for_first(self) -> tuple[Read, Future[Any]] | None:
        """Wait for the first read and take it out of the line. Returns None if none is left."""
        self._expand()
        self._submit()
        if not self._line:
            return None
        future = self._line[0].future
        assert future is not None, "the first read is always submitted"
        wait([future])
        self._expand()
        return self._line.popleft().read, future

    def release(self, read: Read) -> None:
        """Give the memory of a read back to the budget."""
        self._held_bytes -= read.nbytes

    def shut_down(self) -> None:
        """Cancel the reads that no thread has begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _expand(self) -> None:
        """Put the reads that follow from finished reads behind them."""
        for place in range(len(self._line) - 1, -1, -1):
            pending = self._line[place]
            if pending.read.then and not pending.expanded and pending.future and pending.future.done():
                pending.expanded = True
                if pending.future.exception() is None:
                    for n, read in enumerate(pending.read.then(pending.future.result())):
                        self._line.insert(place + 1 + n, _PendingRead(read))

    def _submit(self) -> None:
        """Give the threads the reads that the budget allows, in order."""
        unexpanded = 0
        for place in itertools.count():
            if place == len(self._line):
                if self._following is None:
                    return
                self._line.append(_PendingRead(self._following))
                self._following = next(self._upcoming, None)
            pending = self._line[place]
            unexpanded += pending.read.then is not None and not pending.expanded
            if pending.future is None:
                over_budget = self._held_bytes + pending.read.nbytes > self._max_bytes
                if (place and over_budget) or unexpanded > self._threads:
                    return
                self._held_bytes += pending.read.nbytes
                pending.future = self._pool.submit(self._run, pending.read.load)
