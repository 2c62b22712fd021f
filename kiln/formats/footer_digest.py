"""The digest of a Parquet file's footer, which the footer itself holds.

Parquet has checksums for pages, and none for the footer. A flipped bit there would give other metadata, or statistics
that hide rows, without an error. The digest stands in an entry of the footer's metadata, and is computed with zeros in
its place. A file without it, as of another writer or of an older Kiln, is not checked.
"""

import hashlib
import re
from pathlib import Path
from typing import IO, Any

from kiln.errors import SourceError

KEY = "kiln:footer_sha256"  # entry of the metadata
TAIL = 8  # bytes after the footer: its length and MAGIC
MAGIC = b"PAR1"
READ_BYTES = 64 << 10  # read at the end of a file, where the footer mostly is
PLACEHOLDER = f"{0:010d}:{0:064d}"  # length of the footer, and its digest
_ENTRY = re.compile(rb"%s..(\d{10}):([0-9a-f]{64})" % KEY.encode(), re.DOTALL)  # two bytes of Thrift between them


def write_footer_digest(path: Path) -> None:
    """Write the digest into a closed file whose metadata has the entry KEY with PLACEHOLDER."""
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        footer = read_raw_footer(file, size, str(path))
        entry = _ENTRY.search(footer)
        assert entry, f"{path}: the footer has no place for a digest"
        value = f"{len(footer):010d}:{hashlib.sha256(footer).hexdigest()}"
        file.seek(size - TAIL - len(footer) + entry.start(1))
        file.write(value.encode())


def read_raw_footer(stream: IO[bytes] | Any, size: int, where: str) -> bytes:
    """Return the bytes of a footer, mostly with one read.

    Args:
        stream: The open file.
        size: Its bytes.
        where: Name of the file.

    Raises:
        SourceError: If the file does not end as a Parquet file.
    """
    start = max(0, size - READ_BYTES)
    stream.seek(start)
    end = stream.read(size - start)
    length = int.from_bytes(end[-TAIL:-4], "little")
    if len(end) < TAIL or end[-4:] != MAGIC or length + TAIL > size:
        raise SourceError(f"{where}: expected a Parquet file, got a damaged one (it is truncated, or of another kind).")
    if length + TAIL > len(end):
        first = size - TAIL - length
        stream.seek(first)
        end = stream.read(start - first) + end
    return bytes(end[len(end) - TAIL - length : -TAIL])


def check_footer_digest(footer: bytes, where: str) -> None:
    """Raise SourceError if the bytes of a footer do not have the digest that they hold.

    A digest of a footer of another length was copied by another program with the metadata, and is ignored.
    """
    entry = _ENTRY.search(footer)
    if entry is None or int(entry[1]) != len(footer):
        return
    blank = footer[: entry.start(1)] + PLACEHOLDER.encode() + footer[entry.end(2) :]
    if hashlib.sha256(blank).hexdigest() != entry[2].decode():
        raise SourceError(f"{where}: expected a Parquet file, got a damaged one (its footer has another digest).")
