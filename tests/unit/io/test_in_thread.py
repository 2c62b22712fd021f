"""A generator in a thread of its own."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from kiln.io.in_thread import in_thread


def threads_left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "producer"]


def test_items_of_a_thread_keep_their_order_and_its_error_is_raised_to_the_consumer():
    def items() -> Iterator[int]:
        yield from range(5)
        raise ArithmeticError("broken")

    seen = []
    with pytest.raises(ArithmeticError, match="broken"):
        seen.extend(in_thread(items(), 2))
    assert list(in_thread(iter_of(range(5)), 1)) == [0, 1, 2, 3, 4]
    assert threads_left() == []


def iter_of(values):
    yield from values


def test_a_thread_ends_and_closes_its_generator_when_its_consumer_closes():
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = in_thread(endless(), 2)
    assert next(items) == 0
    items.close()
    assert closed.wait(timeout=10)
    assert threads_left() == []
