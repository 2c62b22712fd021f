"""Map tiles drawn with NumPy: where chips are (coverage), and how similar their embeddings are (colours).

A tile is a PNG of 256 px in web mercator. A chip narrower than a pixel is a dot; a wider chip is a filled box. Boxes
are summed from their corners alone, so that the cost of a tile does not grow with the size of the boxes.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln.errors import ConfigError
from kiln.explorer.matrix import Matrix, map_x, map_y

SIZE = 256  # pixels per side
MAX_ZOOM = 20
LAYERS = ("coverage", "colours")
FEW_CHIPS, MIN_BOX_PX = 20_000, 3  # in a database of so few chips, each box has at least so many pixels
COVERAGE_COLOURS = ((255, 214, 102), (244, 132, 60), (193, 44, 84), (94, 13, 98))  # from one chip to full coverage
COVERAGE_ALPHA = (150, 235)  # of one chip, and of full coverage
Array = NDArray[Any]
Mask = NDArray[np.bool_]


def empty_tile() -> bytes:
    """Return the PNG of a tile without chips."""
    return _encode_png(np.zeros((SIZE, SIZE, 4), np.uint8))


def check_tile(layer: str, z: int, x: int, y: int) -> None:
    """Raise ConfigError for a layer or a tile that does not exist."""
    if layer not in LAYERS:
        raise ConfigError(f"layer: expected {' or '.join(LAYERS)}, got {layer[:40]!r}. Correct it.")
    if not (0 <= z <= MAX_ZOOM and 0 <= x < 1 << z and 0 <= y < 1 << z):
        raise ConfigError(
            f"tile: expected zoom 0 to {MAX_ZOOM}, and x and y below 2^zoom, got {z}/{x}/{y}. Correct it."
        )


def draw_tile(matrix: Matrix, layer: str, z: int, x: int, y: int, mask: Mask | None = None) -> bytes:
    """Draw a tile.

    Args:
        matrix: The n chips.
        layer: `coverage` or `colours`.
        z: Zoom.
        x: Column of the tile, from the west.
        y: Row of the tile, from the north.
        mask: Which chips are drawn [n]; None: all.

    Returns:
        The PNG.

    Raises:
        ConfigError: The layer or the tile does not exist.
    """
    check_tile(layer, z, x, y)
    scale = 2.0**z
    chip_px = matrix.chip_side * scale * SIZE  # width of a typical chip
    as_boxes = chip_px >= 1 or len(matrix) <= FEW_CHIPS
    pad = (MIN_BOX_PX if as_boxes else 0) / SIZE / scale
    runs = matrix.touching(x / scale - pad, y / scale - pad, (x + 1) / scale + pad, (y + 1) / scale + pad)
    sums: Array = np.zeros((4 if layer == "colours" else 1, SIZE, SIZE))
    if as_boxes and runs:
        rows = np.concatenate([np.arange(*run) for run in runs])
        sums = _sum_boxes(matrix, rows if mask is None else rows[mask[rows]], z, x, y, len(sums))
    elif not as_boxes:
        for first, last in runs:
            sums += _sum_dots(matrix, slice(first, last), mask, z, x, y, len(sums))
    return _encode_png(_colour_pixels(sums, chip_px)) if sums[0].any() else empty_tile()


def _colour_pixels(sums: Array, chip_px: float) -> NDArray[np.uint8]:
    """Return the RGBA pixels [SIZE, SIZE, 4] of sums: the number of chips, and for `colours` red, green and blue."""
    count = sums[0]
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    if len(sums) > 1:
        pixels[..., :3] = (sums[1:] / np.maximum(count, 1)).round().astype(np.uint8).transpose(1, 2, 0)
        pixels[..., 3] = np.where(count > 0.5, 255, 0)
    else:
        full = max(8.0, 4 / chip_px**2) if chip_px else 8.0  # four dates of all chips of a pixel
        coverage = np.clip(np.log1p(count) / np.log1p(full), 0, 1)
        stops = np.linspace(0, 1, len(COVERAGE_COLOURS))
        for channel in range(3):
            pixels[..., channel] = np.interp(coverage, stops, [c[channel] for c in COVERAGE_COLOURS]).round()
        pixels[..., 3] = np.where(count > 0.5, np.interp(coverage, (0, 1), COVERAGE_ALPHA), 0)
    return pixels


def _sum_dots(matrix: Matrix, rows: slice, mask: Mask | None, z: int, x: int, y: int, layers: int) -> Array:
    """Return sums [layers, SIZE, SIZE] of chips as dots: their number, red, green, blue."""
    scale = 2.0**z * SIZE
    column = np.minimum(((matrix["lon"][rows] + 180) * (scale / 360)).astype(np.int64), int(scale) - 1) - x * SIZE
    row = (matrix["mercator_y"][rows] * scale).astype(np.int64) - y * SIZE
    drawn = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
    if mask is not None:
        drawn &= mask[rows]
    pixel = row * SIZE + column
    colour = matrix["colour"][rows] if layers > 1 else None
    if not drawn.all():
        pixel = pixel[drawn]
        colour = colour[drawn] if colour is not None else None
    sums: list[Array] = [np.bincount(pixel, minlength=SIZE * SIZE)]
    sums += [np.bincount(pixel, colour[:, c], SIZE * SIZE) for c in range(3)] if colour is not None else []
    return np.stack(sums).reshape(layers, SIZE, SIZE)


def _sum_boxes(matrix: Matrix, rows: NDArray[np.int64], z: int, x: int, y: int, layers: int) -> Array:
    """Return sums [layers, SIZE, SIZE] of chips as filled boxes: their number, red, green, blue."""
    west, east = map_x(matrix["xmin"][rows]), map_x(matrix["xmax"][rows])
    north, south = map_y(matrix["ymax"][rows]), map_y(matrix["ymin"][rows])
    across = west > east
    if across.any():  # a box across the antimeridian is drawn at both edges of the map
        rows, north, south = (np.concatenate([v, v[across]]) for v in (rows, north, south))
        west, east = np.concatenate([west, west[across] - 1]), np.concatenate([east + across, east[across]])
    scale = 2.0**z * SIZE
    min_px = MIN_BOX_PX if len(matrix) <= FEW_CHIPS else 1
    left, right = _pixel_span(west * scale - x * SIZE, east * scale - x * SIZE, min_px)
    top, bottom = _pixel_span(north * scale - y * SIZE, south * scale - y * SIZE, min_px)
    visible = (right > left) & (bottom > top)
    left, right, top, bottom, rows = (v[visible] for v in (left, right, top, bottom, rows))
    side = SIZE + 1
    corners = ((top * side + left, 1), (top * side + right, -1), (bottom * side + left, -1), (bottom * side + right, 1))
    sums: Array = np.zeros((layers, side, side))
    for layer in range(layers):
        weights = None if layer == 0 else matrix["colour"][rows, layer - 1]
        for corner, sign in corners:
            sums[layer] += sign * np.bincount(corner, weights, side * side).reshape(side, side)
    return sums.cumsum(axis=1).cumsum(axis=2)[:, :SIZE, :SIZE]


def _pixel_span(first: Array, last: Array, min_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first pixel and the pixel after the last of each span, at least `min_px` wide, clipped to the tile."""
    start, end = np.round(first), np.round(last)
    narrow = end - start < min_px
    middle = np.floor((first + last) / 2) - min_px // 2
    start, end = np.where(narrow, middle, start), np.where(narrow, middle + min_px, end)
    return np.clip(start, 0, SIZE).astype(np.int64), np.clip(end, 0, SIZE).astype(np.int64)


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG", compress_level=1)
    return out.getvalue()
