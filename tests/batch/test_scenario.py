"""A run of three datasets with failures, from archives on S3 to a tagged table on S3.

The jobs are containers of a simulated AWS Batch.
"""

import gzip
import json
import re
from collections import Counter

import lancedb
import pytest
from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

from kiln.explorer import database
from tests.batch import scenario as scenarios
from tests.batch.driver import matching
from tests.batch.image import VERSION, Image, build
from tests.batch.lab import Lab
from tests.batch.scenario import RUN, Scenario, Step
from tests.batch.server import ROLE_KEY

EMBED = ("embed_worldcover", "embed_naip", "embed_sentinel2")


def shards(keys: dict[str, str]) -> set[str]:
    """Return the shards whose embeddings are among the keys, as partition/name."""
    matches = (re.search(r"/shards/([^/]+/[^/]+)\.parquet$", k) for k in keys)
    return {match[1] for match in matches if match and not match[1].endswith(".ledger")}


def attempts_by_shard(lab: Lab, step: Step) -> Counter[str]:
    """Return how many jobs of a step were submitted for each shard."""
    definitions = {d["jobDefinitionArn"]: d for d in lab.definitions()}
    return Counter(s for job in step.jobs for s in scenarios.shards_of(definitions[job["jobDefinition"]]))


def test_image_has_labels_and_no_credentials_and_runs_as_an_ordinary_user(lab: Lab, image: Image):
    details = json.loads(lab.tool("podman", "image", "inspect", image.name))[0]
    labels = lab.labels(image.name)
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] == image.revision
    assert labels["kiln.device"] == "cpu"
    assert details["Config"]["User"] == "kiln"
    assert not [v for v in details["Config"]["Env"] if re.match(r"AWS_|.*(KEY|SECRET|TOKEN|PASSWORD|INDEX_URL)", v)]
    output = lab.tool("podman", "run", "--rm", image.name, "bash", "-c", "ls -A /opt/wheels ~; id -u; git --version")
    assert "snakemake_storage_plugin_s3-0.3.6" in output
    assert "1000" in output.split("\n")
    assert ".aws" not in output
    assert image.size < 3e9


def test_image_of_the_same_files_at_another_revision_is_labelled_with_that_revision(lab: Lab, image: Image):
    name = f"{image.name}-again"
    build(lab, image.folder, name, "another")
    assert lab.labels(name)["org.opencontainers.image.revision"] == "another"
    assert lab.labels(image.name)["org.opencontainers.image.revision"] == image.revision


def test_run_of_three_datasets_ends_in_a_tagged_table_on_s3(scenario: Scenario, monkeypatch: pytest.MonkeyPatch):
    for name, value in scenario.lab.env.items():
        monkeypatch.setenv(name, value)
    table = database.connect(f"s3://{RUN}/results/lab/explorer").open_table(database.TABLE)
    assert isinstance(table, lancedb.table.Table)
    assert "ready" in table.tags.list()
    rows = Counter(table.to_arrow()["dataset"].to_pylist())
    assert set(rows) == {"worldcover", "naip", "sentinel2"}
    assert min(rows.values()) > 5
    shard_count, keys = len(shards(scenario.repaired.after)), list(scenario.repaired.after)
    assert len(matching(keys, "/products/", ".json")) >= 3
    assert len(matching(keys, "/ledger")) + len(matching(keys, ".ledger.parquet")) >= shard_count


def test_job_of_a_stopped_worker_is_retried(scenario: Scenario):
    assert attempts_by_shard(scenario.lab, scenario.killed)[f"2021/{scenario.stopped}"] == 2
    assert [j["status"] for j in scenario.killed.of_rule("embed_worldcover")].count("FAILED") == 1
    assert "Trying to restart job" in scenario.killed.output
    assert f"2021/{scenario.stopped}" in shards(scenario.killed.after)


def test_shard_that_always_fails_is_named_and_blocks_only_its_dependents(scenario: Scenario):
    """Its log in the bucket names the scene. Jobs that do not depend on the shard are completed."""
    failed = [j for j in scenario.resumed.of_rule("embed_naip") if j["status"] == "FAILED"]
    attempts = [j for j in scenario.killed.of_rule("embed_naip") if j["status"] == "FAILED"]
    assert len(failed) == 3, "one attempt and two retries"
    assert len(attempts) <= 3
    missing = shards(scenario.repaired.after) - shards(scenario.resumed.after)
    assert len(missing) == 1
    name = missing.pop().partition("/")[2]
    assert f"/{name}.log" in scenario.resumed.output
    (log,) = matching(scenario.resumed.logs, "logs/lab/embed_naip/", f"/{name}.log")
    assert scenarios.BROKEN.rpartition("/")[2].removesuffix(".tif") in scenario.resumed.logs[log]
    products = matching(scenario.resumed.after, "/products/", ".json")
    assert any("worldcover-" in p for p in products)
    assert any("sentinel2-" in p for p in products)
    assert not any("naip-" in p for p in products)


def test_next_run_embeds_only_the_repaired_shard_and_its_dependents(scenario: Scenario):
    assert sum(attempts_by_shard(scenario.lab, scenario.repaired).values()) == 1
    rules = Counter(re.sub(r"^snakejob-(.*?)(-[0-9a-f]{8}-.*)$", r"\1", j["jobName"]) for j in scenario.repaired.jobs)
    assert rules == {
        "embed_naip": 1, "merge_naip": 1, "build_index": 1, "picture_similar": 1, "coverage": 1
    }  # fmt: skip


def test_fresh_clone_after_a_killed_driver_repeats_no_job(scenario: Scenario):
    """No job is submitted for existing shards and weights. No existing file changes but that of the last call."""
    before, later = scenario.resumed.before, scenario.repaired.after
    assert shards(before)
    assert not set(attempts_by_shard(scenario.lab, scenario.resumed)) & shards(before)
    assert not scenario.resumed.of_rule("encoder_weights")
    changed = {k for k, etag in before.items() if k.startswith("results/") and later.get(k) != etag}
    assert changed == {"results/lab/command.json"}


def test_jobs_request_the_resources_of_the_config_rounded_up(scenario: Scenario):
    """Every rule that runs on Batch requests the smallest size in the plugin's table that is large enough."""
    small, medium = (1, 2048), (1, 2048)
    embed, merge = (1, 5120), (1, 4096)  # the config has 5000 and 3500 MB
    expected = {"encoder_weights": (1, 8192), "plan_worldcover": small, "plan_naip": medium,
                "plan_sentinel2": (2, 4096), "picture_similar": medium, "coverage": medium, "build_index": merge,
                **dict.fromkeys(EMBED, embed),
                **dict.fromkeys(("merge_worldcover", "merge_naip", "merge_sentinel2"), merge)}  # fmt: skip
    requested = {}
    steps = (scenario.killed, scenario.resumed, scenario.repaired)
    used = {j["jobDefinition"] for step in steps for j in step.jobs}
    for definition in scenario.lab.definitions():
        if definition["jobDefinitionArn"] not in used:
            continue
        rule = re.fullmatch(r"snakejob-def-(.*?)-[0-9a-f]{8}-.*", definition["jobDefinitionName"])[1]  # type: ignore[index]
        resources = {r["type"]: int(r["value"]) for r in definition["containerProperties"]["resourceRequirements"]}
        assert resources["VCPU"] in VALID_RESOURCES_MAPPING[resources["MEMORY"]]
        assert "GPU" not in resources
        assert definition["timeout"]["attemptDurationSeconds"] == 86400
        assert definition["containerProperties"]["jobRoleArn"] == scenario.lab.role
        requested[rule] = resources["VCPU"], resources["MEMORY"]
    assert requested == expected


def test_containers_have_only_the_credentials_of_their_role(scenario: Scenario):
    """No job definition holds the driver's credentials, and containers sign requests with the role's key."""
    for definition in scenario.lab.definitions():
        text = json.dumps(definition["containerProperties"])
        assert "AKIADRIVER" not in text
        assert "SECRET" not in text
    for step in (scenario.killed, scenario.resumed, scenario.repaired):
        assert ROLE_KEY in step.requests.keys
    requests = scenario.repaired.requests.lines
    signed = {line["key"] for line in requests if "/products/" in line["path"] and line["method"] == "PUT"}
    assert signed == {ROLE_KEY}


def test_dry_run_of_a_finished_run_finds_no_jobs_and_only_reads(scenario: Scenario):
    """tests/batch/test_requests.py counts the requests of dry runs with thousands of shards."""
    from tests.batch.driver import Driver

    third = Driver(scenario.lab, scenario.folder / "third", scenario.image.name, RUN, scenarios.CONFIG)
    with scenario.lab.counted() as requests:
        assert "Nothing to be done" in third.run("-n")
    print(f"dry run of a finished run: {dict(requests.s3)}")
    assert set(requests.s3) <= {"HeadBucket", "ListObjects", "HeadObject", "GetObject"}
    assert "worldcover 2021" in third.run("--", "plan"), "printed by the driver, not in a container"


def embed_with_podman(scenario: Scenario, folder: str, *more: str, **environment: str) -> str:
    """Embed a shard of WorldCover in a container started with podman; return the dataset's folder of the run."""
    plan = matching(scenario.repaired.after, "/worldcover-", "/plan-", ".jsonl.gz")[0]
    weights = matching(scenario.repaired.after, "results/models/")[0]
    command = (
        f'python -c "from kiln.io import storage; import pathlib; '
        f"storage.fetch('s3://{RUN}/{weights}', pathlib.Path('weights.safetensors'))\" && "
        f"python -m scripts.embed worldcover --units s3://{RUN}/{plan} --weights weights.safetensors"
        f" --folder s3://{RUN}/{folder} --vector-dtype float16 --max-nodata 0.05 --max-failed-fraction 0"
        f" --pixels-per-degree 120"
        f" --batch-size 8 --threads 1 --read-threads 1 {' '.join(more)}"
    )
    variables = [word for k, v in environment.items() for word in ("--env", f"{k}={v}")]
    scenario.lab.tool(
        "podman",
        "run",
        "--rm",
        *variables,
        "--env",
        "AWS_DEFAULT_REGION=us-east-1",
        scenario.image.name,
        "bash",
        "-c",
        command,
    )
    return plan.rpartition("/")[0]


def body(scenario: Scenario, key: str) -> bytes:
    """Return the content of a key."""
    return scenario.lab.client("s3").get_object(Bucket=RUN, Key=key)["Body"].read()


def test_shard_embedded_with_podman_by_array_index_has_the_same_bytes(scenario: Scenario):
    """The container gets its shard from the array index, as a child of an array job does."""
    run = embed_with_podman(scenario, "by-index", AWS_BATCH_JOB_ARRAY_INDEX="0")
    plan = matching(scenario.repaired.after, "/worldcover-", "/plan-", ".jsonl.gz")[0]
    first = json.loads(gzip.decompress(body(scenario, plan)).decode().splitlines()[0])["name"]
    assert body(scenario, f"by-index/{first}.parquet") == body(scenario, f"{run}/shards/2021/{first}.parquet")


def test_shard_of_a_stopped_worker_has_the_bytes_of_an_uninterrupted_one(scenario: Scenario):
    run = embed_with_podman(scenario, "by-name", "--shard", scenario.stopped)
    expected = body(scenario, f"{run}/shards/2021/{scenario.stopped}.parquet")
    assert body(scenario, f"by-name/{scenario.stopped}.parquet") == expected
