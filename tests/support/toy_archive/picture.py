"""Draw a chip of the toy archive from its tile."""

import numpy as np
import pyproj
from numpy.typing import NDArray
from PIL import Image

from tests.support.toy_archive.source import CRS, PIXEL_SIZE_M, read_tile

SIZE = 256  # pixels of a picture's side
TO_METRES = pyproj.Transformer.from_crs("EPSG:4326", CRS, always_xy=True)


def read_picture(source: str, bbox: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Return RGB [256, 256, 3] of a bounding box in degrees. Raise SourceError for a tile that cannot be read."""
    tile = read_tile(source)
    west, south = TO_METRES.transform(*bbox[:2])
    east, north = TO_METRES.transform(*bbox[2:])
    rows = slice(round((tile.north - north) / PIXEL_SIZE_M), round((tile.north - south) / PIXEL_SIZE_M))
    cols = slice(round((west - tile.west) / PIXEL_SIZE_M), round((east - tile.west) / PIXEL_SIZE_M))
    pixels = np.ascontiguousarray(tile.pixels[:, rows, cols].transpose(1, 2, 0))
    return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE)), np.uint8)
