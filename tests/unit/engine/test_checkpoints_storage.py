"""Checkpoints in folders that cannot be written, on full disks, and next to other jobs."""

import errno
import resource
import threading
import time
from contextlib import contextmanager

import pytest

from kiln.engine.checkpoints import Checkpoints
from kiln.errors import StorageError
from kiln.io import storage
from tests.support.checkpoints import (
    COLUMNS,
    METADATA,
    SHARD,
    Scenes,
    checkpoint_names,
    embed_scenes,
)


@pytest.mark.parametrize("scenes", [1, 3])
def test_a_folder_that_cannot_be_written_ends_the_job(tmp_path, scenes):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        embed_scenes(
            Scenes({f"s:{n}": [n + 1] for n in range(scenes)}), tmp_path / "o", tmp_path / "file" / "checkpoints"
        )


@pytest.mark.parametrize("scenes", [1, 3])
def test_a_full_disk_ends_the_job_and_leaves_nothing_partial(tmp_path, scenes):
    shard = Scenes({f"s:{n}": [n + 1] for n in range(scenes)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # bytes of any file
    try:
        with pytest.raises(StorageError, match="File too large"), storage.atomic(str(tmp_path / "o")) as path:
            embed_scenes(shard, path, tmp_path / "checkpoints", batch=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.rglob("*")] == ["checkpoints"]


def test_a_full_disk_of_checkpoints_ends_the_job(tmp_path, monkeypatch):
    atomic = storage.atomic

    @contextmanager
    def full(uri):
        with atomic(uri) as path:
            yield path
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "atomic", full)
    for shard in ({"s:a": [1]}, {"s:a": ["n"]}, SHARD):
        with pytest.raises(StorageError, match=f"{tmp_path}/checkpoints/s-a-.*No space left"):
            embed_scenes(Scenes(shard), tmp_path / "o", tmp_path / "checkpoints", batch=1)
        assert checkpoint_names(tmp_path / "checkpoints") == {}


def test_checkpoints_written_and_deleted_by_other_jobs_are_no_error(tmp_path):
    stop = threading.Event()
    (tmp_path / "checkpoints").mkdir()

    def others() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            for k in range(20):
                storage.write_bytes(str(tmp_path / "checkpoints" / f"o-{k}-0123456789ab.parquet"), b"x")
            for k in range(20):
                storage.delete(str(tmp_path / "checkpoints" / f"o-{k}-0123456789ab.parquet"))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        checkpoints = Checkpoints.for_metadata(str(tmp_path / "checkpoints"), METADATA)
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            assert checkpoints.read_finished(Scenes(SHARD).units(), COLUMNS) == {}
            checkpoints.delete(Scenes(SHARD).units())
    finally:
        stop.set()
        thread.join()
