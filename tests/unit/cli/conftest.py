"""Fixtures of the tests of commands."""

import pytest

from tests.support.products import make_product
from tests.support.searches import COLUMNS, build_database


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Build a database of 100 chips in each of two years; read only."""
    run = tmp_path_factory.mktemp("search")
    return build_database(run, *(make_product(run, year, columns=COLUMNS) for year in (2020, 2021)))
