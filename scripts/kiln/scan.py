"""Every chip compared: products of one direction with the vectors of a matrix, where these lie, at the memory's speed.

Half precision first, with a bound of its error; whoever wants the best computes what may be among them again in
float32. A million 1024-d chips take about 0.15 s of processor time.
"""

from collections.abc import Iterator

import numpy as np
import torch

from scripts.kiln.matrix import Matrix

BLOCK = 16_384  # rows multiplied at a time
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
    for first, block in _blocks(matrix, rows, BLOCK):
        products[first : first + len(block)] = torch.mv(block, half).numpy()
    products /= norm * scale
    rounded = float(np.linalg.norm(half.numpy().astype(np.float64) / scale - direction))
    return products, HALF * np.abs(products) + rounded + 2 * LEAST_HALF / (norm * scale)


def exact(matrix: Matrix, direction: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Products [m] of the unit vectors of rows with `direction` [D], in float32."""
    wanted = torch.from_numpy(np.asarray(direction, np.float32))
    products = np.empty(len(rows), np.float32)
    for first, block in _blocks(matrix, rows, 1024):
        products[first : first + len(block)] = torch.mv(block.float(), wanted).numpy()
    return products / np.maximum(matrix["norm"][rows], 1e-12)


def _blocks(matrix: Matrix, rows: np.ndarray | None, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """First place and vectors [size, D] of each block of rows; without rows they are not copied."""
    vectors = torch.from_numpy(matrix.vectors)
    for first in range(0, len(vectors) if rows is None else len(rows), size):
        if rows is None:
            yield first, vectors[first : first + size]
        else:
            yield first, vectors[torch.from_numpy(np.ascontiguousarray(rows[first : first + size], np.int64))]
