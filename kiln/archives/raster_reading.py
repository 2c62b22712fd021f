"""Reading pixels for the archives' sources: retries, the height of strips, and checks that every raster needs."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kiln.errors import SourceError
from kiln.io import storage

MIN_STRIP_ROWS = 256  # of one read, so that a file without tiles is not read line by line


def strip_rows(block_rows: int) -> int:
    """Return the rows of one read: a multiple of the file's block height that is not tiny."""
    return block_rows * max(1, MIN_STRIP_ROWS // block_rows)


def read_with_retry(
    uri: str, read: Callable[[], Any], close: Callable[[], None], error_of: Callable[[RasterioError], SourceError]
) -> NDArray[Any]:
    """Read pixels, and once more after a remote failure, since GDAL does not mark transient failures.

    Args:
        uri: The file.
        read: Opens the file if it is not open, and returns the pixels.
        close: Closes the file after a failed read.
        error_of: Returns the error for the second failure, or raises TransientError.

    Returns:
        The pixels.

    Raises:
        SourceError: If the file cannot be read.
        TransientError: If its store may answer later.
    """
    for is_last in (not storage.is_remote(uri), True):
        try:
            pixels: NDArray[Any] = read()
            return pixels
        except RasterioError as e:
            close()
            if is_last:
                raise error_of(e) from e
    raise AssertionError


def check_square_pixels(uri: str, transform: Affine) -> None:
    """Raise SourceError unless pixels are square and the grid is north-up."""
    t = transform
    if t.b or t.d or t.a <= 0 or abs(t.a + t.e) > 1e-6 * t.a:
        raise SourceError(f"{uri}: expected pixels that are square and north-up, got the transform {tuple(t)[:6]}.")


def valid_pixels(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask [rows, cols] of pixels [bands, rows, cols] that are not 0 in all bands."""
    mask: NDArray[np.bool_] = np.logical_or.reduce(pixels, axis=0)  # twice as fast as a comparison with 0
    return mask


@cache
def to_degrees(crs: str) -> pyproj.Transformer:
    """Return the transformer from a CRS to longitude and latitude."""
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
