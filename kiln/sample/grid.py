"""Grids of points to draw the landscape at, and interpolation from a sparse grid to all points."""

from typing import Any, NamedTuple

import numpy as np
import pyproj
from numpy.typing import NDArray

Array = NDArray[Any]
FINE_LINE = 0.3  # relative width of roads and hedges where pixels are a few metres
SPARSE_STEPS = (16, 8, 4, 2)  # pixels from one sparse point to the next, the widest first
MIN_POINTS_PER_WAVE = 8  # sparse points to the shortest wave
UTM_STEP = 16  # pixels between points whose longitude and latitude are computed; the others are interpolated


class PointGrid(NamedTuple):
    """Points to draw at: rows from north to south, columns from west to east.

    Attributes:
        x: Degrees east: [1, width] for a straight grid, [height, width] for a bent one.
        y: Degrees north: [height, 1] or [height, width].
        ppd: Pixels per degree: of latitude along a column, of longitude along a row.
        seed: Another seed gives another landscape.
        grain: Noise of single pixels [height, width] in [-1, 1), for pixels of a few metres.
        smooth: Whether noise of long waves may be interpolated.
    """

    x: Array
    y: Array
    ppd: tuple[float, float]
    seed: int
    grain: Array | None = None
    smooth: bool = False

    @property
    def line(self) -> float:
        """Return the relative width of drawn lines: 1 for pixels of a hundred metres."""
        return 1 if self.grain is None else FINE_LINE


class SparseAxis(NamedTuple):
    """Some indices of an axis, and how to interpolate to all of them.

    Attributes:
        indices: Every step-th index, and the last.
        before: For each index of the axis, the position in `indices` of the point before it.
        weight: For each index of the axis, the weight of the point after it, float32.
    """

    indices: NDArray[np.int64]
    before: NDArray[np.int64]
    weight: NDArray[np.float32]


def sparse_axis(count: int, step: int) -> SparseAxis:
    """Return every step-th of `count` indices and the last, with the weights of interpolation."""
    indices = np.append(np.arange(0, count - 1, step), count - 1)
    before = np.minimum(np.arange(count) // step, indices.size - 2)
    weight = (np.arange(count) - indices[before]) / (indices[before + 1] - indices[before])
    return SparseAxis(indices, before, weight.astype(np.float32))


def interpolate(sparse: Array, rows: SparseAxis, columns: SparseAxis) -> Array:
    """Return values [height, width] from values at sparse rows and columns, linearly interpolated."""
    for axis, (_, before, weight) in ((1, columns), (0, rows)):
        start = sparse.take(before, axis)
        rest = sparse.take(before + 1, axis)
        rest -= start
        rest *= weight if axis else weight[:, None]
        rest += start
        sparse = rest
    return sparse


def sparse_step(grid: PointGrid, waves: float) -> int:
    """Return the widest step that suffices to interpolate noise of so many waves per degree; 1: every pixel."""
    wavelength = min(grid.ppd) / waves
    return next((step for step in SPARSE_STEPS if grid.smooth and step * MIN_POINTS_PER_WAVE <= wavelength), 1)


def sparse_grid(grid: PointGrid, step: int) -> tuple[PointGrid, SparseAxis, SparseAxis]:
    """Return every step-th point and the last of each row and column, with the axes to interpolate by."""
    rows, columns = sparse_axis(grid.y.shape[0], step), sparse_axis(grid.x.shape[1], step)
    x, y = grid.x.take(columns.indices, 1), grid.y.take(rows.indices, 0)
    if len(grid.x) > 1:
        x, y = x.take(rows.indices, 0), y.take(columns.indices, 1)
    ppd = grid.ppd[0] / step, grid.ppd[1] / step
    return grid._replace(x=x, y=y, ppd=ppd, grain=None, smooth=False), rows, columns


def utm_grid(zone: int, west: float, north: float, size: float, shape: tuple[int, int], seed: int) -> PointGrid:
    """Return the bent grid of square UTM pixels.

    Args:
        zone: UTM zone, of the northern hemisphere.
        west: Easting of the grid's corner in metres.
        north: Northing of the corner.
        size: Metres per pixel.
        shape: Rows and columns.
        seed: Seed of the landscape.
    """
    rows, columns = (sparse_axis(count, UTM_STEP) for count in shape)
    to_degrees = pyproj.Transformer.from_crs(f"EPSG:326{zone}", "EPSG:4326", always_xy=True)
    eastings, northings = west + size * (columns.indices + 0.5), north - size * (rows.indices + 0.5)
    sparse = to_degrees.transform(*np.meshgrid(eastings, northings))
    x, y = (interpolate(part, rows, columns) for part in sparse)
    ppd = abs(1 / np.diff(y[:, 0]).mean()), abs(1 / np.diff(x[0]).mean())
    return PointGrid(x, y, ppd, seed, smooth=True)
