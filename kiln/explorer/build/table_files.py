"""Digests of the files of a database, written when a version is tagged, so that rot can be found later.

The files of a LanceDB table have no checksums. On a disk their sha256 is taken; a store has ETags. Of a database that
was copied from a store to a disk, sizes are compared.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiln.errors import SourceError
from kiln.explorer.database import TABLE
from kiln.formats.json_digest import read_with_digest, with_digest
from kiln.io import storage


def digests_uri(db: str, version: int) -> str:
    """Return the path or s3:// of the digests of a version."""
    return storage.join(db, "state", f"{version}-files.json")


def newest_version(db: str) -> int:
    """Return the newest version whose digests were written; 0 if there is none."""
    names = [uri.rpartition("/")[2].partition("-files.json") for uri in storage.listing(storage.join(db, "state"))]
    return max((int(number) for number, end, _ in names if end and number.isdigit()), default=0)


def write_file_digests(db: str, version: int) -> None:
    """Write the digests of all files of the table, and of the state of a version."""
    files = storage.listing(storage.join(db, f"{TABLE}.lance")) | {
        uri: stat for uri, stat in storage.listing(storage.join(db, "state")).items() if uri != digests_uri(db, version)
    }
    digests = {uri.removeprefix(storage.join(db, "")): _content(uri, stat) for uri, stat in sorted(files.items())}
    storage.write_bytes(digests_uri(db, version), (json.dumps(with_digest(digests), indent=0) + "\n").encode())


def read_file_digests(db: str, version: int) -> dict[str, dict[str, Any]] | None:
    """Return the digests of a version's files by name below the database; None if an older Kiln built it.

    Raises:
        SourceError: The digests are damaged.
    """
    uri = digests_uri(db, version)
    if storage.stat(uri) is None:
        return None
    try:
        return read_with_digest(storage.read_bytes(uri))
    except ValueError as e:
        raise SourceError(f"{uri}: expected digests of files, got a damaged file ({str(e)[:120]}).") from e


def damaged_files(db: str, digests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what is wrong with files of a database, by their path or s3://."""
    present = storage.listing(db)
    problems = {}
    for name, written in digests.items():
        uri = storage.join(db, name)
        if uri not in present:
            problems[uri] = "expected a file of the database, got none."
        elif present[uri].size != written["size"]:
            problems[uri] = f"expected {written['size']} bytes, got {present[uri].size}."
        elif not _has_content(uri, present[uri], written):
            problems[uri] = "expected the file that was written, got one with another digest."
    return problems


def _content(uri: str, stat: storage.Stat) -> dict[str, Any]:
    """Return size and digest of a file."""
    return {"size": stat.size} | ({"etag": stat.etag} if stat.etag else {"sha256": storage.sha256(Path(uri))})


def _has_content(uri: str, stat: storage.Stat, written: Mapping[str, Any]) -> bool:
    """Return whether a file has its digest, as far as that can be seen."""
    if "sha256" in written:
        with storage.local_copy(uri) as path:
            return bool(storage.sha256(path) == written["sha256"])
    return bool(not stat.etag or stat.etag == written["etag"])
