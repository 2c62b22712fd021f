"""NAIP scenes on a web server or in the requester-pays bucket: the same chips, few requests, and errors."""

from collections import Counter
from contextlib import closing

import boto3
import pytest
import rasterio
import rasterio.warp
import rasterio.windows

from kiln.engine.read_ahead import read_ahead
from kiln.errors import ConfigError, SourceError, TransientError
from kiln.formats.records import Chip, Opened
from kiln.io import storage
from kiln.sample.files import write_cog
from tests.support.naip_scenes import (
    KEY,
    OTHER_KEY,
    comparable,
    make_source,
    only_reason,
    read_checked_source,
    read_chips,
    read_events,
    scene_pixels,
)


def requested_bytes(server, path):
    """Count how often GET requests asked for each byte of a file."""
    size = len(server.files[path])
    spans = [r.removeprefix("bytes=").split("-") for m, p, r in server.requests if (m, p) == ("GET", path)]
    return Counter(b for a, z in spans for b in range(int(a), min(int(z) + 1, size)))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_chips_over_http_equal_local_ones(tmp_path, scene_server, ranges):
    scene_server.ranges = ranges
    remote_chips = read_chips(make_source(scene_server.url, KEY, OTHER_KEY))
    assert len(remote_chips) == 12
    assert [comparable(c) for c in remote_chips] == [
        comparable(c) for c in read_chips(make_source(tmp_path, KEY, OTHER_KEY))
    ]
    assert {c.source for c in remote_chips} == {f"{scene_server.url}/{k}" for k in (KEY, OTHER_KEY)}


def test_pixels_are_requested_once_and_overviews_never(tmp_path, serve):
    path = write_cog(tmp_path / KEY, scene_pixels(1024, 512), "EPSG:26914", 500_000, 5_209_000, 1)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4]
        places = [
            [int(file.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for (y, x), _ in file.block_windows(1)
        ]
    server = serve({f"/{KEY}": path.read_bytes()})
    source = make_source(server.url, chip=256)
    source.check()
    assert (
        len(read_checked_source(source)) == 9
    )  # one thread: with two, GDAL prefetches bytes that the other thread requests
    requests = requested_bytes(server, f"/{KEY}")
    pixels = [b for at, size in places for b in range(at, at + size)]
    assert len(pixels) > 1.5e6
    assert min(requests[b] for b in pixels) == 1
    assert sum(requests.values()) < 1.05 * len(pixels)  # GDAL requests at least 16 kB, also at borders of strips


def test_a_scene_removed_from_the_server_before_the_check_fails(scene_server):
    del scene_server.files[f"/{KEY}"]
    assert "does not exist" in only_reason(make_source(scene_server.url))


def test_a_scene_removed_from_the_server_after_the_check_fails(scene_server):
    source = make_source(scene_server.url)
    source.check()
    del scene_server.files[f"/{KEY}"]
    (event,) = read_checked_source(source)
    assert (event.kind, event.reason) == ("failed", f"{scene_server.url}/{KEY}: was removed while it was read")


@pytest.mark.parametrize("when", ["before it is opened", "before its last row"])
def test_a_scene_replaced_on_the_server_is_a_transient_error(scene_server, when):
    source = make_source(scene_server.url)
    source.check()
    if when == "before it is opened":
        scene_server.etag = "two"
    seen = []

    def change():
        with closing(read_ahead(source.reads(), 1, 1)) as loaded:
            for event in source.chips(loaded):
                seen.append(event)
                scene_server.etag = "two"

    with pytest.raises(TransientError, match="was replaced while it was read"):
        change()
    assert {e.row for e in seen if isinstance(e, Chip)} <= {0}  # of two rows


def test_a_throttling_server_is_a_transient_error(scene_server):
    source = make_source(scene_server.url)
    source.check()
    scene_server.status = 503
    with pytest.raises(TransientError, match="503"):
        read_checked_source(source)
    with pytest.raises(TransientError, match=r"503\. Try again later"):
        source.check()


def test_a_broken_connection_is_a_transient_error(scene_server):
    source = make_source(scene_server.url)
    source.check()
    scene_server.break_at = 2500
    with pytest.raises(TransientError):
        read_checked_source(source)


def test_a_refusing_server_is_a_config_error_that_names_the_payer(scene_server):
    scene_server.status = 403
    with pytest.raises(ConfigError, match=r"403.*requester-pays"):
        make_source(scene_server.url).check()


def test_a_scene_of_unknown_size_is_read_or_fails_with_a_reason(scene_server, monkeypatch):
    stat = storage.stat
    monkeypatch.setattr(storage, "stat", lambda uri: storage.Stat(-1, stat(uri).etag))
    for event in read_events(make_source(scene_server.url)):
        assert isinstance(event, Opened | Chip) or event.kind == "failed"


@pytest.mark.usefixtures("paid_bucket")
def test_chips_of_the_requester_pays_bucket_equal_local_ones(tmp_path):
    source = make_source("s3://naip-analytic", KEY, OTHER_KEY)
    remote_chips = read_chips(source)
    assert len(remote_chips) == 12
    assert [comparable(c) for c in remote_chips] == [
        comparable(c) for c in read_chips(make_source(tmp_path, KEY, OTHER_KEY))
    ]
    stats = {f"s3://naip-analytic/{k}": storage.stat(f"s3://naip-analytic/{k}") for k in (KEY, OTHER_KEY)}
    assert source.provenance() == {uri: {"size": s.size, "etag": s.etag} for uri, s in stats.items()}
    assert {u.source: u.etag for u in source.units()} == {uri: s.etag for uri, s in stats.items()}


@pytest.mark.parametrize(("name", "payer"), [("naip-analytic", "requester"), ("another", None)])
def test_requests_name_the_payer_only_for_the_requester_pays_bucket(scene_server, aws, name, payer):
    scene_server.files |= {f"/{name}/{key}": scene_server.files[f"/{key}"] for key in (KEY, OTHER_KEY)}
    aws(scene_server.url)
    assert len(read_chips(make_source(f"s3://{name}", KEY, OTHER_KEY))) == 12
    assert {m for m, _, _ in scene_server.requests} == {"HEAD", "GET"}
    assert set(scene_server.payers) == {payer}


@pytest.mark.usefixtures("paid_bucket")
def test_a_scene_replaced_in_the_bucket_is_a_transient_error(tmp_path):
    source = make_source("s3://naip-analytic")
    source.check()
    boto3.client("s3").put_object(Bucket="naip-analytic", Key=KEY, Body=b"x" * (tmp_path / KEY).stat().st_size)
    with pytest.raises(TransientError, match="was replaced"):
        read_checked_source(source)


@pytest.mark.usefixtures("paid_bucket")
def test_a_scene_removed_from_the_bucket_after_the_check_fails():
    source = make_source("s3://naip-analytic")
    source.check()
    boto3.client("s3").delete_object(Bucket="naip-analytic", Key=KEY)
    (event,) = read_checked_source(source)
    assert (event.kind, event.reason) == ("failed", f"s3://naip-analytic/{KEY}: was removed while it was read")


def test_a_refusing_bucket_is_a_config_error_that_names_the_payer(serve, aws):
    aws(serve(status=403).url)
    with pytest.raises(ConfigError, match=r"access denied.*Set AWS credentials: readers of a requester-pays"):
        make_source("s3://naip-analytic").check()


@pytest.mark.parametrize("status", [405, 409, 410, 451])
def test_one_scene_that_a_server_does_not_answer_for_fails_alone(scene_server, monkeypatch, status):
    answer = storage.stat

    def refusing(uri):
        if uri.endswith(KEY):
            raise SourceError(f"{uri}: the server answers {status}")
        return answer(uri)

    monkeypatch.setattr(storage, "stat", refusing)
    events = read_events(make_source(scene_server.url, KEY, OTHER_KEY))
    (failed,) = [event for event in events if not isinstance(event, Chip | Opened)]
    assert (failed.kind, failed.reason) == ("failed", f"{scene_server.url}/{KEY}: the server answers {status}")
    assert len([event for event in events if isinstance(event, Chip)]) == 6
