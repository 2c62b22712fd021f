"""Prefetch: order, memory, errors, and the end of its threads."""

import collections
import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.engine.read_ahead import read_ahead
from kiln.errors import SourceError
from kiln.formats.records import Read
from tests.support.engine import threads_left


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), max_size=25), st.integers(1, 4), st.integers(1, 120))
def test_reads_keep_their_order_and_never_hold_more_than_the_budget(sizes, threads, budget):
    lock, held, peaks = threading.Lock(), collections.deque(), []

    def load(n: int) -> int:
        with lock:
            held.append(n)
            peaks.append([sizes[i] for i in held])
        return n

    seen = []
    for loaded in read_ahead((Read(s, lambda n=n: load(n), n) for n, s in enumerate(sizes)), threads, budget):
        seen.append(loaded.value)
        assert loaded.error is None
        assert loaded.read.key == loaded.value
        with lock:
            held.remove(loaded.value)  # released only when the next one is requested
    assert seen == list(range(len(sizes)))
    for together in peaks:
        assert sum(together) <= budget or len(together) == 1
    assert threads_left() == []


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 50), max_size=8), max_size=8), st.integers(1, 4), st.integers(1, 120))
def test_the_reads_that_follow_a_read_come_directly_after_it_within_the_budget(files, threads, budget):
    lock, held, peaks, opened = threading.Lock(), collections.Counter(), [], []

    def load(name: tuple[int, int], size: int) -> tuple[int, int]:
        with lock:
            held[name] = size
            peaks.append((held.total(), size))
        return name

    def head(n: int) -> Read:
        sizes = files[n]
        opened.append(n)
        return Read(
            0,
            lambda: (n, -1),
            then=lambda _: [Read(s, lambda i=i, s=s: load((n, i), s)) for i, s in enumerate(sizes)],
        )

    seen = []
    for loaded in read_ahead(map(head, range(len(files))), threads, budget):
        seen.append(loaded.value)
        with lock:
            held.pop(loaded.value, None)
    assert opened == list(range(len(files)))
    assert seen == [(n, i) for n, sizes in enumerate(files) for i in range(-1, len(sizes))]
    assert all(together <= budget or together == size for together, size in peaks)
    assert threads_left() == []


def test_nothing_follows_from_a_read_that_failed():
    def bad() -> None:
        raise SourceError("gone")

    heads = [Read(1, bad, then=lambda _: pytest.fail("asked")), Read(1, lambda: 2, then=lambda v: [Read(1, lambda: v)])]
    first, second, third = read_ahead(heads, 2, 10)
    assert (str(first.error), second.value, third.value) == ("gone", 2, 2)


def test_reads_run_in_parallel():
    together = threading.Barrier(3)
    reads = [Read(1, lambda: together.wait(timeout=10)) for _ in range(3)]
    assert sorted(loaded.value for loaded in read_ahead(reads, 3, 100)) == [0, 1, 2]


def test_reads_are_requested_only_as_the_budget_allows():
    requested = []

    def reads() -> Iterator[Read]:
        for n in itertools.count():
            requested.append(n)
            yield Read(10, lambda n=n: n)

    ahead = read_ahead(reads(), 2, 50)
    assert next(ahead).value == 0
    assert len(requested) <= 7
    assert next(ahead).value == 1
    assert len(requested) <= 8
    ahead.close()
    assert threads_left() == []


def test_a_source_error_is_returned_with_its_read():
    def bad() -> None:
        raise SourceError("x.tif: unreadable")

    good, broken, after = read_ahead([Read(1, lambda: 1), Read(1, bad), Read(1, lambda: 3)], 2, 10)
    assert (good.value, good.error, after.value) == (1, None, 3)
    assert broken.value is None
    assert str(broken.error) == "x.tif: unreadable"
