"""Delete from an AWS account what kiln.cli.aws_up made; the bucket goes only if it is empty, or is named to be deleted.

Runs lie in the bucket, so it stays, with everything in it, unless --delete-data says its name. A stack whose queues
hold jobs is left alone.
"""

from typing import Any

from kiln.aws import stack
from kiln.cli import command_line
from kiln.cli.aws_up import agreed
from kiln.errors import AccountError, ConfigError

ACTIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def active_jobs(queue: str) -> list[str]:
    """Ids of a queue's jobs that have not ended."""
    batch = stack.client("batch")
    with stack.asking(queue):
        return [
            job["jobId"]
            for status in ACTIVE
            for page in batch.get_paginator("list_jobs").paginate(jobQueue=queue, jobStatus=status)
            for job in page["jobSummaryList"]
        ]


def versions(bucket: str) -> list[dict[str, Any]]:
    """Every version of every file in a bucket, and the marks of deleted ones."""
    pages = stack.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    with stack.asking(f"s3://{bucket}"):
        return [v for page in pages for kind in ("Versions", "DeleteMarkers") for v in page.get(kind, [])]


def empty(bucket: str, there: list[dict[str, Any]]) -> None:
    """Delete these versions, a thousand a request. Raises AccountError for what could not be deleted."""
    s3 = stack.client("s3")
    for first in range(0, len(there), 1000):
        names = [{"Key": v["Key"], "VersionId": v["VersionId"]} for v in there[first : first + 1000]]
        with stack.asking(f"s3://{bucket}"):
            failed = s3.delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True}).get("Errors", [])
        if failed:
            raise AccountError(f"s3://{bucket}/{failed[0]['Key']}: not deleted: {failed[0].get('Message', '')}")


def main(argv: list[str] | None = None) -> None:
    """Delete the stack."""
    p = command_line.parser(__doc__, "kiln.cli.aws_down")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that aws_up made")
    p.add_argument("--delete-data", metavar="BUCKET", help="its bucket too, with every run in it, and every version")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)

    def work() -> None:
        if not (found := stack.find(args.stack)):
            raise ConfigError(f"stack {args.stack}: there is none in this account and region")
        told = stack.outputs(args.stack)
        bucket, made = told["Bucket"], not stack.parameters(found).get("Bucket")
        if args.delete_data not in (None, bucket):
            raise ConfigError(f"--delete-data {args.delete_data}: the stack's bucket is {bucket}")
        if args.delete_data and not made:
            raise ConfigError(f"s3://{bucket}: was yours before the stack; delete it yourself if you mean it")
        for queue in (told["CpuQueue"], told["GpuQueue"]):
            if jobs := active_jobs(queue):
                raise ConfigError(
                    f"{queue}: jobs have not ended ({len(jobs)}); stop Snakemake, wait, or end them with "
                    f"`aws batch terminate-job --reason stopped --job-id {jobs[0]}` and so on"
                )
        there = versions(bucket)
        size = f"{len(there):,} files and old versions, {sum(v.get('Size', 0) for v in there) / 1e9:,.2f} GB"
        goes = made and (args.delete_data or not there)
        print(f"Stack {args.stack}: queues, roles, network, registry and its images go.")
        print(f"s3://{bucket}: {size}; " + ("GOES TOO, for good." if goes else "stays, and costs what is stored."))
        agreed("Delete it?", args.yes)
        stack.remove(args.stack)
        if goes:
            empty(bucket, there)
            with stack.asking(f"s3://{bucket}"):
                stack.client("s3").delete_bucket(Bucket=bucket)
        print(f"Stack {args.stack}: gone.")
        if not goes:
            print(
                f"s3://{bucket} is kept: `make aws-up BUCKET={bucket}` takes it again. To be rid of it and of every run"
                f" in it: `aws s3 rb --force s3://{bucket}`, once its old versions have expired or are deleted."
            )

    command_line.run(work)


if __name__ == "__main__":
    main()
