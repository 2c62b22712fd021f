"""Parquet files with checksums: no damage passes as other rows or metadata."""

import ast
import hashlib
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.errors import SourceError
from kiln.formats import footer_digest, parquet
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.ledger import LEDGER_SCHEMA, read_ledger, write_ledger
from tests import ROOT

SEEDS = 150
HEADER_BYTES = 24  # of the page of a dictionary, at least


def a_table(rows=200):
    rng = np.random.default_rng(0)
    vectors = pa.array(rng.normal(size=rows * 8).astype(np.float16))
    columns = {
        "chip_id": [f"naip:sd:2018:{n}" for n in range(rows)],
        "item_id": pa.array([f"m_{n % 3}" for n in range(rows)]).dictionary_encode(),
        "embeddings": pa.FixedSizeListArray.from_arrays(vectors, 8),
        "datetime": pa.array([None if n % 5 else n for n in range(rows)], pa.timestamp("ms", "UTC")),
    }
    return pa.table(columns).replace_schema_metadata({"kiln": '{"fingerprint": "0123456789abcdef"}'})


def write(path, table=None, groups=2):
    table = a_table() if table is None else table
    with GeoParquetWriter(path, table.schema, geometry="chip_id", box=None) as file:
        for _ in range(groups):
            file.write(table, Extent())
    return path


def content(path):
    """Return everything that readers take from a file: rows, metadata and statistics."""
    file = parquet.open_file(path)
    rows = pa.Table.from_batches(list(parquet.read_batches(path, 1000)), file.schema_arrow)
    groups = [file.metadata.row_group(g).to_dict() for g in range(file.num_row_groups)]
    return rows.to_pylist(), file.schema_arrow.metadata, groups


def damaged(data, seed):
    """Return a copy of a file with a flipped bit, a zeroed or random stretch, or one that is cut out."""
    rng, copy = random.Random(seed), bytearray(data)
    start = rng.randrange(len(copy))
    kind = rng.choice(("bit", "zeros", "noise", "cut"))
    if kind == "bit":
        copy[start] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del copy[start : start + rng.randrange(1, 64)]
    else:
        length = min(rng.randrange(1, 512), len(copy) - start)
        copy[start : start + length] = bytes(length) if kind == "zeros" else rng.randbytes(length)
    return bytes(copy)


def assert_no_silent_change(path, data, expected):
    path.write_bytes(data)
    try:
        assert content(path) == expected, "damage changed the content without an error"
    except SourceError as e:
        if not re.match(rf"{re.escape(str(path))}: expected .*, got .*\. \w", str(e)):
            pytest.fail(f"the error names no file or advice: {e}")


def test_no_seeded_damage_changes_rows_metadata_or_statistics_unseen(tmp_path):
    data, expected = (path := write(tmp_path / "a.parquet")).read_bytes(), content(path)
    for seed in range(SEEDS):
        assert_no_silent_change(tmp_path / "damaged.parquet", damaged(data, seed), expected)


def test_no_flipped_bit_in_the_header_of_a_dictionary_passes(tmp_path):
    """Headers of pages have no checksums. This one decides how many entries a dictionary has."""
    data, expected = (path := write(tmp_path / "a.parquet", groups=1)).read_bytes(), content(path)
    start = parquet.open_file(path).metadata.row_group(0).column(1).dictionary_page_offset
    for place in range(8 * start, 8 * (start + HEADER_BYTES)):
        copy = bytearray(data)
        copy[place // 8] ^= 1 << place % 8
        assert_no_silent_change(tmp_path / "damaged.parquet", bytes(copy), expected)


def test_a_flipped_bit_of_a_page_is_found_by_each_way_to_read(tmp_path):
    path = write(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    chunk = parquet.open_file(path).metadata.row_group(1).column(2)
    data[chunk.data_page_offset + chunk.total_compressed_size - 5] ^= 1
    path.write_bytes(data)
    for read in (lambda: list(parquet.read_batches(path, 100)), lambda: parquet.read_table(path)):
        with pytest.raises(SourceError, match=r"a\.parquet: expected a Parquet file, got a damaged one .*CRC"):
            read()


def test_a_changed_digit_of_the_footer_is_found_before_it_is_parsed(tmp_path):
    path = write(tmp_path / "a.parquet")
    data = path.read_bytes()
    footer_at = data.rindex(b'{"fingerprint"')
    path.write_bytes(data[:footer_at] + data[footer_at:].replace(b"0123456789", b"1123456789", 1))
    assert b"1123456789" in (pq.read_metadata(path).metadata or {})[b"kiln"]  # Parquet itself does not notice
    for read in (parquet.open_file, parquet.read_schema, parquet.read_table):
        with pytest.raises(SourceError, match=r"a\.parquet: expected .*another digest\)\. Copy it again\."):
            read(path, advice="Copy it again.")


def test_a_footer_longer_than_one_read_is_checked_too(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")
    expected = content(path)
    monkeypatch.setattr(footer_digest, "READ_BYTES", 100)
    assert content(path) == expected
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"1123456789"))
    with pytest.raises(SourceError, match="another digest"):
        parquet.open_file(path)


def test_the_digest_is_that_of_the_footer_with_zeros_in_its_place(tmp_path):
    path = write(tmp_path / "a.parquet")
    data = path.read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    length, digest = pq.read_metadata(path).metadata[footer_digest.KEY.encode()].decode().split(":")
    assert int(length) == len(footer)
    blank = footer.replace(f"{length}:{digest}".encode(), footer_digest.PLACEHOLDER.encode())
    assert hashlib.sha256(blank).hexdigest() == digest


def test_equal_rows_are_equal_bytes(tmp_path):
    assert write(tmp_path / "a.parquet").read_bytes() == write(tmp_path / "b.parquet").read_bytes()


def test_files_without_checksums_are_read(tmp_path):
    pq.write_table(a_table(), tmp_path / "old.parquet")
    assert parquet.read_table(tmp_path / "old.parquet").equals(a_table())
    assert sum(map(len, parquet.read_batches(tmp_path / "old.parquet", 64))) == 200


def test_a_copy_by_another_program_is_read_though_it_keeps_the_metadata(tmp_path):
    path = write(tmp_path / "a.parquet")
    metadata = pq.read_metadata(path).metadata
    table = pq.read_table(path).slice(0, 17).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "copy.parquet", compression="snappy")
    assert footer_digest.KEY.encode() in pq.read_metadata(tmp_path / "copy.parquet").metadata
    assert len(parquet.read_table(tmp_path / "copy.parquet")) == 17


def test_a_file_that_fails_while_it_is_written_is_not_completed(tmp_path):
    with pytest.raises(ValueError, match="schema"), GeoParquetWriter(tmp_path / "a.parquet", a_table().schema) as file:
        file.write(pa.table({"other": [1]}), Extent())
    assert footer_digest.KEY.encode() not in pq.read_metadata(tmp_path / "a.parquet").metadata


def test_ledgers_have_checksums(tmp_path):
    path = tmp_path / "a.ledger.parquet"
    row = {field.name: 1 if pa.types.is_integer(field.type) else "x" for field in LEDGER_SCHEMA}
    rows = [row | {"status": "embedded", "expected_known": True, "unit_id": f"u{n}"} for n in range(40)]
    write_ledger(path, pa.Table.from_pylist(rows, LEDGER_SCHEMA))
    data, expected = path.read_bytes(), read_ledger(path).to_pylist()
    for seed in range(SEEDS // 2):
        path.write_bytes(damaged(data, seed))
        try:
            assert read_ledger(path, "s3://b/a.ledger.parquet").to_pylist() == expected
        except SourceError as e:
            if not str(e).startswith("s3://b/a.ledger.parquet: expected"):
                pytest.fail(f"the error names another file: {e}")


def test_no_other_module_calls_the_readers_and_writers_of_pyarrow():
    calls = []
    for path in sorted((ROOT / "kiln").rglob("*.py")):
        if path == Path(parquet.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = f"{getattr(node.func.value, 'id', '')}.{node.func.attr}"
                if re.fullmatch(r"pq\..*|ds\.dataset|\w+\.(read_parquet|to_parquet)", name):
                    calls.append(f"{path.relative_to(ROOT)}: {name}")
    assert calls == [], "use kiln/formats/parquet.py, which writes and verifies checksums"
