"""AWS Batch: what its executor takes as cores and memory, and what must be there before anything is submitted."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from kiln.errors import ConfigError
from kiln.io import storage
from kiln.io.buckets import known_bucket
from kiln.io.text_table import format_bytes

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # never as a job's variables
ARN = re.compile(r"arn:aws[\w-]*:(?P<service>\w+):(?P<region>[\w-]*):\d+:(?P<what>[\w-]+)/.+")


@dataclass(frozen=True)
class Share:
    """What a job asks of a machine: cores, memory in MiB, and GPUs."""

    threads: int
    mem_mb: int
    gpus: int = 0

    @property
    def resources(self) -> dict[str, int]:
        """As Snakemake's; GPUs, where there are any, by the name that the executor knows."""
        return {"mem_mb": self.mem_mb} | ({"_gpus": self.gpus} if self.gpus else {})


def fitted(asked: Share) -> Share:
    """The smallest share of the executor's table that has all that is asked for.

    Left to itself the plugin takes the least memory it knows for that many cores, whatever was asked. Raises
    ConfigError for more than the table has.
    """
    from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING as TABLE

    fits = [(t, m) for m, cores in TABLE.items() for t in cores if t >= asked.threads and m >= asked.mem_mb]
    if not fits:
        raise ConfigError(
            f"resources: {asked.threads} threads and {asked.mem_mb} MB are more than a job of AWS Batch may have: "
            f"{max(max(cores) for cores in TABLE.values())} threads and {max(TABLE)} MB"
        )
    return Share(*min(fits), asked.gpus)


def local_paths(config: dict[str, Any]) -> list[str]:
    """Settings that name files of this machine, which no job elsewhere can see, as `key: path`."""
    named: list[tuple[str, Any]] = [("model.checkpoint", config["model"]["checkpoint"])]
    for dataset, keys in (
        ("worldcover", ["archive"]),
        ("naip", ["manifest", "archive"]),
        ("sentinel2", ["items", "inventory", "inventory_root", "archive", "area"]),
    ):
        if dataset in config["datasets"]:
            named += [(f"{dataset}.{key}", config[dataset][key]) for key in keys]
    if "sentinel2" in config["datasets"]:
        named += [("sentinel2.rewrite", pair.partition("=")[2]) for pair in config["sentinel2"]["rewrite"]]
    for entry in config["index"]["published"]:
        files = entry["files"]
        named += [("index.published", f) for f in ([files] if isinstance(files, str) else files)]
    return [
        f"{key}: {value}" for key, value in named if value and value != "untrained" and not storage.is_remote(value)
    ]


def check_store(prefix: str, region: str | None, config: dict[str, Any], secrets: Iterable[str] = ()) -> None:
    """Raise ConfigError unless jobs that share no disk with this machine can find their input and leave results.

    `prefix` is where results go, `region` that of the jobs; `secrets` names credentials set for Snakemake's storage.
    Asks S3 once.
    """
    if not region:
        raise ConfigError("no AWS region: set AWS_DEFAULT_REGION to that of the queue and the bucket")
    bucket, _ = storage.split_s3(prefix)
    if not storage.is_s3(prefix) or not bucket or "$" in bucket:
        raise ConfigError(
            "no bucket for the results: set KILN_BUCKET, or give --default-storage-prefix s3://bucket/..."
        )
    if given := list(secrets):
        raise ConfigError(
            f"{', '.join(given)}: credentials would travel to the jobs in plain text, and lie in their definitions. "
            "Take them away: jobs have those of their role, this machine those of AWS_PROFILE or the like"
        )
    if local := local_paths(config):
        raise ConfigError(
            "jobs on other machines cannot see files of this one: "
            + "; ".join(local)
            + ". Put them on s3:// or https:// and say so in the config"
        )
    found = bucket_region(bucket)
    if found != region:
        raise ConfigError(
            f"bucket {bucket} is in {found}, and the jobs are to run in {region}: every byte would cross between "
            f"regions. Set AWS_DEFAULT_REGION={found} with a queue there, or take a bucket of {region}"
        )


def bucket_region(bucket: str) -> str:
    """Where a bucket is. Raises ConfigError if it is not there, or these credentials may not use it."""
    from botocore.exceptions import ClientError

    with storage.named_errors(f"s3://{bucket}"):
        try:
            answer = storage.s3_client(bucket).head_bucket(Bucket=bucket)["ResponseMetadata"]
        except ClientError as e:
            answer = e.response["ResponseMetadata"]
            if answer["HTTPStatusCode"] == 404:
                raise ConfigError(f"bucket {bucket} does not exist: make it, or set KILN_BUCKET to another") from None
            if answer["HTTPStatusCode"] in (400, 401, 403):
                raise ConfigError(f"bucket {bucket}: {refused()}") from None
            if answer["HTTPStatusCode"] != 301:
                raise
    return answer["HTTPHeaders"].get("x-amz-bucket-region") or "us-east-1"


def refused() -> str:
    """Why AWS may have refused: who it takes us for, if anybody."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        who = boto3.client("sts").get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as e:
        return f"AWS does not accept these credentials ({e}): look at AWS_PROFILE, or sign in again"
    return f"{who} may not use it: check the bucket's name and that identity's rights"


@cache
def check_jobs(queue: str | None, role: str | None, image: str | None, variables: tuple[str, ...]) -> None:
    """Raise ConfigError unless jobs can be submitted: their queue is there and open, role and image are named.

    `variables` are those passed on to the jobs. Asks Batch once.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    if not image or "$" in image or image.startswith("snakemake/snakemake"):
        raise ConfigError("no image: set KILN_IMAGE to one of envs/Dockerfile that the queue's machines can pull")
    for name, value, service in (("QUEUE", queue, "batch"), ("ROLE", role, "iam")):
        if not (value and (arn := ARN.fullmatch(value)) and arn["service"] == service):
            raise ConfigError(f"no {name.lower()}: set SNAKEMAKE_AWS_BATCH_JOB_{name} to its ARN, not {value!r}")
    if given := [v for v in variables if v in SECRETS]:
        raise ConfigError(
            f"--envvars {' '.join(given)}: credentials would travel in plain text; jobs have their role's"
        )
    here, there = region_of_jobs(), ARN.fullmatch(queue or "")["region"]  # type: ignore[index]
    if here != there:
        raise ConfigError(f"the queue is in {there}, AWS_DEFAULT_REGION is {here}: take both from one region")
    try:
        found = boto3.client("batch").describe_job_queues(jobQueues=[queue])["jobQueues"]
    except (BotoCoreError, ClientError) as e:
        raise ConfigError(f"queue {queue}: AWS Batch does not answer for it: {e}") from e
    if not found:
        raise ConfigError(f"queue {queue} does not exist: set SNAKEMAKE_AWS_BATCH_JOB_QUEUE to another")
    if found[0]["state"] != "ENABLED" or found[0].get("status", "VALID") not in ("VALID", "UPDATING"):
        raise ConfigError(f"queue {queue} is {found[0]['state']}, {found[0].get('status')}: it takes no jobs")


def region_of_jobs() -> str | None:
    """Where this environment submits jobs to."""
    return os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")


def archive_region(archive: str, configured: str | None) -> str | None:
    """Where an archive lies: as configured, as known, or as S3 says; None for one that is not on S3."""
    if configured or not storage.is_s3(archive):
        return configured
    bucket, _ = storage.split_s3(archive)
    known = known_bucket(bucket)
    return known.region if known else bucket_region(bucket)


def moved(plans: Sequence[str], price: float) -> str:
    """What reading an archive from another region takes, by its plans, as a sentence; empty if every shard is there."""
    from kiln.report.estimate import summarise

    if missing := [p for p in plans if storage.stat(p) is None]:
        return f"how much they read is told by a plan, and {missing[0]} is not there yet: run `snakemake plan`."
    sums = [s for p in plans for s in summarise(p, 0, "float32")]
    read = sum(s.read for s in sums)
    shards = sum(s.shards - s.done for s in sums)
    if not shards:
        return ""
    return (
        f"{shards:,} shards read at most {format_bytes(read)}, {read / 1e9 * price:,.2f} at {price:g} a GB between "
        "regions (plan.price_per_gb_moved)."
    )
