"""An array job on a Batch whose jobs are containers, and Snakemake after it."""

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
from tests.batch.server import ROLE_KEY
from tests.batch.story import CONFIG

RUN, ARCHIVE = "kiln-lab-arrays", "kiln-lab-arrays-archive"
ARRAY = {
    **CONFIG,
    "run": "array",
    "datasets": ["worldcover"],
    "worldcover": {**CONFIG["worldcover"], "archive": f"s3://{ARCHIVE}/worldcover/rgbnir", "columns_per_shard": 3},
}
# moto tells the children of an array their number in AWS_BATCH_JOB_ID alone; AWS in a variable of its own too.
ENTRY = 'case $AWS_BATCH_JOB_ID in *:*) export AWS_BATCH_JOB_ARRAY_INDEX=${AWS_BATCH_JOB_ID##*:};; esac; exec "$@"'
CHANGE = "import sys\n\nprint('a line that the image does not have', file=sys.stderr)\n"


@dataclass
class Played:
    """An array and the Snakemake run after it: what was said, logs of the array's jobs, keys before and after."""

    lab: Lab
    submitted: str
    statuses: dict[str, int]
    logs: list[str]
    keys: set[str]
    array: dict[str, str]
    said: str
    jobs: list[str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def played(lab: Lab, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All shards of a plan by an array; one is lost; Snakemake does the rest."""
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
    about = {"image": with_entry(lab, image), "jobRoleArn": lab.role, "command": ["true"],
             "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "4000"}]}  # fmt: skip
    definition = batch.register_job_definition(
        jobDefinitionName="kiln-array", type="container", retryStrategy=array_jobs.RETRY, containerProperties=about
    )["jobDefinitionArn"]
    with lab.counted() as requests:
        submitted = subprocess.run(
            [sys.executable, "-m", "kiln", "aws", "submit", "worldcover", "--configfile", "lab.yaml"],
            cwd=driver.folder, env=driver.env(KILN_JOB_DEFINITION=definition, PYTHONPATH=None),
            text=True, capture_output=True, check=True,
        ).stdout  # fmt: skip
        parent = re.search("^Submitted: (.*)$", submitted, re.M)[1]
        statuses, children = ended(lab, parent)
    made = objects(lab, RUN, "results/")
    s3.delete_object(Bucket=RUN, Key=shards(made)[0])
    known = {j["jobId"] for j in lab.jobs()}
    said = driver.run()
    jobs = [j["jobName"] for j in lab.jobs() if j["jobId"] not in known]
    return Played(
        lab,
        submitted,
        statuses,
        [lab.log(c) for c in children],
        requests.keys,
        made,
        said,
        jobs,
        objects(lab, RUN, "results/"),
    )


def with_entry(lab: Lab, image: Image) -> str:
    """The image with an entry that gives moto's children their number."""
    name = f"{image.name}-array"
    container = lab.tool("buildah", "from", image.name).strip()
    lab.tool("buildah", "config", "--entrypoint", json.dumps(["/bin/sh", "-c", ENTRY, "entry"]), container)
    lab.tool("buildah", "commit", "--quiet", container, name)
    lab.tool("buildah", "rm", container)
    return name


def ended(lab: Lab, parent: str, seconds: float = 300) -> tuple[dict[str, int], list[str]]:
    """How many jobs of an array ended how, and their ids."""
    until = time.monotonic() + seconds
    while True:
        told = lab.client("batch").describe_jobs(jobs=[parent])["jobs"][0]["arrayProperties"]
        counts = {k: n for k, n in told["statusSummary"].items() if n}
        if set(counts) <= {"SUCCEEDED", "FAILED"}:
            return counts, [f"{parent}:{n}" for n in range(told["size"])]
        assert time.monotonic() < until, counts
        time.sleep(1)


def shards(keys: dict[str, str]) -> list[str]:
    return [k for k in matching(keys, "/worldcover-", "/shards/") if "ledger" not in k]


def test_every_job_of_the_array_did_its_shard(played: Played):
    size = int(re.search(r"shards as an array of (\d+)", played.submitted)[1])
    assert size > 2
    assert played.statuses == {"SUCCEEDED": size}, played.logs
    assert len(shards(played.array)) == size
    named = [re.search(r"--shard ([\w-]+)", log)[1] for log in played.logs]
    assert {f"{name}.parquet" for name in named} == {k.rpartition("/")[2] for k in shards(played.array)}


def test_its_jobs_ran_the_code_that_was_submitted(played: Played):
    digest = re.search(r"code  ([0-9a-f]{64})", played.submitted)[1]
    for log in played.logs:
        assert f"code {digest}" in log
        assert "a line that the image does not have" in log, "no new image for a changed line"


def test_its_jobs_have_their_roles_credentials(played: Played):
    assert ROLE_KEY in played.keys


def test_snakemake_did_what_was_missing_and_what_comes_after(played: Played):
    rules = [name.removeprefix("snakejob-").rsplit("-", 5)[0] for name in played.jobs]
    assert rules.count("embed_worldcover") == 1
    assert rules.count("merge_worldcover") == 1
    assert rules.count("build_index") == 1
    assert {k: played.after[k] for k in shards(played.array)} == {k: played.array[k] for k in shards(played.array)}
    assert matching(played.after, "/explorer/")
    assert matching(played.after, "/products/2021/", ".json")
