"""A job of NAIP whose scenes are on a web server or in the requester-pays bucket."""

import pytest

from kiln.archives.naip.source import NaipSource
from kiln.model import weights as encoders
from tests.support.embed_jobs import read_files, run_failing_job
from tests.support.naip_jobs import ND_KEYS, flags, make_plan, unit_id
from tests.support.naip_scenes import requester_pays_bucket, scene_pixels, write_scene


@pytest.fixture
def scene_server(tmp_path, serve, gdal_without_retries):
    """A server of two scenes, and plans of their local and remote archives."""
    scenes = {
        f"/{k}": write_scene(tmp_path / "near", k, scene_pixels(seed=n)).read_bytes() for n, k in enumerate(ND_KEYS[:2])
    }
    server = serve(scenes)
    local_plan, _ = make_plan(tmp_path / "near.gz", ND_KEYS[:2], tmp_path / "near")
    remote_plan, _ = make_plan(tmp_path / "far.gz", ND_KEYS[:2], server.url)
    return server, local_plan, remote_plan


def without_addresses(rows):
    return [{k: v for k, v in r.items() if k not in ("source", "sources")} for r in rows]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_rows_over_http_equal_local_ones(tmp_path, run_naip, scene_server, ranges):
    server, local_plan, remote_plan = scene_server
    server.ranges = ranges
    rows, ledger = run_naip(remote_plan, folder=tmp_path / "far")
    assert without_addresses(rows) == without_addresses(run_naip(local_plan, folder=tmp_path / "near-shards")[0])
    assert len(rows) == 12
    assert {e["etag"] for e in ledger.values()} == {"one"}


@pytest.fixture
def paid_bucket(tmp_path, bucket, scene_server):
    """The requester-pays bucket with the scenes of `scene_server`."""
    with requester_pays_bucket({key: tmp_path / "near" / key for key in ND_KEYS[:2]}):
        yield


@pytest.mark.usefixtures("paid_bucket")
def test_rows_of_the_requester_pays_bucket_equal_local_ones(tmp_path, run_naip, scene_server):
    units, lines = make_plan(tmp_path / "s3.gz", ND_KEYS[:2], "s3://naip-analytic")
    assert lines[0].archive == "s3://naip-analytic"
    rows, _ = run_naip(units, folder=tmp_path / "paid")
    assert without_addresses(rows) == without_addresses(run_naip(scene_server[1], folder=tmp_path / "near-shards")[0])


def test_a_throttling_server_ends_the_job_and_a_retry_succeeds(tmp_path, run_naip, capsys, scene_server, encoder_file):
    server, _, remote_plan = scene_server
    server.status = 503
    code, stderr = run_failing_job(capsys, flags(remote_plan, 0, tmp_path / "shards", encoder_file))
    assert (code, "503. Try again later" in stderr) == (1, True)
    assert read_files(tmp_path / "shards") == {}
    server.status = 0
    assert len(run_naip(remote_plan)[0]) == 12


def test_a_scene_removed_after_planning_fails_in_the_ledger(run_naip, scene_server):
    server, _, remote_plan = scene_server
    del server.files[f"/{ND_KEYS[0]}"]
    rows, ledger = run_naip(remote_plan)
    assert [ledger[unit_id(k)]["status"] for k in ND_KEYS[:2]] == ["failed", "embedded"]
    assert ledger[unit_id(ND_KEYS[0])]["reason"] == f"{server.url}/{ND_KEYS[0]}: does not exist"
    assert len(rows) == 6


def test_a_scene_replaced_while_it_is_read_ends_the_job_and_a_retry_reads_one_version(
    tmp_path, run_naip, scene_server, monkeypatch, capsys, encoder_file
):
    server, _, remote_plan = scene_server
    load = NaipSource._load

    def replace_and_load(self, key, strip):
        server.etag = "two"
        return load(self, key, strip)

    monkeypatch.setattr(NaipSource, "_load", replace_and_load)
    code, stderr = run_failing_job(capsys, flags(remote_plan, 0, tmp_path / "shards", encoder_file))
    assert (code, "was replaced while it was read. Try again" in stderr) == (1, True)
    assert read_files(tmp_path / "shards") == {}
    rows, ledger = run_naip(remote_plan)
    assert ({e["etag"] for e in ledger.values()}, len(rows)) == ({"two"}, 12)


def test_a_refusing_server_ends_the_job_before_the_weights_load(
    tmp_path, capsys, scene_server, encoder_file, monkeypatch
):
    server, _, remote_plan = scene_server
    server.status = 403
    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("weights were loaded"))
    code, stderr = run_failing_job(capsys, flags(remote_plan, 0, tmp_path / "shards", encoder_file))
    assert code == 2
    assert "403" in stderr
    assert "Set AWS credentials: readers of a requester-pays bucket pay" in stderr
    assert len(stderr.splitlines()) == 1
    assert {m for m, _, _ in server.requests} == {"HEAD"}
    assert read_files(tmp_path / "shards") == {}
