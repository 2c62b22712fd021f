"""Show how far a run is: shards, products and database, what failed and why, and the commands that do what is left.

    kiln status results/sample
    kiln status results/conus --watch              # a live page: chips/s, time left, price so far
    kiln status results/conus --html status.html   # the same as a page for a browser

Without RUN, every run below results/ that has a plan is shown. Nothing is changed; lists of files are written for
commands that need many. The sources of failed units are looked at, to separate failures that recur from others; a
requester-pays archive bills these requests.
"""

import json
import sys

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.report.status.page import status_page
from kiln.report.status.redo import CommandGroup, redo_commands, write_target_lists
from kiln.report.status.run import RunStatus, read_status
from kiln.report.status.text import status_json, status_text

KEEP_S = 600.0  # for which --watch does not look at the source of a failed unit again


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
    parser.add_argument(
        "--configfile", nargs="+", metavar="FILE", help="config files for the commands, if not those the run began with"
    )
    parser.add_argument("--cores", default="all", metavar="N", help="for the commands")
    parser.add_argument("--list", default="redo.txt", metavar="FILE", help="name of lists: redo-missing.txt and so on")
    parser.add_argument("--json", action="store_true", help="print JSON for programs; no list is written")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page, path or s3://; with --watch again")
    parser.add_argument("--watch", action="store_true", help="show a live page until Ctrl-C")
    parser.add_argument("--interval", type=float, default=10, metavar="S", help="seconds between two looks of --watch")
    args = parser.parse_args(argv)

    def look() -> tuple[list[RunStatus], list[CommandGroup]]:
        runs = read_status(args.runs, args.plans or (), args.checkpoints, KEEP_S if args.watch else 0.0)
        groups = redo_commands(runs, config_files=args.configfile or (), cores=args.cores, list_file=args.list)
        if args.html:
            write_target_lists(groups)  # the page names them
            page = status_page(runs, groups, args.interval if args.watch else None)
            storage.write_bytes(args.html, page.encode())
        return runs, groups

    def work() -> None:
        if args.watch:
            if args.interval <= 0 or args.json:
                raise ConfigError("--watch: expected an --interval above 0 and no --json. Correct them.")
            if not sys.stdout.isatty():
                raise ConfigError("--watch: expected a terminal, got another output. Use --html or --json.")
            from kiln.cli.status_watch import watch

            watch(lambda: look()[0], args.interval)
        runs, groups = look()
        if args.json:
            print(json.dumps(status_json(runs, groups), indent=1))
            return
        write_target_lists(groups)
        print(f"{args.html} is written" if args.html else status_text(runs, groups))

    command_line.run(work)


if __name__ == "__main__":
    main()
