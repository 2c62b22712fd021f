"""Plan an archive: which units are embedded, in which shards. Writes a plan, one line of JSON per shard.

    python -m scripts.plan_units naip --manifest manifest.zip --states nd --years 2019 --output plan.jsonl.gz

`python -m scripts.plan_units ARCHIVE --help` lists the archive's flags: the keys of its config section.
"""

import argparse
import logging
import sys

from kiln.archives.registry import archives, get_archive
from kiln.cli import command_line
from kiln.cli.section_flags import add_section_flags, read_section
from kiln.formats.plan_file import write_plan

log = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser, one subcommand per archive."""
    parser = command_line.parser(__doc__, "python -m scripts.plan_units")
    subcommands = parser.add_subparsers(dest="archive_name", metavar="ARCHIVE", required=True)
    for archive in archives().values():
        sub = subcommands.add_parser(archive.name, help=archive.title, formatter_class=command_line.Formatter)
        sub._negative_number_matcher = parser._negative_number_matcher  # `--region -97,...` is a value
        add_section_flags(sub, archive.load("config", "Config"), archive.plan_keys)
        sub.add_argument("--output", required=True, help="path or s3:// of the plan, gzipped JSON lines")
        sub.add_argument("--names", help="path or s3:// of a small JSON file of the shards' names by partition")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the plan."""
    parser = argument_parser()
    values = vars(parser.parse_args(argv))
    archive = get_archive(values.pop("archive_name"))
    output, names = values.pop("output"), values.pop("names")

    def work() -> None:
        config = read_section(archive.load("config", "Config"), values)
        shards, units = write_plan(archive.load("plan", "plan_shards")(config), output, names)
        log.info("%s: %d units in %d shards", output, units, shards)

    command_line.run(work)


if __name__ == "__main__":
    main(sys.argv[1:])
