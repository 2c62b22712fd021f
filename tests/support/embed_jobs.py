"""Jobs of `scripts.embed` inside a test: their files, errors and ledgers."""

import subprocess
import sys

import pytest

from kiln.formats.ledger import LEDGER_COUNTS
from scripts import embed
from tests import ROOT


def read_files(folder):
    """Return the bytes of the files of a folder by name; none if the folder does not exist."""
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
        assert e["expected"] == sum(e[count] for count in LEDGER_COUNTS[1:])
    assert sum(e["embedded"] for e in ledger.values()) == len(rows)
    return True


def check_help(dataset, flags):
    """Assert that the help of `scripts.embed` shows these flags and is printed without importing torch."""
    code = (
        f"import sys, runpy; sys.argv = ['x', '{dataset}', '--help']\n"
        "try: runpy.run_module('scripts.embed', run_name='__main__')\n"
        "except SystemExit as e: print('exit', e.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for flag in flags:
        assert flag in done.stdout
    assert done.stdout.endswith("exit 0 False\n")
