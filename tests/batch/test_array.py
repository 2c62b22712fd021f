"""An array job on a simulated AWS Batch, and a Snakemake run after it. The jobs are containers."""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiln.aws import array_jobs
from tests.batch.driver import Driver, matching, objects, upload
from tests.batch.image import Image
from tests.batch.lab import ROOT, Lab
from tests.batch.scenario import CONFIG
from tests.batch.server import ROLE_KEY

RUN, ARCHIVE = "kiln-lab-arrays", "kiln-lab-arrays-archive"
ARRAY = {
    **CONFIG,
    "run": "array",
    "datasets": ["worldcover"],
    "worldcover": {**CONFIG["worldcover"], "archive": f"s3://{ARCHIVE}/worldcover/rgbnir", "columns_per_shard": 3},
}
# moto passes the index of an array's child only in AWS_BATCH_JOB_ID. AWS also sets AWS_BATCH_JOB_ARRAY_INDEX.
ENTRY = 'case $AWS_BATCH_JOB_ID in *:*) export AWS_BATCH_JOB_ARRAY_INDEX=${AWS_BATCH_JOB_ID##*:};; esac; exec "$@"'
CHANGE = "import sys\n\nprint('a line that the image does not have', file=sys.stderr)\n"


@dataclass
class ArrayRun:
    """An array job and the Snakemake run after it: outputs, logs of the array's jobs, keys before and after."""

    lab: Lab
    submitted: str
    statuses: dict[str, int]
    logs: list[str]
    keys: set[str]
    array: dict[str, str]
    output: str
    jobs: list[str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def array_run(lab: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> ArrayRun:
    """An array embeds all shards of a plan. One shard is deleted. Snakemake does the remaining jobs."""
    folder: Path = tmp_path_factory.mktemp("array")
    s3, batch = lab.client("s3"), lab.client("batch")
    for bucket in (RUN, ARCHIVE):
        s3.create_bucket(Bucket=bucket)
    make = [sys.executable, "-m", "kiln.sample", "--out", str(folder / "sample"), "--pixels-per-degree", "120"]
    subprocess.run([*make, "--years", "2021", "--tiles", "N43W097", "N43W096"], cwd=ROOT, check=True)
    upload(lab, folder / "sample/worldcover", f"s3://{ARCHIVE}/worldcover")
    driver = Driver(lab, folder / "driver", image.name, RUN, ARRAY)
    driver.run("--", "plan", "encoder_weights")
    script = driver.folder / "scripts/array_job.py"
    script.write_text(script.read_text().replace("import logging\n", CHANGE + "import logging\n", 1))
    resources = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "4000"}]
    container = {"image": with_entry(lab, image), "jobRoleArn": lab.role, "command": ["true"],
                 "resourceRequirements": resources}  # fmt: skip
    definition = batch.register_job_definition(
        jobDefinitionName="kiln-array", type="container", retryStrategy=array_jobs.RETRY, containerProperties=container
    )["jobDefinitionArn"]
    with lab.counted() as requests:
        submitted = subprocess.run(
            [sys.executable, "-m", "kiln", "aws", "submit", "worldcover", "--configfile", "lab.yaml"],
            cwd=driver.folder, env=driver.env(KILN_JOB_DEFINITION=definition, PYTHONPATH=None),
            text=True, capture_output=True, check=True,
        ).stdout  # fmt: skip
        parent = re.search("^Submitted: (.*)$", submitted, re.M)[1]
        statuses, children = wait_for_array(lab, parent)
    after_array = objects(lab, RUN, "results/")
    s3.delete_object(Bucket=RUN, Key=shards(after_array)[0])
    known = {j["jobId"] for j in lab.jobs()}
    output = driver.run()
    jobs = [j["jobName"] for j in lab.jobs() if j["jobId"] not in known]
    return ArrayRun(
        lab,
        submitted,
        statuses,
        [lab.log(c) for c in children],
        requests.keys,
        after_array,
        output,
        jobs,
        objects(lab, RUN, "results/"),
    )


def with_entry(lab: Lab, image: Image) -> str:
    """Build an image whose entrypoint sets AWS_BATCH_JOB_ARRAY_INDEX for moto's children; return its name."""
    name = f"{image.name}-array"
    container = lab.tool("buildah", "from", image.name).strip()
    lab.tool("buildah", "config", "--entrypoint", json.dumps(["/bin/sh", "-c", ENTRY, "entry"]), container)
    lab.tool("buildah", "commit", "--quiet", container, name)
    lab.tool("buildah", "rm", container)
    return name


def wait_for_array(lab: Lab, parent: str, seconds: float = 300) -> tuple[dict[str, int], list[str]]:
    """Wait for the jobs of an array. Return how many ended with each status, and their ids."""
    until = time.monotonic() + seconds
    while True:
        array = lab.client("batch").describe_jobs(jobs=[parent])["jobs"][0]["arrayProperties"]
        counts = {k: n for k, n in array["statusSummary"].items() if n}
        if set(counts) <= {"SUCCEEDED", "FAILED"}:
            return counts, [f"{parent}:{n}" for n in range(array["size"])]
        assert time.monotonic() < until, counts
        time.sleep(1)


def shards(keys: dict[str, str]) -> list[str]:
    return [k for k in matching(keys, "/worldcover-", "/shards/") if "ledger" not in k]


def test_every_job_of_the_array_embeds_its_shard(array_run: ArrayRun):
    size = int(re.search(r"shards as an array of (\d+)", array_run.submitted)[1])
    assert size > 2
    assert array_run.statuses == {"SUCCEEDED": size}, array_run.logs
    assert len(shards(array_run.array)) == size
    named = [re.search(r"--shard ([\w-]+)", log)[1] for log in array_run.logs]
    assert {f"{name}.parquet" for name in named} == {k.rpartition("/")[2] for k in shards(array_run.array)}


def test_jobs_of_the_array_run_the_submitted_code(array_run: ArrayRun):
    digest = re.search(r"code  ([0-9a-f]{64})", array_run.submitted)[1]
    for log in array_run.logs:
        assert f"code {digest}" in log
        assert "a line that the image does not have" in log, "the changed code runs without a new image"


def test_jobs_of_the_array_have_the_credentials_of_their_role(array_run: ArrayRun):
    assert ROLE_KEY in array_run.keys


def test_snakemake_embeds_the_missing_shard_and_continues_with_the_next_rules(array_run: ArrayRun):
    rules = [name.removeprefix("snakejob-").rsplit("-", 5)[0] for name in array_run.jobs]
    assert rules.count("embed_worldcover") == 1
    assert rules.count("merge_worldcover") == 1
    assert rules.count("build_index") == 1
    assert {k: array_run.after[k] for k in shards(array_run.array)} == {
        k: array_run.array[k] for k in shards(array_run.array)
    }
    assert matching(array_run.after, "/explorer/")
    assert matching(array_run.after, "/products/2021/", ".json")
