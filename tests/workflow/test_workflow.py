"""The workflow as people use it: plan, run, kill, resume, change."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kiln.explorer.database import ExplorerDatabase
from kiln.sample.worldcover import make_worldcover
from tests.workflow.workflow import ROOT, Run, copy_checkout, fresh, job_counts

REDO = {"merge_worldcover": 1, "build_index": 1, "coverage": 1, "picture_similar": 1}


def kiln_of(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"kiln"])


def test_every_rule_runs_and_a_second_run_has_nothing_to_do(finished: Run) -> None:
    assert "Nothing to be done" in finished.snakemake("-n")
    record = json.loads(finished.one("results/tiny/worldcover-*/products/2021/*.json").read_text())
    assert record["rows"] == record["counts"]["embedded"] > 10
    index = json.loads(finished.one("results/tiny/index/*.json").read_text())
    assert index["rows"] == record["rows"]


def test_a_deleted_shard_redoes_itself_its_merge_and_the_index_alone(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    before = run.files()
    run.shards()[0].unlink()
    assert run.jobs() == {"embed_worldcover": 1, **REDO, "all": 1}
    done = job_counts(run.snakemake("--cores", "2"))
    assert done == {"embed_worldcover": 1, **REDO, "all": 1}
    assert run.files() == before
    assert "Nothing to be done" in run.snakemake("--cores", "2")


def test_a_clone_without_snakemakes_records_has_nothing_to_do(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    assert not (run.folder / ".snakemake").exists()
    assert run.jobs() == {}


def test_settings_that_change_no_vector_redo_nothing(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    run.configure({"resources": {"batch_size": 3, "embed_mem_mb": 5000}, "plan": {"price_per_hour": 9}})
    assert run.jobs() == {}


def test_printed_commands_run_by_hand(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    before = run.files()
    shard = run.shards()[1]
    shard.unlink()
    output = run.snakemake("-n", "-p")
    line = next(line for line in output.splitlines() if "scripts.embed worldcover" in line)
    command = line.removeprefix("Shell command: ")
    (run.folder / Path(command.rpartition("2> ")[2])).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, shell=True, cwd=run.folder, env=run.environment(), check=True)
    assert run.files() == before


def test_a_larger_region_leaves_finished_shards_alone(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    kept = {p: p.stat().st_mtime_ns for p in run.shards()}
    rows = json.loads(run.one("results/tiny/index/*.json").read_text())["rows"]
    make_worldcover(run.folder / "archive", tiles=["N43E001"], years=[2021], ppd=120, seed=7)
    run.configure({"worldcover": {"region": [-1, 43, 2, 44]}})
    run.snakemake("--cores", "2", "index")
    assert len(run.shards()) == 3
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a finished shard was done again"
    assert json.loads(run.one("results/tiny/index/*.json").read_text())["rows"] > rows


def test_a_lost_plan_or_lost_weights_redo_no_finished_shard(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    before = run.files()
    lost, kept = run.shards()
    time_of = kept.stat().st_mtime_ns
    lost.unlink()
    shutil.rmtree(run.folder / "results/models")
    run.one("results/tiny/worldcover-*/plan-*.jsonl.gz").unlink()
    run.snakemake("--cores", "2", "worldcover")
    assert kept.stat().st_mtime_ns == time_of
    assert run.files() == before


def test_going_back_to_an_earlier_config_brings_its_database_back(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    record = json.loads(run.one("results/tiny/index/*.json").read_text())
    run.configure({"index": {"select": {"bbox": [-1, 43, 0, 44]}}})
    run.snakemake("--cores", "2", "index")
    other = json.loads(run.one("results/tiny/index/*.json").read_text())
    assert 0 < other["rows"] < record["rows"]
    run.configure({})
    assert run.jobs("index") == {"build_index": 1, "index": 1}
    run.snakemake("--cores", "2", "index")
    assert json.loads(run.one("results/tiny/index/*.json").read_text()) == record
    assert ExplorerDatabase(str(run.folder / "results/tiny/explorer")).table.count_rows() == record["rows"]


def test_int8_means_and_patches_are_merged_and_indexed(tmp_path: Path) -> None:
    run = fresh(
        tmp_path / "run",
        {"vector_dtype": "int8", "embedding": "both", "patches": True, "index": {"select": {"embedding": "mean"}}},
    )
    run.snakemake("--cores", "2", "index")
    shards = [p for p in run.shards() if ".patches." not in p.name]
    assert [pq.read_table(p)["chip_id"] for p in shards] == [
        pq.read_table(p.with_suffix(".patches.parquet"))["chip_id"] for p in shards
    ]
    record = json.loads(run.one("results/tiny/index/*.json").read_text())
    assert record["embedding"] == {"worldcover": "mean"}
    assert record["rows"] == sum(pq.read_metadata(p).num_rows for p in shards)
    assert run.jobs("index") == {}
    assert run.jobs("plan") == {"plan": 1}


def test_the_target_index_redoes_a_deleted_shard(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    run.shards()[0].unlink()
    assert run.jobs("index") == {"embed_worldcover": 1, "merge_worldcover": 1, "build_index": 1, "index": 1}


def test_open_sea_alone_gives_empty_products(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", {"worldcover": {"region": [5, 43, 6, 43.5]}})
    run.snakemake("--cores", "2", "index")
    record = json.loads(run.one("results/tiny/worldcover-*/products/2021/*.json").read_text())
    assert (record["rows"], set(record["units"])) == (0, {"empty"})
    assert "Nothing to be done" in run.snakemake("-n", "index")


def test_a_folder_with_spaces_and_a_checkout_with_spaces(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "the checkout")
    run = fresh(tmp_path / "the run", root=checkout)
    run.snakemake("--cores", "2", "index")
    assert len(run.shards()) == 2


def processes_of(folder: Path) -> list[int]:
    """Return the processes of scripts that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                cwd = str((entry / "cwd").readlink())
            except OSError:
                continue
            if cwd == str(folder) and "scripts." in command:
                found.append(int(entry.name))
    return found


MADE_BY = {
    "embed_worldcover": ("worldcover-*/shards",),
    "merge_worldcover": ("worldcover-*/products",),
    "build_index": ("explorer", "index", "pictures"),
}  # in results/tiny, in the order of the rules


def unfinished(finished: Run, folder: Path, first: str) -> Run:
    """Return a copy of a finished run without what the rule `first` and the rules after it made."""
    run = finished.clone(folder)
    rules = list(MADE_BY)
    for pattern in (p for rule in rules[rules.index(first) :] for p in MADE_BY[rule]):
        shutil.rmtree(run.one(f"results/tiny/{pattern}"))
    shutil.rmtree(run.folder / "logs")
    return run


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("rule", ["embed_worldcover", "merge_worldcover", "build_index"])
def test_a_driver_killed_at_any_moment_leaves_nothing_partial(finished: Run, tmp_path: Path, rule: str) -> None:
    run = unfinished(finished, tmp_path / "run", rule)
    driver = subprocess.Popen(
        run.command("--cores", "2"),
        env=run.environment(),
        stdout=(tmp_path / "output").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not any((run.folder / "logs").rglob(f"{rule}*")):
        assert driver.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.02)
    time.sleep(0.8)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    until = time.monotonic() + 60
    while processes_of(run.folder):
        assert time.monotonic() < until, "a script outlived the driver"
        time.sleep(0.1)
    run.snakemake("--unlock")
    run.snakemake("--cores", "2", "index")
    assert run.files() == finished.files()
    assert not list(run.folder.rglob("*.partial"))


def test_scripts_killed_in_the_middle_leave_nothing_partial(finished: Run, tmp_path: Path) -> None:
    run = unfinished(finished, tmp_path / "run", "embed_worldcover")
    driver = subprocess.Popen(
        run.command("--cores", "2", "worldcover"),
        env=run.environment(),
        stdout=(tmp_path / "output").open("w"),
        stderr=subprocess.STDOUT,
    )
    killed = 0
    while driver.poll() is None:
        for pid in processes_of(run.folder) if killed < 2 else []:
            command = Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else b""
            if b"scripts.embed" in command and list(run.folder.rglob("*.partial")):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.01)
    assert killed >= 1
    assert driver.returncode != 0
    run.snakemake("--cores", "2", "index")
    assert run.files() == finished.files()
    assert not list(run.folder.rglob("*.partial"))


def test_the_second_of_two_runs_in_one_folder_is_refused(finished: Run, tmp_path: Path) -> None:
    run = unfinished(finished, tmp_path / "run", "merge_worldcover")
    both = [
        subprocess.Popen(
            run.command("--cores", "1", "index"),
            env=run.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [p.communicate()[0] for p in both]
    refused = [text for p, text in zip(both, outputs, strict=True) if p.returncode != 0]
    assert len(refused) == 1, outputs
    assert "lock" in refused[0].lower()
    assert run.files() == finished.files()


def test_report_shows_map_ledger_and_contact_sheet(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    report = tmp_path / "report.html"
    run.snakemake("--report", str(report))
    text = report.read_text()
    for name in ("coverage.png", "ledger.html", "similar-"):
        assert name in text
    assert ".parquet" not in text, "a report holds no shards"


def test_allow_missing_merges_what_exists_and_names_what_is_missing(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "clone")
    run.shards()[0].unlink()
    run.configure({"allow_missing": True})
    jobs = run.jobs()
    assert "embed_worldcover" not in jobs
    run.snakemake("--cores", "2", "worldcover")
    records = [json.loads(p.read_text()) for p in run.folder.glob("results/tiny/worldcover-*/products/2021/*.json")]
    partial = next(r for r in records if r["missing_shards"])
    assert len(partial["missing_shards"]) == 1
    product = next(
        p
        for p in run.folder.glob("results/tiny/worldcover-*/products/2021/*.json")
        if json.loads(p.read_text()) == partial
    )
    assert kiln_of(product.with_suffix("") / "chips/part-0000.parquet")["missing_shards"] == partial["missing_shards"]


def test_plan_prints_the_work_of_each_partition(finished: Run, tmp_path: Path) -> None:
    output = finished.clone(tmp_path / "clone").snakemake("--cores", "1", "plan")
    row = next(line for line in output.splitlines() if line.startswith("worldcover 2021"))
    assert row.split()[2:5] == ["10", "2", "2"], "units, shards, done"


def test_on_object_storage(s3_endpoint: str, finished: Run, tmp_path: Path) -> None:
    """The whole workflow with its results on S3: the same files as on a disk, nothing to do on a fresh clone."""
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**keys, "AWS_ENDPOINT_URL": s3_endpoint}
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket="kiln-run")
    storage = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://kiln-run/deep"]
    storage += ["--storage-s3-endpoint-url", s3_endpoint]
    run = fresh(tmp_path / "run")
    run.snakemake("--cores", "2", *storage, **environment)
    found = {o["Key"]: o for o in client.list_objects_v2(Bucket="kiln-run")["Contents"]}
    local = finished.files()
    differing = ("/explorer/", "/pictures/", "/runs/", "/command.json")
    remote = {k.removeprefix("deep/results/") for k in found if not any(part in k for part in differing)}
    assert remote == set(local)
    assert {k for k in found if "/runs/jobs/" in k}
    assert "deep/results/tiny/command.json" in found
    shard = next(k for k in found if "/shards/" in k and "ledger" not in k)
    body = client.get_object(Bucket="kiln-run", Key=shard)["Body"].read()
    (tmp_path / "shard.parquet").write_bytes(body)
    here = finished.folder / "results" / shard.removeprefix("deep/results/")
    assert (tmp_path / "shard.parquet").read_bytes() == here.read_bytes()
    clone = fresh(tmp_path / "clone")
    assert "Nothing to be done" in clone.snakemake("--cores", "1", *storage, **environment)
    assert "Nothing to be done" in clone.snakemake("-n", "--workflow-profile", "none", *storage, **environment)
    for path in sorted((clone.folder / "archive").rglob("*.tif")):  # machines elsewhere read no local archive
        client.upload_file(str(path), "kiln-run", path.relative_to(clone.folder).as_posix())
    clone.configure({"worldcover": {"archive": "s3://kiln-run/archive/rgbnir"}})
    clone.snakemake("--cores", "1", "plan", *storage, **environment)
    kubernetes = ["--profile", str(ROOT / "profiles/kubernetes"), "--storage-s3-endpoint-url", s3_endpoint]
    account = {"KILN_BUCKET": "kiln-run/deep", "KILN_IMAGE": "kiln:1"}
    assert "Nothing to be done" in clone.snakemake("-n", *kubernetes, **account, **environment)
    client.delete_object(Bucket="kiln-run", Key=shard)
    redo = {"embed_worldcover": 1, **REDO, "all": 1}
    assert job_counts(clone.snakemake("-n", *storage, **environment)) == redo
    assert job_counts(clone.snakemake("-n", *kubernetes, **account, **environment)) == redo


def test_a_tile_of_real_pixels_is_embedded_merged_and_indexed(shared: Path | None, tmp_path: Path) -> None:
    """A degree at a tenth of the resolution, a third of it nodata; without the real one, a generated one."""
    if shared is not None:
        archive = str(shared / "archive" / "esa-worldcover-s2" / "rgbnir_1200px")
        world = {"archive": archive, "years": [2020], "region": [-12, 24, -11, 25], "chip_size": 128}
    else:
        make_worldcover(tmp_path / "made", tiles=["N43W002"], years=[2020], ppd=1200, seed=7)
        world = {
            "archive": str(tmp_path / "made/rgbnir"),
            "years": [2020],
            "region": [-2, 43, -1, 44],
            "chip_size": 128,
        }
    run = Run(tmp_path, {"worldcover": {**world, "pixels_per_degree": 1200, "columns_per_shard": 12}})
    run.snakemake("--cores", "2")
    record = json.loads(run.one("results/tiny/worldcover-*/products/2020/*.json").read_text())
    counts = record["counts"]
    assert counts["embedded"] > 30
    assert counts["skipped_nodata"] > 5
    assert counts["expected"] == counts["embedded"] + counts["skipped_nodata"]
    assert json.loads(run.one("results/tiny/index/*.json").read_text())["rows"] == counts["embedded"]
    assert run.one("results/tiny/pictures/*/similar-*.png").stat().st_size > 50_000
