"""Fixtures of the embedding scripts' tests."""

import pyarrow.parquet as pq
import pytest

from kiln.formats.ledger import ledger_name
from scripts import embed
from tests.support.encoded_chips import record_encoded_chips
from tests.support.naip_jobs import flags


@pytest.fixture(autouse=True)
def no_array_job(monkeypatch):
    monkeypatch.delenv("AWS_BATCH_JOB_ARRAY_INDEX", raising=False)


@pytest.fixture
def run_naip(tmp_path, encoder_file):
    """Embed a shard of a plan; return its rows, and its ledger by unit id."""

    def do(units, line=0, *more, folder=tmp_path / "shards"):
        embed.main(flags(units, line, folder, encoder_file, *more))
        (rows,) = [p for p in folder.glob("*.parquet") if not p.name.endswith(".ledger.parquet")]
        ledger = pq.read_table(ledger_name(str(rows))).to_pylist()
        return pq.read_table(rows).to_pylist(), {e["unit_id"]: e for e in ledger}

    return do


@pytest.fixture
def encoded(monkeypatch):
    """The ids of the chips that this process encodes."""
    return record_encoded_chips(monkeypatch)
