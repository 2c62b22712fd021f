"""The tiles of ESA WorldCover's composites: their names, addresses, and which of them exist.

Archive layout: `{root}/{year}/{N37}/ESA_WorldCover_10m_{version}_{N37W122}_S2RGBNIR.tif`, named after the tile's
south-west corner; uint16 R G B NIR, EPSG:4326, nodata 0. A tile that does not exist is open sea: nodata.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.errors import ConfigError, SourceError
from kiln.io import storage

VERSIONS = {2020: "2020_v100", 2021: "2021_v200"}
TILE_NAME = r"^[NS]\d{2}[EW]\d{3}$"
REQUEST_THREADS = 16


@dataclass(frozen=True)
class Tile:
    """A tile that exists, as the plan recorded it."""

    name: str
    uri: str
    size: int
    etag: str = ""

    @property
    def corner(self) -> tuple[int, int]:
        """West and north edge in degrees."""
        west, south = tile_corner(self.name)
        return west, south + 1


def tile_name(west: int, south: int) -> str:
    """Return the name of a tile, as `N37W122`, from its south-west corner in degrees."""
    return f"{'NS'[south < 0]}{abs(south):02d}{'EW'[west < 0]}{abs(west):03d}"


def tile_corner(name: str) -> tuple[int, int]:
    """Return the south-west corner (west, south) in degrees from a tile's name."""
    south, west = int(name[1:3]), int(name[4:7])
    return (-west if name[3] == "W" else west), (-south if name[0] == "S" else south)


def tile_uri(root: str, year: int, name: str) -> str:
    """Return a tile's address. Raises ConfigError for a year without a composite."""
    if year not in VERSIONS:
        raise ConfigError(f"worldcover.years: expected {' or '.join(map(str, VERSIONS))}, got {year}. Correct it.")
    return storage.join(root, str(year), name[:3], f"ESA_WorldCover_10m_{VERSIONS[year]}_{name}_S2RGBNIR.tif")


def touched_tiles(lattice: Lattice, columns: Sequence[Column]) -> list[str]:
    """Return the names of the tiles that the columns' chips touch, north-west first, whether they exist or not."""
    degrees: set[tuple[int, int]] = set()
    for c in columns:
        x, y = lattice.x(c.col), lattice.y(c.row)
        wests = range(x // lattice.ppd, (x + lattice.chip - 1) // lattice.ppd + 1)
        norths = range(y // lattice.ppd, (y + c.rows * lattice.chip - 1) // lattice.ppd + 1)
        degrees.update(itertools.product(norths, wests))
    return [tile_name(w - 180, 89 - n) for n, w in sorted(degrees)]


def find_tiles(root: str, year: int, names: Sequence[str]) -> list[Tile]:
    """Return those of the named tiles that exist.

    Args:
        root: Root of the archive. A bucket or folder is listed once; over http each tile is requested.
        year: Year of the composite.
        names: Names of the tiles.

    Returns:
        The tiles, with their sizes and ETags.

    Raises:
        ConfigError: If the archive lacks the year, or is not at the root.
        TransientError: If the store is busy.
    """
    uris = {tile_uri(root, year, name): name for name in names}
    folder = storage.join(root, str(year))
    stats: Mapping[str, storage.Stat | None]
    if storage.is_http(root):
        with ThreadPoolExecutor(REQUEST_THREADS) as pool:
            stats = dict(zip(uris, pool.map(storage.stat, uris), strict=True))
    else:
        try:
            stats = storage.listing(folder)
        except SourceError as e:
            raise ConfigError(f"worldcover.archive: no composite of {year}: {e}") from e
        if not stats:
            raise ConfigError(
                f"worldcover.archive: expected tiles in {folder}, got none. Set the folder that holds the years."
            )
    return [Tile(name, uri, stat.size, stat.etag) for uri, name in uris.items() if (stat := stats.get(uri))]
