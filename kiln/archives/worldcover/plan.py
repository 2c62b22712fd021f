"""Plan WorldCover: which columns of which shards a year's run does, and which tiles exist.

Writes one line of JSON per shard: its name, units and tiles with size and ETag. The archive is listed once (or, over
http, asked for each tile once); nothing else of Kiln looks for tiles. The plan depends on region and archive alone.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

from kiln.archives.worldcover.lattice import NATIVE, Lattice, Shard, region_columns, shards, unit_id
from kiln.archives.worldcover.source import Tile, find_tiles, touched_tiles
from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io import storage

log = logging.getLogger(__name__)


def region_argument(text: str) -> str | list[float]:
    """`conus`, or `west,south,east,north` in degrees."""
    if text == "conus":
        return text
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: want conus or west,south,east,north") from None


def plan(
    archive: str, year: int, region: str | Sequence[float], chip: int, ppd: int, per_shard: int, encode: str = "whole"
) -> list[dict[str, Any]]:
    """A year's shards in order, each with what a job needs to know.

    `columns` are [col, row, rows] of the lattice; `tiles` are [name, uri, size in bytes, etag]; `expected` counts the
    rows there can be, nodata included, `bytes` what is read of the tiles, by their share of width.
    Raises ConfigError for an empty region or a year or archive that is not there.
    """
    lattice = Lattice(chip, ppd)
    columns = region_columns(lattice, region)
    found = {t.name: t for t in find_tiles(archive, year, touched_tiles(lattice, columns))}
    lines = []
    for shard in shards(lattice, year, columns, per_shard):
        tiles = [found[n] for n in touched_tiles(lattice, shard.columns) if n in found]
        wide = sum(t.size * _share(lattice, shard, t) for t in tiles)
        lines.append(
            {
                "dataset": "worldcover",
                "shard": shard.name,
                "partition": str(year),
                "units": [unit_id(lattice, year, c) for c in shard.columns],
                "columns": [[c.col, c.row, c.rows] for c in shard.columns],
                "tiles": [[t.name, t.uri, t.size, t.etag] for t in tiles],
                "archive": archive,
                "year": year,
                "chip": chip,
                "ppd": ppd,
                "encode": encode,
                "expected": sum(c.rows for c in shard.columns) * (4 if encode == "quarters" else 1),
                "bytes": round(wide),
            }
        )
    return lines


def _share(lattice: Lattice, shard: Shard, tile: Tile) -> float:
    """Share of a tile's width that a shard's columns take."""
    left = (tile.corner[0] + 180) * lattice.ppd
    west, east = lattice.x(shard.columns[0].col), lattice.x(shard.columns[-1].col + 1)
    return (min(east, left + lattice.ppd) - max(west, left)) / lattice.ppd


def main(argv: list[str] | None = None) -> None:
    """Write the plan of one year."""
    p = command_line.parser(__doc__, "kiln.archives.worldcover.plan")
    p.add_argument("--archive", required=True, help="folder, s3:// or https:// root that holds the years' folders")
    p.add_argument("--year", type=int, required=True, help="2020 or 2021")
    p.add_argument("--region", type=region_argument, required=True, help="conus, or west,south,east,north in degrees")
    p.add_argument("--chip-size", type=int, default=512, help="pixels of a chip's side")
    p.add_argument("--pixels-per-degree", type=int, default=NATIVE, help="of the archive")
    p.add_argument("--encode", choices=("whole", "quarters"), default="whole", help="a chip as one row, or as four")
    p.add_argument("--columns-per-shard", type=int, default=8, help="neighbouring columns one job does")
    p.add_argument("--output", required=True, help="path or s3:// of the plan, one JSON line per shard")
    args = p.parse_args(argv)

    def work() -> None:
        if args.columns_per_shard < 1:
            raise ConfigError(f"columns per shard is {args.columns_per_shard}: want 1 or more")
        lines = plan(
            args.archive,
            args.year,
            args.region,
            args.chip_size,
            args.pixels_per_degree,
            args.columns_per_shard,
            args.encode,
        )
        tiles = {t[0] for line in lines for t in line["tiles"]}
        log.info("%d: %d shards, %d tiles exist", args.year, len(lines), len(tiles))
        if not tiles:
            log.warning("no tile of %s lies in the region: every column will be empty", args.archive)
        storage.write_bytes(args.output, "".join(json.dumps(x, sort_keys=True) + "\n" for x in lines).encode())

    command_line.run(work)


if __name__ == "__main__":
    main()
