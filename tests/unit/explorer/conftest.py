"""The database of kinds of ground, shared by the tests of ranking and search; read only."""

import pytest

from tests.support.ground import open_ground


@pytest.fixture(scope="package")
def opened(tmp_path_factory):
    """2400 chips with a vector index: database and matrix."""
    return open_ground(tmp_path_factory.mktemp("ground"))
