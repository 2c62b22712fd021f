"""The plan of WorldCover: the columns of each shard, and the tiles that exist.

The archive is listed once per year (over http, each tile is requested once). The plan depends on region and archive
alone.
"""

import logging
from collections.abc import Iterator

from kiln.archives.worldcover import ARCHIVE
from kiln.archives.worldcover.config import Config
from kiln.archives.worldcover.lattice import Lattice, Shard, region_columns, shards, unit_id
from kiln.archives.worldcover.tiles import Tile, find_tiles, touched_tiles
from kiln.formats.plan_file import ShardPlan

BLOCK_PX = 512  # side of a tile's largest blocks; a block is read as a whole
PIXEL_BYTES = 8  # of four bands of uint16
HEADER_BYTES = 1 << 16  # of a tile, at most
log = logging.getLogger(__name__)


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the region's columns.

    Args:
        config: The archive's section of the config.

    Yields:
        The shards, year by year, west to east. `expected` counts the rows that there can be, nodata included.
        `read_bytes` counts the tiles' blocks as if they were not compressed, and of no tile more than its size.
        `details` holds `year`, `columns` ([col, row, rows] of the lattice) and `tiles` ([name, uri, size in bytes,
        etag]).

    Raises:
        ConfigError: If the region is empty, or a year or archive does not exist.
    """
    lattice = Lattice(config.chip_size, config.pixels_per_degree)
    columns = region_columns(lattice, config.region)
    for year in config.years:
        tiles = {t.name: t for t in find_tiles(config.archive, year, touched_tiles(lattice, columns))}
        log.info("%d: %d tiles exist", year, len(tiles))
        if not tiles:
            log.warning("%s: no tile lies in the region. Every column of %d will be empty.", config.archive, year)
        for shard in shards(lattice, year, columns, config.columns_per_shard):
            touched = [tiles[n] for n in touched_tiles(lattice, shard.columns) if n in tiles]
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=str(year),
                name=shard.name,
                units=tuple(unit_id(lattice, year, c) for c in shard.columns),
                chip_size=lattice.chip,
                expected=sum(c.rows for c in shard.columns) * (4 if config.encode == "quarters" else 1),
                read_bytes=sum(_most_bytes(lattice, shard, t) for t in touched),
                archive=config.archive,
                details={
                    "year": year,
                    "columns": [[c.col, c.row, c.rows] for c in shard.columns],
                    "tiles": [[t.name, t.uri, t.size, t.etag] for t in touched],
                },
            )


def _most_bytes(lattice: Lattice, shard: Shard, tile: Tile) -> int:
    """Return the most bytes of a tile that a shard reads: of the whole blocks that its columns touch, uncompressed."""
    left = (tile.corner[0] + 180) * lattice.ppd
    first, last = lattice.x(shard.columns[0].col) - left, lattice.x(shard.columns[-1].col + 1) - left
    west = max(first, 0) // BLOCK_PX * BLOCK_PX
    east = min(-(-min(last, lattice.ppd) // BLOCK_PX) * BLOCK_PX, lattice.ppd)
    return min(tile.size, HEADER_BYTES + (east - west) * lattice.ppd * PIXEL_BYTES)
