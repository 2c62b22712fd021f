"""The ledger of a shard: one row per unit, with the number of its chips that were embedded, skipped or failed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kiln.errors import SourceError
from kiln.formats.columns import LEDGER, arrow_schema
from kiln.formats.parquet import ADVICE, read_schema, read_table, write_table
from kiln.formats.records import Dropped, Opened, Unit
from kiln.io.text_table import aligned

LEDGER_SCHEMA = arrow_schema(LEDGER)
LEDGER_COUNTS = ("expected", "embedded", "skipped_nodata", "skipped_cloud", "deduplicated", "failed")

Status = Literal["embedded", "empty", "failed"]


@dataclass
class LedgerEntry:
    """The account of one unit's chips so far.

    Attributes:
        unit: The unit. Its `expected` is replaced when the source opens it.
        embedded: Chips with a row.
        skipped_nodata: Chips skipped for nodata.
        skipped_cloud: Chips skipped for cloud.
        failed: Chips that failed.
        failure_reasons: Reasons of failures, each once.
        skip_reasons: Reasons of skipped chips, each once.
        notes: Notes of the source.
    """

    unit: Unit
    embedded: int = 0
    skipped_nodata: int = 0
    skipped_cloud: int = 0
    failed: int = 0
    failure_reasons: list[str] = field(default_factory=list)
    skip_reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record_dropped(self, dropped: Dropped) -> None:
        """Count chips that get no row, and note the reason."""
        if dropped.kind == "failed":
            self.failed += dropped.count
        elif dropped.kind == "cloud":
            self.skipped_cloud += dropped.count
        else:
            self.skipped_nodata += dropped.count
        reasons = self.failure_reasons if dropped.kind == "failed" else self.skip_reasons
        if dropped.reason and dropped.reason not in reasons:
            reasons.append(dropped.reason)

    def record_opened(self, opened: Opened) -> None:
        """Replace the estimate of the unit's chips by their number."""
        etag = opened.etag or self.unit.etag
        self.unit = replace(self.unit, expected=opened.expected, expected_known=True, etag=etag)
        self.notes.extend(opened.notes)

    @property
    def accounted(self) -> int:
        """Chips that are embedded, skipped or failed."""
        return self.embedded + self.skipped_nodata + self.skipped_cloud + self.failed

    @property
    def unaccounted(self) -> int:
        """Expected chips that are not embedded, skipped or failed yet."""
        return self.unit.expected - self.accounted

    @property
    def status(self) -> Status:
        """`failed` if any chip failed, else `embedded` if the unit has a row, else `empty`."""
        if self.failed or self.failure_reasons:
            return "failed"
        return "embedded" if self.embedded else "empty"

    @property
    def failed_fraction(self) -> float:
        """Fraction of the unit's chips that failed, 0 to 1; 1 for a failed unit of an unknown number of chips."""
        if self.status != "failed":
            return 0.0
        return self.failed / self.unit.expected if self.unit.expected else 1.0

    def as_row(self) -> dict[str, Any]:
        """Return the unit's row of the ledger. Raises AssertionError unless every chip is accounted for."""
        expected = self.unit.expected
        assert self.accounted == expected, f"{self.unit.unit_id}: {self.accounted} of {expected} chips accounted for"
        reason = "; ".join(self.failure_reasons if self.status == "failed" else self.skip_reasons)
        return {
            "unit_id": self.unit.unit_id,
            "status": self.status,
            "reason": "" if self.status == "embedded" else reason,
            "expected": expected,
            "expected_known": self.unit.expected_known,
            "embedded": self.embedded,
            "skipped_nodata": self.skipped_nodata,
            "skipped_cloud": self.skipped_cloud,
            "deduplicated": 0,
            "failed": self.failed,
            "notes": "; ".join(self.notes),
            "source": self.unit.source,
            "etag": self.unit.etag,
        }


def ledger_name(shard: str) -> str:
    """Return the name or URI of a shard's ledger, given that of its embeddings file."""
    return f"{shard.removesuffix('.parquet')}.ledger.parquet"


def ledger_table(entries: Sequence[LedgerEntry]) -> pa.Table:
    """Return the ledger of a shard as a table with LEDGER_SCHEMA, in the order of the entries."""
    return pa.Table.from_pylist([entry.as_row() for entry in entries], schema=LEDGER_SCHEMA)


def write_ledger(path: Path, ledger: pa.Table) -> None:
    """Write a ledger as Parquet."""
    write_table(ledger, path, compression="zstd")


def read_ledger(path: Path, where: str | None = None) -> pa.Table:
    """Return a ledger.

    Ledgers of Kiln 0.2 have no column `deduplicated`; it is 0.

    Args:
        path: The file on this machine.
        where: Name of the file for errors, if it is a copy.

    Raises:
        SourceError: If it is a damaged file or another one.
    """
    names = read_schema(path, where).names
    if missing := sorted({*LEDGER_SCHEMA.names} - {*names, "deduplicated"}):
        raise SourceError(f"{where or path}: expected a ledger, got a file without {', '.join(missing)}. {ADVICE}")
    ledger = read_table(path, where, schema=LEDGER_SCHEMA)
    at = LEDGER_SCHEMA.get_field_index("deduplicated")
    return ledger.set_column(at, LEDGER_SCHEMA.field(at), pc.fill_null(ledger["deduplicated"], 0))


def ledger_text(ledger: pa.Table) -> str:
    """Return a ledger as aligned text, for logs and terminals."""
    names = ["unit_id", "status", *LEDGER_COUNTS, "reason"]
    table = [names] + [[str(row[name]) for name in names] for row in ledger.to_pylist()]
    return "\n".join(aligned(table, left=range(len(names))))
