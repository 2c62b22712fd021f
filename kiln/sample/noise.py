"""Noise on grids: hashes of lattice coordinates, gradient noise and its octaves.

The same arguments give the same bits on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from kiln.sample.grid import Array, PointGrid, interpolate, sparse_grid, sparse_step


def mix(ix: Array, iy: Array, seed: int) -> NDArray[np.uint32]:
    """Return a hash of integer lattice coordinates and a seed."""
    h = (ix.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (iy.astype(np.uint32) * np.uint32(0x85EBCA77))
    h = h ^ np.uint32((seed * 0x27D4EB2F + 0x165667B1) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def rand(ix: Array, iy: Array, seed: int) -> NDArray[np.float32]:
    """Return the hash as a number in [0, 1)."""
    return (mix(ix, iy, seed) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def floor_int(value: Array) -> NDArray[np.int64]:
    """Return the floor of values as integers."""
    floor: NDArray[np.int64] = np.floor(value).astype(np.int64)
    return floor


def ramp(value: Array, low: float | Array, high: float | Array) -> NDArray[np.float32]:
    """Return a smooth rise from 0 at `low` to 1 at `high`."""
    t: NDArray[np.float32] = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def fractal(grid: PointGrid, scale: float, salt: int, octaves: int, ridged: bool = False) -> Array:
    """Return a sum of octaves of noise.

    Args:
        grid: The points.
        scale: Waves per degree of the first octave; each further octave has twice as many.
        salt: Distinguishes this noise from others of the same seed.
        octaves: How many octaves.
        ridged: Whether the noise has sharp crests near 1.

    Returns:
        Noise [height, width] float32.
    """
    step = sparse_step(grid, scale * 2 ** (octaves - 1))
    if step > 1:
        few, rows, columns = sparse_grid(grid, step)
        return interpolate(fractal(few, scale, salt, octaves, ridged), rows, columns)
    total: Array = np.zeros((), np.float32)
    weight: Array = np.ones((), np.float32)
    for octave in range(octaves):
        waves = scale * 2**octave
        layer = _octave(grid, waves, grid.seed * 1009 + salt + octave)
        if ridged:  # valleys stay smooth, crests grow rough
            layer = weight * (0.7 - 1.4 * np.abs(layer))
            weight = np.clip(1.6 * layer, 0.15, 1)
        total = total + layer * np.float32(0.5**octave)
    return total


def _octave(grid: PointGrid, waves: float, seed: int) -> Array:
    """Return noise of so many waves per degree, interpolated where the waves are long enough."""
    step = sparse_step(grid, waves)
    if step == 1:
        return _gradient_noise(grid.x * waves, grid.y * waves, seed)
    few, rows, columns = sparse_grid(grid, step)
    return interpolate(_gradient_noise(few.x * waves, few.y * waves, seed), rows, columns)


def _gradient_noise(x: Array, y: Array, seed: int) -> Array:
    """Return noise in [-1, 1], one lattice cell per unit of x and y, which are [1, w] and [h, 1], or both [h, w]."""
    ix, iy = floor_int(x), floor_int(y)
    columns, rows = np.arange(ix.min(), ix.max() + 2), np.arange(iy.min(), iy.max() + 2)
    nodes = mix(columns[None], rows[:, None], seed)
    slopes = [(half / 32768 - 1).astype(np.float32) for half in (nodes & 0xFFFF, nodes >> 16)]
    u, v = (x - ix).astype(np.float32), (y - iy).astype(np.float32)
    fu, fv = (t * t * t * (t * (t * 6 - 15) + 10) for t in (u, v))
    column, row = ix - columns[0], iy - rows[0]
    straight = len(x) == 1
    edges = []
    for j in (0, 1):
        corners = []
        for i in (0, 1):
            if straight:  # first along a line of the lattice, which many rows share
                gx, gy = (slope.take(column[0] + i, axis=1) for slope in slopes)
                gx, gy = (part.take(row[:, 0] + j, axis=0) for part in (gx * (u - i), gy))
            else:
                gx, gy = (slope.take((row + j) * columns.size + column + i) for slope in slopes)
                gx *= u - i
            gy *= v - j
            gx += gy
            corners.append(gx)
        west, east = corners
        east -= west
        east *= fu
        east += west
        edges.append(east)
    north: Array
    south: Array
    north, south = edges
    south -= north
    south *= fv
    south += north
    return south
