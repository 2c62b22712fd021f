"""The chips of the tile that the page shows."""

from typing import Any

import numpy as np

from tests.support import explorers

WEST, SOUTH, SIDE, PPD = -96, 43, 25, 1500  # a tile of 25 x 25 chips
STEP = 1 / SIDE
FIRST = "test:00312"  # in the middle of the tile


def row(n: int, pixels: np.ndarray, **facts: Any) -> dict[str, Any]:
    """Return chip n of the tile. Its vector follows from its pixels, so chips that look alike are neighbours."""
    col, line = n % SIDE, n // SIDE
    side = PPD // SIDE
    part = pixels[:, line * side : (line + 1) * side, col * side : (col + 1) * side].astype(float)
    vector = np.concatenate([np.sqrt(part.mean((1, 2))) - 32, np.sqrt(part.std((1, 2))) - 14])
    west, north = WEST + col * STEP, SOUTH + 1 - line * STEP
    box = {"xmin": west, "xmax": west + STEP, "ymin": north - STEP, "ymax": north}
    return explorers.chip(n, west + STEP / 2, north - STEP / 2, vector) | box | facts


def centre(chip_id: str) -> tuple[float, float]:
    """Return longitude and latitude of a chip's centre."""
    n = int(chip_id.partition(":")[2])
    return WEST + (n % SIDE + 0.5) / SIDE, SOUTH + 1 - (n // SIDE + 0.5) / SIDE
