"""Folders for temporary files below TMPDIR, and the space that is free there.

A live folder is locked by the process that made it. Unlocked ones are leftovers of killed processes, and are deleted
when the next folder is made.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from kiln.errors import StorageError
from kiln.io.text_table import format_bytes

PREFIX = "kiln-"  # of all folders
MARKER = ".kiln-temporary"  # a file in each of them, since other folders may have such names too
LOCKED_AFTER_S = 60.0  # from its making a folder is locked, by far
log = logging.getLogger(__name__)


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A new folder below TMPDIR. A `with` block deletes it."""

    def __init__(self, prefix: str = PREFIX) -> None:
        """Create the folder, and delete leftovers of killed processes. Raises StorageError if none can be made."""
        self._lock = -1
        try:
            super().__init__(prefix=prefix)
            (Path(self.name) / MARKER).touch()
            self._lock = os.open(self.name, os.O_RDONLY)
        except OSError as e:  # FileNotFoundError too, where no folder for temporary files can be written
            raise StorageError(
                f"TMPDIR: expected a folder that can be written, got {e.filename or 'none'} ({e.strerror}). "
                "Set TMPDIR to a folder with free space."
            ) from e
        with contextlib.suppress(OSError):  # a file system without locks: leftovers and live folders look alike
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete_leftovers(Path(self.name).parent)

    def cleanup(self) -> None:
        """Delete the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        super().cleanup()


def temporary_folder(prefix: str = PREFIX) -> TemporaryFolder:
    """Return a new folder below TMPDIR, which a `with` block deletes. Raises StorageError if none can be made."""
    return TemporaryFolder(prefix)


def check_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise StorageError unless a folder's disk has space for temporary files.

    Args:
        folder: A folder below TMPDIR.
        needed_bytes: Bytes that are needed, about.
        purpose: What for, as `to sort 1,000 rows`.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise StorageError(
            f"TMPDIR {folder.parent}: expected {format_bytes(needed_bytes)} of free space {purpose}, got "
            f"{format_bytes(free)}. Free some, or set TMPDIR to a folder on a larger disk."
        )


def _delete_leftovers(home: Path) -> None:
    """Delete the folders of this user that no process holds."""
    for folder in home.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone, or of another process that deletes it
            status = folder.lstat()
            is_own = not folder.is_symlink() and (folder / MARKER).is_file() and status.st_uid == os.getuid()
            if is_own and time.time() - status.st_ctime > LOCKED_AFTER_S and _is_free(folder):
                log.warning("%s: deleted, since the process that made it was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)


def _is_free(folder: Path) -> bool:
    """Return whether no process holds a folder's lock."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
