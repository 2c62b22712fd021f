"""Fixtures: a database of the explorer and its servers."""

import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.explorer.build import Select, build
from kiln.sample.worldcover import draw_tile
from tests.support.archives import write_tile
from tests.support.explorers_server import ExplorerServer
from tests.support.products import make_product

COLUMNS = [Column(k, 0, 10) for k in range(10)]


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """Build a database of 100 chips in each of two years; their source is a local tile."""
    folder = tmp_path_factory.mktemp("server")
    tile = write_tile(folder / "archive", 2021, -125, 49, draw_tile(-125, 49, 240, 2021, 7))
    products = [make_product(folder, y, columns=COLUMNS, source=str(tile)) for y in (2020, 2021)]
    build([m.record_file for m in products], [m.uri for m in products], str(folder / "db"), Select())
    return folder


@pytest.fixture(scope="package")
def web(run):
    server = ExplorerServer(str(run / "db"), run / "cache")
    yield server
    server.stop()


@pytest.fixture
def other(tmp_path):
    """Return a function that starts servers; they stop when the test ends."""
    started = []

    def start(db, **options):
        started.append(ExplorerServer(db, tmp_path / "cache", **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()
