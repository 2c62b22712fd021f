"""GDAL: transient errors, open rasters of threads, the options of a bucket, and traffic."""

import threading

import pytest
import rasterio

from kiln.io import buckets, gdal
from kiln.io.storage import Traffic
from tests.support.naip_scenes import scene_pixels, write_scene
from tests.support.traffic import served


def chained(*messages: str) -> Exception:
    """Return an exception whose causes have the messages after the first."""
    error = Exception(messages[0])
    error.__cause__ = chained(*messages[1:]) if messages[1:] else None
    return error


def test_a_message_has_the_causes_once_each_the_innermost_first():
    assert gdal.gdal_message(chained("read failed", "block 3", "read failed")) == "read failed; block 3"


@pytest.mark.parametrize("name", ["s3://bucket/timed out.tif", "https://data.example/timed out.tif", "/timed out.tif"])
def test_the_name_of_the_file_is_no_part_of_its_message(name):
    vsi = gdal._vsi_path(name) if "://" in name else name
    error = chained(f"'{vsi}' not recognized", f"{name}: bad")
    assert gdal.gdal_message(error, name) == "the file: bad; 'the file' not recognized"


def test_a_long_message_is_cut_at_its_end():
    assert gdal.shorten("cause; " + "x" * 500).startswith("cause; xxx")
    assert len(gdal.shorten("x" * 500)) == gdal.MAX_MESSAGE_CHARS + len("...")
    assert gdal.shorten("short") == "short"


@pytest.mark.parametrize("store", ["http", "s3"])
def test_the_size_of_an_open_remote_file_takes_no_request(store, tmp_path, serve, aws):
    path = write_scene(tmp_path, "bucket/a.tif", scene_pixels())
    server = serve({"/bucket/a.tif": path.read_bytes()})
    aws(server.url)
    uri = "s3://bucket/a.tif" if store == "s3" else f"{server.url}/bucket/a.tif"
    with gdal.environment(uri), rasterio.open(uri):
        requests = len(server.requests)
        assert gdal.remote_size(uri) == path.stat().st_size
        assert len(server.requests) == requests


class Raster:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_thread_has_at_most_max_open_rasters_of_its_own():
    rasters = gdal.OpenRasters(2)
    opened = {name: rasters.get(name, Raster) for name in "ab"}
    assert rasters.get("a", Raster) is opened["a"]
    rasters.get("c", Raster)
    assert opened["a"].closed
    assert not opened["b"].closed
    other = []
    thread = threading.Thread(target=lambda: other.append(rasters.get("b", Raster)))
    thread.start()
    thread.join()
    assert other[0] is not opened["b"]


def test_a_closed_raster_is_opened_again():
    rasters = gdal.OpenRasters(2)
    first = rasters.get("a", Raster)
    rasters.close("a")
    assert first.closed
    assert rasters.get("a", Raster) is not first
    rasters.close("none")


@pytest.mark.parametrize(
    ("payer", "option"), [(True, ("AWS_REQUEST_PAYER", "requester")), (False, ("AWS_NO_SIGN_REQUEST", "YES"))]
)
def test_an_archives_bucket_decides_how_requests_are_signed_and_paid(monkeypatch, aws, payer, option):
    aws("")
    monkeypatch.setitem(buckets._BUCKETS, "b", buckets.Bucket("b", "eu-central-1", requester_pays=payer))
    options = gdal.environment("s3://b/a.tif").options
    assert options[option[0]] == option[1]
    assert options["AWS_REGION"] == "eu-central-1"
    assert gdal.environment("s3://private/a.tif").options[option[0]] != option[1]
    aws("http://127.0.0.1:9000")  # a copy in another store, which has regions of its own
    options = gdal.environment("s3://b/a.tif").options
    assert options["AWS_REGION"] == "us-east-1"
    assert options["AWS_S3_ENDPOINT"] == "127.0.0.1:9000"


def read_raster(uri):
    with gdal.environment(uri), rasterio.open(uri) as raster:
        return raster.read()


def test_traffic_is_what_the_servers_of_rasters_sent(tmp_path, serve):
    pixels = [scene_pixels(300, 200, seed) for seed in range(2)]
    files = [write_scene(tmp_path, f"{n}.tif", p).read_bytes() for n, p in enumerate(pixels)]
    servers = [serve({"/a.tif": data}) for data in files]
    before = gdal.traffic()
    assert (read_raster(f"{servers[0].url}/a.tif") == pixels[0]).all()
    of_the_first = gdal.traffic() - before
    assert of_the_first == served(servers[0])
    assert of_the_first.requests >= 2
    assert len(files[0]) / 2 < of_the_first.read_bytes <= len(files[0])
    thread = threading.Thread(target=read_raster, args=(f"{servers[1].url}/a.tif",))
    thread.start()
    thread.join()
    assert gdal.traffic() - before == served(servers[0]) + served(servers[1])
    assert served(servers[1]).read_bytes > len(files[1]) / 2


@pytest.mark.usefixtures("gdal_without_retries")
def test_a_refused_raster_is_traffic_too(serve):
    server, before = serve(status=403, body=b"no entry"), gdal.traffic()
    with pytest.raises(rasterio.errors.RasterioIOError):
        read_raster(f"{server.url}/a.tif")
    assert (gdal.traffic() - before).requests == served(server).requests > 0


def test_a_local_raster_is_no_traffic(tmp_path):
    path, before = write_scene(tmp_path, "a.tif", scene_pixels()), gdal.traffic()
    assert read_raster(str(path)).shape == (4, 40, 56)
    assert gdal.traffic() - before == Traffic()
