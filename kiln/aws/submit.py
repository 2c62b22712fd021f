"""Submit a dataset's shards as an array job of AWS Batch: one request for thousands of jobs, no driver that waits.

    python -m kiln.aws.submit worldcover --configfile config/conus.yaml --dry-run
    python -m kiln.aws.submit worldcover --configfile config/conus.yaml
    python -m kiln.aws.submit worldcover --configfile config/conus.yaml --missing

The jobs run what the workflow's rules would run, and their files are the workflow's: afterwards `snakemake --profile
aws-batch` finds them, does what is missing, merges and indexes. Plan and weights are made by it before. A machine that
is taken back is no failure: its job is tried again, up to five times. Queue, bucket and job definition come from the
environment that `python -m kiln.cli.aws_env` prints.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kiln.aws import array_jobs, code_bundle, embed_rule, stack
from kiln.aws import batch as aws_batch
from kiln.cli import command_line
from kiln.cli.aws_env import NO_IMAGE
from kiln.errors import ConfigError
from kiln.formats import plan_file
from kiln.io import storage
from kiln.io.text_table import format_bytes

QUERY = "'jobs[].[jobName,status,arrayProperties.statusSummary]'"  # of the command that tells how jobs stand
DATASETS = ("worldcover", "naip", "sentinel2")


@dataclass(frozen=True)
class Shard:
    """A line of a plan, as much of it as an array needs to know."""

    partition: str
    name: str
    expected: int
    bytes: int


def gather(rule: embed_rule.EmbedRule, missing: bool, again: str) -> tuple[list[Shard], int]:
    """Shards to submit, in the plans' order, and how many are done already; `again` names the config.

    Raises ConfigError where the plan or the weights are not made yet, or there is nothing to do.
    """
    snakemake = f"snakemake {again}--profile aws-batch"
    for plan in rule.plans.values():
        if not storage.stat(plan):
            raise ConfigError(f"{plan}: no plan yet; make it first: {snakemake} plan")
    if not storage.stat(rule.weights):
        raise ConfigError(f"{rule.weights}: no weights yet; make them first: {snakemake} encoder_weights")
    there = storage.listing(storage.join(rule.folder, "shards"))
    shards = [
        Shard(line.partition, line.name, line.expected, line.read_bytes)
        for plan in rule.plans.values()
        for line in plan_file.read_plan(plan)
    ]
    if not shards:
        raise ConfigError(f"{', '.join(rule.plans.values())}: no shard in it; look at what the config asks for")
    array = array_jobs.Array.of(rule)
    left = [s for s in shards if array.output_of(s.partition, s.name) not in there]
    if not left:
        raise ConfigError(
            f"nothing to submit: all {len(shards):,} shards of {rule.folder} are done. To merge and index: {snakemake}"
        )
    return (left if missing else shards), len(shards) - len(left)


def check_definition(definition: str, gpus: int) -> tuple[str, str]:
    """Image and role of a job definition. Raises ConfigError for one that could not run these jobs."""
    with stack.asking(definition):
        found = stack.client("batch").describe_job_definitions(jobDefinitions=[definition])["jobDefinitions"]
    if not found or found[0]["status"] != "ACTIVE":
        raise ConfigError(f"{definition}: no such job definition; `python -m kiln.cli.aws_env` tells the stack's")
    about = found[0].get("containerProperties", {})
    if not about.get("image") or about["image"].endswith(NO_IMAGE):
        raise ConfigError(f"{definition}: has no image yet; make aws-image{' DEVICE=cuda' if gpus else ''}")
    if not about.get("jobRoleArn"):
        raise ConfigError(f"{definition}: has no job role, and its jobs could read and write nothing")
    has = any(r["type"] == "GPU" for r in about.get("resourceRequirements", []))
    if gpus and not has:
        raise ConfigError(f"{definition}: has no GPU and resources.device is cuda; `python -m kiln.cli.aws_env --gpu`")
    if has and not gpus:
        raise ConfigError(f"{definition}: has a GPU and resources.device is cpu; `python -m kiln.cli.aws_env`")
    return about["image"], about["jobRoleArn"]


def told(rule: embed_rule.EmbedRule, shards: Sequence[Shard], done: int, missing: bool) -> str:
    """What is submitted, and what it costs at the configured rate and prices."""
    numbers = rule.config["plan"]
    chips, size = sum(s.expected for s in shards), sum(s.bytes for s in shards)
    hours = chips / numbers["chips_per_second"] / 3600
    cuts = array_jobs.pieces(len(shards))
    how = "a plain job" if len(shards) == 1 else " and ".join(f"an array of {n:,}" for _, n in cuts)
    gpu = f", {rule.gpus} GPU" if rule.gpus else ""
    text = [
        f"{rule.dataset}: {len(shards):,} {'shard' if len(shards) == 1 else 'shards'} as {how};"
        f" each {rule.threads} vCPU, {rule.mem_mb:,} MB{gpu}",
        f"  at most {chips:,} chips, {format_bytes(size)} to read, {hours:,.2f} hours of encoders at "
        f"{numbers['chips_per_second']:g} chips/s, compute {hours * numbers['price_per_hour']:,.2f}",
    ]
    if done:
        text.append(
            f"  {done:,} are done and left out"
            if missing
            else f"  {done:,} of them are done: --missing leaves them out"
        )
    return "\n".join(text)


def wanted(value: str | None, flag: str, variable: str) -> str:
    """A flag or its variable. Raises ConfigError where neither is set."""
    if found := value or os.environ.get(variable):
        return found
    raise ConfigError(f'say {flag}, or set {variable}: eval "$(python -m kiln.cli.aws_env)"')


def submit(made: array_jobs.Submission, jobs: int, folder: str) -> list[str]:
    """Submit so many jobs; returns the ids. A record of each request lies in `folder`, under its id."""
    batch, ids = stack.client("batch"), []
    for first, size in array_jobs.pieces(jobs):
        request = made.request(first, size)
        with stack.asking(made.queue):
            job = batch.submit_job(**request)["jobId"]
        record = {"jobId": job, "submitted": datetime.now(UTC).isoformat(timespec="seconds"), "request": request}
        storage.write_bytes(storage.join(folder, f"job-{job}.json"), json.dumps(record, indent=1).encode())
        ids.append(job)
    return ids


def watching(ids: Sequence[str], rule: embed_rule.EmbedRule, again: str) -> str:
    """What a person does next."""
    run = rule.folder.rpartition("/")[0]
    return "\n".join(
        [
            f"Submitted: {' '.join(ids)}",
            f"  how far:  python -m kiln.report.status {shlex.quote(run)}",
            f"  jobs:     aws batch describe-jobs --query {QUERY} --jobs {' '.join(ids)}",
            f"  failed:   aws batch list-jobs --job-status FAILED --array-job-id {ids[0]}",
            f"  stop:     aws batch terminate-job --reason stopped --job-id {ids[0]}",
            f"  then:     snakemake {again}--profile aws-batch",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Submit a dataset's shards."""
    p = command_line.parser(__doc__, "kiln.aws.submit")
    p.add_argument("dataset", metavar="DATASET", help=f"one of {', '.join(DATASETS)}")
    p.add_argument("--configfile", nargs="+", type=Path, default=[], metavar="FILE", help="of the run")
    p.add_argument("--missing", action="store_true", help="only shards that are not there")
    p.add_argument("--dry-run", action="store_true", help="only say what would be submitted, and its cost")
    p.add_argument("--storage", metavar="URI", help="where runs lie (default: s3://$KILN_BUCKET)")
    p.add_argument("--queue", metavar="ARN", help="(default: $SNAKEMAKE_AWS_BATCH_JOB_QUEUE)")
    p.add_argument("--job-definition", metavar="ARN", help="(default: $KILN_JOB_DEFINITION)")
    args = p.parse_args(argv)

    def work() -> None:
        if args.dataset not in DATASETS:
            raise ConfigError(f"{args.dataset}: no dataset; one of {', '.join(DATASETS)}")
        root = args.storage or f"s3://{wanted(None, '--storage', 'KILN_BUCKET')}"
        if not storage.is_s3(root):
            raise ConfigError(
                f"--storage {root}: jobs elsewhere cannot write there; want s3://bucket or s3://bucket/prefix"
            )
        queue = wanted(args.queue, "--queue", "SNAKEMAKE_AWS_BATCH_JOB_QUEUE")
        definition = wanted(args.job_definition, "--job-definition", "KILN_JOB_DEFINITION")
        rule = embed_rule.read(args.dataset, args.configfile, root.rstrip("/"))
        image, role = check_definition(definition, rule.gpus)
        aws_batch.check_jobs(queue, role, image, ())
        again = f"--configfile {shlex.join(map(str, args.configfile))} " if args.configfile else ""
        shards, done = gather(rule, args.missing, again)
        code, sha256 = code_bundle.build()
        print(told(rule, shards, done, args.missing))
        print(f"  image {image}\n  code  {sha256}")
        array = array_jobs.Array.of(rule, [(s.partition, s.name) for s in shards])
        if args.dry_run:
            print(f"  the first: {shlex.join(array.command_of(*array.shards[0], rule.weights))}")
            return
        folder = storage.join(root, "arrays", rule.config["run"], rule.folder.rpartition("/")[2])
        uri = storage.join(root, "arrays", "code", f"{sha256}.zip")
        storage.write_bytes(uri, code)
        made = array_jobs.Submission(
            name=f"kiln-{rule.config['run']}-{args.dataset}".replace(".", "-")[:128],
            queue=queue,
            definition=definition,
            code=uri,
            sha256=sha256,
            array=array.write(folder),
            threads=rule.threads,
            mem_mb=rule.mem_mb,
            gpus=rule.gpus,
            tags={"kiln-run": rule.config["run"], "kiln-dataset": args.dataset, "kiln-code": sha256},
        )
        print(watching(submit(made, len(shards), folder), rule, again))

    command_line.run(work)


if __name__ == "__main__":
    main()
