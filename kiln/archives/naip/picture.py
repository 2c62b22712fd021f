"""Pictures of NAIP's chips."""

import numpy as np
from numpy.typing import NDArray

from kiln.archives.raster_picture import Stretch, read_window
from kiln.formats.bounding_box import Bounds

RGB_BANDS = (1, 2, 3)
STRETCH = Stretch(black=0.0, white=255.0, gamma=1.0)


def read_picture(source: str, bbox: Bounds) -> NDArray[np.uint8]:
    """Read the picture of a bounding box from a scene.

    Args:
        source: The scene's path or address.
        bbox: West, south, east, north in degrees.

    Returns:
        RGB [256, 256, 3]; nodata is grey.

    Raises:
        SourceError: The scene cannot be read.
    """
    return STRETCH.to_rgb(read_window(source, RGB_BANDS, bbox))
