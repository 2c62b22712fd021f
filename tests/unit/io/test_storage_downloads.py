"""Downloads: resumed after an interruption, or fetched again if the file has changed."""

import re

import pytest

from kiln.errors import SourceError, TransientError
from kiln.io import storage
from tests.support.downloads import DATA, file_names, requested_ranges


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 10_000)


def test_an_interrupted_download_is_resumed(serve, tmp_path, small_chunks):
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


def test_another_version_is_fetched_from_the_start(serve, tmp_path, small_chunks):
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


def test_a_local_file_is_copied(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    storage.fetch(str(tmp_path / "a"), tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == DATA
    with pytest.raises(SourceError, match="does not exist"):
        storage.fetch(str(tmp_path / "none"), tmp_path / "c")
