"""Embed one shard of an array that `kiln aws submit` submitted, with the command of the workflow's rule.

Job n of the array does the nth shard of its description. A finished shard is left alone, and a number past the last
shard is no error. The weights are fetched first.
"""

import logging
import os
import runpy
import sys
from pathlib import Path

from kiln.aws.array_jobs import Array, prepare_job
from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats.plan_file import ARRAY_INDEX
from kiln.io import storage

log = logging.getLogger(__name__)


def position(first: int, index: int | None) -> int:
    """Return the position of this job's shard: `index`, or `first` and the number that AWS Batch gives the job.

    Raises:
        ConfigError: There is no index, and no number.
    """
    if index is not None:
        return index
    number = os.environ.get(ARRAY_INDEX, "")
    if not number.isdigit():
        raise ConfigError(f"{ARRAY_INDEX}: expected the job's number, got {number!r}. Give --index N.")
    return first + int(number)


def main(argv: list[str] | None = None) -> None:
    """Embed one shard."""
    p = command_line.parser(__doc__, "python -m scripts.array_job")
    p.add_argument("--array", required=True, metavar="URI", help="the array's description")
    p.add_argument("--first", type=int, default=0, metavar="N", help="shard of the array's first job")
    p.add_argument("--index", type=int, metavar="N", help=f"shard to embed, instead of --first and {ARRAY_INDEX}")
    args = p.parse_args(argv)

    def work() -> None:
        index = position(args.first, args.index)
        array = Array.read(args.array)
        with storage.temporary_folder("kiln-weights-") as folder:
            command = prepare_job(array, index, Path(folder) / Path(array.weights).name)
            if command is None:
                return
            log.info("%s", " ".join(command))
            sys.argv = [command[2], *command[3:]]
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)

    command_line.run(work)


if __name__ == "__main__":
    main()
