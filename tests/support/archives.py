"""Small WorldCover archives of known pixels, and an independent reading of them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

VERSIONS = {2020: "2020_v100", 2021: "2021_v200"}


def name_of(west: int, south: int) -> str:
    """`N37W122`."""
    return f"{'S' if south < 0 else 'N'}{abs(south):02d}{'W' if west < 0 else 'E'}{abs(west):03d}"


def tile_path(root: Path, year: int, west: int, south: int) -> Path:
    """Where the archive keeps the tile of a south-west corner, as its own documentation spells it."""
    name = name_of(west, south)
    return root / str(year) / name[:3] / f"ESA_WorldCover_10m_{VERSIONS[year]}_{name}_S2RGBNIR.tif"


def random_pixels(ppd: int, seed: int, holes: int = 0, bands: int = 4) -> np.ndarray:
    """[bands, ppd, ppd] uint16 reflectances above 0 but in `holes` random boxes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 10_000, (bands, ppd, ppd), dtype=np.uint16)
    for _ in range(holes):
        y, x = rng.integers(0, ppd, 2)
        h, w = rng.integers(1, max(2, ppd // 2), 2)
        pixels[:, y : y + h, x : x + w] = 0
    return pixels


def write_tile(root: Path, year: int, west: int, south: int, pixels: np.ndarray, **profile: Any) -> Path:
    """A tile [bands, ppd, ppd] in its place; `profile` overrides what rasterio is told."""
    path = tile_path(root, year, west, south)
    path.parent.mkdir(parents=True, exist_ok=True)
    ppd = pixels.shape[1]
    told = {
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
    with rasterio.open(path, "w", **told) as dst:
        dst.write(pixels)
    return path


def mosaic(root: Path, year: int, west: int, north: int, width: int, height: int, ppd: int) -> np.ndarray:
    """[4, height * ppd, width * ppd] of the tiles from a north-west corner in degrees, by their transforms."""
    out = np.zeros((4, height * ppd, width * ppd), np.uint16)
    for path in sorted((root / str(year)).rglob("*.tif")):
        with rasterio.open(path) as src:
            x, y = round((src.transform.c - west) * ppd), round((north - src.transform.f) * ppd)
            if 0 <= x < out.shape[2] and 0 <= y < out.shape[1]:
                out[:, y : y + src.height, x : x + src.width] = src.read()
    return out


def edge(degrees: int, pixels: int, ppd: int) -> float:
    """`degrees + pixels / ppd` without any rounding but the last."""
    return float(Fraction(degrees) + Fraction(pixels, ppd))
