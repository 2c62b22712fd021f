"""A synthetic archive of WorldCover composites: the landscape in tiles of one degree."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiln.sample.files import write_cog
from kiln.sample.grid import PointGrid
from kiln.sample.landscape import DEEP_SEA, draw
from kiln.sample.noise import rand

VERSIONS = {2020: "v100", 2021: "v200"}
# Two by two degrees; N44W097 is open sea, and open sea has no file.
DEFAULT_TILES = ("N43W097", "N43W096", "N44W097", "N44W096")
MIN_PPD = 16
MARGIN = 2  # pixels computed around a tile, so that slopes and blur do not end at its border


def draw_tile(lon: float, lat: float, ppd: int, year: int, seed: int) -> NDArray[np.uint16]:
    """Draw a tile in one year.

    Args:
        lon: Degrees east of the tile's south-west corner.
        lat: Degrees north of that corner.
        ppd: Pixels per degree.
        year: A year of VERSIONS.
        seed: Another seed gives another landscape.

    Returns:
        Digital numbers of red, green, blue and near infrared [4, ppd, ppd], north up. Open sea is 0 in all bands;
        everything else is at least 1.

    Raises:
        ValueError: The year is not in VERSIONS, or `ppd` is below 16.
    """
    tile: NDArray[np.uint16] = draw_tile_years(lon, lat, ppd, [year], seed)[0]
    return tile


def draw_tile_years(lon: float, lat: float, ppd: int, years: Sequence[int], seed: int) -> NDArray[np.uint16]:
    """Draw a tile in several years [years, 4, ppd, ppd]; what is the same in all years is computed once.

    Arguments and errors are those of `draw_tile`.
    """
    for year in years:
        _version(year)
    if ppd < MIN_PPD:
        raise ValueError(f"pixels per degree: expected {MIN_PPD} or more, got {ppd}, too few to draw a tile. Raise it.")
    span = np.arange(-MARGIN, ppd + MARGIN)
    columns, rows = (round(lon * ppd) + span)[None], (round((lat + 1) * ppd) - 1 - span)[:, None]
    grid = PointGrid((columns + 0.5) / ppd, (rows + 0.5) / ppd, (ppd, ppd), seed)
    images, coast = draw(grid, years)
    for image, year in zip(images, years, strict=True):
        image *= 0.95 + 0.10 * rand(columns, rows, seed * 1009 + year)
        for axis in (1, 2):  # the sensor's blur
            image[:] = 0.5 * image + 0.25 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
        if year != min(VERSIONS):
            image *= np.array([1.02, 1.0, 0.97, 1.05], np.float32)[:, None, None]
    numbers = np.where(coast < DEEP_SEA, 0, np.clip(np.rint(images), 1, 65535))
    tiles: NDArray[np.uint16] = numbers[..., MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.uint16)
    return tiles


def tile_corner(name: str) -> tuple[int, int]:
    """Return the south-west corner, longitude and latitude in degrees, of a tile name such as N43W002.

    Raises:
        ValueError: The name is malformed.
    """
    match = re.fullmatch(r"(N|S(?!00))(\d\d)(E|W(?!000))(\d{3})", name)
    if match:
        lat = int(match[2]) if match[1] == "N" else -int(match[2])
        lon = int(match[4]) if match[3] == "E" else -int(match[4])
        if -90 <= lat < 90 and -180 <= lon < 180:
            return lon, lat
    raise ValueError(
        f"tile name: expected N or S with two digits, then E or W with three, such as N43W002; got {name!r}. "
        "Write the tile's south-west corner."
    )


def make_worldcover(out: Path, *, tiles: Iterable[str], years: Iterable[int], ppd: int, seed: int) -> list[Path]:
    """Write a GeoTIFF for each year and tile under `out`/rgbnir.

    As in the real archive, a tile without a valid pixel gets no file.

    Args:
        out: The archive's folder.
        tiles: Tile names, such as N43W002.
        years: Years of VERSIONS.
        ppd: Pixels per degree.
        seed: Another seed gives another landscape.

    Returns:
        The paths, sorted.

    Raises:
        ValueError: A tile name is malformed or a year unknown; nothing is written.
    """
    corners = {name: tile_corner(name) for name in tiles}
    versions = {year: _version(year) for year in years}
    written = []
    for name, (lon, lat) in corners.items():
        images = draw_tile_years(lon, lat, ppd, list(versions), seed)
        for (year, version), image in zip(versions.items(), images, strict=True):
            if image.any():
                file = f"ESA_WorldCover_10m_{year}_{version}_{name}_S2RGBNIR.tif"
                path = out / "rgbnir" / str(year) / name[:3] / file
                written.append(write_cog(path, image, "EPSG:4326", lon, lat + 1, 1 / ppd, nodata=0))
    return sorted(written)


def _version(year: int) -> str:
    """Return the version of a year's composite. Raises ValueError for a year without one."""
    if year not in VERSIONS:
        raise ValueError(f"year: expected {' or '.join(map(str, VERSIONS))}, got {year}. Choose one of these.")
    return VERSIONS[year]
