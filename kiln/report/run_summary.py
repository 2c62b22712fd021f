"""The summary of a run: its products, what was embedded, skipped and failed, and the pictures to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from kiln.formats.ledger import LEDGER_COUNTS
from kiln.io.text_table import aligned
from kiln.product.record import ProductRecord


@dataclass(frozen=True)
class IndexSummary:
    """The explorer database of a run.

    Attributes:
        uri: Path or s3:// of the database.
        rows: Number of chips.
        search: `exact`, or the type of its index.
        recall_at_10: Recall of the index over 10 neighbours.
    """

    uri: str
    rows: int
    search: str
    recall_at_10: float


def product_rows(records: Sequence[ProductRecord]) -> list[tuple[str, ...]]:
    """Return the table of the products' ledgers: a head, and a row per product."""
    rows = [("product", *(count.replace("_", " ") for count in LEDGER_COUNTS), "units")]
    for record in records:
        units = ", ".join(f"{number:,} {status}" for status, number in record.units.items())
        rows.append((record.title, *(f"{record.counts[count]:,}" for count in LEDGER_COUNTS), units))
    return rows


def summary_text(
    records: Sequence[ProductRecord], products: Sequence[str], index: IndexSummary, pictures: Sequence[str]
) -> str:
    """Return the table of the products' ledgers, then the places of products, database and pictures.

    Args:
        records: Records of the products.
        products: Their folders.
        index: The explorer database.
        pictures: Paths or s3:// of the pictures.
    """
    rows = product_rows(records)
    lines = [*aligned(rows, left=(0, len(rows[0]) - 1), rule=True), ""]
    if any(record.untrained for record in records):
        lines.append("The weights are UNTRAINED: a demonstration of the workflow, no use for science.")
    if missing := sum(len(record.missing_shards) for record in records):
        lines.append(f"{missing} shards are missing in these products (allow_missing).")
    lines += [f"{'product':9} {product}/" for product in products]
    search = "exact search" if index.search == "exact" else f"{index.search}, recall@10 {index.recall_at_10:.3f}"
    lines.append(f"{'explorer':9} {index.uri}  ({index.rows:,} chips, {search})")
    lines += [f"{'picture':9} {picture}" for picture in pictures]
    return "\n".join(lines)
