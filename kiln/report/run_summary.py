"""Say what a run has made: its products, what was embedded, skipped and failed, and the pictures to look at."""

import json
from collections.abc import Sequence
from typing import Any

from kiln.cli import command_line
from kiln.io import storage
from kiln.io.text_table import aligned

COUNTS = ("expected", "embedded", "skipped_nodata", "skipped_cloud", "failed")


def summary(
    records: Sequence[dict[str, Any]], products: Sequence[str], index: dict[str, Any], db: str, pictures: Sequence[str]
) -> str:
    """The text: a table of the products' ledgers, then where things are."""
    rows = [("product", *(c.replace("_", " ") for c in COUNTS), "units")]
    for r in records:
        units = ", ".join(f"{n:,} {s}" for s, n in r["units"].items())
        rows.append((f"{r['dataset']} {r['partition']}", *(f"{r['counts'][c]:,}" for c in COUNTS), units))
    lines = [*aligned(rows, left=(0, len(rows[0]) - 1), rule=True), ""]
    if any(r["untrained"] for r in records):
        lines.append("The weights are UNTRAINED: a demonstration of the road, no use for science.")
    if missing := sum(len(r["missing_shards"]) for r in records):
        lines.append(f"{missing} shards are missing in these products (allow_missing).")
    lines += [f"{'product':9} {p}/" for p in products]
    search = (
        "exact search" if index["search"] == "exact" else f"{index['search']}, recall@10 {index['recall_at_10']:.3f}"
    )
    lines.append(f"{'explorer':9} {db}  ({index['rows']:,} chips, {search})")
    lines += [f"{'picture':9} {p}" for p in pictures]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the summary."""
    p = command_line.parser(__doc__, "kiln.report.run_summary")
    p.add_argument("--records", nargs="+", required=True, help="records of the products")
    p.add_argument("--products", nargs="+", help="their folders, if not the records' names less .json")
    p.add_argument("--index", required=True, help="record of the explorer database")
    p.add_argument("--db", required=True, help="the explorer database")
    p.add_argument("--pictures", nargs="*", default=[], help="pictures to look at")
    args = p.parse_args(argv)

    def work() -> None:
        records = [json.loads(storage.read_bytes(r)) for r in args.records]
        products = args.products or [r.removesuffix(".json") for r in args.records]
        print("\n" + summary(records, products, json.loads(storage.read_bytes(args.index)), args.db, args.pictures))

    command_line.run(work)


if __name__ == "__main__":
    main()
