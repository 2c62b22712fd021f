"""Bytes that a thread has read from files."""

import threading

import pytest

from kiln.io import disk_reads, storage
from kiln.io.disk_reads import thread_read_bytes

SIZE = 3_000_000
MAX_OWN_BYTES = 20_000  # of the account itself, and of what Python may load
on_linux = pytest.mark.skipif(not disk_reads.ACCOUNT.exists(), reason="only Linux counts the reads of a thread")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(SIZE))
    return path


def read_counted(file):
    """Read a file; return the bytes that this thread counts for it."""
    before = thread_read_bytes()
    assert len(file.read_bytes()) == SIZE
    return thread_read_bytes() - before


@on_linux
def test_a_file_counts_with_its_size_every_time_it_is_read(file):
    for _ in range(2):
        assert SIZE <= read_counted(file) < SIZE + MAX_OWN_BYTES


@on_linux
def test_a_thread_counts_its_own_files_and_no_other_threads(file):
    in_thread = []
    before = thread_read_bytes()
    thread = threading.Thread(target=lambda: in_thread.append(read_counted(file)))
    thread.start()
    thread.join()
    assert thread_read_bytes() - before < MAX_OWN_BYTES
    assert SIZE <= in_thread[0] < SIZE + MAX_OWN_BYTES


@on_linux
def test_bytes_of_a_connection_do_not_count(serve):
    server = serve({"/a.bin": bytes(SIZE)})
    storage.stat(f"{server.url}/a.bin")  # connected, and all modules are loaded
    before = thread_read_bytes()
    assert len(storage.read_bytes(f"{server.url}/a.bin")) == SIZE
    assert thread_read_bytes() - before < MAX_OWN_BYTES


@pytest.mark.parametrize("text", [None, "", "syscr: 12\nwchar: 700\n"], ids=["no file", "empty", "other lines"])
def test_there_are_no_bytes_where_they_are_not_counted(tmp_path, monkeypatch, file, text):
    account = tmp_path / "io"
    if text is not None:
        account.write_text(text)
    monkeypatch.setattr(disk_reads, "ACCOUNT", account)
    file.read_bytes()
    assert thread_read_bytes() == 0


def test_the_bytes_are_those_of_all_reads_and_not_only_of_the_disk(tmp_path, monkeypatch):
    account, counts = tmp_path / "io", []
    monkeypatch.setattr(disk_reads, "ACCOUNT", account)
    for total in (1_000_000, 5_096_123):
        account.write_text(f"rchar: {total}\nwchar: 9\nsyscr: 12\nsyscw: 3\nread_bytes: 8192\nwrite_bytes: 0\n")
        counts.append(thread_read_bytes())
    assert 4_096_123 - MAX_OWN_BYTES < counts[1] - counts[0] <= 4_096_123
