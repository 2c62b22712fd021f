"""The checks before anything is submitted to AWS: the bucket, the queue, local files, the regions of archives."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from kiln.archives.registry import get_archive
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.io.buckets import known_bucket
from kiln.model.identity import UNTRAINED
from kiln.workflow.run import Run

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # never passed on as variables of jobs
ARN = re.compile(r"arn:aws[\w-]*:(?P<service>\w+):(?P<region>[\w-]*):\d+:[\w-]+/.+")
log = logging.getLogger(__name__)


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


def check_endpoint(prefix: str, endpoint: str) -> None:
    """Check that Snakemake's S3 plugin looks for results where Kiln writes them. No request is made.

    Args:
        prefix: Where results go, s3://bucket or s3://bucket/prefix.
        endpoint: The endpoint that is given to the plugin; empty for none: then it resolves it as Kiln does.

    Raises:
        ConfigError: It is another one than botocore resolves.
    """
    if not (endpoint and storage.is_s3(prefix)):
        return
    resolved = storage.s3_settings(storage.split_s3(prefix)[0]).endpoint
    if resolved != endpoint.rstrip("/"):
        raise ConfigError(
            f"--storage-s3-endpoint-url: expected {resolved}, which AWS settings name, got {endpoint}. Set "
            f"AWS_ENDPOINT_URL_S3={endpoint} instead, for all programs that talk to S3."
        )


def bucket_region(bucket: str) -> str:
    """Return the region of a bucket.

    Raises:
        ConfigError: The bucket does not exist, or these credentials may not use it.
    """
    from botocore.exceptions import ClientError

    with storage.s3_errors(f"s3://{bucket}"):
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
    from kiln.io.text_table import format_bytes
    from kiln.report.estimate import planned_shards

    if missing := [p for p in plans if storage.stat(p) is None]:
        return f"a plan has the bytes to read, and {missing[0]} is not there yet: run `snakemake plan`."
    left = [shard.read_bytes for plan in plans for shard, is_done in planned_shards(plan) if not is_done]
    if not left:
        return ""
    read_bytes = sum(left)
    return (
        f"{len(left):,} shards read at most {format_bytes(read_bytes)}, {read_bytes / 1e9 * price_per_gb:,.2f} at "
        f"{price_per_gb:g} a GB between regions (plan.price_per_gb_moved)."
    )


class RegionCheck:
    """A check that jobs read each archive of a run in their own region, done once per archive."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.check = cache(self._check)

    def _check(self, dataset: str) -> None:
        """Check one archive. With `allow_cross_region` log a warning; with every shard in place there is none.

        Raises:
            ConfigError: Jobs would read the archive in another region.
        """
        config, paths = self.run.config, self.run.paths
        jobs = region_of_jobs()
        archive = archive_region(config[dataset]["archive"], config[dataset]["archive_region"])
        if archive in (None, jobs):
            return
        cost = transfer_cost([paths.uri(self.run.datasets[dataset].plan)], config["plan"]["price_per_gb_moved"])
        if not cost:
            return
        message = f"{dataset}: the archive is in {archive} and the jobs run in {jobs}: {cost}"
        if not config["allow_cross_region"]:
            raise ConfigError(f"{message} Take a queue and a bucket of {archive}, or set allow_cross_region: true.")
        log.warning(message)


def check_executor(settings: Any, remote: Any) -> None:
    """Check queue, role, image and variables of Snakemake's aws-batch executor. Raise ConfigError as `check_jobs`."""
    check_jobs(settings.job_queue, settings.job_role, remote.container_image, tuple(remote.envvars))


def check_array(run: Run, dataset: str) -> None:
    """Check what Snakemake's jobs have checked by the rules: the store, the checkpoint's digest, the archive's region.

    Raises:
        ConfigError: An array job of the dataset would fail, or read the archive in another region.
    """
    check_store(run.paths.storage_root, region_of_jobs(), run.config)
    run.dataset(dataset)
    run.require_checkpoint_digest()
    RegionCheck(run).check(dataset)
