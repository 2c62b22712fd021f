"""The Hilbert order: the keys of geopandas, bit by bit, and ranks."""

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.product import order
from kiln.product.order import hilbert_keys, hilbert_order


def reference(points):
    bounds = (*points.min(axis=0), *points.max(axis=0))
    return gpd.GeoSeries(gpd.points_from_xy(*points.T)).hilbert_distance(total_bounds=bounds, level=16).to_numpy()


DEGREES = st.floats(-180, 180, allow_nan=False, width=64)


@given(st.lists(st.tuples(DEGREES, DEGREES), min_size=1, max_size=40))
def test_keys_are_those_of_geopandas_for_any_points(points):
    points = np.array(points)
    assert np.array_equal(hilbert_keys(points), reference(points))


@pytest.mark.parametrize("scale", [(360, 180), (1e-6, 1e-6), (5, 0), (0, 5), (0, 0)])
def test_keys_are_those_of_geopandas_on_every_scale(scale):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2)) * scale
    keys = hilbert_keys(points)
    assert keys.dtype == np.uint32
    assert np.array_equal(keys, reference(points))


def test_every_cell_of_a_coarse_grid_has_the_key_of_geopandas():
    side = np.linspace(-1, 1, 257)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    keys = hilbert_keys(points)
    assert np.array_equal(keys, reference(points))
    assert len(np.unique(keys)) == len(keys)


def test_keys_do_not_depend_on_the_batch(monkeypatch):
    points = np.random.default_rng(1).uniform(-5, 5, (1000, 2))
    expected = hilbert_keys(points)
    monkeypatch.setattr(order, "BATCH_ROWS", 7)
    assert np.array_equal(hilbert_keys(points), expected)


def test_no_shard_has_no_rows():
    assert hilbert_order([]).rows == 0
    assert len(hilbert_keys(np.empty((0, 2)))) == 0
