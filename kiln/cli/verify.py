"""Read every file of runs, and name those that are damaged, with the commands that make them anew.

    kiln verify results/sample
    kiln verify s3://bucket/results/conus
    kiln verify results/sample --delete     # then run the printed commands

Weights, plans, shards, ledgers, products, database, pictures, checkpoints and the explorer's cache on this machine are
compared with the digests and checksums that were written with them. The exit code is 0 if all files are intact, else 1.
Without --delete nothing is changed.
"""

import json

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.report.verify.run import delete_damaged, verify
from kiln.report.verify.text import verification_text


def main(argv: list[str] | None = None) -> None:
    """Print the damaged files of runs."""
    parser = command_line.parser(__doc__, "kiln verify")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, as results/sample or s3://b/results/a")
    parser.add_argument(
        "--checkpoints", metavar="URI", help="folder of the run's checkpoints, if not checkpoints/<run> near results/"
    )
    parser.add_argument("--cache", metavar="DIR", help="the explorer's cache, if not the default one")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--delete", action="store_true", help="delete damaged files, so that they are made anew")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.checkpoints and len(args.runs) > 1:
            raise ConfigError(f"--checkpoints: expected one RUN, got {len(args.runs)}. Name it.")
        results = [verify(run, checkpoints=args.checkpoints, cache=args.cache) for run in args.runs]
        if args.json:
            print(json.dumps([result.as_json() for result in results], indent=1))
        else:
            print("\n\n".join(map(verification_text, results)))
        if args.delete:
            for result in results:
                for file in delete_damaged(result):
                    if not args.json:
                        print(f"deleted {file}")
        if not all(result.is_intact for result in results):
            raise SystemExit(1)

    command_line.run(work)


if __name__ == "__main__":
    main()
