"""Three datasets from archives on S3 to a tagged table on S3, on a Batch whose jobs are containers."""

import gzip
import json
import re
from collections import Counter

import lancedb
import pytest
from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

from kiln.explorer import database
from tests.batch import story as stories
from tests.batch.driver import matching
from tests.batch.image import VERSION, Image, build
from tests.batch.lab import Lab
from tests.batch.server import ROLE_KEY
from tests.batch.story import RUN, Act, Story

EMBED = ("embed_worldcover", "embed_naip", "embed_sentinel2")


def shards(keys: dict[str, str]) -> set[str]:
    """Shards whose embeddings are among these keys, as partition/name."""
    found = (re.search(r"/shards/([^/]+/[^/]+)\.parquet$", k) for k in keys)
    return {match[1] for match in found if match and not match[1].endswith(".ledger")}


def made(lab: Lab, act: Act) -> Counter[str]:
    """How often an act's jobs were to make each shard."""
    definitions = {d["jobDefinitionArn"]: d for d in lab.definitions()}
    return Counter(s for job in act.jobs for s in stories.shards_told(definitions[job["jobDefinition"]]))


def test_image_is_labelled_holds_no_credentials_and_runs_as_nobody_special(lab: Lab, image: Image):
    about = json.loads(lab.tool("podman", "image", "inspect", image.name))[0]
    labels = lab.labels(image.name)
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] == image.revision
    assert labels["kiln.device"] == "cpu"
    assert about["Config"]["User"] == "kiln"
    assert not [v for v in about["Config"]["Env"] if re.match(r"AWS_|.*(KEY|SECRET|TOKEN|PASSWORD|INDEX_URL)", v)]
    said = lab.tool("podman", "run", "--rm", image.name, "bash", "-c", "ls -A /opt/wheels ~; id -u; git --version")
    assert "snakemake_storage_plugin_s3-0.3.6" in said
    assert "1000" in said.split("\n")
    assert ".aws" not in said
    assert image.size < 3e9


def test_the_same_files_of_another_revision_make_an_image_that_says_so(lab: Lab, image: Image):
    name = f"{image.name}-again"
    build(lab, image.folder, name, "another")
    assert lab.labels(name)["org.opencontainers.image.revision"] == "another"
    assert lab.labels(image.name)["org.opencontainers.image.revision"] == image.revision


def test_three_datasets_end_in_a_tagged_table_on_s3(story: Story, monkeypatch: pytest.MonkeyPatch):
    for name, value in story.lab.env.items():
        monkeypatch.setenv(name, value)
    table = database.connect(f"s3://{RUN}/results/lab/explorer").open_table(database.TABLE)
    assert isinstance(table, lancedb.table.Table)
    assert "ready" in table.tags.list()
    rows = Counter(table.to_arrow()["dataset"].to_pylist())
    assert set(rows) == {"worldcover", "naip", "sentinel2"}
    assert min(rows.values()) > 5
    keys = list(story.mended.after)
    assert len(matching(keys, "/products/", ".json")) >= 3
    assert len(matching(keys, "/ledger")) + len(matching(keys, ".ledger.parquet")) >= len(shards(story.mended.after))


def test_a_stopped_worker_is_tried_again(story: Story):
    assert made(story.lab, story.killed)[f"2021/{story.stopped}"] == 2
    assert [j["status"] for j in story.killed.of_rule("embed_worldcover")].count("FAILED") == 1
    assert "Trying to restart job" in story.killed.said
    assert f"2021/{story.stopped}" in shards(story.killed.after)


def test_a_shard_that_always_fails_stops_nothing_else_and_is_named(story: Story):
    """Its log, in the bucket, names shard, scene and reason; what does not wait for it is done."""
    failed = [j for j in story.resumed.of_rule("embed_naip") if j["status"] == "FAILED"]
    attempts = [j for j in story.killed.of_rule("embed_naip") if j["status"] == "FAILED"]
    assert len(failed) == 3, "retries: 2"
    assert len(attempts) <= 3
    missing = shards(story.mended.after) - shards(story.resumed.after)
    assert len(missing) == 1
    name = missing.pop().partition("/")[2]
    assert f"/{name}.log" in story.resumed.said
    (log,) = matching(story.resumed.logs, "logs/lab/embed_naip/", f"/{name}.log")
    assert stories.BROKEN.rpartition("/")[2].removesuffix(".tif") in story.resumed.logs[log]
    products = matching(story.resumed.after, "/products/", ".json")
    assert any("worldcover-" in p for p in products)
    assert any("sentinel2-" in p for p in products)
    assert not any("naip-" in p for p in products)


def test_the_next_run_does_that_one(story: Story):
    assert sum(made(story.lab, story.mended).values()) == 1
    rules = Counter(re.sub(r"^snakejob-(.*?)(-[0-9a-f]{8}-.*)$", r"\1", j["jobName"]) for j in story.mended.jobs)
    assert rules == {
        "embed_naip": 1, "merge_naip": 1, "build_index": 1, "picture_similar": 1, "coverage": 1
    }  # fmt: skip


def test_after_the_drivers_death_a_fresh_clone_does_nothing_again(story: Story):
    """No job for a shard, plan or weights that were there, and all that was there is as it was."""
    before, later = story.resumed.before, story.mended.after
    assert shards(before)
    assert not set(made(story.lab, story.resumed)) & shards(before)
    assert not story.resumed.of_rule("encoder_weights")
    changed = {k for k, etag in before.items() if k.startswith("results/") and later.get(k) != etag}
    assert not changed


def test_what_jobs_ask_of_machines_is_what_the_config_says_or_more(story: Story):
    """As registered, for every rule that runs elsewhere: in the plugin's table, the least of it that is enough."""
    small, medium = (1, 2048), (1, 2048)
    embed, merge = (1, 5120), (1, 4096)  # of 5000 and 3500
    wanted = {"encoder_weights": (1, 8192), "plan_worldcover": small, "plan_naip": medium, "plan_sentinel2": (2, 4096),
              "picture_similar": medium, "coverage": medium, "build_index": merge,
              **dict.fromkeys(EMBED, embed),
              **dict.fromkeys(("merge_worldcover", "merge_naip", "merge_sentinel2"), merge)}  # fmt: skip
    seen = {}
    ours = {j["jobDefinition"] for act in (story.killed, story.resumed, story.mended) for j in act.jobs}
    for definition in story.lab.definitions():
        if definition["jobDefinitionArn"] not in ours:
            continue
        rule = re.fullmatch(r"snakejob-def-(.*?)-[0-9a-f]{8}-.*", definition["jobDefinitionName"])[1]  # type: ignore[index]
        asked = {r["type"]: int(r["value"]) for r in definition["containerProperties"]["resourceRequirements"]}
        assert asked["VCPU"] in VALID_RESOURCES_MAPPING[asked["MEMORY"]]
        assert "GPU" not in asked
        assert definition["timeout"]["attemptDurationSeconds"] == 86400
        assert definition["containerProperties"]["jobRoleArn"] == story.lab.role
        seen[rule] = asked["VCPU"], asked["MEMORY"]
    assert seen == wanted


def test_credentials_are_the_roles_alone(story: Story):
    """Nothing of the driver's lies in a definition, and containers sign with what their role gives them."""
    for definition in story.lab.definitions():
        text = json.dumps(definition["containerProperties"])
        assert "AKIADRIVER" not in text
        assert "SECRET" not in text
    for act in (story.killed, story.resumed, story.mended):
        assert ROLE_KEY in act.requests.keys
    signed = {
        line["key"] for line in story.mended.requests.lines if "/products/" in line["path"] and line["method"] == "PUT"
    }
    assert signed == {ROLE_KEY}


def test_nothing_is_left_to_do_and_asking_costs_little(story: Story):
    """A dry run when all is done; of thousands of shards tests/batch/test_requests.py tells."""
    from tests.batch.driver import Driver

    third = Driver(story.lab, story.folder / "third", story.image.name, RUN, stories.CONFIG)
    with story.lab.counted() as requests:
        assert "Nothing to be done" in third.run("-n")
    print(f"dry run of a finished run: {dict(requests.s3)}")
    assert set(requests.s3) <= {"HeadBucket", "ListObjects", "HeadObject", "GetObject"}
    assert "worldcover 2021" in third.run("--", "plan"), "printed here, not in a container"


def by_hand(story: Story, folder: str, *more: str, **environment: str) -> str:
    """A shard made in a container that nobody but podman started; returns the folder of the run's own."""
    plan = matching(story.mended.after, "/worldcover-", "/plan-", ".jsonl.gz")[0]
    weights = matching(story.mended.after, "results/models/")[0]
    command = (
        f'python -c "from kiln.io import storage; import pathlib; '
        f"storage.fetch('s3://{RUN}/{weights}', pathlib.Path('weights.safetensors'))\" && "
        f"python -m scripts.embed worldcover --units s3://{RUN}/{plan} --weights weights.safetensors"
        f" --folder s3://{RUN}/{folder} --vector-dtype float16 --max-nodata 0.05 --max-failed-fraction 0"
        f" --pixels-per-degree 120"
        f" --batch-size 8 --threads 1 --read-threads 1 {' '.join(more)}"
    )
    given = [word for k, v in environment.items() for word in ("--env", f"{k}={v}")]
    story.lab.tool(
        "podman",
        "run",
        "--rm",
        *given,
        "--env",
        "AWS_DEFAULT_REGION=us-east-1",
        story.image.name,
        "bash",
        "-c",
        command,
    )
    return plan.rpartition("/")[0]


def body(story: Story, key: str) -> bytes:
    return story.lab.client("s3").get_object(Bucket=RUN, Key=key)["Body"].read()


def test_the_same_shard_under_podman_alone(story: Story):
    """By the index that AWS gives the child of an array job, to the bytes that Snakemake's job made."""
    run = by_hand(story, "by-index", AWS_BATCH_JOB_ARRAY_INDEX="0")
    plan = matching(story.mended.after, "/worldcover-", "/plan-", ".jsonl.gz")[0]
    first = json.loads(gzip.decompress(body(story, plan)).decode().splitlines()[0])["name"]
    assert body(story, f"by-index/{first}.parquet") == body(story, f"{run}/shards/2021/{first}.parquet")


def test_a_stopped_workers_shard_has_the_bytes_of_one_that_nobody_stopped(story: Story):
    run = by_hand(story, "by-name", "--shard", story.stopped)
    made = body(story, f"{run}/shards/2021/{story.stopped}.parquet")
    assert body(story, f"by-name/{story.stopped}.parquet") == made
