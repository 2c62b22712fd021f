"""Draw what was embedded, as a map and HTML pages of ledgers and costs, and write the STAC catalog of the run."""

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.product.description.catalog import write_catalog
from kiln.product.record import product_folder, read_record
from kiln.report.costs import read_costs, write_cost_records
from kiln.report.coverage import draw_coverage
from kiln.report.ledger_page import ledger_page
from kiln.report.run_page import run_page


def main(argv: list[str] | None = None) -> None:
    """Draw the map and write the pages."""
    parser = command_line.parser(__doc__, "python -m scripts.coverage")
    parser.add_argument("--records", nargs="+", required=True, help="paths or s3:// of the products' records")
    parser.add_argument("--products", nargs="+", help="their folders, if not the records' names without .json")
    parser.add_argument("--map", required=True, help="path or s3:// of the PNG to draw")
    parser.add_argument("--ledger", required=True, help="path or s3:// of the HTML page to write")
    costs = parser.add_argument_group("the run: what the jobs took, and its catalog", "given together or not at all")
    costs.add_argument("--run", help="path or s3:// of the run's folder, whose catalog.json is written")
    costs.add_argument("--run-page", help="path or s3:// of the HTML page of the run to write")
    costs.add_argument("--runs", help="path or s3:// of the folder of the jobs' records")
    costs.add_argument("--datasets", nargs="+", help="names of the datasets' folders in it")
    costs.add_argument("--price-per-hour", type=float, help="price of one job's machine")
    args = parser.parse_args(argv)
    if len({value is None for value in (args.run, args.run_page, args.runs, args.datasets, args.price_per_hour)}) > 1:
        parser.error(
            "--run, --run-page, --runs, --datasets and --price-per-hour: expected all of them or none. Add the others."
        )

    def work() -> None:
        products = args.products or [product_folder(uri) for uri in args.records]
        if len(products) != len(args.records):
            raise ConfigError(f"--products: expected {len(args.records)} folders, got {len(products)}. Name them all.")
        records = [read_record(uri) for uri in args.records]
        with storage.atomic(args.map) as path:
            draw_coverage(records, products, path)
        storage.write_bytes(args.ledger, ledger_page(records, products).encode())
        if args.run_page:
            costs = read_costs(args.runs, args.datasets, args.price_per_hour)
            write_cost_records(args.runs, costs)
            storage.write_bytes(args.run_page, run_page(records, costs).encode())
            write_catalog(args.run, args.datasets, products)

    command_line.run(work)


if __name__ == "__main__":
    main()
