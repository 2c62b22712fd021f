"""A tile, rows of its chips, and the comparison of two pictures."""

from pathlib import Path

import numpy as np

from kiln.sample.worldcover import draw_tile
from tests.support.archives import write_tile

BOX = (-0.7, 43.35, -0.5, 43.55)  # in tile N43W001
VERSIONS = ["1.1.1", "1.3.0"]
CRSS = ["EPSG:4326", "EPSG:3857"]


def write_quartered_tile(folder: Path) -> Path:
    """Write a tile in the archive's layout, 240 pixels per degree. Its four quarters differ in brightness."""
    pixels = draw_tile(-1, 43, 240, 2021, 7)
    pixels[:, :120, :] = pixels[:, :120, :] // 2 + 1  # the north is darker
    pixels[0, :, 120:] += 800  # the east is redder
    return Path(write_tile(folder, 2021, -1, 43, pixels))


def row(tile, box=BOX):
    """Return the facts of a chip in a box of the tile, as far as a picture needs them."""
    return {
        "dataset": "worldcover",
        "source": str(tile),
        **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
    }


def correlation(a, b):
    """Return the lowest correlation of two pictures over their channels."""
    return min(np.corrcoef(a[..., c].ravel(), b[..., c].ravel())[0, 1] for c in range(3))
