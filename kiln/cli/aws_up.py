"""Create in an AWS account what Kiln needs, or bring it up to date: envs/aws/kiln.yaml, as one CloudFormation stack.

What will be made and what it costs is said before, and asked for. Nothing that is made costs anything while it idles.
The same command again changes only what differs; a bucket is never deleted (kiln.cli.aws_down tells how).
"""

import sys

from kiln.aws import stack as account
from kiln.cli import aws_env, command_line
from kiln.errors import ConfigError

PLAN = """\
Stack {stack} in {region}, account {number}:
  bucket      {bucket}
  registry    {stack}, for images; keeps the last ten
  machines    none now. CPU: at most {cpu} vCPUs of {cpu_types} spot, and {cpu_od} on demand where spot has none;
              GPU: at most {gpu} vCPUs of {gpu_types} spot, and {gpu_od} on demand; each with {disk} GiB of disk
  network     {network}
  queues      CPU and GPU; a definition of array jobs for each
  roles       of Batch, of the machines, of the jobs (read the archives, read and write the one bucket), and two
              policies for whoever drives

Idle it costs nothing but what is stored, at list prices about 0.023 USD a GB and month in the bucket and 0.10 in the
registry. Machines run while there are jobs, and are billed by the second: what they cost is told by `snakemake plan`.
Reading naip-analytic is paid by the reader: requests, and, outside of us-west-2, 0.02 USD or more a GB."""


def told(stack: str, given: dict[str, str]) -> str:
    """What would be made, by the template's defaults, what the stack has, and what is given."""
    with account.asking("account"):
        number = account.client("sts").get_caller_identity()["Account"]
    known = {k: str(p.get("Default", "")) for k, p in account.template()["Parameters"].items()}
    known |= account.parameters(account.find(stack)) | given
    bucket = f"{known['Bucket']}, yours, as it is" if known["Bucket"] else "a new one: versioned, private, encrypted"
    if known["VpcId"]:
        network = f"{known['VpcId']}, {known['SubnetIds']}; a security group that lets nothing in"
    else:
        network = "a VPC of three public subnets that lets nothing in, with S3's free gateway and no NAT"
    return PLAN.format(
        stack=stack,
        region=account.client("cloudformation").meta.region_name,
        number=number,
        bucket=bucket,
        network=network,
        cpu=known["CpuSpotMax"],
        cpu_od=known["CpuOnDemandMax"],
        cpu_types=known["CpuInstanceTypes"],
        gpu=known["GpuSpotMax"],
        gpu_od=known["GpuOnDemandMax"],
        gpu_types=known["GpuInstanceTypes"],
        disk=known["DiskGiB"],
    )


def agreed(question: str, yes: bool) -> None:
    """Go on if a person says yes, or said --yes. Raises ConfigError if not, or where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Nobody is here to be asked: say --yes (make: YES=1)")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was done")


def pairs(given: list[str]) -> dict[str, str]:
    """KEY=VALUE arguments. Raises ConfigError for others."""
    if wrong := [g for g in given if not g.partition("=")[1]]:
        raise ConfigError(f"--set {wrong[0]}: want KEY=VALUE, as CpuSpotMax=1024")
    return {k: v for k, _, v in (g.partition("=") for g in given)}


def main(argv: list[str] | None = None) -> None:
    """Create or change the stack, and print the environment of a driver."""
    p = command_line.parser(__doc__, "kiln.cli.aws_up")
    p.add_argument("--stack", default=account.STACK, help="its name; one account may hold several")
    p.add_argument("--bucket", metavar="NAME", help="a bucket of yours instead of a new one")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other parameters of envs/aws/kiln.yaml")
    p.add_argument("--dry-run", action="store_true", help="only say what would be made")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)

    def work() -> None:
        given = pairs(args.set) | ({"Bucket": args.bucket} if args.bucket else {})
        print(told(args.stack, given), flush=True)
        if given.get("Bucket"):
            account.check_bucket(given["Bucket"])
        if args.dry_run:
            return
        agreed("Create it, or bring it up to date?", args.yes)
        print(f"\nStack {args.stack}: this takes some minutes ...", flush=True)
        what = account.deploy(args.stack, given)
        print(f"Stack {args.stack}: {what}. Of a driver's environment, also from `python -m kiln.cli.aws_env`:\n")
        print(aws_env.exports(aws_env.environment(account.outputs(args.stack))))

    command_line.run(work)


if __name__ == "__main__":
    main()
