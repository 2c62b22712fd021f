"""Copies of remote files in TMPDIR: a full or missing folder is an error that names it, not the file's address."""

import resource
import tempfile

import pytest

from kiln.archives.key_list import open_lines
from kiln.errors import StorageError
from kiln.io import storage
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


def test_without_any_folder_for_temporary_files_the_error_says_so(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(StorageError, match=r"^TMPDIR: expected a folder that can be written, got none"):
        storage.temporary_folder()
