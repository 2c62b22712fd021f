"""Fixtures of the products' tests."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from kiln.archives.worldcover.lattice import Column
from tests.support.products import write_shards


@pytest.fixture(scope="session")
def duckdb_home(tmp_path_factory):
    """A home folder where DuckDB finds its spatial extension without the network."""
    home = tmp_path_factory.mktemp("duckdb-home")
    con = duckdb.connect(config={"extension_directory": str(home / ".duckdb" / "extensions")})
    importlib.import_module("duckdb_extensions").import_extension("spatial", con=con)
    con.close()
    return home


@pytest.fixture
def gpio(duckdb_home):
    """Runs geoparquet-io with these arguments; returns the finished process."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(duckdb_home), "COLUMNS": "200"}
    command = str(Path(sys.executable).parent / "gpio")
    return lambda *args: subprocess.run([command, *args], capture_output=True, text=True, env=env, timeout=100)


@pytest.fixture
def broken(tmp_path):
    """A plan of three good shards, for a test to break one: plan, names, folder, product."""
    plan, names, folder = write_shards(tmp_path, columns=[Column(k, 0, 40) for k in range(12)])
    return plan, names, folder, str(tmp_path / "product")
