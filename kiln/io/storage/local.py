"""The store of local files. A file is written under a temporary name, synced and renamed."""

import errno
import os
import socket
import stat as stat_
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.errors import SourceError, StorageError
from kiln.io.storage.store import Stat
from kiln.io.storage.uri import join

DISK_ERRNOS = {  # errors of a disk that a person can correct
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class LocalStore:
    """Files on this machine's disks."""

    def stat(self, uri: str) -> Stat | None:
        """Return size and time of change of a file, or None where there is none."""
        with local_errors(uri):
            return _stat_file(Path(uri))

    def listing(self, prefix: str) -> dict[str, Stat]:
        """Return every file below a folder; an empty dict for a missing folder."""
        with local_errors(prefix):
            stats = {path: _stat_file(path) for path in Path(prefix).rglob("*")}
        return {join(prefix, path.relative_to(prefix).as_posix()): stat for path, stat in stats.items() if stat}

    def read_bytes(self, uri: str) -> bytes:
        """Return a small file."""
        with local_errors(uri):
            return Path(uri).read_bytes()

    def read_range(self, uri: str, first: int, last: int, etag: str) -> tuple[bytes, bool]:
        """Return bytes `first` to `last` inclusive, and True; a local file has no ETag."""
        with local_errors(uri), Path(uri).open("rb") as file:
            file.seek(first)
            return file.read(last - first + 1), True

    def stream(self, uri: str, start: int, etag: str, chunk_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return 0 and all bytes in chunks: without an ETag no earlier copy is known to be of this version."""

        def chunks() -> Iterator[bytes]:
            with local_errors(uri), Path(uri).open("rb") as file:
                yield from iter(lambda: file.read(chunk_bytes), b"")

        return 0, chunks()

    @contextmanager
    def atomic(self, uri: str) -> Iterator[Path]:
        """Yield a temporary path in the target's folder; sync and rename it at the end of the block."""
        target = Path(uri)
        partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.partial")
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _delete_stale_partials(target)
            partial.touch()
            try:
                yield partial
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def delete(self, uri: str) -> None:
        """Delete a file if there is one."""
        with local_errors(uri):
            Path(uri).unlink(missing_ok=True)


@contextmanager
def local_errors(uri: str) -> Iterator[None]:
    """Raise SourceError for a missing file and StorageError for other errors of the disk."""
    try:
        yield
    except FileNotFoundError as e:
        raise SourceError(f"{uri}: does not exist") from e
    except OSError as e:
        raise StorageError(f"{uri}: {e.strerror or e}") from e


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Raise StorageError for an error of the disk while `target` is written."""
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_ERRNOS:
            raise
        raise StorageError(
            f"{target}: cannot be written: {os.strerror(e.errno)}. Choose another place, or free it."
        ) from e


def _stat_file(path: Path) -> Stat | None:
    """Return a file's Stat, or None for anything else; other processes may rename and delete at the same time."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stat(status.st_size, modified=status.st_mtime_ns) if stat_.S_ISREG(status.st_mode) else None


def _delete_stale_partials(target: Path) -> None:
    """Delete partial files of `target` that killed processes of this machine left."""
    for partial in target.parent.glob(f".{target.name}.{socket.gethostname()}.*.partial"):
        pid = partial.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            partial.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process of another user
        return True
    return True
