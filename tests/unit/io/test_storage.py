"""Storage: atomic writes on disks and in buckets alike, resumed downloads, and the errors of servers and stores."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from kiln.errors import ConfigError, KilnError, SourceError, StorageError, TransientError
from kiln.io import buckets, storage
from tests.conftest import ROOT


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    """A folder or a bucket: what follows holds for both."""
    return str(tmp_path / "deep" / "er") if request.param == "disk" else request.getfixturevalue("bucket")


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------------------------- disks and buckets alike


def test_written_bytes_are_read_again(root):
    uri = storage.join(root, "a", "b.bin")
    storage.write_bytes(uri, b"hello")
    assert storage.read_bytes(uri) == b"hello"
    assert storage.stat(uri).size == 5
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    storage.delete(uri)
    storage.delete(uri)
    assert storage.stat(uri) is None


def test_a_missing_file_is_reported_as_missing(root):
    uri = storage.join(root, "none.bin")
    assert storage.stat(uri) is None
    assert storage.listing(root) == {}
    with pytest.raises(SourceError, match=r"none\.bin: does not exist"):
        storage.read_bytes(uri)
    with pytest.raises(SourceError, match=r"none\.bin: does not exist"), storage.local_copy(uri):
        pass


def test_a_listing_has_every_file_below_a_folder_and_no_namesake(root):
    for name in ("run/a.bin", "run/x/b.bin", "run2/c.bin", "run.txt"):
        storage.write_bytes(storage.join(root, *name.split("/")), b"x" * len(name))
    found = storage.listing(storage.join(root, "run"))
    assert {uri: s.size for uri, s in found.items()} == {f"{root}/run/a.bin": 9, f"{root}/run/x/b.bin": 11}
    assert list(found) == sorted(found)


def test_an_error_leaves_the_old_file_untouched(root):
    uri = storage.join(root, "a.bin")
    for before in (None, b"old"):
        if before:
            storage.write_bytes(uri, before)
        with pytest.raises(ZeroDivisionError), storage.atomic(uri) as path:  # noqa: PT012
            path.write_bytes(b"half")
            assert (storage.stat(uri) is None) == (before is None)
            1 / 0  # noqa: B018
        assert {u: storage.read_bytes(u) for u in storage.listing(root)} == ({uri: before} if before else {})


def test_a_file_appears_only_when_it_is_complete(root):
    uri = storage.join(root, "a.bin")
    with storage.atomic(uri) as path:
        path.write_bytes(b"one")
        assert storage.stat(uri) is None
    assert storage.read_bytes(uri) == b"one"
    assert list(storage.listing(root)) == [uri]
    assert not path.exists()


def test_a_local_copy_is_the_file_itself_or_gone_after_the_block(root):
    uri = storage.join(root, "a.bin")
    storage.write_bytes(uri, b"pixels")
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == b"pixels"
    assert path.exists() == (not storage.is_remote(uri))
    assert storage.read_bytes(uri) == b"pixels"


def test_a_large_object_is_uploaded_in_parts(bucket, tmp_path):
    data = os.urandom(1 << 20) * 9  # above boto's threshold of 8 MB
    storage.write_bytes(f"{bucket}/big.bin", data)
    storage.fetch(f"{bucket}/big.bin", tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == data
    assert "-" in storage.stat(f"{bucket}/big.bin").etag


def test_names_are_joined_for_folders_and_buckets():
    assert storage.join("s3://b/run/", "a", "b") == "s3://b/run/a/b"
    assert storage.join("/x", "a") == "/x/a"
    assert storage.join("", "a", "b") == "a/b"
    assert storage.split_s3("s3://b/run/a") == ("b", "run/a")


# ------------------------------------------------------------------------------------------------- disks


def test_partial_files_of_killed_processes_of_this_machine_are_deleted(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead, alive = tmp_path / f".a.bin.{host}.{ended.pid}.partial", tmp_path / f".a.bin.{host}.1.partial"
    others = [tmp_path / f".a.bin.elsewhere.{ended.pid}.partial", tmp_path / f".b.bin.{host}.{ended.pid}.partial"]
    for path in (dead, alive, *others):
        path.write_bytes(b"half")
    storage.write_bytes(str(tmp_path / "a.bin"), b"whole")
    assert left_in(tmp_path) == sorted(p.name for p in (alive, *others, tmp_path / "a.bin"))


def test_a_folder_at_the_target_or_a_file_as_folder_is_an_error_that_names_the_target(tmp_path):
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for target in (tmp_path / "folder.bin", tmp_path / "file" / "a.bin"):
        with pytest.raises(StorageError, match=re.escape(f"{target}: cannot be written: ")):
            storage.write_bytes(str(target), b"x")
    assert left_in(tmp_path) == ["file"]


def run_child(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


TRY = """
import sys
from kiln.io import storage
from kiln.errors import KilnError
{first}
for target in sys.argv[1:]:
    try:
        {act}
    except KilnError as e:
        print(type(e).__name__, e)
    else:
        print("written")
"""


def test_a_folder_without_permission_is_a_clear_error():
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: its parents are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        first = "import os, socket\nif os.getuid() == 0: os.setuid(65534)"  # root is never refused
        if os.getuid() != 0:
            folder.chmod(0o555)
        for act in (
            "storage.write_bytes(target, b'x')",
            "storage.fetch('pyproject.toml', __import__('pathlib').Path(target))",
        ):
            done = run_child(TRY.format(first=first, act=act), folder / "a.bin", folder / "new" / "b.bin")
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            assert [line.split()[0] for line in lines] == ["StorageError"] * 2
            assert all(str(folder) in line and "Permission denied" in line for line in lines)
        folder.chmod(0o755)
        assert left_in(folder) == []


def test_a_write_beyond_the_size_that_is_allowed_is_a_clear_error(tmp_path):
    first = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    first += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = run_child(TRY.format(first=first, act="storage.write_bytes(target, b'x' * 5000)"), tmp_path / "a.bin")
    assert done.stdout.startswith(f"StorageError {tmp_path / 'a.bin'}: cannot be written: File too large"), done.stderr
    assert left_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(small_disk):
    target = small_disk / "a.bin"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(StorageError, match=re.escape(f"{target}: cannot be written: No space left on device")):
        storage.write_bytes(str(target), b"x" * 20_000)
    assert left_in(small_disk) == ["a.bin"]
    assert target.read_bytes() == b"old"


def test_a_disk_that_fills_while_a_shard_is_written_is_a_clear_error(small_disk):
    import numpy as np

    from kiln.formats import embeddings_file
    from tests.support.chips import make_chip

    target = small_disk / "shard.parquet"
    chips = [make_chip(n, extra={}) for n in range(300)]
    columns = embeddings_file.schema(64, "float32", [], {})
    with (
        pytest.raises(StorageError, match=r"shard\.parquet: cannot be written: No space left"),
        storage.atomic(str(target)) as path,
        embeddings_file.ShardWriter(path, columns, 50) as out,
    ):
        out.append(chips, {"embeddings": np.random.default_rng(1).normal(size=(300, 64)).astype(np.float32)})
    assert left_in(small_disk) == []


def test_a_download_to_a_full_disk_is_a_clear_error(small_disk, serve):
    server = serve({"/a.bin": bytes(50_000)})
    with pytest.raises(StorageError, match="No space left"):
        storage.fetch(f"{server.url}/a.bin", small_disk / "a.bin")


# ----------------------------------------------------------------------------------------------- downloads


DATA = bytes(range(256)) * 2000  # 512 000 bytes, and no two offsets of a chunk alike


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 10_000)


def gets(server) -> list[str | None]:
    return [asked for method, _, asked in server.requests if method == "GET"]


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
    assert gets(server) == [None, f"bytes={have}-", f"bytes={more}-"]
    assert left_in(tmp_path) == ["a.bin"]


def test_another_version_is_fetched_from_the_start(serve, tmp_path, small_chunks):
    server, path = serve({"/a.bin": DATA}, break_at=123_456), tmp_path / "a.bin"
    with pytest.raises(TransientError):
        storage.fetch(f"{server.url}/a.bin", path)
    server.break_at, server.etag, server.files["/a.bin"] = None, "two", DATA[::-1]
    storage.fetch(f"{server.url}/a.bin", path)
    assert path.read_bytes() == DATA[::-1]
    assert gets(server) == [None, None]


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
    assert left_in(tmp_path) == ["a.bin"]


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
    assert left_in(tmp_path) == ["a.bin"]


def test_a_local_file_is_copied(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    storage.fetch(str(tmp_path / "a"), tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == DATA
    with pytest.raises(SourceError, match="does not exist"):
        storage.fetch(str(tmp_path / "none"), tmp_path / "c")


# ---------------------------------------------------------------------------------- errors of servers and stores


ASK = {
    "stat": lambda uri, path: storage.stat(uri),
    "read": lambda uri, path: storage.read_bytes(uri),
    "fetch": lambda uri, path: storage.fetch(uri, path),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize(
    ("status", "error"),
    [(403, SourceError), (401, SourceError), (429, TransientError), (500, TransientError), (503, TransientError)],
)
def test_http_answers_raise_the_error_of_their_kind(serve, tmp_path, ask, status, error):
    server = serve({"/a.bin": DATA}, status=status)
    with pytest.raises(error, match=rf"a\.bin: the server answers {status}"):
        ASK[ask](f"{server.url}/a.bin", tmp_path / "a.bin")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_a_web_server_lacks_is_missing(serve, tmp_path, status):
    server = serve({"/a.bin": DATA}, status=status)
    assert storage.stat(f"{server.url}/a.bin") is None
    for ask in ("read", "fetch"):
        with pytest.raises(SourceError, match=r"a\.bin"):
            ASK[ask](f"{server.url}/a.bin", tmp_path / "a.bin")


@pytest.mark.parametrize("ask", ASK)
def test_a_server_that_hangs_or_is_gone_is_transient(serve, tmp_path, monkeypatch, ask):
    monkeypatch.setattr(storage.http, "TIMEOUT_S", (0.2, 0.2))
    server = serve({"/a.bin": DATA}, hang=0.6)
    with pytest.raises(TransientError, match=r"a\.bin"):
        ASK[ask](f"{server.url}/a.bin", tmp_path / "a.bin")
    server.stop()
    server.stop = lambda: None
    with pytest.raises(TransientError, match=r"a\.bin"):
        ASK[ask](f"{server.url}/a.bin", tmp_path / "a.bin")


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
    for ask in ASK_S3.values():
        with pytest.raises(ConfigError, match=r"gs://b/a\.bin: expected a path, s3://"):
            ask("gs://b/a.bin", tmp_path / "a.bin")


@pytest.mark.parametrize("options", [{}, {"ranges": False}, {"etag": ""}], ids=["ranges", "no ranges", "no ETag"])
def test_a_remote_file_is_read_once_in_ranges_to_check_it(serve, monkeypatch, options):
    monkeypatch.setattr(storage, "RANGE_BYTES", 100_000)
    server = serve({"/a.bin": DATA}, **options)
    uri = f"{server.url}/a.bin"
    version = storage.stat(uri)
    storage.check_readable(uri, version)
    assert len(gets(server)) == (6 if options.get("ranges", True) else 1)
    server.files["/a.bin"] = DATA[:-1]
    with pytest.raises(TransientError, match="expected 512000 bytes, got 511999"):
        storage.check_readable(uri, version)


def test_a_file_that_changed_is_an_error_of_the_source(bucket, serve):
    storage.write_bytes(f"{bucket}/a.bin", DATA)
    for uri in (f"{bucket}/a.bin", f"{serve({'/a.bin': DATA}).url}/a.bin"):
        with pytest.raises(SourceError, match=r"a\.bin: changed while it was read"):
            storage.check_readable(uri, storage.Stat(len(DATA), "another"))


ASK_S3 = ASK | {
    "list": lambda uri, path: storage.listing(uri),
    "write": lambda uri, path: storage.write_bytes(uri, b"x"),
    "delete": lambda uri, path: storage.delete(uri),
}


@pytest.mark.parametrize("ask", ASK_S3)
@pytest.mark.parametrize(
    ("status", "code", "errors"),
    [
        (403, "AccessDenied", (SourceError, StorageError)),
        (503, "SlowDown", (TransientError,)),
        (500, "InternalError", (TransientError,)),
    ],
)
def test_answers_of_an_object_store_raise_the_error_of_their_kind(
    serve, aws, tmp_path, monkeypatch, ask, status, code, errors
):
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda s: None))  # between its own tries
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    aws(serve({}, status=status, body=body).url)
    with pytest.raises(errors, match=r"s3://b/a\.bin"):
        ASK_S3[ask]("s3://b/a.bin", tmp_path / "a.bin")


def test_a_bucket_that_is_not_there_is_a_clear_error(bucket, tmp_path):
    for ask in ("read", "list", "write"):
        with pytest.raises(KilnError, match=f"{bucket}-gone/a.bin"):
            ASK_S3[ask](f"{bucket}-gone/a.bin", tmp_path / "a.bin")


def test_missing_credentials_are_a_clear_error(aws, s3_endpoint, monkeypatch, tmp_path):
    aws(s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    boto3.DEFAULT_SESSION = None
    for ask in ("read", "write"):
        with pytest.raises(ConfigError, match=r"expected AWS credentials, got none\. Set AWS_PROFILE"):
            ASK_S3[ask]("s3://b/a.bin", tmp_path / "a.bin")


def test_public_buckets_are_read_without_credentials(bucket, monkeypatch):
    name = bucket.removeprefix("s3://")
    boto3.client("s3").put_bucket_acl(Bucket=name, ACL="public-read")
    boto3.client("s3").put_object(Bucket=name, Key="a.bin", Body=DATA, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    boto3.DEFAULT_SESSION = None
    storage.s3_client.cache_clear()
    name = bucket.removeprefix("s3://")
    monkeypatch.setitem(buckets._BUCKETS, name, buckets.Bucket(name, "us-east-1"))
    assert storage.stat(f"{bucket}/a.bin").size == len(DATA)
    assert storage.read_bytes(f"{bucket}/a.bin") == DATA
    assert list(storage.listing(bucket)) == [f"{bucket}/a.bin"]


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert storage.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
