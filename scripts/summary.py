"""Print what a run holds: its products, what was embedded, skipped and failed, and the pictures to look at."""

import json

from kiln.cli import command_line
from kiln.io import storage
from kiln.product.record import product_folder, read_record
from kiln.report.run_summary import IndexSummary, summary_text


def main(argv: list[str] | None = None) -> None:
    """Print the summary."""
    parser = command_line.parser(__doc__, "python -m scripts.summary")
    parser.add_argument("--records", nargs="+", required=True, help="paths or s3:// of the products' records")
    parser.add_argument("--products", nargs="+", help="their folders, if not the records' names without .json")
    parser.add_argument("--index", required=True, help="path or s3:// of the record of the explorer database")
    parser.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    parser.add_argument("--pictures", nargs="*", default=[], help="pictures to look at")
    args = parser.parse_args(argv)

    def work() -> None:
        records = [read_record(uri) for uri in args.records]
        products = args.products or [product_folder(uri) for uri in args.records]
        values = json.loads(storage.read_bytes(args.index))
        index = IndexSummary(args.db, values["rows"], values["search"], values["recall_at_10"])
        print("\n" + summary_text(records, products, index, args.pictures))

    command_line.run(work)


if __name__ == "__main__":
    main()
