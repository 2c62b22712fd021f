"""A generator that runs in a thread of its own, a few items ahead of the thread that takes them."""

import queue
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

JOIN_TIMEOUT_S = 3.0  # a generator that reads may take so long to notice that nobody takes its items any more
POLL_S = 0.2
T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """The end of a queue, with the error that ended it."""

    error: BaseException | None = None


def in_thread(items: Generator[T, None, None], max_waiting: int) -> Generator[T, None, None]:
    """Yield the items of a generator that runs in a thread of its own.

    Args:
        items: The generator. It is closed in its thread.
        max_waiting: Items that may wait to be taken.

    Raises:
        BaseException: What the generator raised.
    """
    ready: queue.Queue[T | _End] = queue.Queue(max_waiting)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put(item):
                        return
            put(_End())
        except BaseException as e:  # raised again by the thread that takes the items
            put(_End(e))

    thread = threading.Thread(target=work, name="producer", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join(JOIN_TIMEOUT_S)
