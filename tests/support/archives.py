"""Small WorldCover archives with known pixels, and an independent reader of them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

VERSIONS = {2020: "2020_v100", 2021: "2021_v200"}


def name_of(west: int, south: int) -> str:
    """Return the name of a tile by its south-west corner, for example `N37W122`."""
    return f"{'S' if south < 0 else 'N'}{abs(south):02d}{'W' if west < 0 else 'E'}{abs(west):03d}"


def tile_path(root: Path, year: int, west: int, south: int) -> Path:
    """Return the path of the tile of a south-west corner, in the layout that the archive documents."""
    name = name_of(west, south)
    return root / str(year) / name[:3] / f"ESA_WorldCover_10m_{VERSIONS[year]}_{name}_S2RGBNIR.tif"


def random_pixels(ppd: int, seed: int, holes: int = 0, bands: int = 4) -> np.ndarray:
    """Return uint16 reflectances [bands, ppd, ppd]: 0 in `holes` random boxes, above 0 elsewhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 10_000, (bands, ppd, ppd), dtype=np.uint16)
    for _ in range(holes):
        y, x = rng.integers(0, ppd, 2)
        h, w = rng.integers(1, max(2, ppd // 2), 2)
        pixels[:, y : y + h, x : x + w] = 0
    return pixels


def write_tile(root: Path, year: int, west: int, south: int, pixels: np.ndarray, **profile: Any) -> Path:
    """Write a tile [bands, ppd, ppd] and return its path. `profile` overrides the options of rasterio."""
    path = tile_path(root, year, west, south)
    path.parent.mkdir(parents=True, exist_ok=True)
    ppd = pixels.shape[1]
    options = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
        "crs": "EPSG:4326",
        "transform": from_origin(west, south + 1, 1 / ppd, 1 / ppd),
        "nodata": 0,
        **profile,
    }
    with rasterio.open(path, "w", **options) as dst:
        dst.write(pixels)
    return path


def mosaic(root: Path, year: int, west: int, north: int, width: int, height: int, ppd: int) -> np.ndarray:
    """Return pixels [4, height * ppd, width * ppd] from a north-west corner, each tile placed by its transform."""
    out = np.zeros((4, height * ppd, width * ppd), np.uint16)
    for path in sorted((root / str(year)).rglob("*.tif")):
        with rasterio.open(path) as src:
            x, y = round((src.transform.c - west) * ppd), round((north - src.transform.f) * ppd)
            if 0 <= x < out.shape[2] and 0 <= y < out.shape[1]:
                out[:, y : y + src.height, x : x + src.width] = src.read()
    return out


def edge(degrees: int, pixels: int, ppd: int) -> float:
    """Return `degrees + pixels / ppd`, rounded only once."""
    return float(Fraction(degrees) + Fraction(pixels, ppd))
