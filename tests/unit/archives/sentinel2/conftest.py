"""Fixtures of Sentinel-2's tests."""

import pytest

from tests.support.stac_api import StacApi


@pytest.fixture
def serve_items():
    started = []

    def start(documents, **options):
        started.append(StacApi(documents, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()
