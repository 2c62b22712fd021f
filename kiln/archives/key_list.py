"""Lists of keys, from which plans of archives come: opening them, and reporting the lines that are no scene."""

import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from kiln.errors import ConfigError, SourceError
from kiln.io import storage
from kiln.io.text_table import shorten

GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"
UNPACK_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)  # of damaged archives
MAX_REPORTED = 50  # kinds and lines that a report names
PLAIN_NAME = re.compile(r"[\w.-]{1,80}", re.ASCII)  # a folder or file that a report may name


@contextmanager
def open_lines(uri: str, label: str) -> Iterator[Iterable[str]]:
    """Open a text file for reading line by line.

    Args:
        uri: Path, s3://, http:// or https:// of a file: plain, gzip, or a zip, of which the largest file is read.
        label: The config key that names the file, for errors.

    Yields:
        The lines. Bytes that are no UTF-8 are replaced.

    Raises:
        ConfigError: If the file does not exist, is truncated or cannot be unpacked.
        TransientError: If its store is busy.
    """
    try:
        with storage.local_copy(uri) as path, path.open("rb") as raw:
            yield io.TextIOWrapper(_unpack(raw, f"{label} {uri}"), encoding="utf-8-sig", errors="replace")
    except SourceError as e:
        raise ConfigError(f"{label} {e}") from e
    except UNPACK_ERRORS as e:
        raise ConfigError(f"{label} {uri}: truncated or damaged ({e}). Download it again.") from e


def _unpack(raw: IO[bytes], where: str) -> Any:
    """Return the stream of the text. Raises ConfigError for a zip of an unknown kind."""
    magic = raw.read(4)
    raw.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return gzip.open(raw)
    if magic != ZIP_MAGIC:
        return raw
    archive = zipfile.ZipFile(raw)
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    try:
        return archive.open(max(files, key=lambda entry: entry.file_size))
    except RuntimeError as e:  # zipfile's error for a password; for an unknown compression, a kind of it
        raise ConfigError(f"{where}: expected a zip that can be unpacked, got {e}. Unpack it first.") from e


def cut_off(line: str) -> bool:
    """Return whether a list may have been cut off in its last line: text without an end of line."""
    return bool(line.strip()) and not line.endswith("\n")


def cut_off_error(where: str, line: str, reason: str) -> ConfigError:
    """Return the error of a list whose last line has no end and is incomplete for the reason given."""
    return ConfigError(
        f"{where}: expected a complete list, got {shorten(line.strip())!r} as its last line, without an end of line "
        f"({reason}). Download it again. If it is complete, end its last line."
    )


def extension(name: str) -> str:
    """Return a file's extension as `.tif`, or `without extension`."""
    _, dot, text = name.rpartition(".")
    return f".{text}" if dot and PLAIN_NAME.fullmatch(text) and len(text) < 9 else "without extension"


def report_kinds(kinds: Counter[str]) -> list[str]:
    """Return a line for each of the most frequent kinds of lines that are no scene."""
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return [f"{count:,} x {kind}" for kind, count in ordered[:MAX_REPORTED]]


def report_lines(problem: str, lines: Sequence[str]) -> list[str]:
    """Return the first lines that have a problem, each after its name, and the number of further ones."""
    report = [f"{problem}: {line}" for line in lines[:MAX_REPORTED]]
    if (more := len(lines) - MAX_REPORTED) > 0:
        report.append(f"{problem}: {more:,} more")
    return report
