"""Products of a direction with every vector: the error bound of approximate ones holds for any length."""

from types import SimpleNamespace

import numpy as np
import pytest

from kiln.explorer import scan

DIM = 256


def matrix(vectors):
    """Return the columns of a matrix that the scan reads, for vectors [n, D]."""
    half = np.asarray(vectors, np.float16)

    class Columns(SimpleNamespace):
        def __getitem__(self, name):
            return getattr(self, name)

    return Columns(vectors=half, norm=np.linalg.norm(half.astype(np.float32), axis=1))


def unit(scanned):
    wide = scanned.vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def similar_vectors(rng):
    """Return vectors of nearly one direction, as models often give."""
    return 5 + 0.05 * rng.standard_normal((3000, DIM))


VECTORS = {
    "all ways": lambda rng: rng.standard_normal((3000, DIM)),
    "similar_vectors": similar_vectors,
    "very long": lambda rng: 20_000 * rng.uniform(-1, 1, (3000, DIM)),
    "very short": lambda rng: 1e-6 * rng.standard_normal((3000, DIM)),
    "long and short": lambda rng: 10.0 ** rng.uniform(-6, 4, (3000, 1)) * rng.uniform(-1, 1, (3000, DIM)),
    "one of them zero": lambda rng: np.r_[np.zeros((1, DIM)), rng.standard_normal((2999, DIM))],
    "more than a block": lambda rng: rng.standard_normal((2 * scan.BLOCK_ROWS + 5, 8)),
    "none": lambda rng: np.empty((0, DIM)),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("length", [1.0, 1e-4, 300.0])
def test_approximate_products_are_within_their_error_bound(name, some, length):
    rng = np.random.default_rng(0)
    scanned = matrix(VECTORS[name](rng))
    direction = rng.standard_normal(scanned.vectors.shape[1]).astype(np.float32)
    direction *= length / np.linalg.norm(direction)
    rows = np.sort(rng.choice(len(scanned.vectors), len(scanned.vectors) // 3, replace=False)) if some else None
    products, error = scan.approximate_products(scanned, direction, rows)
    exact = (unit(scanned) @ direction.astype(np.float64))[slice(None) if rows is None else rows]
    assert products.shape == exact.shape
    assert (np.abs(products - exact) <= error).all()
    if name in ("all ways", "similar_vectors", "very long"):
        assert error.max(initial=0) < 0.003 * length  # near enough to leave most chips out


@pytest.mark.parametrize("name", VECTORS)
def test_exact_products_are_those_of_float32(name):
    rng = np.random.default_rng(1)
    scanned = matrix(VECTORS[name](rng))
    direction = rng.standard_normal(scanned.vectors.shape[1]).astype(np.float32)
    rows = rng.permutation(len(scanned.vectors))[:1500]
    exact = (unit(scanned) @ direction.astype(np.float64))[rows]
    assert scan.exact_products(scanned, direction, rows) == pytest.approx(
        exact, abs=2e-6 * float(np.linalg.norm(direction))
    )
