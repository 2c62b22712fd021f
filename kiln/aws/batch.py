"""AWS Batch: what its executor accepts as cores and memory, and the checks before anything is submitted."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from kiln.archives.registry import get_archive
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.io.buckets import known_bucket
from kiln.model.identity import UNTRAINED

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # never passed on as variables of jobs
ARN = re.compile(r"arn:aws[\w-]*:(?P<service>\w+):(?P<region>[\w-]*):\d+:[\w-]+/.+")


@dataclass(frozen=True)
class JobResources:
    """The resources of a job: CPU cores, memory in MiB, and GPUs."""

    threads: int
    mem_mb: int
    gpus: int = 0

    @property
    def resources(self) -> dict[str, int]:
        """Snakemake's `resources`; the executor's name for GPUs is `_gpus`."""
        return {"mem_mb": self.mem_mb} | ({"_gpus": self.gpus} if self.gpus else {})


def smallest_fit(requested: JobResources) -> JobResources:
    """Return the smallest resources in the executor's table that have at least what is requested.

    The executor itself takes the least memory that it knows for that many cores, whatever was requested.

    Raises:
        ConfigError: The table has no such resources.
    """
    from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING as TABLE

    fits = [(t, m) for m, cores in TABLE.items() for t in cores if t >= requested.threads and m >= requested.mem_mb]
    if not fits:
        raise ConfigError(
            f"resources: expected at most {max(max(cores) for cores in TABLE.values())} threads and {max(TABLE)} MB, "
            f"the most that a job of AWS Batch can have, got {requested.threads} threads and {requested.mem_mb} MB. "
            "Lower them."
        )
    return JobResources(*min(fits), requested.gpus)


def local_paths(config: Mapping[str, Any]) -> list[str]:
    """Return the settings that name files of this machine, which jobs elsewhere cannot read, as `key: path`."""
    return [
        f"{key}: {path}"
        for key, path in _path_settings(config)
        if path and path != UNTRAINED and not storage.is_remote(path)
    ]


def _path_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the settings that may name files; of a list of OLD=NEW pairs, the new addresses."""
    yield "model.checkpoint", config["model"]["checkpoint"]
    for dataset in config["datasets"]:
        for key in get_archive(dataset).path_keys:
            value = config[dataset].get(key)
            if isinstance(value, list):
                yield from ((f"{dataset}.{key}", text.partition("=")[2] or text) for text in value)
            else:
                yield f"{dataset}.{key}", value
    for entry in config["index"]["published"]:
        files = entry["files"]
        yield from (("index.published", file) for file in ([files] if isinstance(files, str) else files))


def check_store(prefix: str, region: str | None, config: Mapping[str, Any], secrets: Iterable[str] = ()) -> None:
    """Check that jobs without a common disk can find their input and leave results. Ask S3 once.

    Args:
        prefix: Where results go, s3://bucket or s3://bucket/prefix.
        region: The region of the jobs.
        config: The workflow's config.
        secrets: Names of the credentials that are set for Snakemake's storage plugin.

    Raises:
        ConfigError: They cannot.
    """
    if not region:
        raise ConfigError(
            "AWS_DEFAULT_REGION: expected an AWS region, got no AWS region. Set it to that of the queue and the bucket."
        )
    bucket, _ = storage.split_s3(prefix)
    if not storage.is_s3(prefix) or not bucket or "$" in bucket:
        raise ConfigError(
            f"--default-storage-prefix: expected s3://bucket or s3://bucket/prefix, got {prefix!r}. To name the bucket "
            "of the results, set KILN_BUCKET."
        )
    if names := ", ".join(secrets):
        raise ConfigError(
            f"{names}: credentials would travel to the jobs in plain text, and stay in their definitions. Remove them: "
            "jobs have those of their role, this machine those of AWS_PROFILE or another source of boto3."
        )
    if paths := local_paths(config):
        raise ConfigError(
            f"config: expected s3:// or https:// addresses, since jobs on other machines cannot read local files, got "
            f"{'; '.join(paths)}. Upload the files, and name their addresses."
        )
    actual = bucket_region(bucket)
    if actual != region:
        raise ConfigError(
            f"bucket {bucket}: expected a bucket in {region}, where the jobs run, got one in {actual}: every byte "
            f"would cross between regions. Set AWS_DEFAULT_REGION={actual} with a queue there, or take a bucket of "
            f"{region}."
        )


def bucket_region(bucket: str) -> str:
    """Return the region of a bucket.

    Raises:
        ConfigError: The bucket does not exist, or these credentials may not use it.
    """
    from botocore.exceptions import ClientError

    with storage.named_errors(f"s3://{bucket}"):
        try:
            response = storage.s3_client(bucket).head_bucket(Bucket=bucket)["ResponseMetadata"]
        except ClientError as e:
            response = e.response["ResponseMetadata"]
            status = response["HTTPStatusCode"]
            if status == 404:
                raise ConfigError(
                    f"bucket {bucket} does not exist. Create it, or set KILN_BUCKET to another one."
                ) from None
            if status in (400, 401, 403):
                raise ConfigError(f"bucket {bucket}: {denial_reason()}") from None
            if status != 301:
                raise
    return str(response["HTTPHeaders"].get("x-amz-bucket-region") or "us-east-1")


def denial_reason() -> str:
    """Return why AWS may have denied a request: invalid credentials, or an identity without rights."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        identity = boto3.client("sts").get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as e:
        return f"AWS does not accept these credentials ({e}). Check AWS_PROFILE, or sign in again."
    return f"{identity} may not use it. Check the bucket's name and that identity's rights."


@cache
def check_jobs(queue: str | None, role: str | None, image: str | None, variables: tuple[str, ...]) -> None:
    """Check that jobs can be submitted. Ask Batch once.

    Args:
        queue: ARN of the job queue.
        role: ARN of the jobs' role.
        image: The container image of the jobs.
        variables: Names of the environment variables that are passed on to the jobs.

    Raises:
        ConfigError: The queue is not there or closed, the role or the image is not named, a variable is a credential,
            or the queue is in another region.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    if not image or "$" in image or image.startswith("snakemake/snakemake"):
        raise ConfigError(
            f"KILN_IMAGE: expected an image of envs/Dockerfile, got {image!r}. Set KILN_IMAGE to one that the queue's "
            "machines can pull; `make aws-image` makes one."
        )
    queue_region = _check_arn("QUEUE", queue, "batch")
    _check_arn("ROLE", role, "iam")
    if secrets := " ".join(v for v in variables if v in SECRETS):
        raise ConfigError(
            f"--envvars {secrets}: credentials would travel to the jobs in plain text. Remove them: jobs have those of "
            "their role."
        )
    region = region_of_jobs()
    if region != queue_region:
        raise ConfigError(
            f"queue {queue}: expected a queue in AWS_DEFAULT_REGION, {region}, got one in {queue_region}. Take both "
            "from one region."
        )
    try:
        queues = boto3.client("batch").describe_job_queues(jobQueues=[queue])["jobQueues"]
    except (BotoCoreError, ClientError) as e:
        raise ConfigError(f"queue {queue}: AWS Batch does not describe it: {e}") from e
    if not queues:
        raise ConfigError(f"queue {queue} does not exist. Set SNAKEMAKE_AWS_BATCH_JOB_QUEUE to another one.")
    state, status = queues[0]["state"], queues[0].get("status", "VALID")
    if state != "ENABLED" or status not in ("VALID", "UPDATING"):
        raise ConfigError(f"queue {queue}: expected ENABLED and VALID, got {state} and {status}. Take another queue.")


def _check_arn(name: str, value: str | None, service: str) -> str:
    """Return the region of an ARN. Raise ConfigError unless it is one of the service."""
    arn = ARN.fullmatch(value or "")
    if not arn or arn["service"] != service:
        variable = f"SNAKEMAKE_AWS_BATCH_JOB_{name}"
        raise ConfigError(f"{variable}: expected the ARN of the {name.lower()}, got {value!r}. Set {variable} to it.")
    return arn["region"]


def region_of_jobs() -> str | None:
    """Return the region that this environment submits jobs to."""
    return os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")


def archive_region(archive: str, configured: str | None) -> str | None:
    """Return the region of an archive's bucket: as configured, registered, or returned by S3; None outside of S3."""
    if configured or not storage.is_s3(archive):
        return configured
    bucket, _ = storage.split_s3(archive)
    known = known_bucket(bucket)
    return known.region if known else bucket_region(bucket)


def transfer_cost(plans: Sequence[str], price_per_gb: float) -> str:
    """Describe what reading an archive from another region moves and costs.

    Args:
        plans: URIs of the archive's plans.
        price_per_gb: Price of a GB between regions.

    Returns:
        A sentence; empty if there is no shard left to embed.
    """
    from kiln.report.estimate import human, summarise

    if missing := [p for p in plans if storage.stat(p) is None]:
        return f"a plan has the bytes to read, and {missing[0]} is not there yet: run `snakemake plan`."
    summaries = [s for p in plans for s in summarise(p, 0, "float32")]
    read_bytes = sum(s.read for s in summaries)
    shards = sum(s.shards - s.done for s in summaries)
    if not shards:
        return ""
    return (
        f"{shards:,} shards read at most {human(read_bytes)}, {read_bytes / 1e9 * price_per_gb:,.2f} at "
        f"{price_per_gb:g} a GB between regions (plan.price_per_gb_moved)."
    )


def check_archive_region(dataset: str, config: Mapping[str, Any], plans: Sequence[str]) -> str:
    """Check that jobs read the dataset's archive in their own region, unless `allow_cross_region` is set.

    Args:
        dataset: Name of the archive.
        config: The workflow's config.
        plans: URIs of the dataset's plans.

    Returns:
        A warning with bytes and price if the transfer is allowed; empty if there is none.

    Raises:
        ConfigError: The archive is in another region and `allow_cross_region` is not set.
    """
    section = config[dataset]
    jobs, archive = region_of_jobs(), archive_region(section["archive"], section["archive_region"])
    if archive in (None, jobs):
        return ""
    cost = transfer_cost(plans, config["plan"]["price_per_gb_moved"])
    if not cost:
        return ""
    text = f"{dataset}: the archive is in {archive} and the jobs run in {jobs}: {cost}"
    if config["allow_cross_region"]:
        return text
    raise ConfigError(f"{text} Take a queue and a bucket of {archive}, or set allow_cross_region: true.")
