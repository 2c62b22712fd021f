"""Traffic: requests and bytes of every store, as its server counts them."""

import hashlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from kiln.errors import AccessError, SourceError, TransientError
from kiln.io import storage
from kiln.io.storage import Traffic, http
from kiln.io.storage.traffic import TrafficCounter
from tests.support.traffic import served

DATA = bytes(range(256)) * 40
SIZE = len(DATA)
ETAG = hashlib.md5(DATA).hexdigest()  # as S3 computes it
READS = {
    "stat": (lambda uri: storage.stat(uri).size, SIZE, Traffic(1, 0)),
    "read_bytes": (storage.read_bytes, DATA, Traffic(1, SIZE)),
    "read_range": (lambda uri: storage.store_of(uri).read_range(uri, 100, 299, "")[0], DATA[100:300], Traffic(1, 200)),
    "read_range over the end": (
        lambda uri: storage.store_of(uri).read_range(uri, SIZE - 10, SIZE + 90, "")[0],
        DATA[-10:],
        Traffic(1, 10),
    ),
    "stream": (lambda uri: stream(uri, 0), DATA, Traffic(1, SIZE)),
    "stream from an offset": (lambda uri: stream(uri, 1000), DATA[1000:], Traffic(1, SIZE - 1000)),
}
on_every_read = pytest.mark.parametrize(("read", "value", "expected"), READS.values(), ids=READS)


@pytest.fixture
def counted():
    """A function that returns the traffic since the test began."""
    before = storage.traffic()
    return lambda: storage.traffic() - before


def stream(uri, start):
    return b"".join(storage.store_of(uri).stream(uri, start, ETAG, 777)[1])


def test_traffic_is_added_and_subtracted():
    assert Traffic(3, 50) + Traffic(1, 7) == Traffic(4, 57)
    assert Traffic(3, 50) - Traffic(1, 7) == Traffic(2, 43)
    assert Traffic() == Traffic(0, 0)


def test_no_answer_is_lost_if_threads_count_at_the_same_time():
    counter = TrafficCounter()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a statement
    try:
        threads = [threading.Thread(target=lambda: [counter.count(3) for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counter.total == Traffic(8000, 24_000)


# ---------------------------------------------------------------------------------------------------------- web servers


@on_every_read
def test_reads_over_http_count_what_the_server_sent(serve, counted, read, value, expected):
    server = serve({"/a.bin": DATA}, etag=ETAG)
    assert read(f"{server.url}/a.bin") == value
    assert counted() == served(server) == expected


def test_a_server_without_ranges_sends_all_bytes_and_all_count(serve, counted):
    server = serve({"/a.bin": DATA}, ranges=False)
    data, is_range = storage.store_of(server.url).read_range(f"{server.url}/a.bin", 100, 299, "")
    assert (data, is_range) == (DATA, False)
    assert counted() == served(server) == Traffic(1, SIZE)


def test_a_download_counts_its_stat_and_its_bytes(serve, counted, tmp_path):
    server = serve({"/a.bin": DATA})
    storage.fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert counted() == served(server) == Traffic(2, SIZE)


@pytest.mark.parametrize(("status", "error"), [(403, AccessError), (404, SourceError), (410, SourceError)])
def test_a_refused_request_counts_with_the_bytes_of_its_answer(serve, counted, status, error):
    server = serve({"/a.bin": DATA}, status=status, body=b"no entry")
    with pytest.raises(error):
        storage.read_bytes(f"{server.url}/a.bin")
    tries = 1 + http.MAX_RETRIES if status == 403 else 1
    assert counted() == Traffic(tries, 8)
    assert served(server).requests == tries


def test_answers_that_are_retried_count(serve, counted):
    server = serve({"/a.bin": DATA}, status=503)
    with pytest.raises(TransientError):
        storage.read_bytes(f"{server.url}/a.bin")
    assert counted().requests == len(server.requests) > 1


def test_the_answer_that_a_file_does_not_exist_counts(serve, counted):
    server = serve()
    assert storage.stat(f"{server.url}/none.bin") is None
    assert counted() == served(server) == Traffic(1, 0)


def test_reads_of_all_threads_count(serve, counted):
    server = serve({"/a.bin": DATA})
    with ThreadPoolExecutor(8) as pool:
        for data in pool.map(storage.read_bytes, [f"{server.url}/a.bin"] * 40):
            assert data == DATA
    assert counted() == served(server) == Traffic(40, 40 * SIZE)


def test_local_files_are_no_traffic(tmp_path, counted):
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, DATA)
    assert storage.read_bytes(uri) == DATA
    assert list(storage.listing(str(tmp_path))) == [uri]
    assert counted() == Traffic()


# -------------------------------------------------------------------------------------------------------------- buckets


@on_every_read
def test_reads_from_a_bucket_count(bucket, counted, read, value, expected):
    uri = f"{bucket}/a.bin"
    storage.write_bytes(uri, DATA)
    assert read(uri) == value
    assert counted() == expected


def test_a_listing_of_a_bucket_counts_as_a_request(bucket, counted):
    storage.write_bytes(f"{bucket}/a/b.bin", DATA)
    assert list(storage.listing(f"{bucket}/a")) == [f"{bucket}/a/b.bin"]
    assert counted().requests == 1


def test_writing_and_deleting_in_a_bucket_count_nothing(bucket, counted):
    storage.write_bytes(f"{bucket}/a.bin", DATA)
    storage.delete(f"{bucket}/a.bin")
    assert counted() == Traffic()


def test_refused_requests_to_a_bucket_count(bucket, counted):
    assert storage.stat(f"{bucket}/none.bin") is None
    assert counted() == Traffic(1, 0)
    with pytest.raises(SourceError, match=r"none\.bin: does not exist"):
        storage.read_bytes(f"{bucket}/none.bin")
    assert counted().requests == 2


def test_answers_of_a_bucket_that_are_retried_count(serve, aws, counted, monkeypatch):
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda s: None))  # no pause between retries
    server = serve({"/b/a.bin": DATA}, status=503)
    aws(server.url)
    with pytest.raises(TransientError):
        storage.read_bytes("s3://b/a.bin")
    assert counted().requests == len(server.requests) > 1


def test_every_bucket_is_counted_with_a_client_of_its_own(serve, aws, counted):
    server = serve({"/one/a.bin": DATA, "/two/a.bin": DATA[:500]})
    aws(server.url)
    for name in ("one", "two"):
        storage.read_bytes(f"s3://{name}/a.bin")
    assert counted() == served(server) == Traffic(2, SIZE + 500)
