"""Fixtures of the tests of the explorer; read only."""

import pytest

from tests.support.ground import open_ground
from tests.support.pictures import write_quartered_tile


@pytest.fixture(scope="package")
def opened(tmp_path_factory):
    """Build a database of 2400 chips of several kinds of ground with a vector index; return it and its matrix."""
    return open_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def tile(tmp_path_factory):
    """Write a tile whose four quarters differ in brightness."""
    return str(write_quartered_tile(tmp_path_factory.mktemp("archive")))
