"""Fixtures of the tests of products."""

import pytest

from kiln.archives.worldcover.lattice import Column
from tests.support.products import write_shards


@pytest.fixture
def broken(tmp_path):
    """Write a plan and three valid shards, of which the test damages one: plan, names, folder, product."""
    plan, names, folder = write_shards(tmp_path, columns=[Column(k, 0, 40) for k in range(12)])
    return plan, names, folder, str(tmp_path / "product")
