"""Pixels of remote rasters: a lost answer never becomes pixels of 0, and nothing is requested that is not needed."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.transform import from_origin
from rasterio.windows import Window

from kiln.archives.raster_reading import read_pixels
from kiln.io import gdal
from kiln.sample.files import write_cog
from tests.support.archives import random_pixels

SIDE_PX, BLOCK_PX = 600, 256


@pytest.fixture
def cog(tmp_path):
    """A cloud-optimised GeoTIFF of 3 x 3 blocks, and its pixels [1, rows, cols]."""
    pixels = random_pixels(SIDE_PX, 1)[:1]
    write_cog(tmp_path / "file.tif", pixels, "EPSG:32614", 500_000, 5_000_000, 10.0)
    return (tmp_path / "file.tif").read_bytes(), pixels


@pytest.mark.parametrize("fault", ["reset", "cut"])
@pytest.mark.parametrize("lost", range(1, 7))
def test_a_lost_answer_is_an_error_and_never_pixels_of_zero(cog, serve, gdal_without_retries, fault, lost):
    """GDAL asks again for the head of a file that another thread made it forget, and takes a lost one for no data."""
    data, pixels = cog
    server = serve({"/file.tif": data})
    server.fault = lambda path, count: fault if 1 <= count <= lost else ""
    uri = f"{server.url}/file.tif"
    with gdal.environment(uri), rasterio.open(uri) as file:
        gdal.forget(uri)
        try:
            values = read_pixels(file, window=Window(0, 0, SIDE_PX, BLOCK_PX))
        except RasterioIOError:
            return
    assert (values == pixels[:, :BLOCK_PX]).all()


def test_pixels_are_read_without_the_headers_of_overviews(tmp_path, serve):
    """rasterio's `read` requests them, one after the other, and no other thread of Python runs meanwhile."""
    path, pixels = tmp_path / "file.tif", random_pixels(SIDE_PX, 1)[:1]
    profile = {"width": SIDE_PX, "height": SIDE_PX, "count": 1, "dtype": pixels.dtype, "tiled": True}
    blocks = {"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "transform": from_origin(500_000, 5_000_000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32614", **profile, **blocks) as file:
        file.write(pixels)
    size = path.stat().st_size
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    server = serve({"/file.tif": path.read_bytes()})
    uri = f"{server.url}/file.tif"
    with gdal.environment(uri), rasterio.open(uri) as file:
        values = read_pixels(file, window=Window(0, 0, SIDE_PX, BLOCK_PX))
    assert (values == pixels[:, :BLOCK_PX]).all()
    last_bytes = [int(byte_range.rpartition("-")[2]) for _, _, byte_range in server.requests if byte_range]
    assert max(last_bytes) < size


@pytest.mark.parametrize("shape", [None, (100, 50)])
@pytest.mark.parametrize("window", [None, Window(10, 20, 300, 200)])
def test_pixels_are_those_of_rasterio(cog, tmp_path, window, shape):
    with rasterio.open(tmp_path / "file.tif") as file:
        expected = file.read([1], window=window, out_shape=shape and (1, *shape))
        assert np.array_equal(read_pixels(file, [1], window, shape), expected)
