"""Copies of remote files in TMPDIR: a full or missing folder is an error that names it, not the file's address."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kiln.archives.key_list import open_lines
from kiln.errors import StorageError
from kiln.io import storage
from kiln.io.storage import temporary
from tests import ROOT
from tests.support.downloads import DATA

LIMIT_BYTES = 20_000  # of any file that this process writes


@pytest.fixture
def tmpdir(tmp_path, monkeypatch):
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_files():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_list(uri):
    with open_lines(uri, "manifest") as lines:
        return list(lines)


def test_a_full_folder_is_named_in_place_of_the_address_of_a_manifest(serve, tmpdir, small_files):
    server = serve({"/manifest.txt": DATA, "/short.txt": b"a\nb\n"})
    with pytest.raises(StorageError) as error:
        read_list(f"{server.url}/manifest.txt")
    assert str(error.value).startswith(f"{tmpdir}/kiln-")
    assert "/manifest.txt: cannot be written: File too large. Choose another place, or free it." in str(error.value)
    assert server.url not in str(error.value)
    assert list(tmpdir.iterdir()) == []
    assert read_list(f"{server.url}/short.txt") == ["a\n", "b\n"]


def test_a_missing_folder_is_named_in_place_of_the_address(serve, tmpdir):
    tmpdir.rmdir()
    server = serve({"/manifest.txt": DATA})
    with pytest.raises(StorageError, match=rf"^TMPDIR: expected a folder that can be written, got {tmpdir}/kiln-\S+ "):
        read_list(f"{server.url}/manifest.txt")
    with pytest.raises(StorageError, match=r"^TMPDIR: .*Set TMPDIR to a folder with free space\."):
        storage.temporary_folder()


def make_leftover(tmpdir, *, marked=True):
    """Make a folder as a killed process leaves one."""
    leftover = tmpdir / "kiln-merge-abcd"
    leftover.mkdir()
    if marked:
        (leftover / temporary.MARKER).touch()
    (leftover / "0.arrow").write_bytes(b"rows")
    return leftover


def test_leftovers_of_killed_processes_are_deleted(tmpdir, monkeypatch, caplog):
    leftover = make_leftover(tmpdir)
    with storage.temporary_folder():
        assert leftover.exists(), "it may be of a process that has just made it"
    monkeypatch.setattr(temporary, "LOCKED_AFTER_S", -1.0)
    with storage.temporary_folder() as folder:
        assert sorted(p.name for p in tmpdir.iterdir()) == [Path(folder).name]
    assert f"{leftover}: deleted, since the process that made it was killed" in caplog.text


def test_folders_of_live_processes_and_of_others_stay(tmpdir, monkeypatch):
    monkeypatch.setattr(temporary, "LOCKED_AFTER_S", -1.0)
    other = make_leftover(tmpdir, marked=False)
    code = "from kiln.io import storage\nwith storage.temporary_folder() as f:\n    print(f, flush=True)\n    input()"
    environment = os.environ | {"TMPDIR": str(tmpdir)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, **pipes) as process:
        live = Path(process.stdout.readline().strip())
        with storage.temporary_folder() as mine, storage.temporary_folder():
            assert live.is_dir()
            assert Path(mine).is_dir()
        process.kill()
        process.wait()
    assert live.is_dir()
    with storage.temporary_folder():
        assert not live.exists()
    assert [p.name for p in tmpdir.iterdir()] == [other.name]


def test_without_any_folder_for_temporary_files_the_error_says_so(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(StorageError, match=r"^TMPDIR: expected a folder that can be written, got none"):
        storage.temporary_folder()
