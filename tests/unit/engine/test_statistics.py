"""Statistics of a shard: seconds and bytes of its reads."""

import threading
import time

import pytest

from kiln.engine.accounting import Ledger
from kiln.engine.statistics import ShardStatistics
from kiln.errors import SourceError
from kiln.io import disk_reads

SIZE = 2_000_000
PAUSE_S = 0.02


@pytest.fixture
def statistics():
    return ShardStatistics("s", Ledger([], {}), frozenset())


@pytest.fixture
def read(tmp_path):
    """A function that reads a file and takes at least PAUSE_S."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(SIZE))

    def load():
        time.sleep(PAUSE_S)
        return len(path.read_bytes())

    return load


def check_bytes(statistics, reads):
    if disk_reads.ACCOUNT.exists():
        assert reads * SIZE <= statistics.disk_bytes < (reads + 0.1) * SIZE


def test_a_read_counts_its_seconds_and_its_bytes(statistics, read):
    start = time.monotonic()
    assert statistics.measure_read(read) == SIZE
    assert PAUSE_S <= statistics.reading_s <= time.monotonic() - start
    check_bytes(statistics, 1)


def test_a_read_that_fails_counts_and_raises(statistics, read):
    def fail():
        read()
        raise SourceError("a.tif: unreadable")

    with pytest.raises(SourceError, match="unreadable"):
        statistics.measure_read(fail)
    assert statistics.reading_s >= PAUSE_S
    check_bytes(statistics, 1)


def test_reads_of_threads_add_up_and_count_once(statistics, read):
    together = threading.Barrier(3)  # all are under way at the same time

    def load():
        together.wait()
        return read()

    threads = [threading.Thread(target=statistics.measure_read, args=(load,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.reading_s >= 3 * PAUSE_S
    check_bytes(statistics, 3)


@pytest.mark.skipif(not disk_reads.ACCOUNT.exists(), reason="only Linux counts the reads of a thread")
def test_what_is_read_between_reads_does_not_count(statistics, read):
    statistics.measure_read(lambda: None)
    read()
    statistics.measure_read(lambda: None)
    check_bytes(statistics, 0)
