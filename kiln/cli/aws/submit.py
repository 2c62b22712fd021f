"""Submit a dataset's shards as an array job of AWS Batch: one request for thousands of jobs, and no driver that waits.

    kiln aws submit worldcover --configfile config/conus.yaml --dry-run
    kiln aws submit worldcover --configfile config/conus.yaml
    kiln aws submit worldcover --configfile config/conus.yaml --missing

The jobs run the commands of the workflow's rules and write the same files: afterwards `snakemake --profile aws-batch`
finds them, embeds what is missing, merges and indexes. It also makes plan and weights before. A job whose machine AWS
takes back is tried again, up to five times. Queue, bucket and job definition come from the environment that
`kiln aws env` prints.
"""

import os
import shlex
from pathlib import Path

from kiln.archives.registry import archives, get_archive
from kiln.aws import code_bundle, preflight
from kiln.aws import submit as library
from kiln.aws.array_jobs import Array, Submission, embed_rule
from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.workflow.config import load_config
from kiln.workflow.run import Run

MAX_NAME = 128  # characters of a job's name


def flag_or_variable(value: str | None, flag: str, variable: str) -> str:
    """Return a flag's value, or that of its environment variable. Raise ConfigError if neither is set."""
    if setting := value or os.environ.get(variable):
        return setting
    raise ConfigError(f'{flag}: expected a value, or {variable} in the environment. Run eval "$(kiln aws env)".')


def run_root(value: str | None) -> str:
    """Return the s3:// URI that runs lie below. Raise ConfigError for a folder of this machine."""
    root = value or f"s3://{flag_or_variable(None, '--storage', 'KILN_BUCKET')}"
    if not storage.is_s3(root):
        raise ConfigError(f"--storage: expected s3://bucket or s3://bucket/prefix, which jobs can write, got {root}.")
    return root.rstrip("/")


def main(argv: list[str] | None = None) -> None:
    """Submit a dataset's shards."""
    p = command_line.parser(__doc__, "kiln aws submit")
    p.add_argument("dataset", metavar="DATASET", help=f"one of {', '.join(archives())}")
    p.add_argument("--configfile", nargs="+", type=Path, default=[], metavar="FILE", help="of the run")
    p.add_argument("--missing", action="store_true", help="leave finished shards out")
    p.add_argument("--dry-run", action="store_true", help="only print what would be submitted, and its cost")
    p.add_argument("--storage", metavar="URI", help="where runs lie (default: s3://$KILN_BUCKET)")
    p.add_argument("--queue", metavar="ARN", help="(default: $SNAKEMAKE_AWS_BATCH_JOB_QUEUE)")
    p.add_argument("--job-definition", metavar="ARN", help="(default: $KILN_JOB_DEFINITION)")
    args = p.parse_args(argv)

    def work() -> None:
        get_archive(args.dataset)
        root = run_root(args.storage)
        queue = flag_or_variable(args.queue, "--queue", "SNAKEMAKE_AWS_BATCH_JOB_QUEUE")
        definition = flag_or_variable(args.job_definition, "--job-definition", "KILN_JOB_DEFINITION")
        code, sha256 = code_bundle.build()
        run = Run(load_config([code_bundle.ROOT / "config/config.yaml", *args.configfile]), root)
        preflight.check_array(run, args.dataset)
        rule = embed_rule(run, args.dataset)
        container = library.read_definition(definition, rule.resources.gpus)
        preflight.check_jobs(queue, container.role, container.image, ())
        configs = f"--configfile {shlex.join(map(str, args.configfile))} " if args.configfile else ""
        snakemake = f"snakemake {configs}--profile aws-batch"
        selection = library.select_shards(rule, args.missing, snakemake)
        print(library.describe(rule, selection, args.missing))
        print(f"  image {container.image}\n  code  {sha256}")
        array = Array.of(rule, [(s.partition, s.name) for s in selection.shards])
        if args.dry_run:
            print(f"  the first: {shlex.join(array.command_of(*array.shards[0], weights=rule.weights))}")
            return
        folder = storage.join(root, "arrays", rule.run, rule.folder.rpartition("/")[2])
        uri = storage.join(root, "arrays", "code", f"{sha256}.zip")
        storage.write_bytes(uri, code)
        submission = Submission(
            name=f"kiln-{rule.run}-{args.dataset}".replace(".", "-")[:MAX_NAME],
            queue=queue,
            definition=definition,
            code=uri,
            sha256=sha256,
            array=array.write(folder),
            resources=rule.resources,
            tags={"kiln-run": rule.run, "kiln-dataset": args.dataset, "kiln-code": sha256},
        )
        ids = library.submit(submission, len(selection.shards), folder)
        print(library.next_steps(ids, rule, snakemake))

    command_line.run(work)


if __name__ == "__main__":
    main()
