"""A file to download, and the files and requests that a download leaves."""

from pathlib import Path

DATA = bytes(range(256)) * 2000  # 512 000 bytes, and no two offsets of a chunk alike


def file_names(folder: Path) -> list[str]:
    """Return the names of all files below a folder."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def requested_ranges(server) -> list[str | None]:
    """Return the Range headers of the GET requests."""
    return [header for method, _, header in server.requests if method == "GET"]
