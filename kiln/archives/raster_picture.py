"""Pictures of chips from raster files: the window of a bounding box, and the stretch to 8 bits.

The archives' modules `picture` share it. Each of them defines `read_picture(source, bbox)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from kiln.archives.raster_reading import check_crs, open_with_sidecars
from kiln.archives.registry import PICTURE_SIZE_PX
from kiln.errors import SourceError
from kiln.formats.bounding_box import Bounds
from kiln.io import gdal

NODATA_GREY = 128


@dataclass(frozen=True)
class Stretch:
    """The digital numbers that become black and white, and the exponent of the curve between them."""

    black: float
    white: float
    gamma: float

    def to_rgb(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return bands [3, h, w] as a picture [h, w, 3]; pixels that are 0 in all bands become grey."""
        brightness = np.clip((values.astype(np.float32) - self.black) / (self.white - self.black), 0, 1) ** self.gamma
        brightness *= 255
        brightness[:, ~values.any(axis=0)] = NODATA_GREY
        rgb: NDArray[np.uint8] = brightness.astype(np.uint8).transpose(1, 2, 0)
        return rgb


def read_window(uri: str, bands: Sequence[int], bbox: Bounds) -> NDArray[Any]:
    """Read bands of a raster file within a bounding box.

    Args:
        uri: A path, or an address that `kiln.io.gdal` can open.
        bands: Numbers of the bands, from 1.
        bbox: West, south, east, north in degrees.

    Returns:
        Digital numbers [bands, 256, 256] in the file's dtype, 0 outside the file.

    Raises:
        SourceError: The file cannot be read.
    """
    with _open_raster(uri) as file:
        check_crs(uri, file)
        window = from_bounds(*transform_bounds("EPSG:4326", file.crs, *bbox), transform=file.transform)
        shape = (len(bands), PICTURE_SIZE_PX, PICTURE_SIZE_PX)
        pixels: NDArray[Any] = file.read(list(bands), window=window, out_shape=shape, boundless=True, fill_value=0)
        return pixels


@contextmanager
def _open_raster(uri: str) -> Iterator[rasterio.DatasetReader]:
    """Open a raster file. Raises SourceError if it cannot be opened, or read within the `with` block."""
    try:
        with gdal.environment(uri), open_with_sidecars(uri) as file:
            yield file
    except (RasterioError, OSError) as e:
        raise SourceError(f"{uri} cannot be read: {gdal.shorten(gdal.gdal_message(e, uri))}") from e
