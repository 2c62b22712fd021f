"""WorldCover archives on a web server or in a bucket: the same chips, and errors."""

import boto3
import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Lattice, region_columns
from kiln.errors import ConfigError, TransientError
from kiln.formats.records import Dropped
from tests.support.archives import random_pixels, write_tile
from tests.support.worldcover_source import chips_of, make_source, read_events


def test_an_archive_over_http_gives_the_same_chips(tmp_path, serve):
    files = {}
    for west in (10, 12):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, west))
        files[f"/wc/{path.relative_to(tmp_path)}"] = path.read_bytes()
    server = serve(files, etag="v1")
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 12.3, 45.9])
    local, remote = (make_source(root, lattice, columns) for root in (tmp_path, f"{server.url}/wc"))
    ours, theirs = chips_of(read_events(remote)), chips_of(read_events(local))
    assert len(ours) == len(theirs) > 6
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(ours, theirs, strict=True))
    assert {c.source.startswith(server.url) for c in ours} == {True}
    assert [p["etag"] for p in remote.provenance().values()] == ["v1", "v1"]
    assert remote.units()[0].etag != local.units()[0].etag


def test_a_throttled_tile_is_a_transient_error_and_a_missing_one_fails_its_chips(tmp_path, serve):
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    server = serve({f"/{path.relative_to(tmp_path)}": path.read_bytes()})
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 10.7, 45.7])
    for status, error in ((503, True), (429, True), (404, False), (403, False)):
        source = make_source(server.url, lattice, columns)
        server.status = status
        if error:
            with pytest.raises(TransientError, match=f"{status}. Try again later"):
                read_events(source)
        else:
            assert {e.kind for e in read_events(source) if isinstance(e, Dropped)} == {"failed"}
        server.status = 0
    source = make_source(server.url, lattice, columns)
    server.etag = "two"
    assert all("changed since the archive" in e.reason for e in read_events(source))


@pytest.mark.usefixtures("gdal_without_retries")
def test_a_broken_connection_is_a_transient_error(tmp_path, serve):
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(400, 1))
    data = path.read_bytes()
    lattice = Lattice(16, 400)
    server = serve({f"/{path.relative_to(tmp_path)}": data})
    source = make_source(server.url, lattice, region_columns(lattice, [10.3, 45.3, 10.7, 45.7]))
    server.break_at = len(data) // 2
    with pytest.raises(TransientError):
        read_events(source)


def test_an_archive_in_a_bucket_gives_the_same_chips(tmp_path, bucket):
    client = boto3.client("s3")
    for west in (10, 11):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, west))
        client.upload_file(str(path), bucket.removeprefix("s3://"), f"rgbnir/{path.relative_to(tmp_path)}")
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 11.3, 45.9])
    local, remote = (make_source(root, lattice, columns) for root in (tmp_path, f"{bucket}/rgbnir"))
    ours, theirs = chips_of(read_events(remote)), chips_of(read_events(local))
    assert len(ours) == len(theirs) > 3
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(ours, theirs, strict=True))
    assert all(p["etag"] for p in remote.provenance().values())


@pytest.mark.parametrize("denied", [2, 1])
def test_an_archive_that_denies_every_tile_is_refused_before_it_is_read(tmp_path, serve, denied):
    files = {}
    for west in (10, 11):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, west))
        files[f"/{path.relative_to(tmp_path)}"] = path.read_bytes()
    server = serve(files)
    lattice = Lattice(16, 40)
    source = make_source(server.url, lattice, region_columns(lattice, [10.3, 45.3, 11.3, 45.9]))
    server.denied = set(list(files)[:denied])
    if denied == len(files):
        with pytest.raises(ConfigError, match=r"answers 403.*No tile of this shard can be read: set credentials"):
            source.check()
    else:
        source.check()
