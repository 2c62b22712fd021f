"""The ledgers of products as one HTML page."""

import html
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kiln.archives.registry import archives
from kiln.formats.ledger import LEDGER_COUNTS, read_ledger
from kiln.io import storage
from kiln.product.record import ProductRecord
from kiln.report import html_page

MAX_ROWS = 2000  # of the table of units; failed units come first


def ledger_page(records: Sequence[ProductRecord], products: Sequence[str]) -> str:
    """Return the page: totals by product, then the units, failed ones first.

    Args:
        records: Records of the products.
        products: Their folders, paths or s3://.

    Raises:
        SourceError: If a ledger is missing or damaged.
    """
    names = LEDGER_COUNTS
    head = "".join(f'<th class="n" scope="col">{name.replace("_", " ")}</th>' for name in names)
    totals = "".join(map(_product_row, records))
    ledger = _sorted_ledger(products)
    units = "".join(_unit_row(unit) for unit in ledger.slice(0, MAX_ROWS).to_pylist())
    warnings = ""
    if any(record.untrained for record in records):
        warnings += "<p class=warn>UNTRAINED weights: a demonstration.</p>"
    if missing := sum(len(record.missing_shards) for record in records):
        warnings += f"<p class=warn>{missing} shards are missing in these products.</p>"
    hidden = max(0, len(ledger) - MAX_ROWS)
    more = f"<p>{hidden:,} more units are in the products' ledger.parquet.</p>" if hidden else ""
    body = (
        f"{warnings}<table><caption>Products</caption>"
        f"<tr><th scope=col>product</th>{head}<th scope=col>units</th></tr>{totals}</table>"
        f"<table><caption>Units</caption><tr><th scope=col>unit</th>{head}<th scope=col>status</th>"
        f"<th scope=col>reason</th></tr>{units}</table>{more}"
    )
    return html_page.page("Ledger", body, "What became of every unit")


def _product_row(record: ProductRecord) -> str:
    counts = "".join(f'<td class="n">{record.counts[name]:,}</td>' for name in LEDGER_COUNTS)
    statuses = ", ".join(f"{number:,} {status}" for status, number in record.units.items())
    return f"<tr><td>{record.title}</td>{counts}<td>{statuses}</td></tr>"


def _unit_row(unit: dict[str, Any]) -> str:
    counts = "".join(f'<td class="n">{unit[name]:,}</td>' for name in LEDGER_COUNTS)
    reason = html.escape("; ".join(filter(None, (unit["reason"], readable_notes(unit["unit_id"], unit["notes"])))))
    unit_id, status = html.escape(unit["unit_id"]), unit["status"]
    return f'<tr class="{status}"><td>{unit_id}</td>{counts}<td>{status}</td><td>{reason}</td></tr>'


def readable_notes(unit_id: str, notes: str) -> str:
    """Return the notes of a unit with its archive's codes in words. An unknown code stays."""
    archive = archives().get(unit_id.partition(":")[0])
    words = archive.notes if archive else {}
    return re.sub(r"[a-z0-9_]+", lambda code: words.get(code[0], code[0]), notes)


def _sorted_ledger(products: Sequence[str]) -> pa.Table:
    """Return the ledgers of all products, failed units first, then by id."""
    ledgers = []
    for product in products:
        uri = storage.join(product, "ledger.parquet")
        with storage.local_copy(uri) as path:
            ledgers.append(read_ledger(path, uri))
    ledger = pa.concat_tables(ledgers)
    ledger = ledger.append_column("failed_unit", pc.equal(ledger["status"], "failed"))
    return ledger.sort_by([("failed_unit", "descending"), ("unit_id", "ascending")])
