"""Merging damaged and missing shards: refused, or left out with --allow-missing."""

import html
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.errors import ConfigError, SourceError
from kiln.formats.ledger import LEDGER_SCHEMA, write_ledger
from kiln.product.record import read_record
from kiln.report.ledger_page import ledger_page
from tests.support.merges import GRID
from tests.support.products import digests, merge_shards, run_merge, shard_metadata, write_shard

# ------------------------------------------------------------------------------------------------ what is refused


def test_a_missing_shard_is_named_and_leaves_no_record(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert "got 1 of 3 shards missing" in message
    assert names[1] in message
    assert not Path(f"{product}.json").exists()


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_shard_is_named(broken, capsys, keep):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message
    assert "expected a Parquet file, got a damaged one" in message
    assert not Path(f"{product}.json").exists()


def test_a_shard_with_damaged_pages_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    at = column.data_page_offset + column.total_compressed_size // 2
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message
    assert not Path(f"{product}.json").exists()


def test_a_file_that_is_no_shard_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[0]}.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    code, message = run_merge(capsys, plan, folder, product)
    assert code in (1, 2)
    assert str(path) in message


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "0e" * 32}, {"partition": "2020"}, {"vector_dtype": "float16"}, {"dimensions": 16}]
)
def test_shards_of_different_settings_are_refused(broken, changes):
    _, names, folder, product = broken
    write_shard(folder, names[1], GRID[4:8], kiln=shard_metadata(**changes))
    with pytest.raises(ConfigError, match="other settings") as e:
        merge_shards(names, folder, product)
    assert names[1] in str(e.value)


def test_a_ledger_that_disagrees_with_the_rows_is_refused(broken):
    _, names, folder, product = broken
    ledger = folder / f"{names[1]}.ledger.parquet"
    rows = pq.read_table(ledger).to_pylist()
    rows[0]["embedded"] -= 1
    rows[0]["skipped_nodata"] += 1
    write_ledger(ledger, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    with pytest.raises(SourceError, match="expected 479 rows by the ledgers, got 480"):
        merge_shards(names, folder, product)


def test_a_missing_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.ledger.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert f"{names[1]}.ledger.parquet" in message


def test_a_truncated_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[1]}.ledger.parquet"
    path.write_bytes(path.read_bytes()[:300])
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message


# -------------------------------------------------------------------------------------------------- allow-missing


def test_allow_missing_is_recorded_in_record_metadata_and_ledger_page(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, _ = run_merge(capsys, plan, folder, product, "--allow-missing")
    assert code == 0
    record = json.loads(Path(f"{product}.json").read_text())
    assert record["missing_shards"] == [names[1]]
    assert record["rows"] == 320
    kiln = json.loads(pq.read_schema(f"{product}/chips/part-0000.parquet").metadata[b"kiln"])
    assert kiln["missing_shards"] == [names[1]]
    assert "1 shards are missing" in html.unescape(ledger_page([read_record(f"{product}.json")], [product]))


def test_allow_missing_with_nothing_missing_is_the_plain_product(broken, capsys, tmp_path):
    plan, _, folder, product = broken
    assert run_merge(capsys, plan, folder, product)[0] == 0
    assert run_merge(capsys, plan, folder, f"{tmp_path}/other", "--allow-missing")[0] == 0
    assert digests(product) == digests(tmp_path / "other")


def test_allow_missing_without_any_shard_is_an_error(broken, capsys):
    plan, names, folder, product = broken
    for name in names:
        (folder / f"{name}.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product, "--allow-missing")
    assert code == 2
    assert "no shard to merge" in message
