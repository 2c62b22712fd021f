"""Make small synthetic archives of one landscape, so that demo and tests need no network.

They have the layouts of the real ones: the ESA WorldCover Sentinel-2 composites, the NAIP bucket and the bucket of
Sentinel-2 scenes. The same arguments give the same bytes.
"""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from kiln.sample import landscape as land
from kiln.sample.files import write_cog
from kiln.sample.naip import make_naip
from kiln.sample.sentinel2 import make_sentinel2

DATASETS = ("worldcover", "naip", "sentinel2")
VERSIONS = {2020: "v100", 2021: "v200"}
# Two by two degrees; N44W097 is open sea, and open sea has no file.
DEFAULT_TILES = ("N43W097", "N43W096", "N44W097", "N44W096")
MARGIN = 2  # pixels computed around a tile, so that slopes and blur do not end at its border


def _version(year: int) -> str:
    if year not in VERSIONS:
        known = " or ".join(map(str, VERSIONS))
        raise ValueError(f"year {year}: there is no WorldCover composite of it; choose {known}")
    return VERSIONS[year]


def landscape(lon: float, lat: float, ppd: int, year: int, seed: int) -> np.ndarray:
    """Draw the tile whose south-west corner is at lon, lat (degrees), ppd pixels a degree.

    Returns [4, ppd, ppd] uint16: red, green, blue and near infrared digital numbers, north up. Open sea is 0
    in all bands; everything else is at least 1. A year not in VERSIONS or a ppd below 16 is a ValueError.
    """
    return composites(lon, lat, ppd, [year], seed)[0]


def composites(lon: float, lat: float, ppd: int, years: Sequence[int], seed: int) -> np.ndarray:
    """`landscape` in several years, [years, 4, ppd, ppd]: what stays from year to year is worked out once."""
    for year in years:
        _version(year)
    if ppd < 16:
        raise ValueError(f"{ppd} pixels per degree are too few to draw a tile; take 16 or more")
    span = np.arange(-MARGIN, ppd + MARGIN)
    columns, rows = (round(lon * ppd) + span)[None], (round((lat + 1) * ppd) - 1 - span)[:, None]
    grid = land.Grid((columns + 0.5) / ppd, (rows + 0.5) / ppd, (ppd, ppd), seed)
    images, coast = land.draw(grid, years)
    for image, year in zip(images, years, strict=True):
        image *= 0.95 + 0.10 * land.rand(columns, rows, seed * 1009 + year)
        for axis in (1, 2):  # the sensor's blur
            image[:] = 0.5 * image + 0.25 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
        if year != min(VERSIONS):
            image *= np.array([1.02, 1.0, 0.97, 1.05], np.float32)[:, None, None]
    images = np.where(coast < land.DEEP_SEA, 0, np.clip(np.rint(images), 1, 65535))
    return images[..., MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.uint16)


def tile_corner(name: str) -> tuple[int, int]:
    """Read the south-west corner, longitude and latitude in degrees, from a tile name such as N43W002."""
    match = re.fullmatch(r"(N|S(?!00))(\d\d)(E|W(?!000))(\d{3})", name)
    if match:
        lat = int(match[2]) if match[1] == "N" else -int(match[2])
        lon = int(match[4]) if match[3] == "E" else -int(match[4])
        if -90 <= lat < 90 and -180 <= lon < 180:
            return lon, lat
    raise ValueError(
        f"tile name {name!r} is malformed; write the south-west corner as N or S with two digits, "
        "then E or W with three, such as N43W002 or S05E006"
    )


def make_archive(out: Path, *, tiles: Iterable[str], years: Iterable[int], ppd: int, seed: int) -> list[Path]:
    """Write a GeoTIFF for each year and tile under out/rgbnir and return their paths.

    As in the real archive, a tile without a valid pixel gets no file. Files are replaced whole, never
    half-written. A malformed tile name or an unknown year is a ValueError before anything is written.
    """
    corners = {name: tile_corner(name) for name in tiles}
    versions = {year: _version(year) for year in years}
    written = []
    for name, (lon, lat) in corners.items():
        for (year, version), image in zip(
            versions.items(), composites(lon, lat, ppd, list(versions), seed), strict=True
        ):
            if image.any():
                file = f"ESA_WorldCover_10m_{year}_{version}_{name}_S2RGBNIR.tif"
                path = out / "rgbnir" / str(year) / name[:3] / file
                written.append(write_cog(path, image, "EPSG:4326", lon, lat + 1, 1 / ppd, nodata=0))
    return sorted(written)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; bad input ends in a message on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m kiln.sample.make",
        description="Make small synthetic archives of one landscape, each in its own folder and the real one's layout.",
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--out", type=Path, required=True, metavar="DIR", help="where to put the archives' folders")
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="which archives (default: all)")
    add("--seed", type=int, default=7, help=f"another number gives another landscape {default}")
    ppd_help = f"side of a WorldCover tile in pixels, 12000 in the real archive {default}"
    add("--pixels-per-degree", type=int, default=1200, metavar="N", help=ppd_help)
    years_help = f"which WorldCover years of {', '.join(map(str, VERSIONS))} to make (default: all)"
    add("--years", type=int, nargs="+", default=list(VERSIONS), metavar="YEAR", help=years_help)
    tiles_help = "WorldCover tiles by south-west corner; those of open sea alone get no file (default: "
    tiles_help += f"{' '.join(DEFAULT_TILES)}, of which N44W097 is open sea)"
    add("--tiles", nargs="+", default=list(DEFAULT_TILES), metavar="TILE", help=tiles_help)
    args = parser.parse_args(argv)
    makers = {
        "worldcover": partial(make_archive, tiles=args.tiles, years=args.years, ppd=args.pixels_per_degree),
        "naip": make_naip,
        "sentinel2": make_sentinel2,
    }
    with ProcessPoolExecutor(min(len(makers), os.cpu_count() or 1)) as pool:
        jobs = {n: pool.submit(makers[n], args.out / n, seed=args.seed) for n in DATASETS if n in args.datasets}
        for name, job in jobs.items():
            try:
                print(f"{name}: {len(job.result())} file(s) written under {args.out / name}")
            except (ValueError, OSError) as error:
                parser.error(str(error))


if __name__ == "__main__":
    main()
