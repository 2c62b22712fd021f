"""Downloads: resumed after an interruption, or fetched again if the file has changed."""

import re
import time

import pytest

from kiln.errors import KilnError, SourceError, TransientError
from kiln.io import storage
from kiln.io.storage import store
from kiln.io.storage.http import HttpStore
from kiln.io.storage.s3 import S3Store
from tests.support.downloads import DATA, file_names, requested_ranges


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 10_000)


@pytest.fixture
def one_try(monkeypatch):
    monkeypatch.setattr(store, "CUT_PAUSES_S", ())


def test_a_download_that_breaks_off_goes_on_by_itself(serve, tmp_path, small_chunks, monkeypatch):
    server, path = serve({"/a.bin": DATA}, break_at=123_456), tmp_path / "a.bin"
    monkeypatch.setattr(time, "sleep", lambda _: setattr(server, "break_at", None))
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA
    assert len(requested_ranges(server)) == 2


def test_an_interrupted_download_is_resumed(serve, tmp_path, small_chunks, one_try):
    server, path = serve({"/a.bin": DATA}, break_at=123_456), tmp_path / "a.bin"
    with pytest.raises(TransientError, match=r"a\.bin: the connection broke"):
        storage.fetch(f"{server.url}/a.bin", path)
    have = path.stat().st_size
    assert 113_456 <= have <= 123_456
    server.break_at = 300_000
    with pytest.raises(TransientError):
        storage.fetch(f"{server.url}/a.bin", path)
    more = path.stat().st_size
    server.break_at = None
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA
    assert requested_ranges(server) == [None, f"bytes={have}-", f"bytes={more}-"]
    assert file_names(tmp_path) == ["a.bin"]


def test_another_version_is_fetched_from_the_start(serve, tmp_path, small_chunks, one_try):
    server, path = serve({"/a.bin": DATA}, break_at=123_456), tmp_path / "a.bin"
    with pytest.raises(TransientError):
        storage.fetch(f"{server.url}/a.bin", path)
    server.break_at, server.etag, server.files["/a.bin"] = None, "two", DATA[::-1]
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA[::-1]
    assert requested_ranges(server) == [None, None]


def test_a_file_of_unknown_origin_is_not_resumed(serve, tmp_path):
    server, path = serve({"/a.bin": DATA}), tmp_path / "a.bin"
    path.write_bytes(b"something else")
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA


def test_a_server_without_etags_is_read_from_the_start(serve, tmp_path, small_chunks):
    server, path = serve({"/a.bin": DATA}, etag="", break_at=123_456), tmp_path / "a.bin"
    with pytest.raises(TransientError):
        storage.fetch(f"{server.url}/a.bin", path)
    server.break_at = None
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA


def test_a_server_without_ranges_never_mixes_two_answers(serve, tmp_path, small_chunks):
    server, path = serve({"/a.bin": DATA}, ranges=False, break_at=123_456), tmp_path / "a.bin"
    with pytest.raises(TransientError, match="the connection broke"):
        storage.fetch(f"{server.url}/a.bin", path)
    server.break_at = None
    try:
        storage.fetch(f"{server.url}/a.bin", path)
    except TransientError as e:
        assert re.search(r"does not go on from byte \d+; delete the partial file", str(e))  # noqa: PT017
        path.unlink()
        storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA


def test_an_empty_file_is_fetched(serve, tmp_path):
    server = serve({"/a.bin": b""})
    storage.fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b""
    assert file_names(tmp_path) == ["a.bin"]


def test_a_download_from_a_bucket_is_resumed_or_restarted(bucket, tmp_path):
    uri, path = f"{bucket}/a.bin", tmp_path / "a.bin"
    storage.write_bytes(uri, DATA)
    etag = storage.stat(uri).etag
    path.write_bytes(b"#" * 1000)  # marks the bytes that are not fetched again
    (tmp_path / "a.bin.etag").write_text(etag)
    storage.fetch(uri, path)
    assert path.read_bytes() == b"#" * 1000 + DATA[1000:]
    path.write_bytes(b"#" * 1000)
    (tmp_path / "a.bin.etag").write_text("of another version")
    storage.fetch(uri, path)
    assert path.read_bytes() == DATA
    assert file_names(tmp_path) == ["a.bin"]


@pytest.fixture
def replaced_after_stat(monkeypatch):
    """Return a function that makes a store answer about a file as it was before it was replaced."""

    def hold(kind, uri):
        before = storage.stat(uri)
        monkeypatch.setattr(kind, "stat", lambda self, asked: before)
        return before

    return hold


def test_an_object_that_is_replaced_before_its_rest_is_read_is_never_mixed(bucket, tmp_path, replaced_after_stat):
    uri, path = f"{bucket}/a.bin", tmp_path / "a.bin"
    storage.write_bytes(uri, b"A" * 2000)
    before = replaced_after_stat(S3Store, uri)
    storage.write_bytes(uri, b"B" * 2000)
    path.write_bytes(b"A" * 1000)
    (tmp_path / "a.bin.etag").write_text(before.etag)
    with pytest.raises(KilnError, match=re.escape(uri)):
        storage.fetch(uri, path)
    assert b"B" not in path.read_bytes()


def test_a_file_that_is_replaced_before_its_rest_is_read_comes_whole(serve, tmp_path, replaced_after_stat):
    server, path = serve({"/a.bin": b"A" * 2000}), tmp_path / "a.bin"
    uri = f"{server.url}/a.bin"
    before = replaced_after_stat(HttpStore, uri)
    server.etag, server.files["/a.bin"] = "two", b"B" * 2000
    path.write_bytes(b"A" * 1000)
    (tmp_path / "a.bin.etag").write_text(before.etag)
    storage.fetch(uri, path)
    assert path.read_bytes() == b"B" * 2000
    assert requested_ranges(server) == ["bytes=1000-"], "the first answer is enough"


def test_an_answer_that_is_shorter_than_the_file_is_no_download(serve, tmp_path, one_try, monkeypatch):
    server = serve({"/a.bin": b"A" * 2000})
    monkeypatch.setattr(HttpStore, "stat", lambda self, uri: storage.Stat(3000, "one"))
    with pytest.raises(TransientError, match=r"a\.bin: expected 3000 bytes, got 2000\. Run again to resume"):
        storage.fetch(f"{server.url}/a.bin", tmp_path / "a.bin")


def test_a_local_file_is_copied(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    storage.fetch(str(tmp_path / "a"), tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == DATA
    with pytest.raises(SourceError, match="does not exist"):
        storage.fetch(str(tmp_path / "none"), tmp_path / "c")


TEXT = b"m_4309636_ne_14_1_20180712.tif\n" * 500


@pytest.mark.parametrize("compresses", ["on request", "always"])
@pytest.mark.parametrize("heads", [True, False], ids=["HEAD", "no HEAD"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_text_of_a_server_that_compresses_is_read_as_it_is(serve, tmp_path, compresses, heads, ranges):
    server = serve({"/keys.txt": TEXT}, ranges=ranges)
    server.compresses, server.heads = compresses, heads
    uri = f"{server.url}/keys.txt"
    assert storage.stat(uri) == storage.Stat(len(TEXT) if compresses == "on request" else -1, "one")
    assert storage.read_bytes(uri) == TEXT
    storage.fetch(uri, tmp_path / "keys.txt")
    assert (tmp_path / "keys.txt").read_bytes() == TEXT
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == TEXT


def test_a_server_without_head_requests_states_sizes_and_what_is_missing(serve):
    server = serve({"/a.bin": DATA, "/empty.txt": b""})
    server.heads = False
    assert storage.stat(f"{server.url}/a.bin") == storage.Stat(len(DATA), "one")
    assert storage.stat(f"{server.url}/gone.bin") is None
    assert [(method, byte_range) for method, _, byte_range in server.requests] == [
        ("HEAD", None), ("GET", "bytes=0-0"), ("HEAD", None), ("GET", "bytes=0-0"),
    ]  # fmt: skip


@pytest.mark.parametrize("at", [0, 10, 100])
def test_a_compressed_answer_that_is_cut_is_a_transient_error(serve, tmp_path, at):
    server = serve({"/keys.txt": TEXT}, break_at=at)
    server.compresses = "always"
    with pytest.raises(TransientError, match="the connection broke"):
        storage.fetch(f"{server.url}/keys.txt", tmp_path / "keys.txt")
