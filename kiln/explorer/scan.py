"""Products of one direction with every vector of a matrix, at the speed of memory.

`approximate_products` computes in half precision and bounds the error; `exact_products` computes chosen rows in
float32. A million chips of 1024 numbers take about 0.15 s of one core. Torch multiplies float16 in place, which NumPy
cannot.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from kiln.explorer.matrix import Matrix, Rows

BLOCK_ROWS = 4096  # multiplied at a time, in place
PICKED_ROWS = 128  # of chosen rows, which are copied first: few enough to reuse the same memory
HALF_ERROR = 2.0**-10  # relative error of a half-precision result, twice that of rounding alone
MIN_HALF_ERROR = 2.0**-24  # absolute error of a half-precision number near 0
MAX_PRODUCT = 16_384.0  # products are scaled to stay below it; half precision ends at 65 504


def approximate_products(
    matrix: Matrix, direction: NDArray[np.float32], rows: Rows | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return approximate products of unit vectors with a direction, and bounds of their errors.

    Args:
        matrix: n chips.
        direction: [D].
        rows: m rows; None: all n.

    Returns:
        Products [m] and bounds [m].
    """
    norm = np.maximum(matrix["norm"] if rows is None else matrix["norm"][rows], 1e-12)
    largest = max(float(norm.max(initial=0)) * float(np.linalg.norm(direction)), float(np.abs(direction).max()))
    scale = MAX_PRODUCT / max(largest, 1e-30)
    half = torch.from_numpy((direction * scale).astype(np.float16))
    products = np.empty(len(norm), np.float32)
    _each_block(matrix, rows, lambda block: torch.mv(block, half), products)
    products /= norm * scale
    rounding = float(np.linalg.norm(half.numpy().astype(np.float64) / scale - direction))
    return products, HALF_ERROR * np.abs(products) + rounding + 2 * MIN_HALF_ERROR / (norm * scale)


def exact_products(matrix: Matrix, direction: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]:
    """Return the products [m] of the unit vectors of rows [m] with a direction [D], in float32."""
    vector = torch.from_numpy(np.asarray(direction, np.float32))
    products = np.empty(len(rows), np.float32)
    _each_block(matrix, rows, lambda block: torch.mv(block.float(), vector), products)
    return np.asarray(products / np.maximum(matrix["norm"][rows], 1e-12), np.float32)


def _each_block(
    matrix: Matrix, rows: Rows | None, work: Callable[[torch.Tensor], torch.Tensor], out: NDArray[np.float32]
) -> None:
    """Fill `out` [m] from the vectors of rows, block by block on all cores; without rows nothing is copied."""
    vectors = torch.from_numpy(matrix.vectors)
    size = BLOCK_ROWS if rows is None else PICKED_ROWS

    def block(first: int) -> None:
        part = slice(first, first + size)
        some = vectors[part] if rows is None else vectors[torch.from_numpy(np.ascontiguousarray(rows[part], np.int64))]
        out[part] = work(some).numpy()

    starts = range(0, len(out), size)
    for _ in map(block, starts) if len(starts) < 3 else _pool().map(block, starts):
        pass


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads that multiply on one core each: torch's own threads wait by spinning, long on a busy machine."""
    torch_threads, count = torch.get_num_threads(), min(8, os.cpu_count() or 1)
    started = threading.Barrier(count + 1)

    def use_one_core() -> None:
        torch.set_num_threads(1)  # of this thread
        started.wait()

    pool = ThreadPoolExecutor(count, "scan", use_one_core)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(torch_threads)  # the default of later threads
    return pool
