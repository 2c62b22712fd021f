"""Create in an AWS account what Kiln needs, or update it: kiln/aws/stack.yaml, as one CloudFormation stack.

The command first prints what it will create and what that costs, and asks. Idle, only stored data costs anything.
The same command again changes only what differs. A bucket is never deleted (see `kiln aws down`).
"""

from collections.abc import Mapping

from kiln.archives.registry import archives
from kiln.aws import stack
from kiln.aws.client import aws_errors, client
from kiln.aws.environment import driver_environment, export_lines
from kiln.cli import command_line
from kiln.errors import ConfigError

PLAN = """\
Stack {stack} in {region}, account {account}:
  bucket      {bucket}
  registry    {stack}, for images; keeps the last ten
  machines    none now. CPU: at most {CpuSpotMax} vCPUs of {CpuInstanceTypes} spot, and {CpuOnDemandMax} on demand where spot has none;
              GPU: at most {GpuSpotMax} vCPUs of {GpuInstanceTypes} spot, and {GpuOnDemandMax} on demand; each with {DiskGiB} GiB of disk
  network     {network}
  queues      CPU and GPU; a definition of array jobs for each
  roles       of Batch, of the machines, of the jobs (read the archives, read and write the one bucket), and two
              policies for the driver

Idle it costs only what is stored, at list prices about 0.023 USD per GB and month in the bucket and 0.10 in the
registry. Machines run while there are jobs, and are billed by the second; `snakemake plan` estimates their cost.
Reading {requester_pays} is billed to the reader: requests, and,
outside of its region, 0.02 USD or more per GB."""  # noqa: E501 (lines of the output)


def describe_stack(name: str, changes: Mapping[str, str]) -> str:
    """Return a text of what `kiln aws up` would create, and its cost."""
    values = stack.planned_parameters(name, changes)
    with aws_errors("account"):
        account = client("sts").get_caller_identity()["Account"]
    bucket = f"{values['Bucket']}, yours, unchanged" if values["Bucket"] else "a new one: versioned, private, encrypted"
    if values["VpcId"]:
        network = f"{values['VpcId']}, {values['SubnetIds']}; a security group without inbound traffic"
    else:
        network = "a VPC of three public subnets without inbound traffic, with S3's free gateway and no NAT"
    paid = [b for a in archives().values() for b in a.buckets if b.requester_pays]
    return PLAN.format(
        stack=name,
        region=client("cloudformation").meta.region_name,
        account=account,
        bucket=bucket,
        network=network,
        requester_pays=" or ".join(f"{b.name} ({b.region})" for b in paid),
        **{name: value for name, value in values.items() if name != "Bucket"},
    )


def parse_parameters(texts: list[str]) -> dict[str, str]:
    """Parse KEY=VALUE arguments. Raise ConfigError for another form."""
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"--set: expected KEY=VALUE, as CpuSpotMax=1024, got {text}. Correct it.")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def main(argv: list[str] | None = None) -> None:
    """Create or update the stack, and print a driver's environment."""
    p = command_line.parser(__doc__, "kiln aws up")
    p.add_argument("--stack", default=stack.STACK, help="its name; one account may have several")
    p.add_argument("--bucket", metavar="NAME", help="a bucket of yours instead of a new one")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="parameters of kiln/aws/stack.yaml")
    p.add_argument("--dry-run", action="store_true", help="only print what would be created")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)

    def work() -> None:
        changes = parse_parameters(args.set) | ({"Bucket": args.bucket} if args.bucket else {})
        print(describe_stack(args.stack, changes), flush=True)
        if changes.get("Bucket"):
            stack.check_bucket(changes["Bucket"])
        if args.dry_run:
            return
        command_line.confirm("Create it, or update it?", args.yes)
        print(f"\nStack {args.stack}: this takes some minutes ...", flush=True)
        result = stack.deploy(args.stack, changes)
        print(f"Stack {args.stack}: {result}. A driver's environment, which `kiln aws env` prints too:\n")
        print(export_lines(driver_environment(stack.outputs(args.stack))))

    command_line.run(work)


if __name__ == "__main__":
    main()
