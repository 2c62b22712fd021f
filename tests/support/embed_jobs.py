"""Jobs of `scripts.embed` inside a test: their files, errors and ledgers."""

import pytest

from scripts import embed


def read_files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def run_failing_job(capsys, argv):
    """Return the exit code and stderr of a job that ends with an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        embed.main(argv)
    return e.value.code, capsys.readouterr().err


def ledger_closes(ledger, rows):
    """Assert that the counts of every unit add up and that the total is the number of rows; return True."""
    for e in ledger.values():
        assert e["expected"] == e["embedded"] + e["skipped_nodata"] + e["skipped_cloud"] + e["failed"]
    assert sum(e["embedded"] for e in ledger.values()) == len(rows)
    return True
