"""Delete the files of a run that belong to nothing, as `snakemake --delete-all-output` leaves them.

These are ledgers, patch files and job records without their shard, products without their record, pictures and a
database without the record of a database, and checkpoints and costs of datasets without a plan. No other process may
work on the run meanwhile.
"""

from kiln.cli import command_line
from kiln.report.leftovers import delete_leftovers, find_leftovers


def main(argv: list[str] | None = None) -> None:
    """Delete the files, and print how many there were."""
    parser = command_line.parser(__doc__, "python -m scripts.delete_leftovers")
    parser.add_argument("--run", required=True, help="path or s3:// of the run, results/<run>")
    parser.add_argument("--checkpoints", required=True, help="path or s3:// of its checkpoints, checkpoints/<run>")
    args = parser.parse_args(argv)

    def work() -> None:
        files = find_leftovers(args.run, args.checkpoints)
        delete_leftovers(files, [args.run, args.checkpoints])
        print(f"{args.run}: {len(files):,} files deleted that belonged to nothing")

    command_line.run(work)


if __name__ == "__main__":
    main()
