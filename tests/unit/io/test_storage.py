"""Storage: atomic writes, listings and copies, on disks and in buckets."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import pytest

from kiln.errors import SourceError, StorageError
from kiln.io import buckets, storage
from tests.conftest import ROOT
from tests.support.downloads import DATA, file_names


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    """Return the path of a folder or of a bucket."""
    return str(tmp_path / "deep" / "er") if request.param == "disk" else request.getfixturevalue("bucket")


# -------------------------------------------------------------------------------------------- disks and buckets


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


def test_public_buckets_are_read_without_credentials(bucket, own_credentials, monkeypatch):
    name = bucket.removeprefix("s3://")
    boto3.client("s3").put_bucket_acl(Bucket=name, ACL="public-read")
    boto3.client("s3").put_object(Bucket=name, Key="a.bin", Body=DATA, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    own_credentials()
    name = bucket.removeprefix("s3://")
    monkeypatch.setitem(buckets._BUCKETS, name, buckets.Bucket(name, "us-east-1"))
    assert storage.stat(f"{bucket}/a.bin").size == len(DATA)
    assert storage.read_bytes(f"{bucket}/a.bin") == DATA
    assert list(storage.listing(bucket)) == [f"{bucket}/a.bin"]


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert storage.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -------------------------------------------------------------------------------------------------------- disks


def test_partial_files_of_killed_processes_of_this_machine_are_deleted(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead, alive = tmp_path / f".a.bin.{host}.{ended.pid}.partial", tmp_path / f".a.bin.{host}.1.partial"
    others = [tmp_path / f".a.bin.elsewhere.{ended.pid}.partial", tmp_path / f".b.bin.{host}.{ended.pid}.partial"]
    for path in (dead, alive, *others):
        path.write_bytes(b"half")
    storage.write_bytes(str(tmp_path / "a.bin"), b"whole")
    assert file_names(tmp_path) == sorted(p.name for p in (alive, *others, tmp_path / "a.bin"))


def test_a_folder_at_the_target_or_a_file_as_folder_is_an_error_that_names_the_target(tmp_path):
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for target in (tmp_path / "folder.bin", tmp_path / "file" / "a.bin"):
        with pytest.raises(StorageError, match=re.escape(f"{target}: cannot be written: ")):
            storage.write_bytes(str(target), b"x")
    assert file_names(tmp_path) == ["file"]


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
        assert file_names(folder) == []


def test_a_write_beyond_the_size_that_is_allowed_is_a_clear_error(tmp_path):
    first = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    first += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = run_child(TRY.format(first=first, act="storage.write_bytes(target, b'x' * 5000)"), tmp_path / "a.bin")
    assert done.stdout.startswith(f"StorageError {tmp_path / 'a.bin'}: cannot be written: File too large"), done.stderr
    assert file_names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of 8 kB."""
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
    assert file_names(small_disk) == ["a.bin"]
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
    assert file_names(small_disk) == []


def test_a_download_to_a_full_disk_is_a_clear_error(small_disk, serve):
    server = serve({"/a.bin": bytes(50_000)})
    with pytest.raises(StorageError, match="No space left"):
        storage.fetch(f"{server.url}/a.bin", small_disk / "a.bin")
