"""A job of NAIP that died resumes from its checkpoints, on disk and on S3."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kiln.errors import StorageError
from kiln.io import storage
from scripts import embed
from tests.conftest import ROOT
from tests.support.embed_jobs import read_files, run_failing_job
from tests.support.naip_jobs import ND_KEYS, flags, make_plan, unit_id
from tests.support.naip_scenes import scene_pixels, write_scene


@pytest.fixture
def slow_server(tmp_path, serve, gdal_without_retries):
    """A server of four scenes, the second without a valid pixel, and a plan of them as one shard."""
    pixels = [scene_pixels(seed=1), np.zeros((4, 32, 32), np.uint8), scene_pixels(seed=3), scene_pixels(seed=4)]
    scenes = [write_scene(tmp_path / "near", k, p).read_bytes() for k, p in zip(ND_KEYS, pixels, strict=False)]
    server = serve({f"/{k}": data for k, data in zip(ND_KEYS, scenes, strict=False)})
    return server, make_plan(tmp_path / "far.gz", ND_KEYS[:4], server.url)[0]


def read_store(uri):
    """Return the files of a folder, a path or an s3:// URI, by name."""
    return {u.rpartition("/")[2]: storage.read_bytes(u) for u in storage.listing(str(uri))}


def kill_waiting_job(server, argv, checkpoints, how):
    """Run a job, send it a signal while it waits for the last scene and has three checkpoints; return its stderr."""
    server.held = {f"/{ND_KEYS[3]}"}
    command = [sys.executable, "-m", "scripts.embed", *argv]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.arrived.wait(60)
        end = time.monotonic() + 60
        while sum(u.endswith(".parquet") and "/." not in u for u in storage.listing(str(checkpoints))) < 3:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        stderr = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (-9 if how == signal.SIGKILL else 143)
    server.held = set()
    server.release.set()
    server.requests.clear()
    return stderr


def check_resumed_job(server, encoded, tmp_path, argv, shards, checkpoints):
    """Assert that a retry requests only the last scene and writes the same files as an uninterrupted job."""
    encoded.clear()
    embed.main(argv)
    assert {p for m, p, _ in server.requests if m == "GET"} == {f"/{ND_KEYS[3]}"}
    assert {p for m, p, _ in server.requests if m == "HEAD"} == {f"/{k}" for k in ND_KEYS[:4]}  # requests of the check
    assert len(encoded) == 6
    assert {i.rsplit(":", 2)[0] for i in encoded} == {unit_id(ND_KEYS[3])}
    assert read_store(checkpoints) == {}
    uninterrupted = list(argv)
    at = uninterrupted.index("--checkpoints")
    del uninterrupted[at : at + 2]
    uninterrupted[uninterrupted.index("--folder") + 1] = str(tmp_path / "without")
    embed.main(uninterrupted)
    assert read_store(shards) == read_store(tmp_path / "without")
    assert len(read_store(shards)) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_killed_job_resumes_after_its_finished_scenes(tmp_path, slow_server, encoded, encoder_file, how):
    server, units = slow_server
    checkpoints = tmp_path / "checkpoints" / "run" / "nd-2019"
    argv = flags(units, 0, tmp_path / "shards", encoder_file, "--batch-size", 2, "--checkpoints", checkpoints)
    stderr = kill_waiting_job(server, argv, checkpoints, how)
    assert "Traceback" not in stderr
    assert {n.rpartition("-")[0] for n in read_store(checkpoints)} >= {
        unit_id(k).replace(":", "-") for k in ND_KEYS[:3]
    }
    check_resumed_job(server, encoded, tmp_path, argv, tmp_path / "shards", checkpoints)


def test_a_killed_job_resumes_with_shards_and_checkpoints_on_s3(tmp_path, bucket, slow_server, encoded, encoder_file):
    server, units = slow_server
    checkpoints = f"{bucket}/checkpoints/run/nd-2019"
    argv = flags(units, 0, f"{bucket}/shards", encoder_file, "--batch-size", 2, "--checkpoints", checkpoints)
    kill_waiting_job(server, argv, checkpoints, signal.SIGKILL)
    assert read_store(f"{bucket}/shards") == {}
    check_resumed_job(server, encoded, tmp_path, argv, f"{bucket}/shards", checkpoints)


def test_two_jobs_of_one_shard_at_once_leave_the_same_file_and_no_checkpoints(tmp_path, slow_server, encoder_file):
    server, units = slow_server
    server.held = {f"/{ND_KEYS[3]}"}
    argv = flags(
        units, 0, tmp_path / "shards", encoder_file, "--batch-size", 2, "--checkpoints", tmp_path / "checkpoints"
    )
    command = [sys.executable, "-m", "scripts.embed", *argv]
    jobs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    end = time.monotonic() + 60
    while sum((m, p) == ("GET", f"/{ND_KEYS[3]}") for m, p, _ in server.requests) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    server.release.set()
    errors = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "without")
    assert read_files(tmp_path / "checkpoints") == {}


@pytest.mark.usefixtures("gdal_without_cache")
def test_throttling_during_a_job_loses_no_finished_scene(tmp_path, slow_server, encoded, capsys, encoder_file):
    server, units = slow_server
    more = ["--batch-size", 2, "--read-threads", 1, "--checkpoints", tmp_path / "checkpoints"]
    argv = flags(units, 0, tmp_path / "shards", encoder_file, *more)
    server.held = {f"/{ND_KEYS[3]}"}

    def throttle():
        assert server.arrived.wait(60)
        end = time.monotonic() + 30
        while len([n for n in read_files(tmp_path / "checkpoints") if n[0] != "."]) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        server.status = 503
        server.release.set()

    thread = threading.Thread(target=throttle)
    thread.start()
    code, stderr = run_failing_job(capsys, argv)
    thread.join()
    assert (code, "Try again later" in stderr) == (1, True)
    assert read_files(tmp_path / "shards") == {}
    server.status, server.held = 0, set()
    server.requests.clear()
    check_resumed_job(server, encoded, tmp_path, argv, tmp_path / "shards", tmp_path / "checkpoints")


@pytest.mark.usefixtures("gdal_without_cache")
def test_a_shard_with_too_many_failures_resumes_once_its_scene_is_repaired(
    tmp_path, slow_server, encoded, capsys, encoder_file
):
    server, units = slow_server
    data = server.files[f"/{ND_KEYS[3]}"]
    more = ["--read-threads", 1, "--checkpoints", tmp_path / "checkpoints"]
    argv = flags(units, 0, tmp_path / "shards", encoder_file, *more)
    server.files[f"/{ND_KEYS[3]}"] = b"<html>"
    code, stderr = run_failing_job(capsys, [*argv, "--max-failed-fraction", "0.1"])
    assert (code, "got 25%; the first reason" in stderr) == (1, True)
    assert len(read_files(tmp_path / "checkpoints")) == 3
    server.files[f"/{ND_KEYS[3]}"] = data
    server.requests.clear()
    check_resumed_job(server, encoded, tmp_path, argv, tmp_path / "shards", tmp_path / "checkpoints")


def leave_checkpoints(capsys, units, folder, weights, checkpoints, max_failed_fraction=0):
    """Run a shard with a missing scene, which leaves checkpoints of the others; return their files."""
    more = ["--read-threads", 1, "--checkpoints", checkpoints, "--max-failed-fraction", max_failed_fraction]
    code, _ = run_failing_job(capsys, flags(units, 0, folder, weights, *more))
    assert code == 1
    return {n: d for n, d in read_files(checkpoints).items() if n[0] != "."}


def test_checkpoints_of_another_archive_are_not_used(tmp_path, capsys, encoded, encoder_file):
    for root in ("first", "second"):
        for n, key in enumerate(ND_KEYS[:2]):
            write_scene(tmp_path / root, key, scene_pixels(seed=n))
    first_plan, second_plan = (
        make_plan(tmp_path / f"{r}.gz", ND_KEYS[:3], tmp_path / r)[0] for r in ("first", "second")
    )
    assert len(leave_checkpoints(capsys, first_plan, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")) == 2
    encoded.clear()
    argv = flags(second_plan, 0, tmp_path / "shards", encoder_file)
    embed.main([*argv, "--checkpoints", str(tmp_path / "checkpoints")])
    assert len(encoded) == 12
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "without")


@pytest.mark.usefixtures("gdal_without_cache")
@pytest.mark.parametrize("how", ["other size", "same size", "other etag", "no etag"])
def test_checkpoints_of_replaced_scenes_are_not_used(tmp_path, serve, capsys, encoder_file, how):
    paths = [write_scene(tmp_path / "near", k, scene_pixels(seed=n), compress=None) for n, k in enumerate(ND_KEYS[:2])]
    server = serve(
        {f"/{k}": p.read_bytes() for k, p in zip(ND_KEYS, paths, strict=False)}, etag="" if "no" in how else "a"
    )
    archive = server.url if "etag" in how else tmp_path / "near"
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:3], archive)
    checkpoints = leave_checkpoints(capsys, units, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")
    assert len(checkpoints) == (0 if how == "no etag" else 2)  # without an ETag, states cannot be distinguished
    size = paths[0].stat().st_size
    write_scene(tmp_path / "near", ND_KEYS[0], scene_pixels(32 if how == "other size" else 40, seed=9), compress=None)
    assert (paths[0].stat().st_size == size) == (how != "other size")
    server.files[f"/{ND_KEYS[0]}"] = paths[0].read_bytes()
    server.etag = server.etag and "b"
    argv = flags(units, 0, tmp_path / "shards", encoder_file, "--read-threads", 1)
    embed.main([*argv, "--checkpoints", str(tmp_path / "checkpoints")])
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "without")
    assert read_files(tmp_path / "checkpoints") == {}


def test_checkpoints_of_other_flags_are_not_used_and_are_deleted_with_the_rest(tmp_path, capsys, encoded, encoder_file):
    for n, key in enumerate(ND_KEYS[:2]):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:3], tmp_path)
    leave_checkpoints(capsys, units, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "naip-nd-2019-of-another-0123456789ab.parquet").write_bytes(b"another shard's")
    encoded.clear()
    argv = flags(
        units, 0, tmp_path / "shards", encoder_file, "--metadata", "zeros", "--checkpoints", tmp_path / "checkpoints"
    )
    embed.main(argv)
    assert len(encoded) == 12
    assert list(read_files(tmp_path / "checkpoints")) == ["naip-nd-2019-of-another-0123456789ab.parquet"]


def test_a_complete_shard_whose_checkpoints_cannot_be_deleted_is_no_failure(
    tmp_path, encoder_file, monkeypatch, caplog
):
    write_scene(tmp_path, ND_KEYS[0], scene_pixels())
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)

    def refused(uri):
        raise StorageError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "delete", refused)
    embed.main(flags(units, 0, tmp_path / "shards", encoder_file, "--checkpoints", tmp_path / "checkpoints"))
    assert len(read_files(tmp_path / "shards")) == 2
    assert "access denied" in caplog.text
