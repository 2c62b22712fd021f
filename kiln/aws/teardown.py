"""What must be checked or emptied before a stack is deleted: jobs of its queues, files of its bucket."""

from collections.abc import Sequence
from dataclasses import dataclass

from kiln.aws.client import aws_errors, client
from kiln.errors import AccountError

ACTIVE_STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
DELETE_BATCH = 1000  # objects that S3 deletes in one request


@dataclass(frozen=True)
class ObjectVersion:
    """A version of an object in a bucket, or the marker of a deleted one (0 bytes)."""

    key: str
    version: str
    bytes: int


def active_jobs(queue: str) -> list[str]:
    """Return the ids of a queue's jobs that have not ended."""
    batch = client("batch")
    with aws_errors(queue):
        return [
            job["jobId"]
            for status in ACTIVE_STATES
            for page in batch.get_paginator("list_jobs").paginate(jobQueue=queue, jobStatus=status)
            for job in page["jobSummaryList"]
        ]


def list_versions(bucket: str) -> list[ObjectVersion]:
    """Return every version of every object in a bucket."""
    pages = client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    with aws_errors(f"s3://{bucket}"):
        return [
            ObjectVersion(v["Key"], v["VersionId"], v.get("Size", 0))
            for page in pages
            for kind in ("Versions", "DeleteMarkers")
            for v in page.get(kind, [])
        ]


def delete_bucket(bucket: str, versions: Sequence[ObjectVersion]) -> None:
    """Delete these versions, then the bucket.

    Raises:
        AccountError: AWS does not delete an object, or the bucket is not empty then.
    """
    s3 = client("s3")
    for first in range(0, len(versions), DELETE_BATCH):
        objects = [{"Key": v.key, "VersionId": v.version} for v in versions[first : first + DELETE_BATCH]]
        with aws_errors(f"s3://{bucket}"):
            failed = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}).get("Errors", [])
        if failed:
            raise AccountError(f"s3://{bucket}/{failed[0]['Key']}: not deleted. {failed[0].get('Message', '')}")
    with aws_errors(f"s3://{bucket}"):
        s3.delete_bucket(Bucket=bucket)
