"""Errors of web servers and object stores become Kiln's errors."""

from types import SimpleNamespace

import pytest

from kiln.errors import ConfigError, KilnError, SourceError, StorageError, TransientError
from kiln.io import storage
from tests.support.downloads import DATA, file_names

CALLS = {
    "stat": lambda uri, path: storage.stat(uri),
    "read": lambda uri, path: storage.read_bytes(uri),
    "fetch": lambda uri, path: storage.fetch(uri, path),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "error"),
    [(403, SourceError), (401, SourceError), (429, TransientError), (500, TransientError), (503, TransientError)],
)
def test_http_answers_raise_the_error_of_their_kind(serve, tmp_path, call, status, error):
    server = serve({"/a.bin": DATA}, status=status)
    with pytest.raises(error, match=rf"a\.bin: the server answers {status}"):
        CALLS[call](f"{server.url}/a.bin", tmp_path / "a.bin")
    assert file_names(tmp_path) == []


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_a_web_server_lacks_is_missing(serve, tmp_path, status):
    server = serve({"/a.bin": DATA}, status=status)
    assert storage.stat(f"{server.url}/a.bin") is None
    for call in ("read", "fetch"):
        with pytest.raises(SourceError, match=r"a\.bin"):
            CALLS[call](f"{server.url}/a.bin", tmp_path / "a.bin")


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_hangs_or_is_gone_is_transient(serve, tmp_path, monkeypatch, call):
    monkeypatch.setattr(storage.http, "TIMEOUT_S", (0.2, 0.2))
    server = serve({"/a.bin": DATA}, hang=0.6)
    with pytest.raises(TransientError, match=r"a\.bin"):
        CALLS[call](f"{server.url}/a.bin", tmp_path / "a.bin")
    server.stop()
    server.stop = lambda: None
    with pytest.raises(TransientError, match=r"a\.bin"):
        CALLS[call](f"{server.url}/a.bin", tmp_path / "a.bin")


def test_an_answer_that_breaks_off_is_transient(serve):
    server = serve({"/a.bin": DATA}, break_at=1000)
    with pytest.raises(TransientError, match=r"a\.bin"):
        storage.read_bytes(f"{server.url}/a.bin")


def test_http_is_read_only(serve):
    url = f"{serve({}).url}/a.bin"
    with pytest.raises(StorageError, match="cannot write over http"):
        storage.write_bytes(url, b"x")
    with pytest.raises(StorageError, match="cannot delete over http"):
        storage.delete(url)
    with pytest.raises(StorageError, match="no listing"):
        storage.listing(url)


def test_an_unknown_scheme_is_a_clear_error(tmp_path):
    for call in S3_CALLS.values():
        with pytest.raises(ConfigError, match=r"gs://b/a\.bin: expected a path, s3://"):
            call("gs://b/a.bin", tmp_path / "a.bin")


S3_CALLS = CALLS | {
    "list": lambda uri, path: storage.listing(uri),
    "write": lambda uri, path: storage.write_bytes(uri, b"x"),
    "delete": lambda uri, path: storage.delete(uri),
}


@pytest.mark.parametrize("call", S3_CALLS)
@pytest.mark.parametrize(
    ("status", "code", "errors"),
    [
        (403, "AccessDenied", (SourceError, StorageError)),
        (503, "SlowDown", (TransientError,)),
        (500, "InternalError", (TransientError,)),
    ],
)
def test_answers_of_an_object_store_raise_the_error_of_their_kind(
    serve, aws, tmp_path, monkeypatch, call, status, code, errors
):
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda s: None))  # no pause between retries
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    aws(serve({}, status=status, body=body).url)
    with pytest.raises(errors, match=r"s3://b/a\.bin"):
        S3_CALLS[call]("s3://b/a.bin", tmp_path / "a.bin")


def test_a_missing_bucket_is_a_clear_error(bucket, tmp_path):
    for call in ("read", "list", "write"):
        with pytest.raises(KilnError, match=f"{bucket}-gone/a.bin"):
            S3_CALLS[call](f"{bucket}-gone/a.bin", tmp_path / "a.bin")


def test_missing_credentials_are_a_clear_error(aws, own_credentials, s3_endpoint, monkeypatch, tmp_path):
    aws(s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    own_credentials()
    for call in ("read", "write"):
        with pytest.raises(ConfigError, match=r"expected AWS credentials, got none\. Set AWS_PROFILE"):
            S3_CALLS[call]("s3://b/a.bin", tmp_path / "a.bin")
