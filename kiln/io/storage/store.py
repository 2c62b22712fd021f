"""The protocol of a store: everything that Kiln needs from a place where files lie."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from kiln.errors import TransientError

CUT_PAUSES_S = (0.2, 1.0)  # before each further try of a body that was cut
T = TypeVar("T")


@dataclass(frozen=True)
class Stat:
    """The version of a file.

    Attributes:
        size: Bytes; -1 where a web server does not give a size.
        etag: ETag without quotes; empty where the store has none, as on a disk.
        modified: Nanoseconds since the epoch of the last change of a local file, or of an object in a listing, else 0.
            Not compared.
    """

    size: int
    etag: str = ""
    modified: int = field(default=0, compare=False)


def read_again_if_cut(read: Callable[[], T]) -> T:
    """Return what `read` returns; after a TransientError it is called again, as often as there are CUT_PAUSES_S.

    The clients of the stores retry requests, but not bodies that break off.
    """
    for pause in CUT_PAUSES_S:
        try:
            return read()
        except TransientError:
            time.sleep(pause)
    return read()


class Store(Protocol):
    """A place where files lie, local or remote.

    Every method raises SourceError (would fail again), AccessError (no permission), TransientError (may work on the
    next try), StorageError (disk or bucket) or ConfigError (no credentials), and names the file.
    """

    def stat(self, uri: str) -> Stat | None:
        """Return the file's version, or None where there is no file."""
        ...

    def listing(self, prefix: str) -> dict[str, Stat]:
        """Return every file below a folder or prefix by its full name, in any order."""
        ...

    def read_bytes(self, uri: str) -> bytes:
        """Return a small file."""
        ...

    def read_range(self, uri: str, first: int, last: int, etag: str) -> tuple[bytes, bool]:
        """Return bytes `first` to `last` inclusive, and True; or all bytes and False from a store without ranges.

        Raises SourceError if the file's ETag is not `etag` any more; an empty `etag` is not compared.
        """
        ...

    def stream(self, uri: str, start: int, etag: str, chunk_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return the first byte's offset, and the bytes in chunks.

        The offset is `start`, or 0 if the store has no ranges or the file's ETag is not `etag` any more.
        """
        ...

    def atomic(self, uri: str) -> AbstractContextManager[Path]:
        """Return a context with a local path; the file appears at `uri` when the block ends without an error."""
        ...

    def delete(self, uri: str) -> None:
        """Delete a file if there is one."""
        ...
