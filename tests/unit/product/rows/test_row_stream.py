"""Rows in batches: of all parts, in order, with a batch at a time in memory, by ranges."""

import weakref
from pathlib import Path

import pyarrow as pa
import pytest

from kiln.errors import ConfigError, SourceError
from kiln.io import storage
from kiln.io.range_file import RangeFile
from kiln.product.rows.row_filter import RowFilter
from kiln.product.rows.row_stream import open_rows
from tests.support.exports import write_chips


def test_batches_are_the_rows_of_all_parts_in_order(grid):
    rows = open_rows(grid.record_file)
    batches = list(rows.batches(["row", "chip_id", "embeddings"], batch_rows=64))
    assert max(map(len, batches)) <= 64
    table = pa.concat_tables(batches)
    expected = grid.rows()
    assert table.equals(expected.select(["chip_id", "embeddings", "row"]).replace_schema_metadata(None))
    assert rows.rows == rows.rows_to_read == len(expected)
    assert rows.metadata["fingerprint"] == "f1" * 32
    assert rows.geometry_types == {"Polygon"}


def test_one_batch_at_a_time_is_in_memory(grid):
    alive = []
    for batch in open_rows(grid.record_file, RowFilter(max_nodata=1)).batches(["embeddings"], batch_rows=50):
        assert sum(reference() is not None for reference in alive) <= 1  # the earlier one, until the loop rebinds
        alive.append(weakref.ref(batch))
    assert len(alive) > 10


def test_progress_counts_every_row_that_was_read_or_passed_over(tmp_path):
    write_chips(tmp_path / "chips.parquet", 400)
    for rule in (RowFilter(), RowFilter(bbox=(10, -40, 90, 0)), RowFilter(chip_ids=frozenset(["u:20"]))):
        counts = []
        rows = open_rows(str(tmp_path / "chips.parquet"), rule)
        list(rows.batches(["chip_id"], 7, counts.append))
        assert sum(counts) == rows.rows_to_read


def test_vectors_on_s3_are_read_only_where_a_row_passes(grid, bucket, monkeypatch):
    for file in grid.record["files"]:
        storage.write_bytes(f"{bucket}/p/{file['name']}", (Path(grid.uri) / file["name"]).read_bytes())
    storage.write_bytes(f"{bucket}/p.json", Path(grid.record_file).read_bytes())
    chip_id, sizes, read = grid.rows()["chip_id"][700].as_py(), [], RangeFile.read
    monkeypatch.setattr(RangeFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n))
    stream = open_rows(f"{bucket}/p.json", RowFilter(chip_ids=frozenset([chip_id])))
    (batch,) = stream.batches(["chip_id", "embeddings"])
    assert batch["chip_id"].to_pylist() == [chip_id]
    assert sum(sizes) < sum(file["size"] for file in grid.record["files"]) / 4


def test_a_file_that_changes_after_its_footer_was_read_is_an_error(tmp_path, bucket):
    write_chips(tmp_path / "chips.parquet", 40)
    data = (tmp_path / "chips.parquet").read_bytes()
    storage.write_bytes(f"{bucket}/chips.parquet", data)
    rows = open_rows(f"{bucket}/chips.parquet")
    storage.write_bytes(f"{bucket}/chips.parquet", data + b"x")
    with pytest.raises(SourceError, match="changed while it was read"):
        list(rows.batches(["chip_id"]))


def test_unknown_columns_are_refused(grid):
    with pytest.raises(ConfigError, match=r"expected columns of the product, got nothing\. It has chip_id, "):
        list(open_rows(grid.record_file).batches(["chip_id", "nothing"]))
