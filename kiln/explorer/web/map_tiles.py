"""Map tiles drawn with NumPy: where chips are (coverage) and what their embeddings look like (colours).

256 px PNG in web mercator. Far out a chip is a dot; from where it is wider than a pixel, its box is filled: sums of
boxes come from their corners alone, so that a tile's cost does not grow with the boxes' size.
"""

import io

import numpy as np
from PIL import Image

from kiln.errors import ConfigError
from kiln.explorer.matrix import Matrix, map_x, map_y

SIZE = 256  # pixels of a side
DEEPEST = 20  # zoom
LAYERS = ("coverage", "colours")
FEW, LEAST = 20_000, 3  # a database of so few chips shows each as so many pixels at least
RAMP = ((255, 214, 102), (244, 132, 60), (193, 44, 84), (94, 13, 98))  # coverage, from one chip to full
OPAQUE = (150, 235)  # of a pixel with one chip, and of one full of them


def empty() -> bytes:
    """A tile with nothing on it."""
    return _png(np.zeros((SIZE, SIZE, 4), np.uint8))


def check(layer: str, z: int, x: int, y: int) -> None:
    """Raise ConfigError for a tile that is not on the map."""
    if layer not in LAYERS:
        raise ConfigError(f"layer {layer[:40]!r}: want {' or '.join(LAYERS)}")
    if not (0 <= z <= DEEPEST and 0 <= x < 1 << z and 0 <= y < 1 << z):
        raise ConfigError(f"tile {z}/{x}/{y}: want zoom 0 to {DEEPEST}, and x and y below 2^zoom")


def tile(matrix: Matrix, layer: str, z: int, x: int, y: int, mask: np.ndarray | None = None) -> bytes:
    """PNG of a tile; `mask` [n] are the chips that the filters leave."""
    check(layer, z, x, y)
    scale = 2.0**z
    wide = matrix.size * scale * SIZE  # pixels of the usual chip
    boxed = wide >= 1 or len(matrix) <= FEW
    pad = (LEAST if boxed else 0) / SIZE / scale
    runs = matrix.touching(x / scale - pad, y / scale - pad, (x + 1) / scale + pad, (y + 1) / scale + pad)
    sums = np.zeros((4 if layer == "colours" else 1, SIZE, SIZE))
    if boxed and runs:
        rows = np.concatenate([np.arange(*run) for run in runs])
        sums = _boxes(matrix, rows if mask is None else rows[mask[rows]], z, x, y, len(sums))
    elif not boxed:
        for first, last in runs:
            sums += _dots(matrix, slice(first, last), mask, z, x, y, len(sums))
    count = sums[0]
    if not count.any():
        return empty()
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    if layer == "colours":
        pixels[..., :3] = (sums[1:] / np.maximum(count, 1)).round().astype(np.uint8).transpose(1, 2, 0)
        pixels[..., 3] = np.where(count > 0.5, 255, 0)
    else:
        full = max(8.0, 4 / wide**2) if wide else 8.0  # chips of a pixel, four dates of them
        shown = np.clip(np.log1p(count) / np.log1p(full), 0, 1)
        stops = np.linspace(0, 1, len(RAMP))
        for channel in range(3):
            pixels[..., channel] = np.interp(shown, stops, [c[channel] for c in RAMP]).round()
        pixels[..., 3] = np.where(count > 0.5, np.interp(shown, (0, 1), OPAQUE), 0)
    return _png(pixels)


def _dots(
    matrix: Matrix, rows: slice, mask: np.ndarray | None, z: int, x: int, y: int, layers: int
) -> np.ndarray:  # fmt: skip
    """Sums [layers, SIZE, SIZE] of chips as dots: their number, red, green, blue."""
    scale = 2.0**z * SIZE
    column = np.minimum(((matrix["lon"][rows] + 180) * (scale / 360)).astype(np.int64), int(scale) - 1) - x * SIZE
    row = (matrix["mercator_y"][rows] * scale).astype(np.int64) - y * SIZE
    keep = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
    if mask is not None:
        keep &= mask[rows]
    at = row * SIZE + column
    colour = matrix["colour"][rows] if layers > 1 else None
    if not keep.all():
        at = at[keep]
        colour = colour[keep] if colour is not None else None
    sums = [np.bincount(at, minlength=SIZE * SIZE)]
    sums += [np.bincount(at, colour[:, c], SIZE * SIZE) for c in range(3)] if colour is not None else []
    return np.stack(sums).reshape(layers, SIZE, SIZE)


def _boxes(matrix: Matrix, chosen: np.ndarray, z: int, x: int, y: int, layers: int) -> np.ndarray:
    """Sums [layers, SIZE, SIZE] of these rows' chips as filled boxes."""
    west, east = map_x(matrix["xmin"][chosen]), map_x(matrix["xmax"][chosen])
    north, south = map_y(matrix["ymax"][chosen]), map_y(matrix["ymin"][chosen])
    across = west > east
    if across.any():  # once at each edge of the map
        chosen, north, south = (np.concatenate([v, v[across]]) for v in (chosen, north, south))
        west, east = np.concatenate([west, west[across] - 1]), np.concatenate([east + across, east[across]])
    scale = 2.0**z * SIZE
    least = LEAST if len(matrix) <= FEW else 1
    left, right = _pixels(west * scale - x * SIZE, east * scale - x * SIZE, least)
    up, down = _pixels(north * scale - y * SIZE, south * scale - y * SIZE, least)
    keep = (right > left) & (down > up)
    left, right, up, down, chosen = (v[keep] for v in (left, right, up, down, chosen))
    wide = SIZE + 1
    corners = ((up * wide + left, 1), (up * wide + right, -1), (down * wide + left, -1), (down * wide + right, 1))
    sums = np.zeros((layers, wide, wide))
    for layer in range(layers):
        weights = None if layer == 0 else matrix["colour"][chosen, layer - 1]
        for at, sign in corners:
            sums[layer] += sign * np.bincount(at, weights, wide * wide).reshape(wide, wide)
    return sums.cumsum(axis=1).cumsum(axis=2)[:, :SIZE, :SIZE]


def _pixels(first: np.ndarray, last: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and the one after the last of each span, `least` where there would be none, cut at the tile."""
    start, end = np.round(first), np.round(last)
    narrow = end - start < least
    middle = np.floor((first + last) / 2) - least // 2
    start, end = np.where(narrow, middle, start), np.where(narrow, middle + least, end)
    return np.clip(start, 0, SIZE).astype(np.int64), np.clip(end, 0, SIZE).astype(np.int64)


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG", compress_level=1)
    return out.getvalue()
