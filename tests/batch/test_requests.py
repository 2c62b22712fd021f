"""What S3 is asked: by dry runs of thousands of shards, and by a run of jobs that have nothing to do."""

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
FINISHED, MISSING = 0.2, 3.1  # requests of a dry run per shard that is there, and that is not
RUN = 115  # of a real run, driver and jobs together; when they grew with the square of the jobs, 60 made it 760
EMPTY, FULL, OPEN_SEA = "kiln-lab-missing", "kiln-lab-finished", "kiln-lab-sea"


def config(archive: str, run: str, shards: int) -> dict:
    """So many shards of one column each, along the equator; of most no tile exists."""
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
    """An archive of one tile, where no column of these is."""
    s3 = lab.client("s3")
    s3.create_bucket(Bucket=bucket)
    key = "rgbnir/2021/N43/ESA_WorldCover_10m_2021_v200_N43W097_S2RGBNIR.tif"
    s3.put_object(Bucket=bucket, Key=key, Body=b"a tile that nobody opens")


def told(what: str, shards: int, seconds: float, requests: Requests) -> float:
    """Requests per shard, printed."""
    each = requests.s3.total() / shards
    print(f"{what}: {shards} shards, {seconds:.0f} s, {each:.3f} requests a shard, {dict(requests.s3)}")
    return each


@pytest.fixture(scope="module")
def planned(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver of two thousand planned shards, none of them there."""
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
    """What it says and asks of S3, and the seconds it takes."""
    start = time.monotonic()
    with driver.lab.counted() as requests:
        text = driver.run("-n", "--", "worldcover", KILN_BUCKET=bucket)
    return text, requests, time.monotonic() - start


def test_dry_runs_ask_little_of_s3(planned: Driver):
    """Missing shards, and finished ones: what the first dry run would make, put into another bucket."""
    text, requests, seconds = dry_run(planned, EMPTY)
    assert job_counts(text)["embed_worldcover"] == SHARDS
    assert told("dry run, all missing", SHARDS, seconds, requests) <= MISSING
    outputs = re.findall(rf"Missing output files: s3://{EMPTY}/(\S+)", text)
    assert len(outputs) == SHARDS + 2, "and weights and product"
    s3 = planned.lab.client("s3")
    s3.create_bucket(Bucket=FULL)
    for key in objects(planned.lab, EMPTY, "results/"):
        s3.copy_object(Bucket=FULL, Key=key, CopySource={"Bucket": EMPTY, "Key": key})
    for key in sorted(outputs, key=lambda k: "/products/" in k):  # the product is newer than its shards
        s3.put_object(Bucket=FULL, Key=key, Body=b"")
    text, requests, seconds = dry_run(planned, FULL)
    assert "Nothing to be done" in text
    assert told("dry run, all finished", SHARDS, seconds, requests) <= FINISHED


@pytest.fixture(scope="module")
def sea(lab: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver of columns of the open sea: an empty file and a ledger each."""
    archive(lab, OPEN_SEA)
    return Driver(lab, tmp_path_factory.mktemp("sea") / "driver", image.name, OPEN_SEA, config(OPEN_SEA, "sea", SEA))


def test_jobs_with_nothing_to_do(sea: Driver):
    start = time.monotonic()
    with sea.lab.counted() as requests:
        sea.run("--jobs", "4", "--", "worldcover")
    assert told("run of jobs with nothing to do", SEA, time.monotonic() - start, requests) <= RUN
    print(f"of these {requests.split()}; of Batch: {dict(requests.batch)}")
    made = [k for k in objects(sea.lab, OPEN_SEA) if "/shards/" in k and k.endswith(".parquet")]
    assert len(made) == 2 * SEA, "a file and a ledger each"
    assert requests.batch["submitjob"] == SEA + 3, "and plan, weights and merge"
    assert not {"CreateBucket", "DeleteBucket"} & set(requests.s3)
    text, requests, seconds = dry_run(sea, OPEN_SEA)
    assert "Nothing to be done" in text
    told("dry run of what was done", SEA, seconds, requests)
    assert requests.s3.total() <= FINISHED * SHARDS / 10, "what any dry run asks: of so few shards no small share"


def test_a_run_on_gpus_asks_for_one_a_job(sea: Driver):
    """Registered so; and on a machine without one the job fails and says it, rather than take the processor."""
    made = objects(sea.lab, OPEN_SEA, "results/")
    shards = sorted(k for k in made if "/shards/" in k and not k.endswith(".ledger.parquet"))
    assert shards, "the test above makes them"
    sea.lab.client("s3").delete_object(Bucket=OPEN_SEA, Key=shards[0])
    known = {d["jobDefinitionArn"] for d in sea.lab.definitions()}
    text = sea.run("--retries", "0", "--config", "resources={device: cuda}", "--", shards[0], code=1)
    registered = [d for d in sea.lab.definitions() if d["jobDefinitionArn"] not in known]
    asked = [
        {r["type"]: r["value"] for r in d["containerProperties"]["resourceRequirements"]}
        for d in registered
        if "embed_worldcover" in d["jobDefinitionName"]
    ]
    assert asked == [{"VCPU": "1", "MEMORY": "2048", "GPU": "1"}]
    name = shards[0].rpartition("/")[2].removesuffix(".parquet")
    (log,) = [k for k in objects(sea.lab, OPEN_SEA, "logs/") if k.endswith(f"/{name}.log")]
    said = sea.lab.client("s3").get_object(Bucket=OPEN_SEA, Key=log)["Body"].read().decode()
    assert "torch has 0 of them" in said
    assert name in text
