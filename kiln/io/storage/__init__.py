"""Files by their URI: local paths and `s3://` are read and written alike, `http(s)://` is read.

A write is atomic: a file appears with all its bytes, or not at all.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.errors import AddressError, SourceError, TransientError
from kiln.io.storage.http import HttpStore
from kiln.io.storage.local import DISK_ERRNOS, LocalStore, write_errors
from kiln.io.storage.s3 import S3Store, require_conditional_put, s3_client, s3_errors, s3_keys, s3_settings
from kiln.io.storage.store import Stat, Store, read_again_if_cut
from kiln.io.storage.temporary import TemporaryFolder, check_free_space, temporary_folder
from kiln.io.storage.traffic import COUNTER, Traffic
from kiln.io.storage.uri import is_http, is_remote, is_s3, join, split_s3

__all__ = [
    "DISK_ERRNOS", "Stat", "Store", "TemporaryFolder", "Traffic", "atomic", "check_free_space", "delete", "fetch",
    "is_http", "is_remote", "is_s3", "join", "listing", "local_copy", "read_bytes", "require_conditional_put",
    "s3_client", "s3_errors", "s3_keys", "s3_settings", "sha256", "split_s3", "stat", "store_of",
    "temporary_folder", "traffic", "write_bytes", "write_errors",
]  # fmt: skip

MAX_ADDRESS_CHARS = 4096  # a path or key is shorter everywhere
MAX_SHOWN_CHARS = 80
CHUNK_BYTES = 4 << 20  # of a download, held in memory

_LOCAL, _HTTP, _S3 = LocalStore(), HttpStore(), S3Store()


def store_of(uri: str) -> Store:
    """Return the store that holds `uri`. Raises AddressError for an address that no store can have."""
    text = str(uri)
    if "\0" in text or len(text) > MAX_ADDRESS_CHARS:
        shown = repr(text[:MAX_SHOWN_CHARS])
        raise AddressError(f"{shown}: expected an address of printable text, got {len(text)} characters. Correct it.")
    if is_s3(uri):
        return _S3
    if is_http(uri):
        return _HTTP
    if "://" in text:
        raise AddressError(f"{uri}: expected a path, s3://, http:// or https://, got another scheme. Correct it.")
    return _LOCAL


def stat(uri: str) -> Stat | None:
    """Return a file's size and ETag.

    Args:
        uri: Path, s3://, http:// or https://.

    Returns:
        The Stat, or None where there is no file.

    Raises:
        AccessError: If access is denied.
        ConfigError: If there are no credentials, or the scheme is unknown.
        StorageError: If the disk or bucket fails.
        TransientError: If the connection fails or the store is overloaded.
    """
    return store_of(uri).stat(uri)


def listing(prefix: str) -> dict[str, Stat]:
    """Return every file below a folder or S3 prefix by its full name, sorted. Raises StorageError for http."""
    return dict(sorted(store_of(prefix).listing(prefix).items()))


def read_bytes(uri: str) -> bytes:
    """Return a small file. Raises SourceError where there is none, else as `stat`."""
    return store_of(uri).read_bytes(uri)


@contextmanager
def atomic(uri: str) -> Iterator[Path]:
    """Yield a local path to write to, which becomes `uri` at the end of the block.

    Args:
        uri: Path or s3:// of the file.

    Yields:
        The local path. After an error in the block it is deleted, and `uri` is as it was.

    Raises:
        StorageError: If the disk is full, or the place cannot be written.
    """
    with store_of(uri).atomic(uri) as path:
        yield path


def write_bytes(uri: str, data: bytes) -> None:
    """Write a small file atomically. Raises as `atomic`."""
    with atomic(uri) as path:
        path.write_bytes(data)


def delete(uri: str) -> None:
    """Delete a file if there is one. Raises as `stat`; StorageError for http."""
    store_of(uri).delete(uri)


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Yield a path to the file on this machine: the file itself, or a download that is deleted after the block.

    Raises SourceError where there is no file, StorageError where TMPDIR is full, else as `fetch`.
    """
    if not is_remote(uri):
        if stat(uri) is None:
            raise SourceError(f"{uri}: does not exist")
        yield Path(uri)
        return
    with temporary_folder() as folder:
        path = Path(folder) / Path(uri).name
        fetch(uri, path)
        yield path


def fetch(uri: str, path: Path) -> None:
    """Copy a file to `path`; an interrupted download of the same version is resumed.

    A partial file is resumed only if `<path>.etag` holds the ETag of the file's present version. A server without
    ETags or ranges is read from the start.

    Args:
        uri: Path, s3://, http:// or https://.
        path: Where the copy goes. Its folder is created.

    Raises:
        SourceError: If there is no such file, or it changed while it was read.
        StorageError: If `path` cannot be written.
        TransientError: If the download breaks off again and again. The next call resumes it.
    """
    read_again_if_cut(lambda: _fetch_once(uri, path))


def _fetch_once(uri: str, path: Path) -> None:
    """Fetch a file, or the rest of it. Raises as `fetch`."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        source = stat(uri)
        if source is None:
            raise SourceError(f"{uri}: does not exist")
        etag_file = path.with_name(path.name + ".etag")
        start = path.stat().st_size if path.exists() else 0
        if not (source.etag and start <= source.size and etag_file.exists() and etag_file.read_text() == source.etag):
            start = 0
        etag_file.write_text(source.etag)
        if start == 0:
            path.write_bytes(b"")
        if start != source.size:
            offset, chunks = store_of(uri).stream(uri, start, source.etag, CHUNK_BYTES)
            with path.open("rb+") as file:
                file.truncate(offset)
                file.seek(offset)
                try:
                    for chunk in chunks:
                        file.write(chunk)
                except TransientError:
                    if file.tell() == source.size:  # all came, and does not fit the store's checksum: not to be resumed
                        etag_file.unlink()
                    raise
        size = path.stat().st_size
        if source.size >= 0 and size != source.size:
            raise TransientError(f"{uri}: expected {source.size} bytes, got {size}. Run again to resume the download.")
        etag_file.unlink()


def traffic() -> Traffic:
    """Return the answered requests to stores, and the bytes read with them, since the process began."""
    return COUNTER.total


def sha256(path: Path) -> str:
    """Return the sha256 of a local file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
