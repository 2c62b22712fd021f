"""Draw what was embedded: a coverage map of the merged products, and their ledgers as an HTML page."""

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.product.record import product_folder, read_record
from kiln.report.coverage import draw_coverage
from kiln.report.ledger_page import ledger_page


def main(argv: list[str] | None = None) -> None:
    """Draw the map and write the page."""
    parser = command_line.parser(__doc__, "python -m scripts.coverage")
    parser.add_argument("--records", nargs="+", required=True, help="paths or s3:// of the products' records")
    parser.add_argument("--products", nargs="+", help="their folders, if not the records' names without .json")
    parser.add_argument("--map", required=True, help="path or s3:// of the PNG to draw")
    parser.add_argument("--ledger", required=True, help="path or s3:// of the HTML page to write")
    args = parser.parse_args(argv)

    def work() -> None:
        products = args.products or [product_folder(uri) for uri in args.records]
        if len(products) != len(args.records):
            raise ConfigError(f"--products: expected {len(args.records)} folders, got {len(products)}. Name them all.")
        records = [read_record(uri) for uri in args.records]
        with storage.atomic(args.map) as path:
            draw_coverage(records, products, path)
        storage.write_bytes(args.ledger, ledger_page(records, products).encode())

    command_line.run(work)


if __name__ == "__main__":
    main()
