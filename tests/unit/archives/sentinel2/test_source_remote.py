"""Sentinel-2 items on a web server or in a bucket: the same chips, few requests, and errors."""

from collections import Counter

import boto3
import pytest

from kiln.archives.sentinel2 import assets
from kiln.engine.read_ahead import read_ahead
from kiln.errors import ConfigError, TransientError
from kiln.formats.records import Chip, Dropped
from kiln.io import gdal, storage
from tests.support.items import BUCKET, write_item
from tests.support.sentinel2_scenes import (
    OTHER_NAME,
    comparable,
    make_source,
    read_chips,
    read_dropped,
    read_events,
    scl_mask,
)


@pytest.fixture
def item_server(tmp_path, serve, monkeypatch):
    """A web server of two items, which are also on disk. GDAL gives up early and caches no responses."""
    quick = {"GDAL_HTTP_MAX_RETRY": "0", "GDAL_HTTP_LOW_SPEED_TIME": "1", "GDAL_HTTP_TIMEOUT": "2"}
    monkeypatch.setattr(assets, "REQUEST_THREADS", 3)  # the server takes few connections at a time
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | quick | {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127"})
    written = [write_item(tmp_path, seed=1), write_item(tmp_path, OTHER_NAME, seed=2)]
    files = {f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    server = serve(files)
    server.items = written
    return server


def make_remote_source(server, *written, **more):
    return make_source("", *(written or server.items), rewrite=[(BUCKET, server.url)], **more)


def served_path(server, written, name):
    return next(k for k in server.files if written.entry["id"] in k and k.endswith(name))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_chips_over_http_equal_local_ones(tmp_path, item_server, ranges):
    item_server.ranges = ranges
    source = make_remote_source(item_server)
    remote_chips = read_chips(source)
    assert [comparable(c) for c in remote_chips] == [
        comparable(c) for c in read_chips(make_source(tmp_path, *item_server.items))
    ]
    assert len(remote_chips) == 32
    assert all(s.startswith(item_server.url) for c in remote_chips for s in (c.source, *c.sources))
    assert {v["etag"] for v in source.provenance().values()} == {"one"}
    assert len(source.provenance()) == 22


def test_chips_of_a_bucket_equal_local_ones(tmp_path, bucket):
    written = write_item(tmp_path)
    for path in written.folder.iterdir():
        boto3.client("s3").upload_file(str(path), bucket[5:], str(path.relative_to(tmp_path)))
    remote_chips = read_chips(make_source("", written, rewrite=[("https://other", "x"), (BUCKET, bucket)]))
    assert [comparable(c) for c in remote_chips] == [comparable(c) for c in read_chips(make_source(tmp_path, written))]
    assert all(s.startswith(bucket) for c in remote_chips for s in c.sources)


def test_the_first_matching_rule_rewrites_items_and_assets(tmp_path):
    written = write_item(tmp_path)
    rules = [("s3://sentinel-cogs", "/x"), (BUCKET, str(tmp_path)), ("https://", "/y")]
    assert len(read_chips(make_source("", written, rewrite=rules))) == 16
    entry = written.entry | {"href": written.entry["href"].replace(BUCKET, "s3://sentinel-cogs")}
    assert len(read_chips(make_source("", entry, rewrite=[("s3://sentinel-cogs", str(tmp_path)), *rules]))) == 16


def test_no_band_pixel_is_requested_for_a_scene_without_a_valid_chip(tmp_path, serve, monkeypatch):
    written = write_item(tmp_path, side=512, scl=scl_mask(256, 8), compress=None)
    server = serve({f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in written.folder.iterdir()})
    source = make_remote_source(server, written)
    assert [(k, n) for k, n, _ in read_dropped(source)] == [("cloud", 1024)]
    bytes_by_file = Counter()
    for method, path, byte_range in server.requests:
        if method == "GET":
            first, last = (byte_range or "bytes=0-10000000").removeprefix("bytes=").split("-")
            bytes_by_file[path.rpartition("/")[2]] += min(int(last), len(server.files[path]) - 1) - int(first) + 1
    assert {n for n in bytes_by_file if n.endswith(".tif")} == {"SCL.tif", "B04.tif"}
    assert bytes_by_file["B04.tif"] < len(server.files[served_path(server, written, "B04.tif")]) / 10


def test_no_byte_of_a_band_is_requested_twice(tmp_path, serve):
    tiles = {"driver": "COG", "blocksize": 128, "compress": "deflate"}
    written = write_item(tmp_path, side=512, **tiles)
    server = serve({f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in written.folder.iterdir()})
    chips = read_chips(make_remote_source(server, written, chip=64))
    assert len(chips) == 64
    requested, total = 0, 0
    for path, data in server.files.items():
        if path.endswith(".tif"):
            total += len(data)
            for method, request_path, byte_range in server.requests:
                if method == "GET" and request_path == path:
                    first, last = byte_range.removeprefix("bytes=").split("-")
                    requested += min(int(last), len(data) - 1) - int(first) + 1
    assert total * 0.8 < requested < total * 1.1  # headers twice, overviews never


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_server_is_a_transient_error(item_server, status):
    item_server.status = status
    with pytest.raises(TransientError, match=str(status)):
        read_events(make_remote_source(item_server))
    source = make_remote_source(item_server)
    item_server.status = 0
    source.check()
    item_server.status = status
    with pytest.raises(TransientError):
        list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


def test_a_broken_connection_is_a_transient_error(item_server):
    source = make_remote_source(item_server)
    source.check()
    item_server.break_at = len(item_server.files[served_path(item_server, item_server.items[0], "B08.tif")]) // 2
    with pytest.raises(TransientError):
        list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


def test_an_unreachable_host_is_a_transient_error(item_server):
    source = make_remote_source(item_server)
    item_server.stop()
    with pytest.raises(TransientError, match="connection"):
        source.check()


@pytest.mark.parametrize("when", ["check", "read"])
def test_a_hanging_server_is_a_transient_error(item_server, monkeypatch, when):
    monkeypatch.setattr(storage.http, "TIMEOUT_S", (0.5, 0.5))
    source = make_remote_source(item_server)
    if when == "read":
        source.check()
    item_server.hang = 4
    with pytest.raises(TransientError):
        source.check() if when == "check" else list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


@pytest.mark.parametrize("status", [403, 401])
def test_a_refusing_server_is_a_config_error_of_the_check(item_server, status):
    item_server.status = status
    with pytest.raises(ConfigError, match=f"{status}.*set credentials, or read from a mirror"):
        make_remote_source(item_server).check()


def test_an_unsatisfiable_range_fails_the_item(item_server):
    item_server.status = 416
    reasons = [r for _, _, r in read_dropped(make_remote_source(item_server))]
    assert len(reasons) == 2
    assert all("416" in r for r in reasons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, k: s.files.pop(k), "does not exist"),
        (lambda s, k: s.files.update({k: b"<html>Sign in to the proxy</html>"}), "not a readable raster"),
        (lambda s, k: s.files.update({k: s.files[k][: len(s.files[k]) // 2]}), "B11.tif: swir16 is"),
        (lambda s, k: s.files.update({k: b""}), "empty, 0 bytes"),
    ],
    ids=["404", "html", "half", "empty"],
)
def test_a_damaged_asset_on_the_server_fails_only_its_item(item_server, change, message):
    change(item_server, served_path(item_server, item_server.items[0], "B11.tif"))
    events = read_events(make_remote_source(item_server))
    assert len([e for e in events if isinstance(e, Chip)]) == 16
    assert {e.unit_id for e in events if isinstance(e, Chip)} == {item_server.items[1].unit_id}
    (reason,) = {e.reason for e in events if isinstance(e, Dropped) and e.kind == "failed"}
    assert message in reason
    assert "B11.tif" in reason


def test_an_asset_that_is_removed_after_the_check_fails_its_item(item_server):
    source = make_remote_source(item_server)
    source.check()
    for name in [k for k in item_server.files if k.endswith("B08.tif")]:
        del item_server.files[name]
    events = list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))
    assert all("was removed while" in e.reason for e in events if isinstance(e, Dropped))
    assert not [e for e in events if isinstance(e, Chip)]


def test_an_asset_that_is_replaced_after_the_check_is_to_be_tried_again(item_server):
    source = make_remote_source(item_server)
    source.check()
    for name in [k for k in item_server.files if k.endswith("B08.tif")]:
        item_server.files[name] = b"another file"
    with pytest.raises(TransientError, match=r"B08\.tif: nir was replaced while"):
        list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))
