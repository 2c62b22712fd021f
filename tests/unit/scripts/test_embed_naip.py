"""One job of NAIP from plan to files: its rows and ledger, broken and remote scenes, and the road to a search."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import boto3
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.layout import chip_layout
from kiln.archives.naip.source import NaipSource
from kiln.archives.registry import get_archive
from kiln.cli import search
from kiln.engine.read_ahead import read_ahead
from kiln.errors import StorageError
from kiln.formats import embeddings_file, vectors
from kiln.formats.fingerprint import digest, fingerprint
from kiln.formats.ledger import ledger_name
from kiln.formats.records import Chip
from kiln.io import storage
from kiln.model import weights as encoders
from kiln.model.embedder import Embedder
from kiln.model.identity import RECIPE
from kiln.product import deduplicate
from scripts import build_index, embed, merge
from tests.conftest import ROOT
from tests.support import plans
from tests.support.archives import random_pixels, write_tile
from tests.support.products import merge_shards
from tests.unit.archives.naip.test_source import scene_pixels, write_scene

MEAN, STD = [110.16, 115.41, 98.15, 139.04], [47.23, 39.82, 35.43, 49.86]  # red, green, blue, nir: the design's table
WAVES = [0.65, 0.56, 0.48, 0.842]
ND = [f"nd/2019/100cm/rgbir_cog/47099/m_47099{n}_se_14_1_20190904.tif" for n in range(51, 60)]
UNDATED = "id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"
REAL = [
    "nc/2016/100cm/rgbir_cog/36078/m_3607824_se_17_1_20160620.tif",
    "nd/2014/100cm/rgbir_cog/47099/m_4709963_se_14_1_20140720.tif",
    "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif",
    "va/2016/100cm/rgbir_cog/37078/m_3707801_ne_17_1_20160620.tif",
]


def make_plan(path, keys, archive, per_shard=100, chip=16):
    """A plan of the scenes, and its lines."""
    manifest = path.with_suffix(".txt")
    manifest.write_text("\n".join(keys) + "\n")
    settings = {"manifest": str(manifest), "archive": str(archive)}
    return plans.make_plan("naip", path, **settings, scenes_per_shard=per_shard, chip_size=chip)


@pytest.fixture(autouse=True)
def no_array_job(monkeypatch):
    monkeypatch.delenv("AWS_BATCH_JOB_ARRAY_INDEX", raising=False)


@pytest.fixture
def run(tmp_path, encoder_file):
    """Does a line of a plan, and gives its rows and its ledger by the scene's key."""

    def do(units, line=0, *more, folder=tmp_path / "shards"):
        embed.main(flags(units, line, folder, encoder_file, *more))
        (rows,) = [p for p in folder.glob("*.parquet") if not p.name.endswith(".ledger.parquet")]
        ledger = pq.read_table(ledger_name(str(rows))).to_pylist()
        return pq.read_table(rows).to_pylist(), {e["unit_id"]: e for e in ledger}

    return do


def flags(units, line, folder, weights, *more):
    told = ["naip", "--units", units, "--index", line, "--folder", folder, "--weights", weights, "--threads", 1]
    return [str(t) for t in (*told, "--vector-dtype", "float32", *more)]


def unit(key):
    return parse_key(key).unit_id


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def fails(capsys, argv):
    """Exit code and stderr of a job that ends with an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        embed.main(argv)
    return e.value.code, capsys.readouterr().err


def closes(ledger, rows):
    """Whether every unit's account closes, and the sum is the rows'."""
    for e in ledger.values():
        assert e["expected"] == e["embedded"] + e["skipped_nodata"] + e["skipped_cloud"] + e["failed"]
    assert sum(e["embedded"] for e in ledger.values()) == len(rows)
    return True


# ------------------------------------------------------------------------------------------------- what it writes


def class_token(encoder, pixels, week=None, place=None, gsd=1.0):
    """The reference: normalised pixels, gsd, what is told of time and place (zeros where nothing is)."""
    x = (torch.from_numpy(pixels[None].astype(np.float32)) - torch.tensor(MEAN).view(4, 1, 1)) / torch.tensor(STD).view(
        4, 1, 1
    )
    time_ = [np.sin(week * 2 * np.pi / 52), np.cos(week * 2 * np.pi / 52), 0, -1] if week else [0] * 4
    here = [f(np.radians(v)) for v in place for f in (np.sin, np.cos)] if place else [0] * 4
    told = {k: torch.tensor([v], dtype=torch.float32) for k, v in (("time", time_), ("latlon", here))}
    return encoder(x, wavelengths=torch.tensor(WAVES), gsd=gsd, **told)[0, 0].tolist()


@pytest.mark.parametrize(
    ("key", "more", "told"),
    [(ND[0], [], True), (UNDATED, [], False), (ND[0], ["--metadata", "zeros"], False)],
    ids=["dated", "undated", "zeros asked for"],
)
def test_every_row_is_the_class_token_of_its_pixels_and_of_date_and_place_where_both_are_known(
    tmp_path, run, encoder, key, more, told
):
    pixels = scene_pixels(40, 56)
    path = write_scene(tmp_path, key, pixels)
    rows, ledger = run(make_plan(tmp_path / "plan.gz", [key], tmp_path)[0], 0, "--batch-size", 4, *more)
    assert len(rows) == 6
    for row in rows:
        x, y = row["col"] * 16, row["row"] * 16
        with rasterio.open(path) as file:
            east, north = file.xy(y + 8, x + 8, offset="ul")
            crs = file.crs
        centre = geopandas.GeoSeries.from_xy([east], [north], crs=crs).to_crs(4326)[0]
        place_told = {"week": 36, "place": (centre.x, centre.y)} if told else {}  # 2019-09-04 is in ISO week 36
        right = class_token(encoder, pixels[:, y : y + 16, x : x + 16], **place_told)
        assert row["embeddings"] == pytest.approx(right, abs=1e-4)
        if told:  # and date and place make a difference that this test would see
            assert row["embeddings"] != pytest.approx(class_token(encoder, pixels[:, y : y + 16, x : x + 16]), abs=1e-3)
    assert {row["datetime"] is None for row in rows} == {key == UNDATED}
    assert ledger[unit(key)]["notes"] == ("no date in the name" if key == UNDATED else "")


def test_the_ledger_closes_and_estimates_give_way_to_what_scenes_hold(tmp_path, run):
    holed = scene_pixels(40, 56, 2)
    holed[:, :20, :20] = 0
    write_scene(tmp_path, ND[0], scene_pixels(40, 56, 1))
    write_scene(tmp_path, ND[1], holed)
    write_scene(tmp_path, ND[2], np.zeros((4, 32, 32), np.uint8))
    write_scene(tmp_path, ND[3], scene_pixels(12, 12))
    rows, ledger = run(make_plan(tmp_path / "plan.gz", ND[:5], tmp_path)[0])
    assert closes(ledger, rows)
    names = ("status", "expected", "expected_known", "embedded", "skipped_nodata", "failed")
    estimate = parse_key(ND[4]).estimate(16)[0]
    assert estimate > 100_000
    assert {k: tuple(ledger[unit(k)][n] for n in names) for k in ND[:5]} == {
        ND[0]: ("embedded", 6, True, 6, 0, 0),
        ND[1]: ("embedded", 6, True, 2, 4, 0),
        ND[2]: ("empty", 4, True, 0, 4, 0),
        ND[3]: ("empty", 0, True, 0, 0, 0),
        ND[4]: ("failed", estimate, False, 0, 0, estimate),
    }
    assert ledger[unit(ND[2])]["reason"] == "more nodata than max_nodata"
    assert list(ledger) == [unit(k) for k in ND[:5]]


def test_an_empty_scene_that_is_smaller_than_a_chip_says_so_in_the_ledger(tmp_path, run):
    write_scene(tmp_path, ND[0], scene_pixels(12, 12))
    rows, ledger = run(make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)[0])
    assert rows == []
    assert ledger[unit(ND[0])]["status"] == "empty"
    assert "smaller than a chip" in ledger[unit(ND[0])]["reason"]


def test_a_resolution_other_than_the_keys_is_a_note_in_the_ledger(tmp_path, run):
    transform = rasterio.transform.from_origin(5e5, 5.2e6, 5, 5)
    write_scene(tmp_path, ND[0], scene_pixels(16, 16), transform=transform)
    rows, ledger = run(make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)[0])
    assert ledger[unit(ND[0])]["notes"] == "pixels of 5 m, where the key says 1 m"
    assert [r["pixel_size"] for r in rows] == [5]


def test_flush_adds_the_chips_at_the_right_and_bottom_and_another_fingerprint(tmp_path, run):
    write_scene(tmp_path, ND[0], scene_pixels(40, 56))
    units, _ = make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)
    dropped, _ = run(units, folder=tmp_path / "drop")
    flush, ledger = run(units, 0, "--edge", "align", folder=tmp_path / "align")
    assert (len(dropped), len(flush), ledger[unit(ND[0])]["expected"]) == (6, 12, 12)
    same = {r["chip_id"]: r["embeddings"] for r in flush}
    assert all(same[r["chip_id"]] == pytest.approx(r["embeddings"], abs=1e-5) for r in dropped)
    (a,), (b,) = (list((tmp_path / f).glob("*[0-9a-f].parquet")) for f in ("drop", "align"))
    assert embeddings_file.read_metadata(a)["fingerprint"] != embeddings_file.read_metadata(b)["fingerprint"]


def test_the_file_says_how_its_vectors_came_to_be(tmp_path, run, encoder_file):
    path = write_scene(tmp_path, ND[0], scene_pixels(16, 16))
    run(make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)[0])
    (made,) = (p for p in (tmp_path / "shards").iterdir() if "ledger" not in p.name)
    about = embeddings_file.read_metadata(made)
    assert about["weights_sha256"] == encoders.read_metadata(encoder_file)["sha256"]
    assert about["normalisation"] == {"bands": ["red", "green", "blue", "nir"], "mean": MEAN, "std": STD}
    assert (about["wavelengths"], about["gsd"], about["metadata"]) == (WAVES, 1.0, "as_trained")
    assert (about["dataset"], about["partition"], about["chip_size"]) == ("naip", "nd-2019", 16)
    assert about["lattice"] == {"chip_size": 16, "lattice": "scene", "edge": "drop"}
    assert about["sources"] == {str(path): {"size": path.stat().st_size}}


def test_two_runs_give_byte_equal_files(tmp_path, run):
    for n, key in enumerate(ND[:3]):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, _ = make_plan(tmp_path / "plan.gz", ND[:4], tmp_path)
    run(units, folder=tmp_path / "a")
    run(units, 0, "--read-threads", 1, "--read-ahead-mb", 0, folder=tmp_path / "b")
    assert len(files(tmp_path / "a")) == 2
    assert files(tmp_path / "a") == files(tmp_path / "b")


# -------------------------------------------------------------------------------------------------- broken scenes


def test_bad_scenes_are_failed_rows_with_a_reason_and_the_others_are_embedded(tmp_path, run):
    good = {ND[0]: scene_pixels(seed=1), ND[8]: scene_pixels(seed=2)}
    for key, pixels in good.items():
        write_scene(tmp_path, key, pixels)
    says = {ND[1]: "does not exist", ND[2]: "empty, 0 bytes", ND[3]: "not a readable GeoTIFF", ND[4]: "3 bands"}
    says |= {ND[5]: "uint16", ND[6]: "no CRS", ND[7]: "not a readable GeoTIFF"}
    opened = {ND[7]}  # whose chips are known, though none can be read
    for key in (ND[2], ND[3]):
        write_scene(tmp_path, key, scene_pixels())
    (tmp_path / ND[2]).write_bytes(b"")
    (tmp_path / ND[3]).write_bytes(b"<html>Please sign in</html>")
    write_scene(tmp_path, ND[4], scene_pixels(bands=3))
    write_scene(tmp_path, ND[5], scene_pixels(dtype="uint16"))
    write_scene(tmp_path, ND[6], scene_pixels(), crs=None)
    cut = write_scene(tmp_path, ND[7], scene_pixels())
    cut.write_bytes(cut.read_bytes()[:-3000])
    rows, ledger = run(make_plan(tmp_path / "plan.gz", ND, tmp_path)[0], 0, "--max-failed-fraction", 0.8)
    assert closes(ledger, rows)
    for key, reason in says.items():
        e = ledger[unit(key)]
        assert (e["status"], e["embedded"], e["expected_known"]) == ("failed", 0, key in opened)
        assert e["reason"].startswith(f"{tmp_path}/{key}: ")
        assert reason in e["reason"]
    assert {r["item_id"] for r in rows} == {parse_key(k).stem for k in good}
    assert len(rows) == 12


def test_more_failed_scenes_than_allowed_fail_the_shard_with_its_ledger_in_the_log(
    tmp_path, capsys, caplog, encoder_file
):
    write_scene(tmp_path, ND[0], scene_pixels())
    units, _ = make_plan(tmp_path / "plan.gz", ND[:3], tmp_path)
    code, said = fails(capsys, flags(units, 0, tmp_path / "shards", encoder_file))
    assert (code, "got 67%; the first reason" in said, "does not exist" in said) == (1, True, True)
    assert all(unit(k) in caplog.text for k in ND[:3])
    assert files(tmp_path / "shards") == {}


# ------------------------------------------------------------------------------------------------- remote scenes


@pytest.fixture
def remote(tmp_path, serve, impatient):
    """A local archive of two scenes, a server of the same, and a plan of each."""
    made = {f"/{k}": write_scene(tmp_path / "near", k, scene_pixels(seed=n)).read_bytes() for n, k in enumerate(ND[:2])}
    server = serve(made)
    near, _ = make_plan(tmp_path / "near.gz", ND[:2], tmp_path / "near")
    far, _ = make_plan(tmp_path / "far.gz", ND[:2], server.url)
    return server, near, far


def without_place(rows):
    return [{k: v for k, v in r.items() if k not in ("source", "sources")} for r in rows]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_scenes_over_http_give_the_rows_of_local_ones(tmp_path, run, remote, ranges):
    server, near, far = remote
    server.ranges = ranges
    rows, ledger = run(far, folder=tmp_path / "far")
    assert without_place(rows) == without_place(run(near, folder=tmp_path / "near-shards")[0])
    assert len(rows) == 12
    assert {e["etag"] for e in ledger.values()} == {"one"}


@pytest.fixture
def paid(tmp_path, bucket, remote):
    """The bucket that readers pay for, with the scenes of `remote`."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="naip-analytic")
    for key in ND[:2]:
        client.upload_file(str(tmp_path / "near" / key), "naip-analytic", key)
    yield
    for key in ND[:2]:
        client.delete_object(Bucket="naip-analytic", Key=key)
    client.delete_bucket(Bucket="naip-analytic")


@pytest.mark.usefixtures("paid")
def test_scenes_in_the_paid_bucket_give_the_rows_of_local_ones(tmp_path, run, remote):
    units, lines = make_plan(tmp_path / "s3.gz", ND[:2], "s3://naip-analytic")
    assert lines[0].archive == "s3://naip-analytic"
    rows, _ = run(units, folder=tmp_path / "paid")
    assert without_place(rows) == without_place(run(remote[1], folder=tmp_path / "near-shards")[0])


def test_a_throttling_server_ends_the_job_so_that_it_is_tried_again(tmp_path, run, capsys, remote, encoder_file):
    server, _, far = remote
    server.status = 503
    code, said = fails(capsys, flags(far, 0, tmp_path / "shards", encoder_file))
    assert (code, "503. Try again later" in said) == (1, True)
    assert files(tmp_path / "shards") == {}
    server.status = 0
    assert len(run(far)[0]) == 12


def test_a_scene_that_vanished_since_the_plan_is_a_failed_row(run, remote):
    server, _, far = remote
    del server.files[f"/{ND[0]}"]
    rows, ledger = run(far)
    assert [ledger[unit(k)]["status"] for k in ND[:2]] == ["failed", "embedded"]
    assert ledger[unit(ND[0])]["reason"] == f"{server.url}/{ND[0]}: does not exist"
    assert len(rows) == 6


def test_a_scene_that_changes_while_it_is_read_ends_the_job_and_the_next_try_is_of_one_version(
    tmp_path, run, remote, monkeypatch, capsys, encoder_file
):
    server, _, far = remote
    load = NaipSource._load

    def late(self, key, strip):
        server.etag = "two"
        return load(self, key, strip)

    monkeypatch.setattr(NaipSource, "_load", late)
    code, said = fails(capsys, flags(far, 0, tmp_path / "shards", encoder_file))
    assert (code, "was replaced while it was read. Try again" in said) == (1, True)
    assert files(tmp_path / "shards") == {}
    rows, ledger = run(far)
    assert ({e["etag"] for e in ledger.values()}, len(rows)) == ({"two"}, 12)


def test_a_server_that_refuses_ends_the_job_before_the_weights_load(
    tmp_path, capsys, remote, encoder_file, monkeypatch
):
    server, _, far = remote
    server.status = 403
    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("weights were loaded"))
    code, said = fails(capsys, flags(far, 0, tmp_path / "shards", encoder_file))
    assert code == 2
    assert "403" in said
    assert "Set AWS credentials: readers of a requester-pays bucket pay" in said
    assert len(said.splitlines()) == 1
    assert {m for m, _, _ in server.requests} == {"HEAD"}
    assert files(tmp_path / "shards") == {}


# ------------------------------------------------------------------------------------- jobs that die, and go on


@pytest.fixture
def encoded(monkeypatch):
    """Ids of the chips that this process encodes."""
    ids = []
    start = Embedder.start
    monkeypatch.setattr(
        Embedder, "start", lambda self, chips: ids.extend(c.chip_id for c in chips) or start(self, chips)
    )
    return ids


@pytest.fixture
def far(tmp_path, serve, impatient):
    """A server of four scenes, the second without a valid pixel, and a plan of them as one shard."""
    pixels = [scene_pixels(seed=1), np.zeros((4, 32, 32), np.uint8), scene_pixels(seed=3), scene_pixels(seed=4)]
    made = [write_scene(tmp_path / "near", k, p).read_bytes() for k, p in zip(ND, pixels, strict=False)]
    server = serve({f"/{k}": data for k, data in zip(ND, made, strict=False)})
    return server, make_plan(tmp_path / "far.gz", ND[:4], server.url)[0]


def listed(uri):
    """Files of a folder, path or s3://, by name."""
    return {u.rpartition("/")[2]: storage.read_bytes(u) for u in storage.listing(str(uri))}


def died(server, argv, checkpoints, how):
    """Stderr of a process that was sent a signal while it waited for the last scene, two others being kept."""
    server.held = {f"/{ND[3]}"}
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
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (-9 if how == signal.SIGKILL else 143)
    server.held = set()
    server.release.set()
    server.requests.clear()
    return said


def goes_on(server, encoded, tmp_path, argv, place, checkpoints):
    """That a retry asks for the last scene alone, and leaves what a job that never died does."""
    encoded.clear()
    embed.main(argv)
    assert {p for m, p, _ in server.requests if m == "GET"} == {f"/{ND[3]}"}
    assert {p for m, p, _ in server.requests if m == "HEAD"} == {f"/{k}" for k in ND[:4]}  # by the check
    assert len(encoded) == 6
    assert {i.rsplit(":", 2)[0] for i in encoded} == {unit(ND[3])}
    assert listed(checkpoints) == {}
    alone = list(argv)
    at = alone.index("--checkpoints")
    del alone[at : at + 2]
    alone[alone.index("--folder") + 1] = str(tmp_path / "without")
    embed.main(alone)
    assert listed(place) == listed(tmp_path / "without")
    assert len(listed(place)) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_job_that_was_killed_goes_on_behind_its_finished_scenes(tmp_path, far, encoded, encoder_file, how):
    server, units = far
    checkpoints = tmp_path / "checkpoints" / "run" / "nd-2019"
    argv = flags(units, 0, tmp_path / "shards", encoder_file, "--batch-size", 2, "--checkpoints", checkpoints)
    said = died(server, argv, checkpoints, how)
    assert "Traceback" not in said
    assert {n.rpartition("-")[0] for n in listed(checkpoints)} >= {unit(k).replace(":", "-") for k in ND[:3]}
    goes_on(server, encoded, tmp_path, argv, tmp_path / "shards", checkpoints)


def test_a_job_that_was_killed_goes_on_with_shards_and_parts_on_s3(tmp_path, bucket, far, encoded, encoder_file):
    server, units = far
    checkpoints = f"{bucket}/checkpoints/run/nd-2019"
    argv = flags(units, 0, f"{bucket}/shards", encoder_file, "--batch-size", 2, "--checkpoints", checkpoints)
    died(server, argv, checkpoints, signal.SIGKILL)
    assert listed(f"{bucket}/shards") == {}
    goes_on(server, encoded, tmp_path, argv, f"{bucket}/shards", checkpoints)


def test_two_jobs_of_one_shard_at_once_leave_the_same_file_and_no_checkpoints(tmp_path, far, encoder_file):
    server, units = far
    server.held = {f"/{ND[3]}"}
    argv = flags(
        units, 0, tmp_path / "shards", encoder_file, "--batch-size", 2, "--checkpoints", tmp_path / "checkpoints"
    )
    command = [sys.executable, "-m", "scripts.embed", *argv]
    jobs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    end = time.monotonic() + 60
    while sum((m, p) == ("GET", f"/{ND[3]}") for m, p, _ in server.requests) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    server.release.set()
    said = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert files(tmp_path / "shards") == files(tmp_path / "without")
    assert files(tmp_path / "checkpoints") == {}


@pytest.mark.usefixtures("forgetful")
def test_a_server_that_throttles_in_the_middle_costs_no_finished_scene(tmp_path, far, encoded, capsys, encoder_file):
    server, units = far
    more = ["--batch-size", 2, "--read-threads", 1, "--checkpoints", tmp_path / "checkpoints"]
    argv = flags(units, 0, tmp_path / "shards", encoder_file, *more)
    server.held = {f"/{ND[3]}"}

    def throttle():
        assert server.arrived.wait(60)
        end = time.monotonic() + 30
        while len([n for n in files(tmp_path / "checkpoints") if n[0] != "."]) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        server.status = 503
        server.release.set()

    thread = threading.Thread(target=throttle)
    thread.start()
    code, said = fails(capsys, argv)
    thread.join()
    assert (code, "Try again later" in said) == (1, True)
    assert files(tmp_path / "shards") == {}
    server.status, server.held = 0, set()
    server.requests.clear()
    goes_on(server, encoded, tmp_path, argv, tmp_path / "shards", tmp_path / "checkpoints")


@pytest.mark.usefixtures("forgetful")
def test_a_shard_with_too_many_failures_costs_a_start_once_it_is_mended(tmp_path, far, encoded, capsys, encoder_file):
    server, units = far
    whole = server.files[f"/{ND[3]}"]
    more = ["--read-threads", 1, "--checkpoints", tmp_path / "checkpoints"]
    argv = flags(units, 0, tmp_path / "shards", encoder_file, *more)
    server.files[f"/{ND[3]}"] = b"<html>"
    code, said = fails(capsys, [*argv, "--max-failed-fraction", "0.1"])
    assert (code, "got 25%; the first reason" in said) == (1, True)
    assert len(files(tmp_path / "checkpoints")) == 3
    server.files[f"/{ND[3]}"] = whole
    server.requests.clear()
    goes_on(server, encoded, tmp_path, argv, tmp_path / "shards", tmp_path / "checkpoints")


def stopped(capsys, units, folder, weights, checkpoints, allowed=0):
    """Does a shard with a scene that is not there, which keeps the others' checkpoints."""
    more = ["--read-threads", 1, "--checkpoints", checkpoints, "--max-failed-fraction", allowed]
    code, _ = fails(capsys, flags(units, 0, folder, weights, *more))
    assert code == 1
    return {n: d for n, d in files(checkpoints).items() if n[0] != "."}


def test_parts_of_scenes_of_another_archive_are_not_used(tmp_path, capsys, encoded, encoder_file):
    for root in ("here", "there"):
        for n, key in enumerate(ND[:2]):
            write_scene(tmp_path / root, key, scene_pixels(seed=n))
    here, there = (make_plan(tmp_path / f"{r}.gz", ND[:3], tmp_path / r)[0] for r in ("here", "there"))
    assert len(stopped(capsys, here, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")) == 2
    encoded.clear()
    argv = flags(there, 0, tmp_path / "shards", encoder_file)
    embed.main([*argv, "--checkpoints", str(tmp_path / "checkpoints")])
    assert len(encoded) == 12
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert files(tmp_path / "shards") == files(tmp_path / "without")


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("how", ["other size", "same size", "other etag", "no etag"])
def test_parts_of_scenes_that_were_replaced_are_not_used(tmp_path, serve, capsys, encoder_file, how):
    paths = [write_scene(tmp_path / "near", k, scene_pixels(seed=n), compress=None) for n, k in enumerate(ND[:2])]
    server = serve({f"/{k}": p.read_bytes() for k, p in zip(ND, paths, strict=False)}, etag="" if "no" in how else "a")
    archive = server.url if "etag" in how else tmp_path / "near"
    units, _ = make_plan(tmp_path / "plan.gz", ND[:3], archive)
    kept = stopped(capsys, units, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")
    assert len(kept) == (0 if how == "no etag" else 2)  # nothing tells one state from another
    size = paths[0].stat().st_size
    write_scene(tmp_path / "near", ND[0], scene_pixels(32 if how == "other size" else 40, seed=9), compress=None)
    assert (paths[0].stat().st_size == size) == (how != "other size")
    server.files[f"/{ND[0]}"] = paths[0].read_bytes()
    server.etag = server.etag and "b"
    argv = flags(units, 0, tmp_path / "shards", encoder_file, "--read-threads", 1)
    embed.main([*argv, "--checkpoints", str(tmp_path / "checkpoints")])
    embed.main([*argv, "--folder", str(tmp_path / "without")])
    assert files(tmp_path / "shards") == files(tmp_path / "without")
    assert files(tmp_path / "checkpoints") == {}


def test_parts_of_other_flags_are_not_used_and_go_with_the_rest(tmp_path, capsys, encoded, encoder_file):
    for n, key in enumerate(ND[:2]):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, _ = make_plan(tmp_path / "plan.gz", ND[:3], tmp_path)
    stopped(capsys, units, tmp_path / "shards", encoder_file, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "naip-nd-2019-of-another-0123456789ab.parquet").write_bytes(b"another shard's")
    encoded.clear()
    argv = flags(
        units, 0, tmp_path / "shards", encoder_file, "--metadata", "zeros", "--checkpoints", tmp_path / "checkpoints"
    )
    embed.main(argv)
    assert len(encoded) == 12
    assert list(files(tmp_path / "checkpoints")) == ["naip-nd-2019-of-another-0123456789ab.parquet"]


def test_a_whole_shard_whose_parts_cannot_be_removed_is_no_failure(tmp_path, encoder_file, monkeypatch, caplog):
    write_scene(tmp_path, ND[0], scene_pixels())
    units, _ = make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)

    def refused(uri):
        raise StorageError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "delete", refused)
    embed.main(flags(units, 0, tmp_path / "shards", encoder_file, "--checkpoints", tmp_path / "checkpoints"))
    assert len(files(tmp_path / "shards")) == 2
    assert "access denied" in caplog.text


# ------------------------------------------------------------------------------------------- which shard, and when


def test_an_index_past_the_end_does_nothing_and_is_no_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    units, lines = make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)
    embed.main(flags(units, len(lines), tmp_path / "shards", "not-even-there"))
    assert files(tmp_path / "shards") == {}
    assert "past the end" in caplog.text


def test_the_index_of_an_array_job_picks_the_line(tmp_path, encoder_file, monkeypatch):
    keys = [ND[0], UNDATED]
    for key in keys:
        write_scene(tmp_path, key, scene_pixels(16, 16))
    units, lines = make_plan(tmp_path / "plan.gz", keys, tmp_path)
    assert [line.partition for line in lines] == ["id-2015", "nd-2019"]
    monkeypatch.setenv("AWS_BATCH_JOB_ARRAY_INDEX", "1")
    argv = flags(units, 1, tmp_path / "shards", encoder_file)
    at = argv.index("--index")
    del argv[at : at + 2]
    embed.main(argv)
    assert f"{lines[1].name}.parquet" in files(tmp_path / "shards")


def test_a_plan_of_worldcover_is_refused(tmp_path, capsys):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1))
    settings = {"archive": str(tmp_path), "years": [2021], "region": [10, 45, 11, 46], "chip_size": 16}
    plans.write("worldcover", tmp_path / "plan.gz", **settings, pixels_per_degree=48)
    code, said = fails(capsys, flags(tmp_path / "plan.gz", 0, tmp_path / "shards", "not-even-there"))
    assert code == 2
    assert "expected a plan of naip, got one of worldcover" in said


@pytest.mark.parametrize(("size", "more"), [(0.6, []), (2.5, []), (2.5, ["--lattice=utm", "--lattice-gsd=1.5"])])
def test_an_actual_gsd_is_that_of_each_scenes_pixels_or_of_the_lattice(tmp_path, run, encoder, size, more):
    transform = rasterio.transform.from_origin(5e5, 5.2e6, size, size)
    write_scene(tmp_path, ND[0], scene_pixels(80, 80), transform=transform)
    write_scene(tmp_path, ND[1], scene_pixels(80, 80), transform=rasterio.transform.from_origin(5e5, 5.2e6, 1, 1))
    units, _ = make_plan(tmp_path / "plan.gz", ND[:2], tmp_path)
    rows, _ = run(units, 0, "--gsd", "actual", "--metadata", "zeros", *more)
    assert sorted({r["pixel_size"] for r in rows}) == pytest.approx([1.5] if more else sorted([1.0, size]))
    source = NaipSource(
        ND[:2], archive=str(tmp_path), chip=16, max_nodata=0.05,
        lattice="utm" if more else "scene", lattice_gsd=1.5,
    )  # fmt: skip
    source.check()
    pixels = {c.chip_id: c.pixels for c in source.chips(read_ahead(source.reads(), 1, 1 << 30)) if isinstance(c, Chip)}
    assert len(rows) == len(pixels)
    for row in rows[:: len(rows) // 6]:
        right = class_token(encoder, pixels[row["chip_id"]], gsd=row["pixel_size"])
        assert row["embeddings"] == pytest.approx(right, abs=1e-4)
        assert row["embeddings"] != pytest.approx(class_token(encoder, pixels[row["chip_id"]]), abs=1e-4) or (
            row["pixel_size"] == 1
        )


# -------------------------------------------------------------------------------------------- the common lattice


def test_the_common_lattice_is_said_in_the_file_and_in_another_fingerprint(tmp_path, run):
    write_scene(tmp_path, ND[0], scene_pixels(80, 80))
    units, _ = make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)
    told = [["--lattice=utm"], ["--lattice=utm", "--lattice-gsd=0.6"], []]
    abouts = []
    for n, more in enumerate(told):
        rows, ledger = run(units, 0, *more, folder=tmp_path / str(n))
        assert closes(ledger, rows)
        abouts.append(
            embeddings_file.read_metadata(next(p for p in (tmp_path / str(n)).iterdir() if "ledger" not in p.name))
        )
    assert [a["lattice"] for a in abouts] == [chip_layout(16, "utm", 1.0), chip_layout(16, "utm", 0.6), chip_layout(16)]
    assert len({a["fingerprint"] for a in abouts}) == 3
    assert [a["gsd"] for a in abouts] == [1.0] * 3


def test_flush_edges_of_the_common_lattice_are_refused_before_anything_is_read(tmp_path, capsys, encoder_file):
    units, _ = make_plan(tmp_path / "plan.gz", ND[:1], tmp_path)
    code, said = fails(
        capsys, flags(units, 0, tmp_path / "shards", encoder_file, "--lattice", "utm", "--edge", "align")
    )
    assert (code, "edge: expected drop with lattice utm" in said) == (2, True)
    assert files(tmp_path / "shards") == {}


def test_overlapping_scenes_are_merged_to_one_chip_a_cell(tmp_path, encoder_file):
    west, north = 31_250 * 16, 325_500 * 16
    holed = scene_pixels(64, 64, 2)
    holed[:, 20, 20:24] = 0  # 4 of 256 pixels of a cell that both scenes have
    for key, left, pixels in ((ND[0], west, scene_pixels(64, 64, 1)), (ND[1], west + 32, holed)):
        write_scene(tmp_path, key, pixels, transform=rasterio.transform.from_origin(left, north, 1, 1))
    units, lines = make_plan(tmp_path / "plan.gz", ND[:2], tmp_path, per_shard=1)
    embed_all(units, lines, tmp_path / "shards", encoder_file, "--lattice", "utm")
    for name, more in (("all", []), ("unique", ["--deduplicate"])):
        merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/{name}", *more])
    every, unique = (pq.read_table(tmp_path / n / "part-0000.parquet").to_pylist() for n in ("all", "unique"))
    assert (len(every), len(unique)) == (32, 24)
    best = {}
    for row in every:
        cell, rank = (row["crs"], row["col"], row["row"]), (row["nodata_fraction"], row["chip_id"])
        best[cell] = min(best.get(cell, rank), rank)
    assert {r["chip_id"] for r in unique} == {i for _, i in best.values()}
    ledger = {e["unit_id"]: e for e in pq.read_table(tmp_path / "unique" / "ledger.parquet").to_pylist()}
    assert closes(ledger, unique)
    assert ledger[unit(ND[1])]["notes"] == "8 chips left to scenes with less nodata"


def test_help_shows_every_flag_and_does_not_import_torch():
    code = (
        "import sys, runpy; sys.argv = ['x', 'naip', '--help']\n"
        "try: runpy.run_module('scripts.embed', run_name='__main__')\n"
        "except SystemExit as e: print('exit', e.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for flag in (
        "--index",
        "--edge",
        "--lattice",
        "--lattice-gsd",
        "--metadata",
        "--expect-fingerprint",
    ):
        assert flag in done.stdout
    assert done.stdout.endswith("exit 0 False\n")


# --------------------------------------------------------------------------------------------- merge, index, search


def embed_all(units, lines, folder, weights, *more):
    for n in range(len(lines)):
        embed.main(flags(units, n, folder, weights, *more))


def test_the_state_column_stays_a_dictionary_from_shard_to_product(tmp_path, encoder_file, monkeypatch):
    for n, key in enumerate(ND):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, lines = make_plan(tmp_path / "plan.gz", ND, tmp_path, per_shard=2)
    assert len(lines) > 2
    monkeypatch.setattr(embeddings_file.ShardWriter.__init__, "__defaults__", (4,))  # rows of a row group
    monkeypatch.setattr(deduplicate, "BATCH_ROWS", 3)
    embed_all(units, lines, tmp_path / "shards", encoder_file)
    shards = str(tmp_path / "shards")
    record = merge_shards([x.name for x in lines], shards, tmp_path / "product", row_group=10)
    assert (record["rows"], record["units"]) == (54, {"embedded": 9})
    product = tmp_path / "product" / record["files"][0]["name"]
    assert pq.ParquetFile(product).num_row_groups > 4
    for path in (product, tmp_path / "shards" / f"{lines[0].name}.parquet"):
        assert pq.read_schema(path).field("state").type == pa.dictionary(pa.int32(), pa.string())
        assert pq.ParquetFile(path).num_row_groups > 1
    read = geopandas.read_parquet(product)
    assert set(read["state"]) == {"nd"}
    assert set(read["year"]) == {2019}
    assert read["chip_id"].is_unique
    assert read.crs.to_epsg() == 4326
    assert read.geometry.is_valid.all()


def test_an_undated_state_and_year_can_be_merged(tmp_path, encoder_file):
    write_scene(tmp_path, UNDATED, scene_pixels())
    units, lines = make_plan(tmp_path / "plan.gz", [UNDATED], tmp_path)
    embed_all(units, lines, tmp_path / "shards", encoder_file)
    merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/id-2015"])
    assert json.loads((tmp_path / "id-2015.json").read_text())["rows"] == 6
    collection = json.loads(next((tmp_path / "id-2015").glob("collection*.json")).read_text())
    assert collection["extent"]["temporal"]["interval"] == [["2015-01-01T00:00:00Z", "2015-12-31T23:59:59Z"]]


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The archive of the four real scenes; where they are not, scenes of the same sizes in the same places."""
    if shared:
        return shared / "archive" / "naip-analytic"
    root = tmp_path_factory.mktemp("archive")
    sizes = {"nc": (300, 300, 1), "nd": (723, 934, 5), "va": (510, 597, 1)}
    wests = {"nc": (768_269, 4_057_292), "nd": (485_899, 5_209_246), "va": (680_811, 4_207_739)}
    for n, key in enumerate(REAL):
        height, width, gsd = sizes[key[:2]]
        transform = rasterio.transform.from_origin(*wests[key[:2]], gsd, gsd)
        crs = "EPSG:26914" if key.startswith("nd") else "EPSG:26917"
        write_scene(root, key, scene_pixels(height, width, n), crs=crs, transform=transform)
    return root


def test_real_scenes_go_from_manifest_to_a_search_that_finds_them_beside_worldcover(
    real, tmp_path, encoder_file, capsys
):
    records, rows = [], {}
    _, every = make_plan(tmp_path / "every.gz", REAL, real, chip=256)
    for partition in [line.partition for line in every]:
        units, lines = make_plan(
            tmp_path / f"{partition}.gz", [k for k in REAL if k[:7] == partition.replace("-", "/")], real, chip=256
        )
        embed_all(units, lines, tmp_path / "shards", encoder_file)
        merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/{partition}"])
        records.append(f"{tmp_path}/{partition}.json")
        rows[partition] = json.loads((tmp_path / f"{partition}.json").read_text())["rows"]
    expected = {}
    for key in REAL:
        with rasterio.open(real / key) as file:
            expected[f"{key[:2]}-{key[3:7]}"] = (file.height // 256) * (file.width // 256)
    assert rows == expected == {"nc-2016": 1, "nd-2014": 6, "nd-2019": 6, "va-2016": 2}
    (e,) = pq.read_table(tmp_path / "nd-2014" / "ledger.parquet").to_pylist()
    assert e["notes"] == "pixels of 5 m, where the key says 1 m"

    write_tile(tmp_path / "wc", 2021, 10, 45, random_pixels(48, 1))
    settings = {"archive": str(tmp_path / "wc"), "years": [2021], "region": [10, 45, 11, 46], "chip_size": 16}
    plans.write("worldcover", tmp_path / "wc.gz", **settings, pixels_per_degree=48, columns_per_shard=9)
    wc = ["worldcover", "--units", tmp_path / "wc.gz", "--index", 0, "--folder", tmp_path / "wc-shards"]
    wc += ["--weights", encoder_file, "--pixels-per-degree", 48]
    embed.main([str(t) for t in wc])
    merge.main([f"--plan={tmp_path}/wc.gz", f"--shards={tmp_path}/wc-shards", f"--product={tmp_path}/wc-2021"])

    db = ["--db", f"{tmp_path}/db"]
    build_index.main(["--records", *records, f"{tmp_path}/wc-2021.json", *db, "--record", f"{tmp_path}/db.json"])
    query = "naip:nd:2019:m_4709963_se_14_1_20190904:1:1"
    found = geopandas.read_parquet(next((tmp_path / "nd-2019").glob("part-*.parquet"))).set_index("chip_id").loc[query]
    capsys.readouterr()
    search.main([*db, "--chip", query, "-k", "50", "--format", "json"])
    hits = json.loads(capsys.readouterr().out)["results"]
    assert {h["dataset"] for h in hits} == {"naip", "worldcover"}
    assert sum(h["dataset"] == "naip" for h in hits) == 14
    search.main([*db, "--chip", query, "-k", "50", "--format", "json", "--dataset", "naip", "--year", "2014"])
    assert {h["chip_id"].rsplit(":", 2)[0] for h in json.loads(capsys.readouterr().out)["results"]} == {unit(REAL[1])}
    point = found.geometry.centroid
    search.main([*db, f"--at={point.x},{point.y}", "-k", "5", "--format", "json", "--year", "2019"])
    assert json.loads(capsys.readouterr().out)["query"]["chip_id"] == query


# ------------------------------------------------------------------------------- types, kinds, and patches of vectors

ALL_KINDS = ("--vector-dtype", "int8", "--embedding", "both", "--patches")


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_job_writes_int8_both_kinds_and_patches_and_says_what_they_are(
    tmp_path, request, run, encoder, encoder_file, where
):
    pixels = {key: scene_pixels(40, 56, n) for n, key in enumerate(ND[:2])}
    for key, values in pixels.items():
        write_scene(tmp_path, key, values)
    units, lines = make_plan(tmp_path / "plan.gz", ND[:2], tmp_path)
    folder = str(tmp_path / "kinds") if where == "disk" else f"{request.getfixturevalue('bucket')}/kinds"
    checkpoints = storage.join(folder.replace("kinds", "checkpoints"))
    told = [*ALL_KINDS, "--checkpoints", checkpoints, "--batch-size", "4"]
    embed.main(flags(units, 0, folder, encoder_file, *told))
    there = storage.listing(folder)
    shard = storage.join(folder, f"{lines[0].name}.parquet")
    assert list(there) == sorted([shard, ledger_name(shard), shard.replace(".parquet", ".patches.parquet")])
    assert not storage.listing(checkpoints), "the shard is whole"
    with storage.local_copy(shard) as path, storage.local_copy(shard.replace(".parquet", ".patches.parquet")) as beside:
        rows, patches = pq.read_table(path), pq.read_table(beside)
    about = json.loads(rows.schema.metadata[b"kiln"])
    assert (about["storage"], about["embedding"]) == ("int8", "both")
    assert about["dequantisation"]["embeddings_mean"] == "embeddings_mean * scale_mean"
    assert about["patches"] == {"shape": [2, 2, 32], "storage": "float16"}
    assert json.loads(patches.schema.metadata[b"kiln"]) == about
    assert patches["chip_id"].equals(rows["chip_id"])
    tokens = np.array(patches["patches"].to_pylist(), np.float32).reshape(len(rows), 4, 32)
    plain, _ = run(units, 0, "--batch-size", 4, folder=tmp_path / "plain")
    exact = np.array([r["embeddings"] for r in plain])
    assert np.abs(vectors.read(rows) - exact).max() <= np.abs(exact).max() / 250
    mean = vectors.read(rows, "embeddings_mean")
    assert np.abs(mean - tokens.mean(axis=1)).max() <= np.abs(tokens).max() / 100
    before = {uri: storage.read_bytes(uri) for uri in there}
    embed.main([*flags(units, 0, folder, encoder_file, *told), "--overwrite"])
    assert {uri: storage.read_bytes(uri) for uri in storage.listing(folder)} == before


def test_kinds_types_and_patches_have_a_fingerprint_each_and_the_defaults_the_old_one():
    told = {
        "weights": "a5" * 32, "precision": "float32", "metadata": "zeros", "gsd": "as_trained", "max_nodata": 0.05,
        "max_cloud": None, "lattice": {"chip_size": 16},
    }  # fmt: skip
    naip = get_archive("naip")
    identity = {"sensor": naip.sensor, "recipes": {"clay": RECIPE, "naip": naip.recipe}}
    plain = fingerprint("naip", dtype="float32", **identity, **told)
    assert plain == fingerprint("naip", dtype="float32", embedding="class", patches=False, **identity, **told)
    assert plain == digest(
        {
            "dataset": "naip", "embedding": "class", "storage": "float32", **told,
            "sensor": asdict(naip.sensor), "recipes": identity["recipes"],
        }
    )  # fmt: skip
    others = [{"dtype": "int8"}, {"embedding": "mean"}, {"embedding": "both"}, {"patches": True}]
    seen = {fingerprint("naip", **identity, **({"dtype": "float32"} | other | told)) for other in others}
    assert len({plain, *seen}) == 5
