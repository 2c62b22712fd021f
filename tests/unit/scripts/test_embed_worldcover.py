"""A job of WorldCover from plan to files: its files, the choice of the shard, errors, and signals."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kiln.formats.ledger import LEDGER_COUNTS
from kiln.io import storage
from kiln.model import weights as encoders
from scripts import embed
from tests.conftest import ROOT
from tests.support import plans
from tests.support.archives import mosaic, random_pixels, write_tile
from tests.support.embed_jobs import check_help, read_files, run_failing_job

MEAN, STD = [1552, 1355, 1105, 2743], [1888, 1757, 1809, 1742]  # red, green, blue, nir of the design's table
WAVES = [0.665, 0.56, 0.493, 0.842]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    for west in (10, 11):
        for south in (44, 45):
            write_tile(root, 2021, west, south, random_pixels(48, 2 * west + south, holes=1))
    return root


def make_plan(root, path, region=(10, 44, 12, 46), per_shard=3, encode="whole"):
    settings = {"archive": str(root), "years": [2021], "region": list(region), "chip_size": 16, "encode": encode}
    return plans.make_plan("worldcover", path, **settings, pixels_per_degree=48, columns_per_shard=per_shard)


@pytest.fixture
def plan(archive, tmp_path):
    return make_plan(archive, tmp_path / "plan.gz")


@pytest.fixture
def flags(plan, tmp_path, encoder_file):
    """The flags of a job of the plan that writes to `shards`."""

    def make(*more, units=plan[0], folder=tmp_path / "shards", weights=encoder_file):
        args = ["worldcover", "--units", units, "--folder", folder, "--weights", weights, "--threads", 1]
        args += ["--max-nodata", 0.6, "--pixels-per-degree", 48, "--vector-dtype", "float32"]
        return [str(t) for t in (*args, *more)]

    return make


# ---------------------------------------------------------------------------------------------------- what a job writes


@pytest.mark.parametrize(
    ("more", "gsd", "time_", "place"),
    [
        ([], 10.0, False, False),
        (["--metadata", "as_published"], 10.0, True, True),
        (["--gsd", "actual"], 111_195 / 48, False, False),
    ],
    ids=["defaults", "as published", "actual gsd"],
)
def test_every_row_is_the_class_token_of_its_own_pixels(
    archive, plan, flags, tmp_path, encoder, more, gsd, time_, place
):
    embed.main(flags("--index", 1, "--batch-size", 3, *more))
    (name,) = [n for n in read_files(tmp_path / "shards") if not n.endswith(".ledger.parquet")]
    rows = pq.read_table(tmp_path / "shards" / name).to_pylist()
    assert len(rows) > 12
    world = mosaic(archive, 2021, 10, 46, 2, 2, 48)
    for row in rows:
        x, y = round((row["x0"] - 10) * 48), round((46 - row["y0"]) * 48)
        pixels = torch.from_numpy(world[None, :, y : y + 16, x : x + 16].astype(np.float32))
        pixels = (pixels - torch.tensor(MEAN).view(4, 1, 1)) / torch.tensor(STD).view(4, 1, 1)
        lon, lat = row["x0"] + 8 / 48, row["y0"] - 8 / 48
        june = [np.sin(22 * 2 * np.pi / 52), np.cos(22 * 2 * np.pi / 52), 0, -1]  # 2021-06-01 is in ISO week 22
        here = [f(np.radians(v)) for v in (lon, lat) for f in (np.sin, np.cos)]
        metadata = {"time": june if time_ else [0] * 4, "latlon": here if place else [0] * 4}
        metadata = {k: torch.tensor([v], dtype=torch.float32) for k, v in metadata.items()}
        expected = encoder(pixels, wavelengths=torch.tensor(WAVES), gsd=gsd, **metadata)[0, 0]
        assert row["embeddings"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert row["datetime"].isoformat() == "2021-06-01T00:00:00+00:00"
        assert row["year"] == 2021


def test_a_shard_and_its_ledger_agree(plan, flags, tmp_path):
    embed.main(flags("--index", 0))
    shard = plan[1][0].name
    assert set(read_files(tmp_path / "shards")) == {f"{shard}.parquet", f"{shard}.ledger.parquet"}
    rows = pq.read_table(tmp_path / "shards" / f"{shard}.parquet")
    ledger = pq.read_table(tmp_path / "shards" / f"{shard}.ledger.parquet").to_pylist()
    assert tuple(e["unit_id"] for e in ledger) == plan[1][0].units
    assert sum(e["embedded"] for e in ledger) == len(rows)
    for e in ledger:
        assert e["expected"] == sum(e[count] for count in LEDGER_COUNTS[1:]) == 6
        assert e["expected_known"]
        assert e["etag"]


def test_the_metadata_of_the_file_describes_its_vectors(flags, tmp_path, encoder_file, archive):
    units, lines = make_plan(archive, tmp_path / "quarters.gz", encode="quarters")
    embed.main(flags("--index", 0, "--vector-dtype", "float16", "--encode", "quarters", units=units))
    path = tmp_path / "shards" / f"{lines[0].name}.parquet"
    about = json.loads(pq.read_schema(path).metadata[b"kiln"])
    assert about["weights_sha256"] == encoders.read_metadata(encoder_file)["sha256"]
    assert about["normalisation"] == {"bands": ["red", "green", "blue", "nir"], "mean": MEAN, "std": STD}
    assert (about["untrained"], about["vector_dtype"], about["precision"]) == (True, "float16", "float32")
    assert about["lattice"] == {"chip_size": 16, "pixels_per_degree": 48, "encode": "quarters"}
    assert (about["chip_size"], about["dimensions"], about["gsd"]) == (16, 32, 10.0)
    assert about["limits"] == {"max_nodata": 0.6, "max_cloud": None}
    assert about["wavelengths"] == WAVES
    assert {"kiln", "python", "torch", "numpy", "pyarrow", "rasterio", "gdal"} == set(about["software"])
    assert about["sources"] == {uri: {"size": size} for _, uri, size, _ in lines[0].details["tiles"]}
    assert len(about["fingerprint"]) == 64
    assert geopandas.read_parquet(path).crs.to_epsg() == 4326


def test_two_runs_give_byte_equal_files(flags, tmp_path):
    for folder, more in (("a", []), ("b", ["--read-threads", 1, "--read-ahead-mb", 0])):
        embed.main(flags("--index", 1, *more, folder=tmp_path / folder))
    first = read_files(tmp_path / "a")
    assert len(first) == 2
    assert first == read_files(tmp_path / "b")


def test_a_bucket_gets_the_same_bytes_as_a_folder(flags, tmp_path, bucket, plan):
    storage.write_bytes(f"{bucket}/plan.gz", plan[0].read_bytes())
    embed.main(flags("--index", 1))
    embed.main(flags("--index", 1, units=f"{bucket}/plan.gz", folder=f"{bucket}/run/shards"))
    uploaded = {uri.rpartition("/")[2]: storage.read_bytes(uri) for uri in storage.listing(f"{bucket}/run/shards")}
    assert uploaded == read_files(tmp_path / "shards")


def test_output_moves_the_embeddings_and_leaves_the_ledger_in_the_folder(flags, tmp_path, plan):
    embed.main(flags("--index", 1, "--output", tmp_path / "elsewhere" / "x.parquet"))
    assert set(read_files(tmp_path / "elsewhere")) == {"x.parquet"}
    assert set(read_files(tmp_path / "shards")) == {f"{plan[1][1].name}.ledger.parquet"}


# ---------------------------------------------------------------------------------------------- the choice of the shard


def test_the_index_of_an_array_job_picks_the_line(flags, tmp_path, monkeypatch, plan):
    monkeypatch.setenv("AWS_BATCH_JOB_ARRAY_INDEX", "1")
    embed.main(flags())
    assert f"{plan[1][1].name}.parquet" in read_files(tmp_path / "shards")
    embed.main(flags("--index", 0, folder=tmp_path / "flag"))  # the flag has priority
    assert f"{plan[1][0].name}.parquet" in read_files(tmp_path / "flag")
    embed.main(flags("--shard", plan[1][0].name, folder=tmp_path / "name"))  # the name has priority over both
    assert read_files(tmp_path / "name") == read_files(tmp_path / "flag")


def test_an_index_past_the_end_is_logged_and_no_error(flags, tmp_path, monkeypatch, plan, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("AWS_BATCH_JOB_ARRAY_INDEX", str(len(plan[1])))
    embed.main(flags(weights="not-even-there"))
    assert read_files(tmp_path / "shards") == {}
    assert "past the end" in caplog.text


def test_a_finished_shard_is_not_embedded_again_and_loads_no_weights(flags, tmp_path, plan):
    embed.main(flags("--index", 0))
    path = tmp_path / "shards" / f"{plan[1][0].name}.parquet"
    before = path.stat()
    embed.main(flags("--index", 0, weights="not-even-there"))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_overwrite_embeds_a_finished_shard_again(flags, tmp_path, plan):
    embed.main(flags("--index", 0))
    good = read_files(tmp_path / "shards")
    path = tmp_path / "shards" / f"{plan[1][0].name}.parquet"
    path.write_bytes(b"damaged")
    embed.main(flags("--index", 0))
    assert path.read_bytes() == b"damaged"
    embed.main(flags("--index", 0, "--overwrite"))
    assert read_files(tmp_path / "shards") == good


def test_a_failed_overwrite_leaves_the_finished_shard(flags, tmp_path, capsys):
    embed.main(flags("--index", 0))
    good = read_files(tmp_path / "shards")
    assert run_failing_job(capsys, flags("--index", 0, "--overwrite", weights="not-even-there"))[0] == 1
    assert read_files(tmp_path / "shards") == good


def test_an_expected_fingerprint_must_match_flags_and_weights(flags, tmp_path, capsys, plan):
    embed.main(flags("--index", 0))
    path = tmp_path / "shards" / f"{plan[1][0].name}.parquet"
    identity = json.loads(pq.read_schema(path).metadata[b"kiln"])["fingerprint"]
    embed.main(flags("--index", 0, "--expect-fingerprint", identity[:8], folder=tmp_path / "right"))
    assert len(read_files(tmp_path / "right")) == 2
    for more in (
        ["--vector-dtype", "float16"],
        ["--max-nodata", "0.5"],
        ["--metadata", "as_published"],
        ["--gsd", "actual"],
    ):
        code, stderr = run_failing_job(
            capsys, flags("--index", 0, "--expect-fingerprint", identity[:8], *more, folder=tmp_path / "wrong")
        )
        assert code == 2
        assert f"expected fingerprint {identity[:8]}" in stderr
    assert read_files(tmp_path / "wrong") == {}


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "shard: expected --shard NAME, --index N"),
        (["--index", "-1"], 2, "--index: expected a line number from 0, got -1"),
        (["--index", "one"], 2, "invalid int value"),
        (["--shard", "x"], 2, "got 'x', which is not in it"),
        (["--index", "0", "--units", "/nowhere.gz"], 1, "/nowhere.gz: does not exist"),
        (["--index", "0", "--weights", "/nowhere.safetensors"], 1, "expected a weights file, got none"),
        (["--index", "0", "--weights", __file__], 1, "expected a safetensors file, got a damaged one"),
        (["--index", "0", "--folder", f"{__file__}/x"], 1, "cannot be written"),
        (["--index", "0", "--device", "nonsense"], 2, "nonsense"),
        (["--index", "0", "--batch-size", "0"], 2, "batch"),
        (["--index", "0", "--read-threads", "0"], 2, "read"),
        (["--index", "0", "--max-nodata", "5"], 2, "nodata"),
    ],
)
def test_wrong_flags_are_errors_of_one_line_and_leave_no_files(flags, tmp_path, capsys, more, code, message):
    exit_code, stderr = run_failing_job(capsys, flags(*more))
    assert message in stderr
    assert exit_code == code
    assert read_files(tmp_path / "shards") == {}


@pytest.mark.parametrize("text", ["{", "[1]", "3", '{"dataset": "worldcover"}', "\xff\xfe", "null"])
def test_a_damaged_plan_is_an_error_that_names_the_line(flags, tmp_path, capsys, plan, text):
    bad = tmp_path / "bad.gz"
    first = gzip.decompress(plan[0].read_bytes()).splitlines()[0]
    bad.write_bytes(gzip.compress(first + b"\n" + text.encode("latin-1") + b"\n"))
    code, stderr = run_failing_job(capsys, flags("--index", 1, units=bad))
    assert (code, "bad.gz, line 2: expected a shard of a plan" in stderr) == (2, True)


def test_an_array_index_that_is_not_a_number_is_an_error(flags, capsys, monkeypatch):
    monkeypatch.setenv("AWS_BATCH_JOB_ARRAY_INDEX", "x")
    assert run_failing_job(capsys, flags())[0] == 2


def test_more_failures_than_allowed_fail_the_shard_with_its_ledger_in_the_log(flags, tmp_path, capsys, caplog):
    root = tmp_path / "archive"
    for west in (10, 11):
        path = write_tile(root, 2021, west, 45, random_pixels(48, west))
        if west == 11:
            path.write_bytes(b"damaged")
    units, lines = make_plan(root, tmp_path / "bad.gz", region=(10, 45, 12, 46), per_shard=100)
    code, stderr = run_failing_job(capsys, flags("--index", 0, "--max-failed-fraction", 0.1, units=units))
    assert code == 1
    assert "max_failed_fraction: expected at most 10% of the shard to fail" in stderr
    assert "not a readable GeoTIFF" in stderr
    for unit in lines[0].units:
        assert unit in caplog.text
    assert read_files(tmp_path / "shards") == {}
    embed.main(flags("--index", 0, "--max-failed-fraction", 0.6, units=units))
    assert len(read_files(tmp_path / "shards")) == 2


def test_an_archive_of_another_resolution_fails_before_the_weights_load(flags, tmp_path, capsys, monkeypatch):
    write_tile(tmp_path / "archive", 2021, 10, 45, random_pixels(24, 1))
    units, _ = make_plan(tmp_path / "archive", tmp_path / "bad.gz", region=(10, 45, 11, 46))
    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("weights were loaded"))
    code, stderr = run_failing_job(capsys, flags("--index", 0, units=units))
    assert (code, "expected 48 x 48 px, got 24 x 24" in stderr) == (2, True)
    assert read_files(tmp_path / "shards") == {}


def test_a_throttled_archive_ends_the_job_and_a_retry_succeeds(flags, tmp_path, capsys, serve):
    path = write_tile(tmp_path / "archive", 2021, 10, 45, random_pixels(48, 1))
    server = serve({f"/{path.relative_to(tmp_path / 'archive')}": path.read_bytes()})
    units, _ = make_plan(server.url, tmp_path / "http.gz", region=(10, 45, 11, 46))
    server.status = 503
    code, stderr = run_failing_job(capsys, flags("--index", 0, units=units))
    assert code == 1
    assert "503. Try again later" in stderr
    assert read_files(tmp_path / "shards") == {}
    server.status = 0
    embed.main(flags("--index", 0, units=units))
    assert len(read_files(tmp_path / "shards")) == 2


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def halfway(tmp_path, archive, serve, flags):
    """A process that has embedded the northern tile and waits for the southern one, its server and its flags."""
    names = {f"/{p.relative_to(archive)}": p.read_bytes() for p in archive.rglob("*N4[45]E010*.tif")}
    server = serve(names)
    units, _ = make_plan(server.url, tmp_path / "http.gz", region=(10, 44, 11, 46))
    server.held = {n for n in names if "N44" in n}
    argv = flags("--index", 0, "--batch-size", 2, units=units)
    command = [sys.executable, "-m", "scripts.embed", *argv]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.arrived.wait(60)
    end = time.monotonic() + 60
    while not any(p.stat().st_size for p in (tmp_path / "shards").glob(".*.partial")):
        assert time.monotonic() < end
        time.sleep(0.02)
    yield process, server, argv
    process.kill()
    process.wait()
    process.stderr.close()


def test_sigterm_during_a_job_leaves_no_files(halfway, tmp_path):
    process, server, _ = halfway
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    server.release.set()
    stderr = process.communicate(timeout=20)[1]
    assert process.returncode == 143
    assert "terminated; nothing partial is left" in stderr
    assert "Traceback" not in stderr
    assert read_files(tmp_path / "shards") == {}


def test_sigterm_ends_a_job_at_once_even_if_a_read_hangs(halfway, tmp_path):
    process, _, _ = halfway
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143  # a container is killed some seconds after SIGTERM
    assert read_files(tmp_path / "shards") == {}


def test_a_run_after_sigkill_gives_byte_equal_files_and_removes_partial_ones(halfway, tmp_path):
    process, server, argv = halfway
    process.kill()
    process.wait()
    assert [n.endswith(".partial") for n in read_files(tmp_path / "shards")] == [True]
    server.release.set()
    embed.main(argv)
    embed.main([*argv, "--folder", str(tmp_path / "clean")])
    assert len(read_files(tmp_path / "clean")) == 2
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "clean")


# ----------------------------------------------------------------------------------------------------------- the script


def test_help_shows_every_flag_and_does_not_import_torch():
    check_help(
        "worldcover", ("--index", "--overwrite", "--metadata", "--expect-fingerprint", "AWS_BATCH_JOB_ARRAY_INDEX")
    )


def test_the_script_runs_from_another_folder_with_pythonpath(flags, tmp_path, plan):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.embed", *flags("--index", 1)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rows of 3 units" in done.stderr
    assert len(read_files(tmp_path / "shards")) == 2


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoints_folder_changes_no_bytes_and_stays_absent(flags, tmp_path):
    runs = []
    for name, more in (("a", []), ("b", ["--checkpoints", tmp_path / "checkpoints"])):
        embed.main(flags("--index", 0, *more, folder=tmp_path / name))
        runs.append(read_files(tmp_path / name))
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]
    assert not (tmp_path / "checkpoints").exists()
