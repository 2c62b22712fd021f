"""The landscape at any points: straight grids, bent grids, and grids with grain."""

import numpy as np
import pytest

from kiln.sample.grid import PointGrid, interpolate, sparse_axis
from kiln.sample.landscape import draw

PPD = 1000


def grids(size=200, seed=7):
    """Return the same points, west of a shore, as a straight grid and as full arrays."""
    x = (-96 + (np.arange(size) + 0.5) / PPD)[None]
    y = (43.9 - (np.arange(size) + 0.5) / PPD)[:, None]
    straight = PointGrid(x, y, (PPD, PPD), seed)
    full = np.broadcast_to(x, (size, size)), np.broadcast_to(y, (size, size))
    return straight, straight._replace(x=full[0], y=full[1])


def test_straight_and_full_grids_of_the_same_points_give_the_same_picture():
    straight, bent = grids()
    (one, coast), (two, shore) = (draw(grid, [2020]) for grid in (straight, bent))
    assert one.shape == (1, 4, 200, 200)
    assert np.array_equal(one, two)
    assert np.array_equal(coast, shore)


def test_a_smooth_grid_differs_by_the_error_of_interpolation():
    straight, bent = grids()
    (one, coast), (two, shore) = (draw(grid, [2020]) for grid in (straight, bent._replace(smooth=True)))
    away = np.abs(coast - shore) * PPD  # pixels that the shore is off
    assert away.max() < 2
    assert np.median(away) < 0.2
    assert np.median(np.abs(two / one - 1)) < 0.02
    assert np.mean(np.abs(two / one - 1) > 0.2) < 0.02


def test_a_part_of_a_grid_is_drawn_as_in_the_whole():
    grid, _ = grids()
    whole, _ = draw(grid, [2021])
    part, _ = draw(grid._replace(x=grid.x[:, 20:90], y=grid.y[110:180]), [2021])
    assert np.array_equal(part[..., 2:-2, 2:-2], whole[..., 112:178, 22:88])


def test_crops_change_from_year_to_year_and_come_back_after_eight():
    grid, _ = grids(100)
    images, _ = draw(grid, [2020, 2021, 2028, 2018])
    changed = [np.abs(image - images[0]).max(axis=0) > 50 for image in images]
    assert not changed[2].any()
    assert 0.05 < changed[1].mean() < 0.6
    assert 0.05 < changed[3].mean() < 0.6


def test_grain_adds_texture_and_keeps_the_colours():
    _, grid = grids(100)
    grain = np.random.default_rng(1).uniform(-1, 1, grid.x.shape)
    (plain, _), (fine, _) = (draw(g, [2020]) for g in (grid, grid._replace(grain=grain)))
    rough = [np.abs(np.diff(image[0, 3], axis=1)).mean() for image in (plain, fine)]
    assert rough[1] > 1.2 * rough[0]
    assert fine.mean() == pytest.approx(plain.mean(), rel=0.1)


@pytest.mark.parametrize("count", [17, 32, 33, 40])
def test_interpolation_is_linear(count):
    rows, columns = sparse_axis(count, 16), sparse_axis(50, 8)
    plane = np.arange(count)[:, None] * 2.0 - np.arange(50)[None]
    assert np.allclose(interpolate(plane[rows[0][:, None], columns[0]], rows, columns), plane, atol=1e-4)
