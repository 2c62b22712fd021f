"""Servers and buckets of NAIP scenes."""

import pytest

from kiln.archives import raster_reading
from tests.support.naip_scenes import (
    KEY,
    OTHER_KEY,
    requester_pays_bucket,
    scene_pixels,
    write_scene,
)


@pytest.fixture
def scene_server(tmp_path, serve, monkeypatch, gdal_without_retries):
    """A web server of two scenes of several strips, which are also on disk."""
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    pixels = [scene_pixels(seed=n) for n in range(2)]
    files = {
        f"/{k}": write_scene(tmp_path, k, p, tiled=True, blockxsize=16, blockysize=16).read_bytes()
        for k, p in zip((KEY, OTHER_KEY), pixels, strict=True)
    }
    return serve(files)


@pytest.fixture
def paid_bucket(tmp_path, bucket, gdal_without_cache):
    """The requester-pays bucket with two scenes."""
    scenes = {key: write_scene(tmp_path, key, scene_pixels(seed=n)) for n, key in enumerate((KEY, OTHER_KEY))}
    with requester_pays_bucket(scenes):
        yield
