"""The system's Chromium, driven by Playwright."""

import os
import shutil

import pytest
from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def launch(driver: Playwright) -> Browser:
    """Start it headless with software rendering; fail the test if it is not installed."""
    path = os.environ.get("KILN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("no browser here: install Debian's chromium, or name one in KILN_BROWSER")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return driver.chromium.launch(executable_path=path, args=["--enable-unsafe-swiftshader", *sandbox])
