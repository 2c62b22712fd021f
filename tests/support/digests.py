"""Digests of files, to compare folders byte by byte."""

import hashlib
from pathlib import Path


def digests(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file in a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
