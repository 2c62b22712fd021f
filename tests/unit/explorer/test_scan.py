"""Products of a direction with every vector: the bound of the rough ones holds, whatever the vectors' lengths."""

from types import SimpleNamespace

import numpy as np
import pytest

from kiln.explorer import scan

DIM = 256


def matrix(vectors):
    """What the scan reads of a matrix, of vectors [n, D]."""
    half = np.asarray(vectors, np.float16)

    class Made(SimpleNamespace):
        def __getitem__(self, name):
            return getattr(self, name)

    return Made(vectors=half, norm=np.linalg.norm(half.astype(np.float32), axis=1))


def unit(made):
    wide = made.vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def alike(rng):
    """Vectors that nearly point the same way, as those of a model often do."""
    return 5 + 0.05 * rng.standard_normal((3000, DIM))


MADE = {
    "all ways": lambda rng: rng.standard_normal((3000, DIM)),
    "alike": alike,
    "very long": lambda rng: 20_000 * rng.uniform(-1, 1, (3000, DIM)),
    "very short": lambda rng: 1e-6 * rng.standard_normal((3000, DIM)),
    "long and short": lambda rng: 10.0 ** rng.uniform(-6, 4, (3000, 1)) * rng.uniform(-1, 1, (3000, DIM)),
    "one of them zero": lambda rng: np.r_[np.zeros((1, DIM)), rng.standard_normal((2999, DIM))],
    "more than a block": lambda rng: rng.standard_normal((2 * scan.BLOCK_ROWS + 5, 8)),
    "none": lambda rng: np.empty((0, DIM)),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("length", [1.0, 1e-4, 300.0])
def test_rough_products_are_as_near_as_they_say(name, some, length):
    rng = np.random.default_rng(0)
    made = matrix(MADE[name](rng))
    direction = rng.standard_normal(made.vectors.shape[1]).astype(np.float32)
    direction *= length / np.linalg.norm(direction)
    rows = np.sort(rng.choice(len(made.vectors), len(made.vectors) // 3, replace=False)) if some else None
    products, error = scan.approximate_products(made, direction, rows)
    true = (unit(made) @ direction.astype(np.float64))[slice(None) if rows is None else rows]
    assert products.shape == true.shape
    assert (np.abs(products - true) <= error).all()
    if name in ("all ways", "alike", "very long"):
        assert error.max(initial=0) < 0.003 * length  # near enough to leave most chips out


@pytest.mark.parametrize("name", MADE)
def test_exact_products_are_those_of_float32(name):
    rng = np.random.default_rng(1)
    made = matrix(MADE[name](rng))
    direction = rng.standard_normal(made.vectors.shape[1]).astype(np.float32)
    rows = rng.permutation(len(made.vectors))[:1500]
    true = (unit(made) @ direction.astype(np.float64))[rows]
    assert scan.exact_products(made, direction, rows) == pytest.approx(
        true, abs=2e-6 * float(np.linalg.norm(direction))
    )
