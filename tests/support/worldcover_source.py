"""Sources of small WorldCover archives, and their events."""

from pathlib import Path
from typing import Any

from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.archives.worldcover.source import WorldCoverSource
from kiln.archives.worldcover.tiles import (
    find_tiles,
    touched_tiles,
)
from kiln.engine.read_ahead import read_ahead
from kiln.formats.records import Chip, Dropped


def make_source(
    root: Path | str, lattice: Lattice, columns: list[Column], year: int = 2021, max_nodata: float = 1.0, **more: Any
) -> WorldCoverSource:
    """Return the source of a plan of the current tiles."""
    tiles = find_tiles(str(root), year, touched_tiles(lattice, columns))
    return WorldCoverSource(lattice, year, columns, tiles, root=str(root), max_nodata=max_nodata, **more)


def read_events(source: WorldCoverSource, threads: int = 2, budget: int = 1 << 20) -> list[Chip | Dropped]:
    """Return all events of a source in order."""
    return list(source.chips(read_ahead(source.reads(), threads, budget)))


def chips_of(events: list[Chip | Dropped]) -> list[Chip]:
    return [e for e in events if isinstance(e, Chip)]


def block_options(block: tuple[int, int] | int) -> dict[str, Any]:
    if isinstance(block, int):
        return {"tiled": False, "blockysize": block}
    return {"tiled": True, "blockysize": block[0], "blockxsize": block[1]}
