"""Fixtures: a real server of a small database, and a real browser that opens its page."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rasterio
from playwright.sync_api import sync_playwright
from rasterio.transform import from_origin

from kiln.sample.worldcover import draw_tile
from tests.explorer.browser import launch
from tests.explorer.mapserver import CGI
from tests.explorer.page import Page
from tests.explorer.serving import Server
from tests.explorer.tile import PPD, SIDE, SOUTH, WEST, row
from tests.support import explorers

GONE = "gone.tif"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a database: 625 chips of a composite, and 125 partly cloudy ones of the year before without a source."""
    folder = tmp_path_factory.mktemp("explorer")
    pixels = draw_tile(WEST, SOUTH, PPD, 2021, 0)
    with rasterio.open(
        folder / "tile.tif", "w", driver="GTiff", width=PPD, height=PPD, count=4, dtype="uint16", crs="EPSG:4326",
        transform=from_origin(WEST, SOUTH + 1, 1 / PPD, 1 / PPD), tiled=True, nodata=0,
    ) as file:  # fmt: skip
        file.write(pixels)
    rows = [row(n, pixels, source="tile.tif") for n in range(SIDE * SIDE)]
    scene = {"dataset": "sentinel2", "year": 2020, "datetime": datetime(2020, 7, 14, tzinfo=UTC), "source": GONE}
    west = [n for n in range(SIDE * SIDE) if n % SIDE < 5]
    rows += [
        row(n, pixels, **scene, chip_id=f"scene:{n:05d}", cloud_fraction=(n % 10) / 10, nodata_fraction=(n % 3) / 10)
        for n in west
    ]
    metadata = explorers.KILN | {"dimensions": 8, "untrained": True}
    explorers.write(folder / "db", rows, {"worldcover": metadata, "sentinel2": metadata}, dim=8)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start the system's Chromium."""
    with sync_playwright() as driver:
        started = launch(driver)
        yield started
        started.close()


@pytest.fixture(scope="session")
def served(browser: Any, database: Path) -> Iterator[Server]:
    """Start the server. The browser is requested first, so that a missing one fails before anything is written."""
    server = Server(database, database)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of screenshots: KILN_SCREENSHOTS, or a temporary one."""
    configured = os.environ.get("KILN_SCREENSHOTS")
    folder = Path(configured) if configured else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def program() -> str:
    """Return the path of MapServer's CGI program."""
    path = os.environ.get("KILN_MAPSERV", CGI)
    if not shutil.which(path):
        pytest.fail("no MapServer here: install Debian's cgi-mapserver, or name its mapserv in KILN_MAPSERV")
    return path


@pytest.fixture
def visit(browser, served, pictures_folder):
    """Return a function that opens the page; at the end of the test no page may have a fault."""
    pages = []

    def start(fragment="", **options):
        pages.append(Page(browser, served, pictures_folder, **options))
        return pages[-1].open(fragment)

    yield start
    for page in pages:
        faults = page.faults
        page.context.close()
        assert not faults
