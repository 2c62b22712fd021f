"""One job of an array that kiln.aws.submit submitted: a shard, embedded as the workflow's rule would.

Job n of the array does the nth shard of its description. A shard whose file is there is left alone, and a number past
the last is no error. The weights are fetched first.
"""

import logging
import os
import runpy
import sys
import tempfile
from pathlib import Path

from kiln.aws.array_jobs import Array
from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats import plan_file
from kiln.io import storage

log = logging.getLogger(__name__)


def prepare(array: Array, index: int, weights: Path) -> list[str] | None:
    """The command of the array's shard `index`, its weights fetched; None where there is nothing to do.

    Raises ConfigError for a command that is none of Kiln's scripts.
    """
    if index >= len(array.shards):
        log.info("number %d is past the end of %d shards: nothing to do", index, len(array.shards))
        return None
    output = array.output_of(*array.shards[index])
    if storage.stat(output):
        log.info("%s is finished: left alone", output)
        return None
    command = array.command_of(*array.shards[index], str(weights))
    if command[:2] != ["python", "-m"] or not command[2].startswith("scripts."):
        raise ConfigError(f"{' '.join(command[:3])}: not a command of Kiln; submit the array again")
    storage.fetch(array.weights, weights)
    return command


def main(argv: list[str] | None = None) -> None:
    """Do one shard."""
    p = command_line.parser(__doc__, "kiln.aws.array_job")
    p.add_argument("--array", required=True, metavar="URI", help="the array's description")
    p.add_argument("--first", type=int, default=0, metavar="N", help="shard of the array's first job")
    p.add_argument(
        "--index", type=int, metavar="N", help=f"shard to do, instead of {plan_file.ARRAY_INDEX} after --first"
    )
    args = p.parse_args(argv)

    def work() -> None:
        index = args.index
        if index is None:
            if not (number := os.environ.get(plan_file.ARRAY_INDEX, "")).isdigit():
                raise ConfigError(f"say which shard: --index N, or {plan_file.ARRAY_INDEX} in the environment")
            index = args.first + int(number)
        with tempfile.TemporaryDirectory(prefix="kiln-weights-") as folder:
            array = Array.read(args.array)
            command = prepare(array, index, Path(folder) / Path(array.weights).name)
            if command is None:
                return
            log.info("%s", " ".join(command))
            sys.argv = [command[2], *command[3:]]
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)

    command_line.run(work)


if __name__ == "__main__":
    main()
