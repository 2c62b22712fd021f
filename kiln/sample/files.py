"""Files of the synthetic archives. A file is replaced as one step: a partial file never has the final name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from kiln.sample.grid import Array


def write_cog(
    path: Path,
    image: Array,
    crs: str,
    west: float,
    north: float,
    size: float,
    *,
    nodata: int | None = None,
    colours: tuple[ColorInterp, ...] = (),
    resampling: str = "average",
) -> Path:
    """Write a cloud optimised GeoTIFF with square pixels.

    Args:
        path: The file; folders are created.
        image: Bands [n, height, width].
        crs: The coordinate reference system, such as `EPSG:4326`.
        west: West edge in units of the CRS.
        north: North edge.
        size: Side of a pixel in units of the CRS.
        nodata: Value of nodata, None if the file declares none.
        colours: Colour interpretation of each band.
        resampling: Resampling of the overviews.

    Returns:
        The path.
    """
    count, height, width = image.shape
    profile = {
        "driver": "COG", "width": width, "height": height, "count": count, "dtype": image.dtype, "crs": crs,
        "transform": from_origin(west, north, size, size), "blocksize": 256, "compress": "deflate",
        "predictor": "standard", "overview_resampling": resampling, "nodata": nodata,
    }  # fmt: skip
    with _replacing(path) as temporary, rasterio.open(temporary, "w", **profile) as target:
        if colours:
            target.colorinterp = colours
        target.write(image)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file and return its path."""
    with _replacing(path) as temporary:
        temporary.write_text(text)
    return path


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the `with` block succeeds, and is deleted otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
