"""Array jobs and Snakemake: jobs run the rules' commands, and Snakemake continues after them. No containers here."""

import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import boto3
import pytest

from kiln.archives.registry import archives
from kiln.aws import array_jobs, code_bundle, stack
from kiln.aws.batch import JobResources
from kiln.aws.environment import driver_environment
from kiln.cli.aws import submit
from kiln.formats import plan_file
from kiln.io import storage
from kiln.workflow.config import load_config
from kiln.workflow.run import Run as ConfiguredRun
from tests.support.items import write_item
from tests.workflow.workflow import WITH_NAIP, Run, fresh_naip, job_counts, merged

DATASETS = tuple(archives())
KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "kiln-arrays"
ROOT = f"s3://{BUCKET}/deep"
ITEMS = ("S2A_29RKH_20200219_0_L2A", "S2B_29RKH_20200315_0_L2A")


def rule_of(run: Run, dataset: str) -> array_jobs.EmbedRule:
    config = load_config([code_bundle.ROOT / "config/config.yaml", run.folder / "config.yaml"])
    return array_jobs.embed_rule(ConfiguredRun(config, ROOT), dataset)


@dataclass(frozen=True)
class Cloud:
    """A run with its archives and results in a bucket, and its driver's environment."""

    run: Run
    environment: dict[str, str]
    store: list[str]

    def snakemake(self, *arguments: str) -> str:
        return self.run.snakemake(*self.store, *arguments, **self.environment)

    def submit(self, dataset: str, *more: str) -> str:
        """Return what the command prints."""
        return self.ended(0, dataset, *more)[0]

    def refused(self, dataset: str, *more: str, **environment: str) -> str:
        """Return its error."""
        return self.ended(2, dataset, *more, **environment)[1]

    def ended(self, rc: int, dataset: str, *more: str, **environment: str) -> tuple[str, str]:
        config = ["--configfile", str(self.run.folder / "config.yaml"), "--storage", ROOT]
        out, err, code = io.StringIO(), io.StringIO(), 0
        handler = logging.StreamHandler(err)  # the process of the tests has handlers of its own
        logging.getLogger().addHandler(handler)
        try:
            with patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
                submit.main([dataset, *config, *more])
        except SystemExit as e:
            code = e.code
        finally:
            logging.getLogger().removeHandler(handler)
        assert code == rc, out.getvalue() + err.getvalue()
        return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def cloud(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Archives of all three datasets in a bucket, and an account that the stack made. Nothing has run yet."""
    environment = {**KEYS, "AWS_ENDPOINT_URL": s3_endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(stack, "POLL_S", 0.05)
        storage.s3_client.cache_clear()
        run = fresh_naip(tmp_path_factory.mktemp("arrays") / "run")
        keys = [write_item(run.folder / "s2", name).key for name in ITEMS]
        (run.folder / "s2/items.txt").write_text("".join(f"{key}\n" for key in keys))
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        for path in sorted(run.folder.rglob("*")):
            if path.is_file() and path.name != "config.yaml":
                boto3.client("s3").upload_file(str(path), BUCKET, path.relative_to(run.folder).as_posix())
        run = Run(run.folder, base=merged(WITH_NAIP, {
            "datasets": list(DATASETS),
            "worldcover": {"archive": f"s3://{BUCKET}/archive/rgbnir", "columns_per_shard": 4},
            "naip": {"archive": f"s3://{BUCKET}/scenes", "manifest": f"s3://{BUCKET}/scenes/manifest.txt",
                     "years": [2019]},
            "sentinel2": {"archive": f"s3://{BUCKET}/s2", "items": f"s3://{BUCKET}/s2/items.txt",
                          "items_per_shard": 1, "chip_size": 16, "max_cloud": 1.0},
            "resources": {"embed_threads": 2, "embed_mem_mb": 7500},
        }))  # fmt: skip
        stack.deploy("arrays", {"CpuImageTag": "1.0-test"})
        variables = driver_environment(stack.outputs("arrays"))
        variables.pop("KILN_BUCKET")
        store = ["--default-storage-provider", "s3", "--default-storage-prefix", ROOT]
        store += ["--storage-s3-endpoint-url", s3_endpoint]
        yield Cloud(run, {**environment, **variables}, store)
        storage.s3_client.cache_clear()


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of `cloud` in this process too."""
    if "cloud" in request.fixturenames:
        for name, value in request.getfixturevalue("cloud").environment.items():
            monkeypatch.setenv(name, value)
        storage.s3_client.cache_clear()


@pytest.fixture(scope="module")
def planned(cloud: Cloud) -> Cloud:
    """The same with plans and weights made."""
    cloud.snakemake("--cores", "2", "plan", "encoder_weights")
    return cloud


def listed(below: str) -> dict[str, bytes]:
    s3 = boto3.client("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"deep/{below}")
    keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
    return {k.removeprefix("deep/"): s3.get_object(Bucket=BUCKET, Key=k)["Body"].read() for k in keys}


def shards(dataset: str) -> dict[str, bytes]:
    """Embeddings files of a dataset, by key."""
    return {k: b for k, b in listed(f"results/tiny/{dataset}-").items() if "/shards/" in k and "ledger" not in k}


def request_of(output: str) -> list[dict]:
    """Return the recorded requests to Batch."""
    ids = re.search("^Submitted: (.*)$", output, re.M)[1].split()
    records = {k.rpartition("/")[2]: json.loads(b) for k, b in listed("arrays/").items() if "/job-" in k}
    return [records[f"job-{i}.json"]["request"] for i in ids]


def child(request: dict, number: int | None) -> None:
    """Run the command of a job's container in an environment of its own."""
    command = request["containerOverrides"]["command"]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", plan_file.ARRAY_INDEX)}
    if number is not None:
        env[plan_file.ARRAY_INDEX] = str(number)
    done = subprocess.run([sys.executable, *command[1:]], env=env, cwd="/", text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_run_without_a_plan_is_refused(cloud: Cloud) -> None:
    output = cloud.refused("worldcover")
    assert "no plan yet" in output
    assert f"snakemake --configfile {cloud.run.folder}/config.yaml --profile aws-batch plan" in output


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_job_runs_what_the_rule_runs(planned: Cloud, dataset: str) -> None:
    """The command of a job against the one that Snakemake prints for that shard, where its files are local copies."""
    rule = rule_of(planned.run, dataset)
    line = next(plan_file.read_plan(rule.plan))
    array, of = array_jobs.Array.of(rule), (line.partition, line.name)
    target = array.output_of(*of).removeprefix(f"{ROOT}/")
    output = planned.snakemake("-n", "-p", "--", target)
    printed = re.search(rf"python -m scripts\.embed {dataset} .*", output)[0]
    words, end = shlex.split(printed), "2>"
    ours = [w.removeprefix("s3://") for w in array.command_of(*of, rule.weights)]
    theirs = [w.removeprefix("s3://").removeprefix(".snakemake/storage/s3/") for w in words[: words.index(end)]]
    at = theirs.index("--threads") + 1
    theirs[at] = "2"  # a dry run prints 1 for every rule
    assert ours == theirs
    assert rule.resources == JobResources(2, 8192), "7500 MB, as the executor's table has it"


def test_a_dry_run_prints_what_there_is_to_do_and_submits_nothing(planned: Cloud) -> None:
    output = planned.submit("naip", "--dry-run")
    assert re.search(r"naip: \d+ shards as an array of \d+; each 2 vCPU, 8,192 MB", output)
    assert re.search(r"at most [\d,]+ chips, [\d.]+ MB to read, hours and price unknown: run kiln tune", output)
    assert "dkr.ecr.us-east-1.amazonaws.com/arrays:1.0-test" in output
    assert "the first: python -m scripts.embed naip" in output
    assert not listed("arrays/")


def run_all_but_the_last(cloud: Cloud, dataset: str) -> int:
    """Submit a dataset and run its jobs except the last. Returns the number of its shards."""
    output = cloud.submit(dataset)
    (asked,) = request_of(output)
    size = asked["arrayProperties"]["size"]
    assert asked["retryStrategy"] == array_jobs.RETRY
    assert asked["jobQueue"] == cloud.environment["SNAKEMAKE_AWS_BATCH_JOB_QUEUE"]
    job = boto3.client("batch").describe_jobs(jobs=[re.search("Submitted: (.*)", output)[1]])["jobs"][0]
    assert job["arrayProperties"]["size"] == size
    assert job["tags"]["kiln-code"] == code_bundle.build()[1]
    for n in range(size - 1):
        child(asked, n)
    assert len(shards(dataset)) == size - 1
    return size


def run_the_missing_one(cloud: Cloud, dataset: str, size: int) -> None:
    """Submit the one missing shard of a dataset and run its job."""
    output = cloud.submit(dataset, "--missing")
    assert f"{size - 1} are finished and left out" in output
    (asked,) = request_of(output)
    assert "arrayProperties" not in asked, "one shard is no array"
    child(asked, None)
    assert len(shards(dataset)) == size
    assert "nothing to submit: all" in cloud.refused(dataset, "--missing")


def test_snakemake_continues_after_the_arrays(planned: Cloud) -> None:
    datasets = ("worldcover", "naip")
    sizes = {dataset: run_all_but_the_last(planned, dataset) for dataset in datasets}
    assert sizes == dict.fromkeys(datasets, 2)
    for dataset, size in sizes.items():
        run_the_missing_one(planned, dataset, size)
    made = {dataset: shards(dataset) for dataset in datasets}
    jobs = job_counts(planned.snakemake("-n", *datasets))
    assert not [name for name in jobs if name.startswith("embed_")]
    assert {jobs[f"merge_{dataset}"] >= 1 for dataset in datasets} == {True}
    for files in made.values():
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"deep/{max(files)}")
    jobs = job_counts(planned.snakemake("-n", *datasets))
    assert {d: jobs[f"embed_{d}"] for d in datasets} == dict.fromkeys(datasets, 1)
    planned.snakemake("--cores", "2", *datasets)
    assert {dataset: shards(dataset) for dataset in datasets} == made, "Snakemake's jobs made the same bytes"
    records = [k for k in listed("results/tiny/") if re.search(r"/products/[^/]+/[0-9a-f]+\.json$", k)]
    assert len(records) == sum(jobs[f"merge_{dataset}"] for dataset in datasets)


def test_bad_input_is_refused_before_anything_is_submitted(planned: Cloud, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: planned.run.configure({}))
    before = listed("arrays/")
    assert "expected one of worldcover, naip, sentinel2" in planned.refused("landsat")
    assert "kiln aws env" in planned.refused("naip", SNAKEMAKE_AWS_BATCH_JOB_QUEUE="")
    queue = planned.environment["SNAKEMAKE_AWS_BATCH_JOB_QUEUE"]
    assert "does not exist" in planned.refused("naip", "--queue", f"{queue}-2")
    assert "expected the ARN of the queue" in planned.refused("naip", "--queue", "nowhere")
    assert "no such job definition" in planned.refused("naip", "--job-definition", "nowhere:1")
    assert "which jobs can write, got results" in planned.refused("naip", "--storage", "results")
    assert "bucket nobody-has-this does not exist" in planned.refused("naip", "--storage", "s3://nobody-has-this")
    assert "no AWS region" in planned.refused("naip", AWS_DEFAULT_REGION="")
    assert "expected a config file" in planned.refused("naip", "--configfile", "nowhere.yaml")
    gpu = stack.outputs("arrays")["GpuJob"]
    assert "has no image yet" in planned.refused("naip", "--job-definition", gpu)
    batch = boto3.client("batch")  # moto changes no definition of a stack
    (about,) = batch.describe_job_definitions(jobDefinitions=[gpu])["jobDefinitions"]
    container = {k: about["containerProperties"][k] for k in ("resourceRequirements", "jobRoleArn")} | {
        "image": "kiln:1"
    }
    gpu = batch.register_job_definition(jobDefinitionName="gpu", type="container", containerProperties=container)[
        "jobDefinitionArn"
    ]
    assert "has a GPU and resources.device is cpu" in planned.refused("naip", "--job-definition", gpu)
    planned.run.configure({"resources": {"device": "cuda"}})
    assert "has no GPU and resources.device is cuda" in planned.refused("naip")
    planned.run.configure({"naip": {"archive": "scenes"}})
    assert "cannot read local files, got naip.archive: scenes" in planned.refused("naip")
    far = {"naip": {"archive_region": "us-west-2"}}
    done = [u for u in storage.listing(f"{ROOT}/results/tiny") if re.search(r"/naip-\w+/shards/.*-\w+\.parquet$", u)]
    for shard in done[:1]:  # another test's: something is left to submit
        storage.delete(shard)
    planned.run.configure(far)
    output = planned.refused("naip")
    warning = (
        r"the archive is in us-west-2 and the jobs run in us-east-1: \d shards read at most .*B, [\d.]+ at 0\.02 a GB"
    )
    assert re.search(warning, output)
    planned.run.configure({**far, "allow_cross_region": True})
    assert "the archive is in us-west-2" in planned.ended(0, "naip", "--dry-run")[1], "a warning alone"
    planned.run.configure({"datasets": ["worldcover"]})
    assert "expected naip among them, got worldcover" in planned.refused("naip")
    planned.run.configure({"model": {"checkpoint": "https://example.org/clay.ckpt"}})
    assert "model.sha256: expected the checkpoint's digest" in planned.refused("naip")
    planned.run.configure({"model": {"untrained": {"seed": 99}}})
    assert "no plan yet" in planned.refused("naip"), "another fingerprint is another run"
    assert listed("arrays/") == before


def test_a_missing_weights_file_is_refused(planned: Cloud) -> None:
    rule = rule_of(planned.run, "naip")
    data = storage.read_bytes(rule.weights)
    storage.delete(rule.weights)
    assert "no weights yet" in planned.refused("naip")
    storage.write_bytes(rule.weights, data)


def test_an_empty_plan_is_refused(planned: Cloud) -> None:
    plan = rule_of(planned.run, "worldcover").plan
    data = storage.read_bytes(plan)
    storage.write_bytes(plan, b"")
    assert "no shard of these partitions in it. Check the config's filters." in planned.refused("worldcover")
    storage.write_bytes(plan, data)
