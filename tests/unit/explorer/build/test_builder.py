"""Building the database: its content, its growth, disk and S3, and the measured recall."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, KilnError
from kiln.explorer import colours, database
from kiln.explorer.build import builder
from kiln.explorer.database import ExplorerDatabase
from kiln.io import storage
from scripts import build_index
from tests.support.builds import (
    GRID,
    OTHER,
    build_database,
    file_times,
    product_vectors,
    read_state,
    read_vectors,
    seeded_vectors,
)
from tests.support.explorers import similar
from tests.support.products import DIM, WORLD, chip_at, make_product, random_vectors, shard_metadata

# ------------------------------------------------------------------------------------------------------- content


def test_the_table_holds_every_chip_with_its_facts_and_float16_vector(tmp_path, two):
    measured = build_database(tmp_path / "db", *two)
    assert measured["rows"] == 200
    table = ExplorerDatabase(str(tmp_path / "db")).table
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    assert table.schema.remove_metadata().equals(database.chips_schema(DIM, {}).remove_metadata())
    assert read_vectors(tmp_path / "db") == product_vectors(*two)
    (row,) = table.search().where(f"chip_id = '{chip_at(WORLD, 2021, 3, 4).chip_id}'").to_list()
    west, south, east, north = chip_at(WORLD, 2021, 3, 4).footprint.bounds
    assert (row["dataset"], row["year"], row["datetime"].isoformat()) == (
        "worldcover",
        2021,
        "2021-06-01T00:00:00+00:00",
    )
    assert (row["xmin"], row["ymin"], row["xmax"], row["ymax"]) == (west, south, east, north)
    assert (row["lon"], row["lat"]) == ((west + east) / 2, (south + north) / 2)
    assert row["cell"] == "N49W125"
    assert row["source"].startswith("s3://")
    assert row["cloud_fraction"] is None


def test_the_tables_metadata_has_the_settings_of_the_vectors(tmp_path, two):
    build_database(tmp_path / "db", *two)
    (dataset, kiln), *rest = ExplorerDatabase(str(tmp_path / "db")).metadata.items()
    assert (dataset, rest) == ("worldcover", [])
    assert kiln["fingerprint"] == shard_metadata()["fingerprint"]
    assert kiln["weights_sha256"] == shard_metadata()["weights_sha256"]
    assert "sources" not in kiln


def test_filter_columns_have_indexes(tmp_path, two):
    build_database(tmp_path / "db", *two)
    kinds = {i.columns[0]: i.index_type for i in ExplorerDatabase(str(tmp_path / "db")).table.list_indices()}
    assert {k: v.upper() for k, v in kinds.items()} == {
        "cell": "BITMAP", "dataset": "BITMAP", "year": "BITMAP", "chip_id": "BTREE",
    }  # fmt: skip


def test_the_main_writes_a_record_last(tmp_path, two):
    db, record = tmp_path / "db", tmp_path / "index.json"
    build_index.main(["--records", *(m.record_file for m in two), "--db", str(db), "--record", str(record)])
    content = json.loads(record.read_text())
    assert (content["rows"], content["search"], content["recall_at_10"]) == (200, "exact", 1.0)
    assert [p["partition"] for p in content["products"]] == ["2020", "2021"]


def test_a_product_without_chips_makes_a_database_without_chips(tmp_path):
    product = make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True)
    assert build_database(tmp_path / "db", product)["rows"] == 0
    assert read_vectors(tmp_path / "db") == {}


def test_an_empty_product_can_be_indexed_with_a_full_one(tmp_path, two):
    empty = make_product(tmp_path, 2021, columns=GRID[:2], skip=lambda c, r: True)
    assert build_database(tmp_path / "db", two[0], empty)["rows"] == 100


# -------------------------------------------------------------------------------------------------------- growth


def test_a_second_run_changes_nothing(tmp_path, two):
    db = tmp_path / "db"
    first = build_database(db, *two)
    version, before = ExplorerDatabase(str(db)).table.version, file_times(db)
    assert build_database(db, *two[::-1]) == first  # in any order
    assert ExplorerDatabase(str(db)).table.version == version
    assert file_times(db) == before


def test_a_second_run_of_an_indexed_table_changes_nothing(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    db = tmp_path / "db"
    first = build_database(db, many)
    before = file_times(db)
    assert build_database(db, many) == first
    assert file_times(db) == before


def test_a_new_product_is_added_to_the_table(tmp_path, two):
    build_database(tmp_path / "db", two[0])
    assert build_database(tmp_path / "db", *two)["rows"] == 200
    assert read_vectors(tmp_path / "db") == product_vectors(*two)
    chip = chip_at(WORLD, 2021, 7, 7)
    hits = similar(ExplorerDatabase(str(tmp_path / "db")), random_vectors([chip])[0], 1)
    assert hits[0]["chip_id"] == chip.chip_id


def test_only_new_products_are_read_for_their_vectors(tmp_path, two, monkeypatch):
    build_database(tmp_path / "db", two[0])
    read = []
    whole = builder.table_rows
    monkeypatch.setattr(builder, "table_rows", lambda s, *a: read.append(s.partition) or whole(s, *a))
    build_database(tmp_path / "db", *two)
    assert read == ["2021"]


def test_a_grown_product_replaces_changed_rows_and_drops_vanished_ones(tmp_path, two):
    build_database(tmp_path / "db", *two)
    grown = make_product(
        tmp_path,
        2021,
        columns=[Column(k, 0, 10) for k in range(5, 14)],
        vectors=seeded_vectors(1),
        skip=lambda c, r: r == 0,
    )
    assert build_database(tmp_path / "db", two[0], grown)["rows"] == 100 + 81
    assert read_vectors(tmp_path / "db") == product_vectors(two[0], grown)


def test_a_product_that_is_left_out_is_removed(tmp_path, two):
    build_database(tmp_path / "db", *two)
    build_database(tmp_path / "db", two[1])
    assert read_vectors(tmp_path / "db") == product_vectors(two[1])
    build_database(tmp_path / "db", *two)  # it can be added again
    assert read_vectors(tmp_path / "db") == product_vectors(*two)


def test_many_vanished_rows_are_removed(tmp_path):
    """The ids do not fit into one statement."""
    whole = make_product(tmp_path / "a", columns=[Column(k, 0, 60) for k in range(20)])
    part = make_product(tmp_path / "b", columns=[Column(k, 0, 60) for k in range(20)], skip=lambda c, r: r > 2)
    build_database(tmp_path / "db", whole)
    assert build_database(tmp_path / "db", part)["rows"] == 60
    assert read_vectors(tmp_path / "db") == product_vectors(part)


def test_a_reader_keeps_the_version_it_opened(tmp_path, two):
    build_database(tmp_path / "db", two[0])
    reader = ExplorerDatabase(str(tmp_path / "db"))
    build_database(tmp_path / "db", *two)
    assert reader.table.count_rows() == 100
    assert len(similar(reader, random_vectors([chip_at(WORLD, 2020, 1, 1)])[0], 150)) == 100
    assert ExplorerDatabase(str(tmp_path / "db")).table.count_rows() == 200


def test_other_weights_make_a_new_table(tmp_path, two):
    build_database(tmp_path / "db", *two)
    other = make_product(tmp_path, 2021, columns=GRID[:3], kiln=OTHER, vectors=seeded_vectors(2))
    assert build_database(tmp_path / "db", other)["rows"] == 30
    assert read_vectors(tmp_path / "db") == product_vectors(other)
    assert ExplorerDatabase(str(tmp_path / "db")).metadata["worldcover"]["weights_sha256"] == "b6" * 32


def test_another_width_of_vectors_makes_a_new_table(tmp_path, two):
    build_database(tmp_path / "db", *two)
    wide = make_product(tmp_path, 2021, columns=GRID[:3], kiln=shard_metadata(dimensions=16, fingerprint="0e" * 32))
    assert build_database(tmp_path / "db", wide)["rows"] == 30
    assert read_vectors(tmp_path / "db") == product_vectors(wide)


def test_two_weights_together_are_refused(tmp_path, two):
    other = make_product(tmp_path, 2020, columns=GRID[:3], kiln=OTHER)
    with pytest.raises(ConfigError, match=r"two fingerprints|different weights"):
        build_database(tmp_path / "db", two[1], other)
    with pytest.raises(ConfigError, match=r"no explorer database|no finished"):
        ExplorerDatabase(str(tmp_path / "db"))


def test_products_of_two_datasets_with_different_weights_are_refused(tmp_path, two):
    other = make_product(tmp_path, 2020, columns=GRID[:3], kiln=OTHER)
    record = json.loads(Path(other.record_file).read_text()) | {"dataset": "naip"}
    Path(other.record_file).write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="2 different weights"):
        build_database(tmp_path / "db", two[1], other)


def test_two_products_with_the_same_chips_are_refused(tmp_path, two):
    """Two merges of one year, one of them of fewer shards."""
    build_database(tmp_path / "db", two[0])
    part = make_product(tmp_path, 2021, columns=GRID[:3])
    with pytest.raises(KilnError, match=r"two products|2021"):
        build_database(tmp_path / "db", two[1], part)
    assert read_vectors(tmp_path / "db") == product_vectors(two[0])


# ------------------------------------------------------------------------------------------------------------ S3


def test_a_database_on_s3_is_built_grown_and_searched(bucket, tmp_path):
    """Products and database in one bucket, as on AWS Batch."""
    one = make_product(tmp_path, 2020, columns=GRID, product=f"{bucket}/products/2020")
    two = make_product(tmp_path, 2021, columns=GRID, product=f"{bucket}/products/2021")
    db = f"{bucket}/explorer"
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(db)
    assert build_database(db, one)["rows"] == 100
    assert build_database(db, one, two)["rows"] == 200
    before = storage.listing(db)
    assert build_database(db, one, two)["rows"] == 200
    assert storage.listing(db) == before
    chip = chip_at(WORLD, 2021, 7, 7)
    hits = similar(ExplorerDatabase(db), random_vectors([chip])[0], 3)
    assert hits[0]["chip_id"] == chip.chip_id
    assert len(read_vectors(db)) == 200


def test_the_database_on_s3_is_the_one_on_disk(bucket, two, tmp_path):
    build_database(f"{bucket}/explorer", *two)
    build_database(tmp_path / "db", *two)
    assert read_vectors(f"{bucket}/explorer") == read_vectors(tmp_path / "db")


def test_a_path_that_cannot_hold_a_database_is_an_error(tmp_path, two):
    (tmp_path / "db").write_text("a file, not a folder")
    with pytest.raises(KilnError):
        build_database(tmp_path / "db", *two)


def test_float16_products_are_stored_unchanged(tmp_path):
    product = make_product(tmp_path, columns=GRID, kiln=shard_metadata(vector_dtype="float16"))
    build_database(tmp_path / "db", product)
    assert pq.read_schema(f"{product.uri}/chips/part-0000.parquet").field("embeddings").type.value_type == pa.float16()
    assert read_vectors(tmp_path / "db") == product_vectors(product)


def test_a_folder_without_a_version_left_by_a_killed_build_is_rebuilt(tmp_path, two):
    (tmp_path / "db" / "chips.lance" / "data").mkdir(parents=True)
    (tmp_path / "db" / "chips.lance" / "data" / "half.lance").write_bytes(b"half")
    assert build_database(tmp_path / "db", *two)["rows"] == 200
    assert read_vectors(tmp_path / "db") == product_vectors(*two)


# ------------------------------------------------------------------------------------- measurements and colours


def test_time_and_recall_at_the_chosen_settings_are_recorded(tmp_path, two):
    db, record = tmp_path / "db", tmp_path / "index.json"
    build_index.main(["--records", *(m.record_file for m in two), "--db", str(db), "--record", str(record)])
    measured = read_state(db)[0]["measured"]
    assert (measured["rows"], measured["recall_at_10"]) == (200, 1.0)
    assert 0 < measured["query_ms"] < 60_000
    content = json.loads(record.read_text())
    assert content["settings"] == {"probes": database.probes(200), "refine": database.REFINE_FACTOR, "metric": "cosine"}
    assert "query_ms" not in content, "equal runs write equal records"


def test_colours_are_fitted_once_for_a_version_and_again_for_the_next(tmp_path, two):
    db = tmp_path / "db"
    build_database(db, two[0])
    first = read_state(db)[1]
    first_colours = Path(colours.colours_uri(str(db), first)).read_bytes()
    build_database(db, two[0])
    assert Path(colours.colours_uri(str(db), first)).read_bytes() == first_colours
    build_database(db, *two)
    second = read_state(db)[1]
    assert second != first
    assert colours.read_colours(str(db), second)
    assert Path(colours.colours_uri(str(db), first)).read_bytes() == first_colours, (
        "readers of the old version keep their colours"
    )


def test_a_database_without_colours_gets_them(tmp_path, two):
    db = tmp_path / "db"
    build_database(db, *two)
    version = read_state(db)[1]
    Path(colours.colours_uri(str(db), version)).unlink()
    build_database(db, *two)
    assert colours.read_colours(str(db), version)
    assert read_state(db)[1] == version
