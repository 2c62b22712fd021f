"""Merge the shards of one partition into its product: sorted GeoParquet parts, the ledger, STAC, a record."""

from kiln.cli import command_line
from kiln.product.merge import MergeOptions, merge_partition


def main(argv: list[str] | None = None) -> None:
    """Merge one partition of one dataset."""
    parser = command_line.parser(__doc__, "python -m scripts.merge")
    parser.add_argument("--plan", required=True, help="path or s3:// of the plan whose shards are merged")
    parser.add_argument("--partition", help="the partition to merge, where the plan has several")
    parser.add_argument("--shards", required=True, help="local folder of the embeddings files")
    parser.add_argument("--ledgers", help="path or s3:// of the folder of the ledgers, if not that of the shards")
    parser.add_argument("--product", required=True, help="path or s3:// of the folder to write")
    parser.add_argument("--record", help="path or s3:// of the record, if not <product>.json; it is written last")
    parser.add_argument("--allow-missing", action="store_true", help="merge the shards that exist, name the others")
    parser.add_argument("--deduplicate", action="store_true", help="one row per lattice cell: that with least nodata")
    parser.add_argument("--costs", help="path or s3:// of the record of what the jobs took, which STAC links")
    parser.add_argument("--memory-mb", type=int, default=1024, help="megabytes to sort in")
    args = parser.parse_args(argv)

    def work() -> None:
        merge_partition(
            args.plan,
            args.shards,
            args.product,
            partition=args.partition,
            ledgers=args.ledgers,
            record=args.record,
            allow_missing=args.allow_missing,
            options=MergeOptions(deduplicate=args.deduplicate, memory_bytes=args.memory_mb << 20, costs=args.costs),
        )

    command_line.run(work)


if __name__ == "__main__":
    main()
