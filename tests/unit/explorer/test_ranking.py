"""Ranking: the best chips along a direction against plain NumPy, the classifier's closed form, neighbourhoods."""

import numpy as np
import pytest

from kiln.errors import ConfigError
from kiln.explorer import ranking
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.matrix_cache import open_matrix
from kiln.explorer.ranking import ridge, spread_out
from tests.support import explorers
from tests.support.ground import DIM, unit


@pytest.mark.parametrize("max_exact_rows", [10, 1 << 30])
@pytest.mark.parametrize("left", [300, 2000, 4000])
def test_the_best_of_the_filtered_chips_are_exact(opened, monkeypatch, left, max_exact_rows):
    matrix = opened[1]
    monkeypatch.setattr(ranking, "MAX_EXACT_ROWS", max_exact_rows)
    rng = np.random.default_rng(0)
    for _ in range(10):
        direction = rng.standard_normal(DIM).astype(np.float32)
        keep = np.zeros(len(matrix), bool)
        keep[rng.choice(len(matrix), min(left, len(matrix)), replace=False)] = True
        got, scores = ranking.top(matrix, keep, direction, 15)
        products = np.where(keep, unit(matrix) @ direction, -np.inf)
        assert got.tolist() == np.argsort(-products)[:15].tolist()
        assert scores == pytest.approx(np.sort(products)[::-1][:15], abs=1e-5)


def test_ridge_equals_the_closed_form():
    """The reference solves the normal equations of the primal problem."""
    rng = np.random.default_rng(1)
    points, labels, weights = rng.standard_normal((30, 7)), rng.choice([-1.0, 1.0], 30), rng.uniform(0.5, 2, 30)
    direction, offset = ridge(points, labels, weights)
    fractions = weights / weights.sum()
    centred, middle = points - fractions @ points, labels - fractions @ labels
    penalty = ranking.RIDGE * np.sum(fractions * (centred**2).sum(axis=1))
    expected = np.linalg.solve(
        centred.T @ (fractions[:, None] * centred) + penalty * np.eye(7), centred.T @ (fractions * middle)
    )
    assert direction == pytest.approx(expected, abs=1e-5)
    assert offset == pytest.approx(fractions @ labels - (fractions @ points) @ expected, abs=1e-5)


def test_ridge_of_equal_points_is_refused():
    with pytest.raises(ConfigError, match="same vector"):
        ridge(np.ones((6, 4)), np.array([1.0, 1, 1, -1, -1, -1]), np.ones(6))


def test_distances_between_results_cross_the_antimeridian_and_the_poles(tmp_path):
    places = [(179.9, 10), (-179.9, 10), (10, 89.9), (-170, 89.9), (0, 0), (0, 1)]
    rows = [explorers.chip(n, lon, lat, [1, n, 0, 0]) for n, (lon, lat) in enumerate(places)]
    matrix = open_matrix(ExplorerDatabase(explorers.write(tmp_path / "db", rows)), tmp_path / "cache")
    order = matrix.rows_of([r["chip_id"] for r in rows])
    assert spread_out(matrix, order, 100.0, 10).tolist() == [0, 2, 4, 5]
    assert spread_out(matrix, order, 112.0, 10).tolist() == [0, 2, 4]
    assert spread_out(matrix, order, 0.0, 3).tolist() == [0, 1, 2]
