"""Every chip compared: products of one direction with the vectors of a matrix, where these lie, at the memory's speed.

Half precision first, with a bound of its error; whoever wants the best computes what may be among them again in
float32. A million 1024-d chips take about 0.15 s of one core. Torch multiplies float16 as it lies, which NumPy cannot.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

from kiln.explorer.matrix import Matrix

BLOCK = 4096  # rows multiplied at a time, where they lie
PICKED = 128  # of rows that are copied first: small enough to find the room of the ones before
HALF = 2.0**-10  # relative error of a half-precision result, twice what rounding alone gives
LEAST_HALF = 2.0**-24  # what a half-precision number can be off near 0
LARGEST = 16_384.0  # products are scaled to stay below it; half precision ends at 65 504


def rough(matrix: Matrix, direction: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Products [m] of the unit vectors of rows (None: all) with `direction` [D], and how far off each may be."""
    norm = np.maximum(matrix["norm"] if rows is None else matrix["norm"][rows], 1e-12)
    largest = max(float(norm.max(initial=0)) * float(np.linalg.norm(direction)), float(np.abs(direction).max()))
    scale = LARGEST / max(largest, 1e-30)
    half = torch.from_numpy((direction * scale).astype(np.float16))
    products = np.empty(len(norm), np.float32)
    _each(matrix, rows, lambda block: torch.mv(block, half), products)
    products /= norm * scale
    rounded = float(np.linalg.norm(half.numpy().astype(np.float64) / scale - direction))
    return products, HALF * np.abs(products) + rounded + 2 * LEAST_HALF / (norm * scale)


def exact(matrix: Matrix, direction: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Products [m] of the unit vectors of rows with `direction` [D], in float32."""
    wanted = torch.from_numpy(np.asarray(direction, np.float32))
    products = np.empty(len(rows), np.float32)
    _each(matrix, rows, lambda block: torch.mv(block.float(), wanted), products)
    return products / np.maximum(matrix["norm"][rows], 1e-12)


def _each(
    matrix: Matrix, rows: np.ndarray | None, work: Callable[[torch.Tensor], torch.Tensor], out: np.ndarray
) -> None:
    """Fill `out` [m] from the vectors of rows, block by block on all cores; without rows nothing is copied."""
    vectors = torch.from_numpy(matrix.vectors)

    size = BLOCK if rows is None else PICKED

    def block(first: int) -> None:
        part = slice(first, first + size)
        some = vectors[part] if rows is None else vectors[torch.from_numpy(np.ascontiguousarray(rows[part], np.int64))]
        out[part] = work(some).numpy()

    starts = range(0, len(out), size)
    for _ in map(block, starts) if len(starts) < 3 else _pool().map(block, starts):
        pass


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that multiply each for itself: torch's own wait for each other by spinning, long on a busy machine."""
    before, count = torch.get_num_threads(), min(8, os.cpu_count() or 1)
    started = threading.Barrier(count + 1)

    def alone() -> None:
        torch.set_num_threads(1)  # of this thread
        started.wait()

    pool = ThreadPoolExecutor(count, "scan", alone)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)  # what threads made later begin with
    return pool
