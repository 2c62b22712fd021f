"""Fixtures of the tests of products."""

import pytest

from kiln.archives.worldcover.lattice import Column
from tests.support.merges import GRID, PART_BYTES, WIDE
from tests.support.products import make_product, write_shards


@pytest.fixture
def broken(tmp_path):
    """Write a plan and three valid shards, of which the test damages one: plan, names, folder, product."""
    plan, names, folder = write_shards(tmp_path, columns=[Column(k, 0, 40) for k in range(12)])
    return plan, names, folder, str(tmp_path / "product")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Merge 1600 chips of ten shards into several parts of several row groups; read only."""
    run = tmp_path_factory.mktemp("grid")
    skip = lambda col, row: (col + row) % 7 == 0  # noqa: E731
    return make_product(run, columns=GRID, kiln=WIDE, row_group=100, part_bytes=PART_BYTES, skip=skip)
