"""Make small synthetic archives of one landscape, each in its own folder and in the layout of the real one.

The same arguments give the same bytes.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from kiln.sample.naip import make_naip
from kiln.sample.sentinel2 import make_sentinel2
from kiln.sample.worldcover import DEFAULT_TILES, VERSIONS, make_worldcover

ARCHIVES = ("worldcover", "naip", "sentinel2")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kiln.sample", description=__doc__)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the archives' folders")
    add("--datasets", nargs="+", choices=ARCHIVES, default=list(ARCHIVES), help="which archives (default: all)")
    add("--seed", type=int, default=7, help=f"another seed gives another landscape {default}")
    ppd_help = f"side of a WorldCover tile in pixels, 12000 in the real archive {default}"
    add("--pixels-per-degree", type=int, default=1200, metavar="N", help=ppd_help)
    years_help = f"which WorldCover years of {', '.join(map(str, VERSIONS))} to make (default: all)"
    add("--years", type=int, nargs="+", default=list(VERSIONS), metavar="YEAR", help=years_help)
    tiles_help = "WorldCover tiles by south-west corner; a tile of open sea gets no file (default: "
    tiles_help += f"{' '.join(DEFAULT_TILES)}, of which N44W097 is open sea)"
    add("--tiles", nargs="+", default=list(DEFAULT_TILES), metavar="TILE", help=tiles_help)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Wrong arguments end in a message on stderr and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    makers: dict[str, Callable[..., list[Path]]] = {
        "worldcover": partial(make_worldcover, tiles=args.tiles, years=args.years, ppd=args.pixels_per_degree),
        "naip": make_naip,
        "sentinel2": make_sentinel2,
    }
    with ProcessPoolExecutor(min(len(makers), os.cpu_count() or 1)) as pool:
        jobs = {n: pool.submit(makers[n], args.out / n, seed=args.seed) for n in ARCHIVES if n in args.datasets}
        for name, job in jobs.items():
            try:
                print(f"{name}: {len(job.result())} file(s) written under {args.out / name}")
            except (ValueError, OSError) as error:
                parser.error(str(error))


if __name__ == "__main__":
    main()
