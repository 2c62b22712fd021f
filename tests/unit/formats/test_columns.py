"""The dictionary of columns: every column of every file is described, and documents repeat the descriptions."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.archives.registry import archives
from kiln.errors import ConfigError
from kiln.formats import columns, embeddings_file, patch_file, vectors
from kiln.formats.columns import TEXTS, ColumnSpec, described_columns, markdown_table, type_text
from kiln.formats.ledger import LEDGER_SCHEMA
from kiln.product.part_writer import product_schema
from tests.support.products import shard_metadata, write_shards

KINDS = [(dtype, embedding) for dtype in vectors.VECTOR_DTYPES for embedding in vectors.EMBEDDINGS]


def assert_described(schema):
    described = described_columns(schema)
    assert [column.name for column in described] == schema.names
    for column in described:
        assert len(column.meaning) > 10
        assert not column.meaning.endswith(".")


@pytest.mark.parametrize("archive", archives())
@pytest.mark.parametrize(("vector_dtype", "embedding"), KINDS)
def test_every_column_of_an_embeddings_file_is_described(archive, vector_dtype, embedding):
    own = archives()[archive].load("columns", "COLUMNS")
    schema = embeddings_file.schema(8, vector_dtype, own, {}, embedding)
    assert_described(schema)
    assert len(set(schema.names)) == len(schema.names)


def test_every_column_of_ledgers_and_patches_is_described():
    assert_described(LEDGER_SCHEMA)
    assert_described(patch_file.schema({"patches": patch_file.patches_metadata({"chip_size": 16}, 8, 4)}))


def test_numbers_with_a_unit_state_it():
    for column in [*columns.PLACE, *(c for a in archives().values() for c in a.load("columns", "COLUMNS"))]:
        if pa.types.is_floating(column.dtype) or pa.types.is_timestamp(column.dtype):
            assert column.unit, column.name


def test_descriptions_are_read_back_from_a_file(tmp_path):
    _, names, folder = write_shards(tmp_path)
    schema = pq.read_schema(folder / f"{names[0]}.parquet")
    assert_described(schema)
    assert schema.field("x0").metadata == {b"description": b"west edge of the chip", b"unit": b"units of crs"}
    ledger = pq.read_schema(folder / f"{names[0]}.ledger.parquet")
    assert ledger.equals(LEDGER_SCHEMA, check_metadata=True)


def test_a_field_without_a_description_is_an_error():
    with pytest.raises(KeyError, match="description"):
        described_columns(pa.schema([pa.field("secret", pa.int32())]))


@pytest.mark.parametrize("extra", [[], [ColumnSpec("secret", pa.int32(), "unknown to the dictionary")]])
def test_shards_with_other_columns_than_the_dictionarys_are_not_merged(tmp_path, extra):
    own = archives()["worldcover"].load("columns", "COLUMNS")
    kiln = shard_metadata()
    schema = embeddings_file.schema(8, "float32", [*own[len(own) - bool(extra) :], *extra], kiln)
    with embeddings_file.ShardWriter(tmp_path / "s.parquet", schema):
        pass
    with pytest.raises(ConfigError, match=r"expected the columns of worldcover, got others .*(secret|year).* Embed"):
        product_schema(tmp_path / "s.parquet", kiln, own)


def test_a_shard_of_a_version_without_descriptions_is_merged(tmp_path):
    _, names, folder = write_shards(tmp_path)
    path = folder / f"{names[0]}.parquet"
    table = pq.read_table(path)
    plain = pa.schema([field.remove_metadata() for field in table.schema], table.schema.metadata)
    pq.write_table(table.cast(plain), path)
    schema = product_schema(path, shard_metadata(), archives()["worldcover"].load("columns", "COLUMNS"))
    assert_described(schema)
    assert schema.names == [*table.column_names, "stac_item"]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (TEXTS, "string (dictionary)"),
        (pa.list_(pa.float16(), 1024), "list of 1024 float16"),
        (pa.list_(pa.string()), "list of string"),
        (columns.BBOX, "struct of float64: xmin, ymin, xmax, ymax"),
        (pa.binary(), "WKB"),
        (pa.timestamp("ms", tz="UTC"), "timestamp[ms, tz=UTC]"),
    ],
)
def test_types_are_in_words(dtype, text):
    assert type_text(dtype) == text


def test_a_table_has_a_row_for_each_column():
    rows = markdown_table([ColumnSpec("a", pa.int8(), "the a", "m", nullable=True, condition="in b")]).splitlines()
    assert rows[2:] == ["| `a` | int8 | m | yes | in b: the a |"]
