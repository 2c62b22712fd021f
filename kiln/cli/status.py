"""Show how far a run is: shards done, missing and failing, and why; and the commands that embed exactly those again.

    kiln status results/sample

Without RUN, every run below results/ that has a plan is shown. Nothing is changed; lists of files are written for
commands that need many.
"""

import json

from kiln.cli import command_line
from kiln.report.redo import redo_commands, write_target_lists
from kiln.report.status import read_status
from kiln.report.status_text import status_json, status_text


def main(argv: list[str] | None = None) -> None:
    """Print the status of runs."""
    parser = command_line.parser(__doc__, "kiln status")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folder of a run, as results/sample or s3://b/p/results/sample"
    )
    parser.add_argument("--plans", nargs="+", metavar="PLAN", help="instead of runs: exactly these plans")
    parser.add_argument(
        "--checkpoints", metavar="URI", help="folder of the run's checkpoints, if not checkpoints/<run> near results/"
    )
    parser.add_argument("--configfile", nargs="+", metavar="FILE", help="config files of the run, for the commands")
    parser.add_argument("--cores", default="all", metavar="N", help="for the commands")
    parser.add_argument("--list", default="redo.txt", metavar="FILE", help="name of lists: redo-missing.txt and so on")
    parser.add_argument("--json", action="store_true", help="print JSON for programs; no list is written")
    args = parser.parse_args(argv)

    def work() -> None:
        statuses = read_status(args.runs, args.plans or (), args.checkpoints)
        groups = redo_commands(statuses, config_files=args.configfile or (), cores=args.cores, list_file=args.list)
        if args.json:
            print(json.dumps(status_json(statuses, groups), indent=1))
            return
        write_target_lists(groups)
        print(status_text(statuses, groups))

    command_line.run(work)


if __name__ == "__main__":
    main()
