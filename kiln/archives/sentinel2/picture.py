"""Pictures of Sentinel-2's chips. A scene has one file per band, and its item states whether 1000 was added."""

import logging
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kiln.archives.raster_picture import Stretch, read_window
from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.layout import OFFSET_MAX_DARK_FRACTION
from kiln.archives.sentinel2.scene import OFFSET, offset_rule, subtract
from kiln.errors import SourceError
from kiln.formats.bounding_box import Bounds
from kiln.io import storage

RGB_BANDS = ("B04", "B03", "B02")  # the first is the band that `source` names
STRETCH = Stretch(black=0.0, white=4000.0, gamma=0.6)
log = logging.getLogger(__name__)


def read_picture(source: str, bbox: Bounds) -> NDArray[np.uint8]:
    """Read the picture of a bounding box from a scene's red, green and blue files.

    Args:
        source: The path or address of the red file, B04; the other files and the item lie in the same folder.
        bbox: West, south, east, north in degrees.

    Returns:
        RGB [256, 256, 3]; nodata is grey.

    Raises:
        SourceError: A file cannot be read.
    """
    folder, _, name = source.rpartition("/")
    files = [f"{folder}/{name.replace(RGB_BANDS[0], band)}" for band in RGB_BANDS]
    values = np.concatenate([read_window(uri, (1,), bbox) for uri in files])
    if _item_has_offset(folder):
        valid = values.any(axis=0)
        dark = valid & (values < OFFSET).all(axis=0)
        if np.count_nonzero(dark) <= OFFSET_MAX_DARK_FRACTION * np.count_nonzero(valid):
            values = subtract(values)
    return STRETCH.to_rgb(values)


@lru_cache(1024)
def _item_has_offset(folder: str) -> bool:
    """Return whether the scene's item states that 1000 was added to its digital numbers.

    Without an item, or with one that does not state it, the answer is no: a pale picture is better than none.
    """
    uri = f"{folder}/{folder.rpartition('/')[2]}.json"
    try:
        return offset_rule(read_item(storage.read_bytes(uri), uri))[0]
    except SourceError as e:
        log.debug("%s: the offset is unknown: %s", folder, e)
        return False
