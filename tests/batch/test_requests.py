"""The number of S3 requests: of dry runs with thousands of shards, and of a run whose jobs have no chips to embed."""

import re
import subprocess
import sys
import time

import pytest

from kiln.workflow import commands
from kiln.workflow.config import load_config
from kiln.workflow.run import Run as WorkflowRun
from tests.batch.driver import Driver, objects
from tests.batch.image import Image
from tests.batch.lab import Lab, Requests
from tests.workflow.workflow import job_counts

SHARDS, SEA = 2000, 24
FINISHED, MISSING = 0.2, 3.1  # limits: requests of a dry run per shard that exists, and per shard that is missing
# Limit: requests of a run per shard, of driver and jobs together. When the number grew with the square of the number of
# jobs, it was 760 with 60 jobs.
RUN = 115
EMPTY, FULL, OPEN_SEA = "kiln-lab-missing", "kiln-lab-finished", "kiln-lab-sea"


def config(archive: str, run: str, shards: int) -> dict:
    """Return a config with `shards` shards of one column each, along the equator, where the archive has no tile."""
    return {
        "run": run,
        "datasets": ["worldcover"],
        "model": {"untrained": {"seed": 1, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}},
        "worldcover": {
            "archive": f"s3://{archive}/rgbnir",
            "years": [2021],
            "region": [-165.001, 0.01, round(-165.001 + 8 / 120 * (shards - 1), 6), 0.02],
            "pixels_per_degree": 120,
            "chip_size": 8,
            "columns_per_shard": 1,
        },
        "resources": {"embed_threads": 1, "embed_mem_mb": 2000, "batch_size": 8, "read_threads": 1},
    }


def archive(lab: Lab, bucket: str) -> None:
    """Create an archive with one tile, which none of the columns touches."""
    s3 = lab.client("s3")
    s3.create_bucket(Bucket=bucket)
    key = "rgbnir/2021/N43/ESA_WorldCover_10m_2021_v200_N43W097_S2RGBNIR.tif"
    s3.put_object(Bucket=bucket, Key=key, Body=b"a tile that no job opens")


def report(what: str, shards: int, seconds: float, requests: Requests) -> float:
    """Print and return the number of requests per shard."""
    each = requests.s3.total() / shards
    print(f"{what}: {shards} shards, {seconds:.0f} s, {each:.3f} requests a shard, {dict(requests.s3)}")
    return each


@pytest.fixture(scope="module")
def planned(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver with a plan of two thousand shards, none of which exists."""
    archive(lab, EMPTY)
    driver = Driver(lab, tmp_path_factory.mktemp("many") / "driver", "kiln", EMPTY, config(EMPTY, "many", SHARDS))
    dataset = WorkflowRun(load_config([driver.folder / "config/config.yaml", driver.folder / "lab.yaml"])).dataset(
        "worldcover"
    )
    files = {name: driver.folder / "planned" / name for name in (dataset.plan, dataset.names_file)}
    plan, names = files.values()
    command = [sys.executable, "-m", "scripts.plan_units", *commands.plan_flags(dataset)]
    command += ["--output", str(plan), "--names", str(names)]
    subprocess.run(command, cwd=driver.folder, env=driver.env(), check=True)
    for key, path in files.items():
        lab.client("s3").put_object(Bucket=EMPTY, Key=key, Body=path.read_bytes())
    return driver


def dry_run(driver: Driver, bucket: str) -> tuple[str, Requests, float]:
    """Run a dry run; return its output, its requests and its seconds."""
    start = time.monotonic()
    with driver.lab.counted() as requests:
        text = driver.run("-n", "--", "worldcover", KILN_BUCKET=bucket)
    return text, requests, time.monotonic() - start


def test_dry_runs_send_few_requests_to_s3(planned: Driver):
    """First all shards are missing. For the second dry run, a bucket gets all outputs that the first one lists."""
    text, requests, seconds = dry_run(planned, EMPTY)
    assert job_counts(text)["embed_worldcover"] == SHARDS
    assert report("dry run, all missing", SHARDS, seconds, requests) <= MISSING
    outputs = re.findall(rf"Missing output files: s3://{EMPTY}/(\S+)", text)
    assert len(outputs) == SHARDS + 2, "the shards, weights and product"
    s3 = planned.lab.client("s3")
    s3.create_bucket(Bucket=FULL)
    for key in objects(planned.lab, EMPTY, "results/"):
        s3.copy_object(Bucket=FULL, Key=key, CopySource={"Bucket": EMPTY, "Key": key})
    for key in sorted(outputs, key=lambda k: "/products/" in k):  # the product is newer than its shards
        s3.put_object(Bucket=FULL, Key=key, Body=b"")
    text, requests, seconds = dry_run(planned, FULL)
    assert "Nothing to be done" in text
    assert report("dry run, all finished", SHARDS, seconds, requests) <= FINISHED


@pytest.fixture(scope="module")
def sea(lab: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver whose columns are in the open sea. Each job writes an empty file and a ledger."""
    archive(lab, OPEN_SEA)
    return Driver(lab, tmp_path_factory.mktemp("sea") / "driver", image.name, OPEN_SEA, config(OPEN_SEA, "sea", SEA))


def test_run_of_jobs_without_chips_sends_few_requests(sea: Driver):
    start = time.monotonic()
    with sea.lab.counted() as requests:
        sea.run("--jobs", "4", "--", "worldcover")
    assert report("run of jobs with nothing to do", SEA, time.monotonic() - start, requests) <= RUN
    print(f"of these {requests.split()}; of Batch: {dict(requests.batch)}")
    files = [k for k in objects(sea.lab, OPEN_SEA) if "/shards/" in k and k.endswith(".parquet")]
    assert len(files) == 2 * SEA, "a file and a ledger for each shard"
    assert requests.batch["submitjob"] == SEA + 3, "the shards, plan, weights and merge"
    assert not {"CreateBucket", "DeleteBucket"} & set(requests.s3)
    text, requests, seconds = dry_run(sea, OPEN_SEA)
    assert "Nothing to be done" in text
    report("dry run of a finished run", SEA, seconds, requests)
    assert requests.s3.total() <= FINISHED * SHARDS / 10, (
        "a tenth of the limit for 2000 shards: most requests do not depend on the number of shards"
    )


def test_job_with_device_cuda_requests_one_gpu(sea: Driver):
    """On a machine without a GPU the job fails with a message; it does not use the CPU instead."""
    results = objects(sea.lab, OPEN_SEA, "results/")
    shards = sorted(k for k in results if "/shards/" in k and not k.endswith(".ledger.parquet"))
    assert shards, "the previous test writes them"
    sea.lab.client("s3").delete_object(Bucket=OPEN_SEA, Key=shards[0])
    known = {d["jobDefinitionArn"] for d in sea.lab.definitions()}
    text = sea.run("--retries", "0", "--config", "resources={device: cuda}", "--", shards[0], code=1)
    registered = [d for d in sea.lab.definitions() if d["jobDefinitionArn"] not in known]
    requested = [
        {r["type"]: r["value"] for r in d["containerProperties"]["resourceRequirements"]}
        for d in registered
        if "embed_worldcover" in d["jobDefinitionName"]
    ]
    assert requested == [{"VCPU": "1", "MEMORY": "2048", "GPU": "1"}]
    name = shards[0].rpartition("/")[2].removesuffix(".parquet")
    (log,) = [k for k in objects(sea.lab, OPEN_SEA, "logs/") if k.endswith(f"/{name}.log")]
    text_of_log = sea.lab.client("s3").get_object(Bucket=OPEN_SEA, Key=log)["Body"].read().decode()
    assert "torch has 0 of them" in text_of_log
    assert name in text
