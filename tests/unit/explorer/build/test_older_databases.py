"""Databases that Kiln 0.2 built, without footprints: they are read, and built again when the index is."""

import json

import pytest
import shapely

from kiln.explorer import database
from kiln.explorer.build import builder
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.matrix_cache import open_matrix
from kiln.explorer.search import Query, search
from kiln.formats.fingerprint import digest
from tests.support.builds import build_database, file_times, product_vectors, read_state, read_vectors

REBUILT = "an older Kiln built it without the column geometry; every product is read again"


@pytest.fixture
def old(tmp_path, two, monkeypatch):
    """Build a database of the first product as Kiln 0.2 did: without footprints, and with its state."""

    def old_schema(dim, metadata):
        schema = database.chips_schema(dim, metadata)
        return schema.remove(schema.get_field_index("geometry"))

    db = tmp_path / "db"
    with monkeypatch.context() as patch:
        patch.setattr(builder, "chips_schema", old_schema)
        build_database(db, two[0])
    state, version = read_state(db)
    kiln = ExplorerDatabase(str(db)).table.schema.metadata[b"kiln"].decode()
    (db / "state" / f"{version}.json").write_text(json.dumps(state | {"scope": digest([(), None, kiln])}))
    return db


def footprints(db):
    """Return the stored footprints as WKB, by chip_id."""
    rows = ExplorerDatabase(str(db)).table.search().select(["chip_id", "geometry"]).limit(1000).to_arrow()
    return dict(zip(rows["chip_id"].to_pylist(), rows["geometry"].to_pylist(), strict=True))


def product_footprints(*products):
    """Return the footprints of the products as WKB, by chip_id."""
    rows = [row for p in products for row in p.rows().select(["chip_id", "geometry"]).to_pylist()]
    return {row["chip_id"]: row["geometry"] for row in rows}


def test_the_table_has_the_bytes_of_the_products_footprints(tmp_path, two):
    build_database(tmp_path / "db", *two)
    assert footprints(tmp_path / "db") == product_footprints(*two)


def test_an_older_database_is_searched_as_before(old, two, tmp_path):
    db = ExplorerDatabase(str(old))
    assert not db.has_footprints
    (first, *_) = product_vectors(two[0])
    by_table, by_matrix = (search(db, Query((first,), k=20), m) for m in (None, open_matrix(db, tmp_path / "cache")))
    assert len(by_table.hits) == 20
    assert [h.chip for h in by_table.hits] == [h.chip for h in by_matrix.hits]


@pytest.mark.parametrize("grow", [False, True], ids=["the same products", "one more product"])
def test_the_index_is_built_again_with_footprints_and_a_message(old, two, grow, caplog):
    products = two if grow else two[:1]
    reader = ExplorerDatabase(str(old))
    with caplog.at_level("WARNING"):
        measured = build_database(old, *products)
    assert f"{old}: {REBUILT}" in caplog.text
    assert measured["rows"] == 100 * len(products)
    assert read_vectors(old) == product_vectors(*products)
    assert footprints(old) == product_footprints(*products)
    assert reader.table.count_rows() == 100, "open readers keep the old version"
    before = file_times(old)
    caplog.clear()
    assert build_database(old, *products) == measured
    assert (file_times(old), REBUILT in caplog.text) == (before, False)


def test_a_killed_rebuild_leaves_the_older_version_and_is_done_again(old, two, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(builder, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_database(old, two[0])
    assert not ExplorerDatabase(str(old)).has_footprints
    caplog.clear()
    build_database(old, two[0])
    assert REBUILT in caplog.text
    assert footprints(old) == product_footprints(two[0])


def test_equal_chips_of_an_older_and_a_new_database_have_equal_results(old, two, tmp_path):
    build_database(tmp_path / "new", two[0])
    chip_id = min(product_vectors(two[0]))
    results = [search(ExplorerDatabase(str(db)), Query((chip_id,), k=50)).hits for db in (old, tmp_path / "new")]
    assert results[0] == results[1]
    assert shapely.from_wkb(footprints(tmp_path / "new")[chip_id]).geom_type == "Polygon"
