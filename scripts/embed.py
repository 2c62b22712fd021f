"""Embed one shard of an archive: its units in, an embeddings file and its ledger out.

By hand, the first shard of a plan:

    python -m scripts.plan_units naip --manifest manifest.zip --states nd --years 2019 --output plan.jsonl.gz
    python -m scripts.embed naip --units plan.jsonl.gz --index 0 --folder shards \\
        --weights results/models/1234abcd-float32.safetensors

In an AWS Batch array job --index may be left out, and an index past the last line is no error. A finished shard is
left alone. Units that cannot be read are `failed` rows of the ledger, which is put in place just before the file.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from kiln.archives.registry import archives, get_archive
from kiln.cli import command_line
from kiln.cli.embed_flags import add_option_flags, read_options
from kiln.cli.section_flags import add_section_flags, read_section
from kiln.errors import ConfigError
from kiln.formats import plan_file
from kiln.io import storage

log = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser, one subcommand per archive."""
    parser = command_line.parser(__doc__, "python -m scripts.embed")
    subcommands = parser.add_subparsers(dest="archive_name", metavar="ARCHIVE", required=True)
    for archive in archives().values():
        sub = subcommands.add_parser(archive.name, help=archive.title, formatter_class=command_line.Formatter)
        _add_engine_flags(sub)
        add_section_flags(sub, archive.load("config", "Config"), archive.embed_keys)
    return parser


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    index = os.environ.get(plan_file.ARRAY_INDEX)
    add = parser.add_argument
    add("--units", required=True, metavar="PLAN", help="path or s3:// of the plan")
    add("--shard", help="name of the shard in the plan")
    add("--index", type=int, default=index, help=f"or its line, counted from 0 (default: ${plan_file.ARRAY_INDEX})")
    add("--weights", type=Path, required=True, help="safetensors of the rule encoder_weights")
    add("--folder", required=True, help="path or s3:// of the folder of shards and ledgers")
    add("--output", help="the embeddings file, if not <folder>/<shard>.parquet")
    add("--overwrite", action="store_true", help="embed a finished shard again")
    add("--checkpoints", help="path or s3:// of a folder for finished units of the unfinished shard")
    add("--job-record", metavar="URI", help="path or s3:// of a JSON file to write: what the job took")
    add("--expect-fingerprint", metavar="HEX", help="stop unless the fingerprint begins like this")
    add_option_flags(parser)


def main(argv: list[str] | None = None) -> None:
    """Embed one shard."""
    args = argument_parser().parse_args(argv)
    archive = get_archive(args.archive_name)

    def work() -> None:
        from kiln.engine.job import embed_shard  # imports torch, which --help should not wait for

        options = read_options(args)
        shard = plan_file.pick_shard(args.units, name=args.shard, index=args.index)
        if shard is None:
            log.info("line %d is past the end of %s: nothing to do", args.index, args.units)
            return
        if shard.dataset != archive.name:
            raise ConfigError(f"{args.units}: expected a plan of {archive.name}, got one of {shard.dataset}.")
        output = args.output or storage.join(args.folder, f"{shard.name}.parquet")
        if storage.stat(output) and not args.overwrite:
            log.info("%s exists: left alone (--overwrite embeds it again)", output)
            return
        values = {key: getattr(args, key) for key in archive.embed_keys if key in args}
        config = read_section(archive.load("config", "Config"), {**values, "chip_size": shard.chip_size})
        embed_shard(
            archive.load("source", "open_source")(shard, config),
            weights=args.weights,
            output=output,
            ledger=storage.join(args.folder, f"{shard.name}.ledger.parquet"),
            options=options,
            checkpoints=args.checkpoints,
            job_record=args.job_record,
            expect_fingerprint=args.expect_fingerprint,
        )

    command_line.run(work)


if __name__ == "__main__":
    main(sys.argv[1:])
