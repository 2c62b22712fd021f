"""Small NAIP archives of synthetic scenes, with keys in the bucket's layout, and their manifests."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

HEIGHT, WIDTH = 40, 56  # pixels of 1 m: 2 x 3 chips of 16 px, in either lattice
WEST, NORTH = 500_000, 5_209_000  # metres in UTM zone 14
STEP = 32  # metres from one scene to the next: neighbours share a column of chips
QUARTERS = ("nw", "ne", "sw", "se")


def key(state: str, year: int, n: int) -> str:
    """Return the key of the n-th scene of a state and year; n is below 256."""
    name = f"m_47099{n // 4 + 1:02d}_{QUARTERS[n % 4]}_14_1_{year}0720.tif"
    return f"{state}/{year}/100cm/rgbir_cog/47099/{name}"


def write(root: Path, state: str, year: int, n: int, pixels: np.ndarray | None = None) -> str:
    """Write the n-th scene of a state and year; return its key. The scenes of a state form a row from west to east.

    Without `pixels` [4, height, width], each block of 8 x 8 px has its own random texture. A scene with an odd n has
    8 px of nodata in each chip that it shares with the next scene.
    """
    if pixels is None:
        pixels = _textures(state, year, n)
    options = {"driver": "GTiff", "count": 4, "height": pixels.shape[1], "width": pixels.shape[2], "dtype": "uint8"}
    place = from_origin(WEST + STEP * n, NORTH - 160 * (ord(state[0]) - ord("a")), 1, 1)
    name = key(state, year, n)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", crs="EPSG:26914", transform=place, compress="deflate", **options) as file:
        file.write(pixels)
    return name


def _textures(state: str, year: int, n: int) -> np.ndarray:
    rng = np.random.default_rng([year, n, *state.encode()])
    level = rng.integers(40, 200, (4, HEIGHT // 8, WIDTH // 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    pixels = level + rng.integers(0, 40, (4, HEIGHT, WIDTH), dtype=np.uint8)
    if n % 2:
        pixels[:, 8::16, STEP : STEP + 8] = 0
    return pixels


def write_manifest(path: Path, keys: Iterable[str]) -> None:
    """Write a manifest that lists the keys and some other files, as the bucket's manifest does."""
    listed = sorted(keys)
    other = [k.replace("/rgbir_cog/", "/fgdc/").replace(".tif", ".txt") for k in listed[:2]]
    path.write_text("".join(f"{line}\n" for line in ["readme.txt", *other, *listed]))
