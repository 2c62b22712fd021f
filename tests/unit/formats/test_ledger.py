"""The ledger: its columns, a unit's status and reason, and its file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.errors import SourceError
from kiln.formats.ledger import (
    LEDGER_COUNTS,
    LEDGER_SCHEMA,
    LedgerEntry,
    ledger_name,
    ledger_table,
    ledger_text,
    read_ledger,
    write_ledger,
)
from kiln.formats.records import Dropped, Opened, Unit


def test_the_ledger_has_the_columns_of_the_contract():
    text, count = pa.string(), pa.int64()
    assert [(f.name, f.type, f.nullable) for f in LEDGER_SCHEMA] == [
        ("unit_id", text, False),
        ("status", text, False),
        ("reason", text, False),
        ("expected", count, False),
        ("expected_known", pa.bool_(), False),
        ("embedded", count, False),
        ("skipped_nodata", count, False),
        ("skipped_cloud", count, False),
        ("deduplicated", count, False),
        ("failed", count, False),
        ("notes", text, False),
        ("source", text, False),
        ("etag", text, False),
    ]


def entry(expected, embedded=0, *drops, notes=()):
    unit_entry = LedgerEntry(Unit("u", expected, "s3://b/u", "e1"), embedded=embedded, notes=list(notes))
    for kind, count, reason in drops:
        unit_entry.record_dropped(Dropped("u", kind, count, reason))
    return unit_entry


@pytest.mark.parametrize(
    ("unit_entry", "status", "reason"),
    [
        (entry(3, 3), "embedded", ""),
        (entry(3, 1, ("nodata", 2, "sea")), "embedded", ""),
        (entry(3, 0, ("nodata", 2, "sea"), ("cloud", 1, "clouds")), "empty", "sea; clouds"),
        (entry(3, 2, ("failed", 1, "bad block")), "failed", "bad block"),
        (entry(3, 0, ("failed", 2, "bad"), ("failed", 1, "worse"), ("nodata", 0, "sea")), "failed", "bad; worse"),
        (entry(2, 0, ("failed", 1, "bad"), ("failed", 1, "bad")), "failed", "bad"),
        (entry(0), "empty", ""),
        (entry(0, 0, ("failed", 0, "cannot be opened")), "failed", "cannot be opened"),
    ],
)
def test_status_and_reason_of_a_unit_follow_from_its_counts(unit_entry, status, reason):
    row = unit_entry.as_row()
    assert (row["status"], row["reason"]) == (status, reason)
    assert row["expected"] == sum(row[count] for count in LEDGER_COUNTS[1:])
    assert (row["source"], row["etag"]) == ("s3://b/u", "e1")


def test_an_entry_with_unaccounted_chips_is_an_assertion_error():
    with pytest.raises(AssertionError, match="u: 1 of 3 chips"):
        entry(3, 1).as_row()


def test_a_ledger_is_read_back_and_printed_as_text(tmp_path):
    ledger = ledger_table([entry(3, 3, notes=["a", "b"]), entry(2, 0, ("failed", 2, "x.tif: unreadable"))])
    write_ledger(tmp_path / "l.parquet", ledger)
    again = pq.read_table(tmp_path / "l.parquet")
    assert again.schema.equals(LEDGER_SCHEMA)
    assert again.equals(ledger)
    assert again["notes"].to_pylist() == ["a; b", ""]
    lines = ledger_text(again).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == [
        "unit_id",
        "status",
        "expected",
        "embedded",
        "skipped_nodata",
        "skipped_cloud",
        "deduplicated",
        "failed",
        "reason",
    ]
    assert lines[2].endswith("x.tif: unreadable")


def test_the_ledgers_name_follows_from_the_shards():
    assert ledger_name("s3://b/run/x-1.parquet") == "s3://b/run/x-1.ledger.parquet"


def test_a_damaged_or_other_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "l.parquet"
    for content in (b"", b"PAR1 and no more"):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"l\.parquet: expected a Parquet file, got a damaged one"):
            read_ledger(path)


def test_an_opened_unit_has_its_number_of_chips_and_notes():
    unit_entry = LedgerEntry(Unit("u", 9, "s3://b/u", "e1", expected_known=False), embedded=2)
    unit_entry.record_opened(Opened("u", 3, notes=("half the scene",)))
    assert (unit_entry.accounted, unit_entry.unaccounted, unit_entry.unit.etag) == (2, 1, "e1")
    unit_entry.record_dropped(Dropped("u", "failed", 1, "bad block"))
    row = unit_entry.as_row()
    assert (row["expected"], row["expected_known"], row["notes"]) == (3, True, "half the scene")
    assert unit_entry.failed_fraction == pytest.approx(1 / 3)


def test_a_failed_unit_of_unknown_size_failed_as_a_whole():
    assert entry(0, 0, ("failed", 0, "cannot be opened")).failed_fraction == 1
    assert entry(3, 3).failed_fraction == 0


def test_another_file_is_no_ledger_and_one_of_an_earlier_version_is(tmp_path):
    pq.write_table(pa.table({"unit_id": ["u"], "status": ["embedded"]}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match="expected a ledger, got a file without embedded, etag, expected"):
        read_ledger(tmp_path / "other.parquet")
    pq.write_table(ledger_table([entry(3, 3)]).drop_columns("deduplicated"), tmp_path / "earlier.parquet")
    ledger = read_ledger(tmp_path / "earlier.parquet")
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["deduplicated"].to_pylist() == [0]
