"""Products shared by the tests of the build; read only."""

import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Column
from tests.support.builds import GRID, INT8
from tests.support.products import make_product, shard_metadata


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Write products of the same 100 places in 2020 and 2021."""
    run = tmp_path_factory.mktemp("two")
    return make_product(run, 2020, columns=GRID, row_group=30, part_bytes=20_000), make_product(run, 2021, columns=GRID)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Write a product of 6000 chips whose vectors lie in 40 clusters, as those of scenes do."""
    dim, rng = 64, np.random.default_rng(5)
    centres = rng.standard_normal((40, dim))

    def vectors(chips):
        return centres[rng.integers(0, 40, len(chips))] + 0.5 * rng.standard_normal((len(chips), dim))

    run = tmp_path_factory.mktemp("many")
    columns = [Column(k, 0, 100) for k in range(60)]
    return make_product(run, columns=columns, per_shard=20, kiln=shard_metadata(dimensions=dim), vectors=vectors)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Write a product of 100 places with class tokens and means, both as int8."""
    return make_product(tmp_path_factory.mktemp("both"), columns=GRID, kiln=INT8)
