"""The judgement of failed reads: a network that cuts and resets never makes a file the culprit, and damage does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kiln.archives import raster_reading
from kiln.archives.failed_read import MAX_COPIES, LocalCopies, confirmed_stat
from kiln.archives.worldcover.lattice import Lattice, region_columns
from kiln.errors import TransientError
from kiln.formats.records import Chip, Dropped
from kiln.io import storage
from tests.support import naip_scenes, sentinel2_scenes, worldcover_source
from tests.support.archives import random_pixels, write_tile
from tests.support.items import BUCKET, write_item

DATASETS = ("naip", "worldcover", "sentinel2")
LATTICE = Lattice(16, 400)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch, gdal_without_retries):
    monkeypatch.setattr(raster_reading, "RETRY_PAUSES_S", (0.0, 0.0))


def write_archive(dataset: str, folder: Path) -> Callable[[str], list]:
    """Write a small archive; return a function that reads all of it from a root: chips and dropped ones."""
    if dataset == "naip":
        naip_scenes.write_scene(folder, naip_scenes.KEY, naip_scenes.scene_pixels(400, 400))
        return lambda root: naip_scenes.read_events(naip_scenes.make_source(root, naip_scenes.KEY))
    if dataset == "worldcover":
        write_tile(folder, 2021, 10, 45, random_pixels(400, 1))
        columns = region_columns(LATTICE, [10.3, 45.3, 10.5, 45.5])
        return lambda root: worldcover_source.read_events(worldcover_source.make_source(root, LATTICE, columns))
    written = write_item(folder, side=512, compress=None)

    def read(root: str) -> list:
        return sentinel2_scenes.read_events(sentinel2_scenes.make_source("", written, rewrite=[(BUCKET, root)]))

    return read


@pytest.fixture(params=DATASETS)
def archive(request, tmp_path, serve):
    """The reader of an archive, its folder, and a web server of its files."""
    read = write_archive(request.param, tmp_path)
    files = {f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    return read, tmp_path, serve(files)


def chips(events: list) -> list[tuple]:
    return [(e.chip_id, e.pixels.tobytes()) for e in events if isinstance(e, Chip)]


def failures(events: list) -> list[str]:
    return [e.reason for e in events if isinstance(e, Dropped) and e.kind == "failed"]


@pytest.mark.parametrize("fault", ["cut", "reset"])
@pytest.mark.parametrize("number", [0, 1])
def test_one_broken_request_of_each_file_loses_nothing(archive, fault, number):
    read, folder, server = archive
    expected = chips(read(str(folder)))
    assert expected
    server.fault = lambda path, count: fault if count == number else ""
    events = read(server.url)
    assert failures(events) == []
    assert chips(events) == expected
    assert max(server.gdal_requests.values()) > number, "a request was broken"


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_network_that_never_lets_gdal_through_is_to_be_tried_again(archive, fault):
    read, _, server = archive
    server.fault = lambda path, count: fault
    with pytest.raises(TransientError, match=r"the network failed"):
        read(server.url)


def test_a_damaged_file_on_a_server_is_at_fault(archive):
    read, folder, server = archive
    for path, data in server.files.items():
        if path.endswith(".tif"):
            server.files[path] = data[:100] + bytes(len(data) - 100)
    reasons = failures(read(server.url))
    assert reasons
    assert all(server.url in reason and "readable" in reason for reason in reasons)
    assert chips(read(str(folder)))


def test_copies_of_files_of_one_name_do_not_mix_and_are_few(serve):
    server = serve({f"/{n}/B04.tif": bytes([n]) * 10 for n in range(5)})
    copies = LocalCopies()
    for n in (0, 1, 2, 3, 2, 4):
        path = copies.get(f"{server.url}/{n}/B04.tif", storage.stat(f"{server.url}/{n}/B04.tif"))
        assert path.read_bytes() == bytes([n]) * 10
    assert len(list(path.parent.glob("*.tif"))) == MAX_COPIES
    folder = path.parent
    del copies
    assert not folder.exists()


def test_another_version_is_not_judged(serve):
    server = serve({"/a.tif": b"one"})
    version = storage.stat(f"{server.url}/a.tif")
    server.etag, server.files["/a.tif"] = "two", b"two"
    with pytest.raises(TransientError, match="was replaced while it was read"):
        LocalCopies().get(f"{server.url}/a.tif", version)


def test_a_version_that_differs_is_asked_for_again(monkeypatch):
    old, new = storage.Stat(1, "a"), storage.Stat(2, "b")
    answers = iter([old, new, new, None, None, new, old])
    monkeypatch.setattr(storage, "stat", lambda uri: next(answers))
    assert confirmed_stat("x.tif", old) == old
    assert confirmed_stat("x.tif", old) == new
    assert confirmed_stat("x.tif", old) is None
    with pytest.raises(TransientError, match=r"x\.tif: the store's answers about its version differ\. Try again\."):
        confirmed_stat("x.tif", old)
