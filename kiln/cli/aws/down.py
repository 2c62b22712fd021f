"""Delete from an AWS account what `kiln aws up` created. The bucket goes only if it is empty, or named to be deleted.

Runs lie in the bucket, so it stays with everything in it, unless --delete-data gives its name. A stack whose queues
hold jobs is not deleted.
"""

from kiln.aws import stack, teardown
from kiln.cli import command_line
from kiln.errors import ConfigError


def main(argv: list[str] | None = None) -> None:
    """Delete the stack."""
    p = command_line.parser(__doc__, "kiln aws down")
    p.add_argument("--stack", default=stack.STACK, help="name of the stack that `kiln aws up` created")
    p.add_argument("--delete-data", metavar="BUCKET", help="its bucket too, with every run and every version in it")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)

    def work() -> None:
        description = stack.find(args.stack)
        if not description:
            raise ConfigError(
                f"stack {args.stack}: expected one in this account and region, got none. Check AWS_DEFAULT_REGION."
            )
        outputs = stack.outputs(args.stack)
        bucket, is_stacks_own = outputs["Bucket"], not stack.parameters(description).get("Bucket")
        if args.delete_data not in (None, bucket):
            raise ConfigError(f"--delete-data: expected {bucket}, the stack's bucket, got {args.delete_data}.")
        if args.delete_data and not is_stacks_own:
            raise ConfigError(f"s3://{bucket}: was yours before the stack. Delete it yourself if you mean it.")
        for queue in (outputs["CpuQueue"], outputs["GpuQueue"]):
            if jobs := teardown.active_jobs(queue):
                raise ConfigError(
                    f"{queue}: expected no jobs, got {len(jobs)} that have not ended. Stop Snakemake, wait, or end "
                    f"them with `aws batch terminate-job --reason stopped --job-id {jobs[0]}` and so on."
                )
        versions = teardown.list_versions(bucket)
        size = f"{len(versions):,} files and old versions, {sum(v.bytes for v in versions) / 1e9:,.2f} GB"
        delete_bucket = is_stacks_own and bool(args.delete_data or not versions)
        print(f"Stack {args.stack}: queues, roles, network, registry and its images are deleted.")
        outcome = "IS DELETED TOO, for good." if delete_bucket else "stays, and costs what is stored."
        print(f"s3://{bucket}: {size}; {outcome}")
        command_line.confirm("Delete it?", args.yes)
        stack.remove(args.stack)
        if delete_bucket:
            teardown.delete_bucket(bucket, versions)
        print(f"Stack {args.stack}: gone.")
        if not delete_bucket:
            print(
                f"s3://{bucket} stays: `make aws-up BUCKET={bucket}` takes it again. To delete it with every run in "
                f"it: `aws s3 rb --force s3://{bucket}`, once its old versions have expired or are deleted."
            )

    command_line.run(work)


if __name__ == "__main__":
    main()
