"""What the makers of sample archives share: grids of UTM pixels and files that are whole or not there."""

import os
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from kiln.sample import landscape as land

COARSE = 16  # pixels from one point to the next whose place is worked out; those between lie on a straight line


def write_cog(
    path: Path,
    image: np.ndarray,
    crs: str,
    west: float,
    north: float,
    size: float,
    *,
    nodata: int | None = None,
    colours: tuple[ColorInterp, ...] = (),
    resampling: str = "average",
) -> Path:
    """Write bands [n, h, w] as a cloud optimised GeoTIFF with square pixels of `size` units, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count, height, width = image.shape
    profile = {
        "driver": "COG", "width": width, "height": height, "count": count, "dtype": image.dtype, "crs": crs,
        "transform": from_origin(west, north, size, size), "blocksize": 256, "compress": "deflate",
        "predictor": "standard", "overview_resampling": resampling, "nodata": nodata,
    }  # fmt: skip
    try:
        with rasterio.open(temporary, "w", **profile) as target:
            if colours:
                target.colorinterp = colours
            target.write(image)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def utm_grid(zone: int, west: float, north: float, size: float, shape: tuple[int, int], seed: int) -> land.Grid:
    """A bent grid of square pixels of `size` metres, shape (rows, columns), whose corner is at west, north in UTM."""
    rows, columns = (land.between(count, COARSE) for count in shape)
    to_degrees = pyproj.Transformer.from_crs(f"EPSG:326{zone}", "EPSG:4326", always_xy=True)
    few = to_degrees.transform(*np.meshgrid(west + size * (columns[0] + 0.5), north - size * (rows[0] + 0.5)))
    x, y = (land.enlarge(part, rows, columns) for part in few)
    ppd = abs(1 / np.diff(y[:, 0]).mean()), abs(1 / np.diff(x[0]).mean())
    return land.Grid(x, y, ppd, seed, smooth=True)
