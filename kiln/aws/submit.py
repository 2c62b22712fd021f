"""A dataset's shards as an array job: which shards, at what cost, and the requests to AWS Batch."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kiln.aws.array_jobs import Array, EmbedRule, Submission, array_sizes
from kiln.aws.client import aws_errors, client
from kiln.aws.environment import NO_IMAGE
from kiln.errors import ConfigError
from kiln.formats.plan_file import read_plan, takes_partition
from kiln.io import storage
from kiln.io.text_table import format_bytes

STATUS_QUERY = "'jobs[].[jobName,status,arrayProperties.statusSummary]'"  # of the command that shows the jobs' states


@dataclass(frozen=True)
class PlannedShard:
    """The part of a plan's line that an array needs."""

    partition: str
    name: str
    expected: int  # chips
    read_bytes: int


@dataclass(frozen=True)
class Selection:
    """The shards to submit, in the plans' order, and how many of the plans' shards are finished."""

    shards: Sequence[PlannedShard]
    finished: int


def select_shards(rule: EmbedRule, missing_only: bool, snakemake: str) -> Selection:
    """Select the shards to submit.

    Args:
        rule: The dataset's embedding rule.
        missing_only: Leave finished shards out.
        snakemake: The Snakemake command of the run, for advice in errors.

    Raises:
        ConfigError: Plan or weights do not exist yet, or every shard is finished.
    """
    if not storage.stat(rule.plan):
        raise ConfigError(f"{rule.plan}: no plan yet. Make it first: {snakemake} plan")
    if not storage.stat(rule.weights):
        raise ConfigError(f"{rule.weights}: no weights yet. Make them first: {snakemake} encoder_weights")
    files = storage.listing(storage.join(rule.folder, "shards"))
    shards = [
        PlannedShard(line.partition, line.name, line.expected, line.read_bytes)
        for line in read_plan(rule.plan)
        if takes_partition(rule.partitions, line.partition)
    ]
    if not shards:
        raise ConfigError(f"{rule.plan}: no shard of these partitions in it. Check the config's filters.")
    array = Array.of(rule)
    missing = [s for s in shards if array.output_of(s.partition, s.name) not in files]
    if not missing:
        raise ConfigError(
            f"nothing to submit: all {len(shards):,} shards of {rule.folder} are finished. "
            f"To merge and index: {snakemake}"
        )
    return Selection(missing if missing_only else shards, len(shards) - len(missing))


@dataclass(frozen=True)
class JobDefinition:
    """The container of an array's jobs: image, and ARN of its role."""

    image: str
    role: str


def read_definition(definition: str, gpus: int) -> JobDefinition:
    """Read a job definition from Batch, and check that it fits jobs with so many GPUs.

    Raises:
        ConfigError: There is no such definition, it has no image or role, or its GPUs differ from `gpus`.
    """
    with aws_errors(definition):
        definitions = client("batch").describe_job_definitions(jobDefinitions=[definition])["jobDefinitions"]
    if not definitions or definitions[0]["status"] != "ACTIVE":
        raise ConfigError(f"{definition}: no such job definition. `kiln aws env` prints the stack's.")
    container = definitions[0].get("containerProperties", {})
    if not container.get("image") or container["image"].endswith(NO_IMAGE):
        raise ConfigError(f"{definition}: has no image yet. Run `make aws-image{' DEVICE=cuda' if gpus else ''}`.")
    if not container.get("jobRoleArn"):
        raise ConfigError(f"{definition}: has no job role, without which jobs cannot read or write. Set one.")
    has_gpu = any(r["type"] == "GPU" for r in container.get("resourceRequirements", []))
    if gpus and not has_gpu:
        raise ConfigError(
            f"{definition}: has no GPU and resources.device is cuda. `kiln aws env --gpu` prints one that has."
        )
    if has_gpu and not gpus:
        raise ConfigError(
            f"{definition}: has a GPU and resources.device is cpu. `kiln aws env` prints one that has none."
        )
    return JobDefinition(container["image"], container["jobRoleArn"])


def describe(rule: EmbedRule, selection: Selection, missing_only: bool) -> str:
    """Return a text of what would be submitted, and of its cost at the configured rate and price."""
    shards = selection.shards
    chips, read_bytes = sum(s.expected for s in shards), sum(s.read_bytes for s in shards)
    arrays = " and ".join(f"an array of {size:,}" for _, size in array_sizes(len(shards)))
    jobs = "1 shard as a plain job" if len(shards) == 1 else f"{len(shards):,} shards as {arrays}"
    gpu = f", {rule.resources.gpus} GPU" if rule.resources.gpus else ""
    text = [
        f"{rule.dataset}: {jobs}; each {rule.resources.threads} vCPU, {rule.resources.mem_mb:,} MB{gpu}",
        f"  at most {chips:,} chips, {format_bytes(read_bytes)} to read, {_hours(rule, chips)}",
    ]
    if selection.finished:
        text.append(
            f"  {selection.finished:,} are finished and left out"
            if missing_only
            else f"  {selection.finished:,} of them are finished: --missing leaves them out"
        )
    return "\n".join(text)


def _hours(rule: EmbedRule, chips: int) -> str:
    """Return the hours of encoders that chips take, and their price."""
    if rule.chips_per_second is None:
        return (
            "hours and price unknown: run kiln tune on a machine of the queue, and set plan.chips_per_second. "
            "`snakemake plan` knows them once shards are finished"
        )
    hours = chips / rule.chips_per_second / 3600
    return (
        f"{hours:,.2f} hours of encoders at {rule.chips_per_second:g} chips/s, "
        f"compute {hours * rule.price_per_hour:,.2f}"
    )


def submit(submission: Submission, jobs: int, folder: str) -> list[str]:
    """Submit so many jobs to Batch.

    Args:
        submission: The request.
        jobs: Number of jobs.
        folder: Where a record of each request is written, named by its job id.

    Returns:
        The ids of the jobs.
    """
    batch, ids = client("batch"), []
    for first, size in array_sizes(jobs):
        request = submission.request(first, size)
        with aws_errors(submission.queue):
            job = str(batch.submit_job(**request)["jobId"])
        record = {"jobId": job, "submitted": datetime.now(UTC).isoformat(timespec="seconds"), "request": request}
        storage.write_bytes(storage.join(folder, f"job-{job}.json"), json.dumps(record, indent=1).encode())
        ids.append(job)
    return ids


def next_steps(ids: Sequence[str], rule: EmbedRule, snakemake: str) -> str:
    """Return the commands that watch and stop submitted jobs, and the one to run afterwards."""
    run = rule.folder.rpartition("/")[0]
    return "\n".join(
        [
            f"Submitted: {' '.join(ids)}",
            f"  progress: kiln status {shlex.quote(run)}",
            f"  jobs:     aws batch describe-jobs --query {STATUS_QUERY} --jobs {' '.join(ids)}",
            f"  failed:   aws batch list-jobs --job-status FAILED --array-job-id {ids[0]}",
            f"  stop:     aws batch terminate-job --reason stopped --job-id {ids[0]}",
            f"  then:     {snakemake}",
        ]
    )
