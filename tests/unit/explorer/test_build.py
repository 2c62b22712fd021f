"""The explorer database: what is in it, how it grows, what a killed or doubled run leaves, its recall."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, KilnError, SourceError
from kiln.explorer import colours, database
from kiln.explorer.build import Select, build, builder, published, published_sets, recall
from kiln.explorer.database import ExplorerDatabase
from kiln.io import storage
from scripts import build_index
from tests import ROOT
from tests.support.explorers import similar
from tests.support.products import DIM, WORLD, about, chip_at, drawn, make_product

GRID = [Column(k, 0, 10) for k in range(10)]  # 100 chips
OTHER = about(weights_sha256="b6" * 32, fingerprint="0e" * 32)


def build_of(db, *made, **select):
    return build([m.record_file for m in made], [m.uri for m in made], str(db), Select(**select))


def ready(db):
    """What a reader sees: {chip_id: vector}."""
    rows = ExplorerDatabase(str(db)).table.search().limit(1_000_000).to_arrow()
    ids = rows["chip_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, rows["vector"].to_pylist(), strict=True))


def wanted(*made):
    """The same of the products, the later one first."""
    found = {}
    for m in made:
        rows = m.rows()
        found |= dict(zip(rows["chip_id"].to_pylist(), rows["embeddings"].to_pylist(), strict=True))
    return {k: np.float16(v).tolist() for k, v in found.items()}


def files(db):
    return {str(p.relative_to(db)): p.stat().st_mtime_ns for p in Path(db).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same 100 places in 2020 and 2021; read only."""
    run = tmp_path_factory.mktemp("two")
    return make_product(run, 2020, columns=GRID, row_group=30, part_bytes=20_000), make_product(run, 2021, columns=GRID)


def seeded(seed):
    return lambda chips: drawn(chips, DIM, seed)


# ------------------------------------------------------------------------------------------------------- content


def test_the_table_holds_every_chip_with_its_facts_and_float16_vector(tmp_path, two):
    measured = build_of(tmp_path / "db", *two)
    assert measured["rows"] == 200
    table = ExplorerDatabase(str(tmp_path / "db")).table
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    assert table.schema.remove_metadata().equals(database.chips_schema(DIM, {}).remove_metadata())
    assert ready(tmp_path / "db") == wanted(*two)
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


def test_the_tables_metadata_says_how_the_vectors_were_made(tmp_path, two):
    build_of(tmp_path / "db", *two)
    (dataset, kiln), *rest = ExplorerDatabase(str(tmp_path / "db")).metadata.items()
    assert (dataset, rest) == ("worldcover", [])
    assert kiln["fingerprint"] == about()["fingerprint"]
    assert kiln["weights_sha256"] == about()["weights_sha256"]
    assert "sources" not in kiln


def test_filter_columns_have_indexes(tmp_path, two):
    build_of(tmp_path / "db", *two)
    kinds = {i.columns[0]: i.index_type for i in ExplorerDatabase(str(tmp_path / "db")).table.list_indices()}
    assert {k: v.upper() for k, v in kinds.items()} == {
        "cell": "BITMAP", "dataset": "BITMAP", "year": "BITMAP", "chip_id": "BTREE",
    }  # fmt: skip


def test_the_main_writes_a_record_last(tmp_path, two):
    db, record = tmp_path / "db", tmp_path / "index.json"
    build_index.main(["--records", *(m.record_file for m in two), "--db", str(db), "--record", str(record)])
    told = json.loads(record.read_text())
    assert (told["rows"], told["search"], told["recall_at_10"]) == (200, "exact", 1.0)
    assert [p["partition"] for p in told["products"]] == ["2020", "2021"]


def test_a_product_without_chips_makes_a_database_without_chips(tmp_path):
    made = make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True)
    assert build_of(tmp_path / "db", made)["rows"] == 0
    assert ready(tmp_path / "db") == {}


def test_an_empty_product_beside_a_full_one_is_fine(tmp_path, two):
    empty = make_product(tmp_path, 2021, columns=GRID[:2], skip=lambda c, r: True)
    assert build_of(tmp_path / "db", two[0], empty)["rows"] == 100


# ------------------------------------------------------------------------------------------------------- recall


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """6000 chips whose vectors lie in 40 clusters, as scenes do."""
    dim, rng = 64, np.random.default_rng(5)
    centres = rng.standard_normal((40, dim))

    def vectors(chips):
        return centres[rng.integers(0, 40, len(chips))] + 0.5 * rng.standard_normal((len(chips), dim))

    run = tmp_path_factory.mktemp("many")
    columns = [Column(k, 0, 100) for k in range(60)]
    return make_product(run, columns=columns, per_shard=20, kiln=about(dimensions=dim), vectors=vectors)


def test_ivf_sq_is_built_above_the_threshold_and_its_recall_is_true(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    measured = build_of(tmp_path / "db", many)
    assert (measured["rows"], measured["search"]) == (6000, "IVF_SQ")
    assert 0.95 <= measured["recall_at_10"] <= 1
    db = ExplorerDatabase(str(tmp_path / "db"))
    kinds = {i.columns[0]: i.index_type for i in db.table.list_indices()}
    assert kinds["vector"].upper().replace("_", "") == "IVFSQ"
    rows = many.rows()
    ids = np.array(rows["chip_id"].to_pylist())
    unit = np.asarray(rows["embeddings"].combine_chunks().flatten(), np.float16).reshape(6000, -1).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = 0
    for q in range(0, 6000, 200):  # against a search of our own
        best = set(ids[np.argsort(-(unit @ unit[q]), kind="stable")[:10]])
        found += len(best & {r["chip_id"] for r in similar(db, unit[q], 10)})
    assert found / 300 >= 0.95


def test_search_is_exact_below_the_threshold(tmp_path, many):
    measured = build_of(tmp_path / "db", many)
    assert (measured["search"], measured["recall_at_10"]) == ("exact", 1.0)
    assert not ExplorerDatabase(str(tmp_path / "db")).indexed


def test_poor_recall_is_refused_and_readers_keep_the_old_version(tmp_path, two, many, monkeypatch):
    build_of(tmp_path / "db", two[0])
    before = ready(tmp_path / "db")
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    monkeypatch.setattr(builder, "MIN_RECALL", 1.01)
    with pytest.raises(SourceError, match="the old version stays tagged"):
        build_of(tmp_path / "db", many)
    assert ready(tmp_path / "db") == before


@pytest.mark.parametrize(("measured", "good"), [(0.949, False), (0.95, True)])
def test_a_recall_under_095_fails(tmp_path, two, monkeypatch, measured, good):
    monkeypatch.setattr(builder, "measure_recall", lambda chips: {"rows": 100, "recall_at_10": measured})
    if good:
        assert build_of(tmp_path / "db", two[0])["recall_at_10"] == measured
    else:
        with pytest.raises(SourceError, match=r"recall@10 is 0\.949, under 0\.95"):
            build_of(tmp_path / "db", two[0])
        with pytest.raises(ConfigError, match="no finished explorer database"):
            ExplorerDatabase(str(tmp_path / "db"))


def test_recall_is_measured_for_chips_and_for_means_of_marks(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    asked = recall.draw_queries(vectors)
    assert np.linalg.norm(asked, axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    cosine = (asked * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert (cosine > 0.999).sum() in range(50, 75)  # chips, and single likes
    assert (cosine < 0.95).sum() in range(25, 50)  # means


def test_rows_added_later_are_found_through_the_index(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    build_of(tmp_path / "db", many)
    rng = np.random.default_rng(9)
    more = make_product(
        tmp_path, 2020, columns=[Column(k, 0, 50) for k in range(4)], kiln=about(dimensions=64),
        vectors=lambda chips: 30 + rng.standard_normal((len(chips), 64)),
    )  # fmt: skip
    measured = build_of(tmp_path / "db", many, more)
    assert (measured["rows"], measured["search"]) == (6200, "IVF_SQ")
    db = ExplorerDatabase(str(tmp_path / "db"))
    hits = similar(db, np.full(64, 30.0), 10)
    assert {h["year"] for h in hits} == {2020}
    stats = db.table.index_stats(next(i.name for i in db.table.list_indices() if i.columns == ["vector"]))
    assert stats.num_unindexed_rows == 0


# ------------------------------------------------------------------------------------------------------- growth


def test_a_second_run_changes_nothing(tmp_path, two):
    db = tmp_path / "db"
    first = build_of(db, *two)
    version, before = ExplorerDatabase(str(db)).table.version, files(db)
    assert build_of(db, *two[::-1]) == first  # in any order
    assert ExplorerDatabase(str(db)).table.version == version
    assert files(db) == before


def test_a_second_run_of_an_indexed_table_changes_nothing(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    db = tmp_path / "db"
    first = build_of(db, many)
    before = files(db)
    assert build_of(db, many) == first
    assert files(db) == before


def test_a_new_product_is_added_to_what_is_there(tmp_path, two):
    build_of(tmp_path / "db", two[0])
    assert build_of(tmp_path / "db", *two)["rows"] == 200
    assert ready(tmp_path / "db") == wanted(*two)
    chip = chip_at(WORLD, 2021, 7, 7)
    hits = similar(ExplorerDatabase(str(tmp_path / "db")), drawn([chip])[0], 1)
    assert hits[0]["chip_id"] == chip.chip_id


def test_only_new_products_are_read_for_their_vectors(tmp_path, two, monkeypatch):
    build_of(tmp_path / "db", two[0])
    read = []
    whole = builder.table_rows
    monkeypatch.setattr(builder, "table_rows", lambda s, *a: read.append(s.partition) or whole(s, *a))
    build_of(tmp_path / "db", *two)
    assert read == ["2021"]


def test_a_grown_product_replaces_changed_rows_and_drops_vanished_ones(tmp_path, two):
    build_of(tmp_path / "db", *two)
    grown = make_product(
        tmp_path, 2021, columns=[Column(k, 0, 10) for k in range(5, 14)], vectors=seeded(1), skip=lambda c, r: r == 0
    )
    assert build_of(tmp_path / "db", two[0], grown)["rows"] == 100 + 81
    assert ready(tmp_path / "db") == wanted(two[0], grown)


def test_a_product_that_is_left_out_is_removed(tmp_path, two):
    build_of(tmp_path / "db", *two)
    build_of(tmp_path / "db", two[1])
    assert ready(tmp_path / "db") == wanted(two[1])
    build_of(tmp_path / "db", *two)  # and can come back
    assert ready(tmp_path / "db") == wanted(*two)


def test_many_vanished_rows_are_removed(tmp_path):
    """More than one statement's worth of ids."""
    whole = make_product(tmp_path / "a", columns=[Column(k, 0, 60) for k in range(20)])
    part = make_product(tmp_path / "b", columns=[Column(k, 0, 60) for k in range(20)], skip=lambda c, r: r > 2)
    build_of(tmp_path / "db", whole)
    assert build_of(tmp_path / "db", part)["rows"] == 60
    assert ready(tmp_path / "db") == wanted(part)


def test_a_reader_keeps_the_version_it_opened(tmp_path, two):
    build_of(tmp_path / "db", two[0])
    reader = ExplorerDatabase(str(tmp_path / "db"))
    build_of(tmp_path / "db", *two)
    assert reader.table.count_rows() == 100
    assert len(similar(reader, drawn([chip_at(WORLD, 2020, 1, 1)])[0], 150)) == 100
    assert ExplorerDatabase(str(tmp_path / "db")).table.count_rows() == 200


def test_other_weights_make_a_new_table(tmp_path, two):
    build_of(tmp_path / "db", *two)
    other = make_product(tmp_path, 2021, columns=GRID[:3], kiln=OTHER, vectors=seeded(2))
    assert build_of(tmp_path / "db", other)["rows"] == 30
    assert ready(tmp_path / "db") == wanted(other)
    assert ExplorerDatabase(str(tmp_path / "db")).metadata["worldcover"]["weights_sha256"] == "b6" * 32


def test_another_width_of_vectors_makes_a_new_table(tmp_path, two):
    build_of(tmp_path / "db", *two)
    wide = make_product(tmp_path, 2021, columns=GRID[:3], kiln=about(dimensions=16, fingerprint="0e" * 32))
    assert build_of(tmp_path / "db", wide)["rows"] == 30
    assert ready(tmp_path / "db") == wanted(wide)


def test_two_weights_together_are_refused(tmp_path, two):
    other = make_product(tmp_path, 2020, columns=GRID[:3], kiln=OTHER)
    with pytest.raises(ConfigError, match=r"two fingerprints|different weights"):
        build_of(tmp_path / "db", two[1], other)
    with pytest.raises(ConfigError, match=r"no explorer database|no finished"):
        ExplorerDatabase(str(tmp_path / "db"))


def test_products_of_two_datasets_with_different_weights_are_refused(tmp_path, two):
    other = make_product(tmp_path, 2020, columns=GRID[:3], kiln=OTHER)
    record = json.loads(Path(other.record_file).read_text()) | {"dataset": "naip"}
    Path(other.record_file).write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="2 different weights"):
        build_of(tmp_path / "db", two[1], other)


def test_two_products_with_the_same_chips_are_refused(tmp_path, two):
    """Two merges of one year, one of them of fewer shards."""
    build_of(tmp_path / "db", two[0])
    part = make_product(tmp_path, 2021, columns=GRID[:3])
    with pytest.raises(KilnError, match=r"two products|2021"):
        build_of(tmp_path / "db", two[1], part)
    assert ready(tmp_path / "db") == wanted(two[0])


# ----------------------------------------------------------------------------------------------- select and limits


def test_select_takes_datasets_partitions_years_and_bbox(tmp_path, two):
    assert build_of(tmp_path / "a", *two, partitions=("2020",))["rows"] == 100
    assert set(ready(tmp_path / "a")) == set(wanted(two[0]))
    assert build_of(tmp_path / "b", *two, years=(2021,))["rows"] == 100
    assert set(ready(tmp_path / "b")) == set(wanted(two[1]))
    side = 512 / 12000
    box = (-125.0, 50 - 2 * side, -125 + 3 * side, 50.0)
    assert build_of(tmp_path / "c", *two, bbox=box)["rows"] == 2 * 3 * 2
    want = {chip_at(WORLD, y, c, r).chip_id for y in (2020, 2021) for c in range(3) for r in range(2)}
    assert set(ready(tmp_path / "c")) == want
    assert build_of(tmp_path / "d", *two, datasets=("worldcover",), years=(2020, 2021))["rows"] == 200


def test_another_selection_makes_another_content(tmp_path, two):
    build_of(tmp_path / "db", *two, years=(2021,))
    assert build_of(tmp_path / "db", *two)["rows"] == 200
    assert ready(tmp_path / "db") == wanted(*two)
    assert build_of(tmp_path / "db", *two, years=(2020,))["rows"] == 100
    assert ready(tmp_path / "db") == wanted(two[0])


@pytest.mark.parametrize("select", [{"datasets": ("naip",)}, {"partitions": ("1999",)}])
def test_a_selection_of_no_product_is_refused(tmp_path, two, select):
    with pytest.raises(ConfigError, match="leaves no product"):
        build_of(tmp_path / "db", *two, **select)


def test_more_than_max_rows_is_refused_not_cut(tmp_path, two):
    with pytest.raises(ConfigError, match=r"index\.select\.max_rows: expected at most 150 chips, got 200"):
        build_of(tmp_path / "db", *two, max_rows=150)
    assert build_of(tmp_path / "db", *two, max_rows=200)["rows"] == 200


def test_more_than_max_rows_of_a_selection_is_refused_and_the_old_version_stays(tmp_path, two):
    build_of(tmp_path / "db", two[0])
    side = 512 / 12000
    box = (-125.0, 50 - 10 * side, -125 + 4 * side, 50.0)
    with pytest.raises(ConfigError, match=r"max_rows: expected at most 60 chips"):
        build_of(tmp_path / "db", *two, bbox=box, max_rows=60)
    assert ready(tmp_path / "db") == wanted(two[0])
    assert build_of(tmp_path / "db", *two, bbox=box, max_rows=80)["rows"] == 80


def test_growing_past_max_rows_is_refused_and_the_old_version_stays(tmp_path, two):
    build_of(tmp_path / "db", two[0], years=(2020, 2021), max_rows=150)
    with pytest.raises(ConfigError, match="max_rows: expected at most 150 chips, got 200"):
        build_of(tmp_path / "db", *two, years=(2020, 2021), max_rows=150)
    assert ready(tmp_path / "db") == wanted(two[0])


def test_the_main_refuses_an_unknown_key_of_select(tmp_path, two, capsys):
    command = ["--records", two[0].record_file, "--db", str(tmp_path / "db"), "--record", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as e:
        build_index.main([*command, "--select", '{"box": [0, 1, 2, 3]}'])
    assert e.value.code == 2
    assert "unknown box" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


# ----------------------------------------------------------------------------------------------- broken products


def exit_of(capsys, db, *made):
    """Exit status and what a person reads of the script."""
    try:
        build_index.main(["--records", *(m.record_file for m in made), "--db", str(db), "--record", f"{db}.json"])
    except SystemExit as e:
        return e.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_a_truncated_part_is_named(tmp_path, capsys):
    made = make_product(tmp_path, columns=GRID)
    path = Path(made.uri) / "part-0000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    code, said = exit_of(capsys, tmp_path / "db", made)
    assert code == 1
    assert "Traceback" not in said
    assert str(path) in said


def test_a_product_of_another_size_than_its_record_is_named(tmp_path, capsys):
    made = make_product(tmp_path / "a", columns=GRID)
    less = make_product(tmp_path / "b", columns=GRID[:5])
    path = Path(made.uri) / "part-0000.parquet"
    path.write_bytes((Path(less.uri) / "part-0000.parquet").read_bytes())
    code, said = exit_of(capsys, tmp_path / "db", made)
    assert code == 1
    assert "Traceback" not in said
    assert str(path) in said
    assert "Merge the product again" in said


def test_a_missing_part_is_named(tmp_path, capsys):
    made = make_product(tmp_path, columns=GRID, kiln=about(dimensions=256), row_group=20, part_bytes=60_000)
    assert len(made.record["files"]) > 1
    (Path(made.uri) / "part-0001.parquet").unlink()
    code, said = exit_of(capsys, tmp_path / "db", made)
    assert code == 1
    assert "Traceback" not in said
    assert "part-0001.parquet: does not exist" in said


def test_a_vector_beyond_float16_is_named(tmp_path, capsys):
    def huge(chips):
        vectors = drawn(chips)
        vectors[17] *= 1e7
        return vectors

    made = make_product(tmp_path, columns=GRID, vectors=huge)
    code, said = exit_of(capsys, tmp_path / "db", made)
    assert code == 1
    assert "Traceback" not in said
    assert chip_at(WORLD, 2021, 1, 7).chip_id in said
    assert "float16" in said


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"dataset": "worldcover"}', "[]"])
def test_a_record_that_is_none_is_named(tmp_path, capsys, two, text):
    made = make_product(tmp_path, columns=GRID[:2])
    Path(made.record_file).write_text(text)
    code, said = exit_of(capsys, tmp_path / "db", made)
    assert code == 2
    assert made.record_file in said


# -------------------------------------------------------------------------------------------- killed and doubled


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(name):
    """Ends every build that comes to `name`, until it is undone."""
    patch = pytest.MonkeyPatch()

    def end(*args, **kwargs):
        raise Killed

    patch.setattr(builder, name, end)
    return patch


@pytest.mark.parametrize("where", ["create_indexes", "measure"])
def test_a_killed_first_build_is_no_database_and_the_next_run_completes(tmp_path, two, where):
    db = tmp_path / "db"
    patch = killed_at(where)
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(db))
    assert build_of(db, *two)["rows"] == 200
    assert ready(db) == wanted(*two)


@pytest.mark.parametrize("where", ["create_indexes", "measure"])
def test_a_killed_growth_leaves_readers_on_the_old_version_and_the_next_run_completes(tmp_path, two, where):
    db = tmp_path / "db"
    build_of(db, two[0])
    patch = killed_at(where)
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    assert ready(db) == wanted(two[0])
    assert build_of(db, *two)["rows"] == 200
    assert ready(db) == wanted(*two)


def test_a_killed_growth_can_be_taken_back(tmp_path, two):
    """The next run asks for the old products again: nothing of the killed one shows."""
    db = tmp_path / "db"
    build_of(db, two[0])
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    assert build_of(db, two[0])["rows"] == 100
    assert ready(db) == wanted(two[0])


def test_a_killed_build_with_other_weights_never_mixes_with_what_was_there(tmp_path, two):
    """Old product; a new table of other weights dies half-way; then the old products grow."""
    db = tmp_path / "db"
    build_of(db, two[0])
    other = make_product(tmp_path, 2020, columns=GRID, kiln=OTHER, vectors=seeded(2))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, other)
    patch.undo()
    assert ready(db) == wanted(two[0])
    build_of(db, *two)
    assert ready(db) == wanted(*two)
    assert ExplorerDatabase(str(db)).metadata["worldcover"]["weights_sha256"] == about()["weights_sha256"]


def test_a_killed_growth_with_changed_rows_never_mixes_with_what_was_there(tmp_path, two):
    """A changed product dies half-way into the table; then the old one comes back beside a new one."""
    db = tmp_path / "db"
    build_of(db, two[0])
    changed = make_product(tmp_path, 2020, columns=GRID, vectors=seeded(3))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, changed)
    patch.undo()
    build_of(db, *two)
    assert ready(db) == wanted(*two)


def counted(original, done, n):
    """`original`, which notes its call in `done`, or ends the process instead of the n-th."""

    def change(*args, **kwargs):
        if len(done) == n:
            raise Killed
        done.append(original.__name__)
        return original(*args, **kwargs)

    return change


def killed_before(monkeypatch, n):
    """Ends the build before its n-th change of the database; the list returned grows with each."""
    from lancedb.db import LanceDBConnection
    from lancedb.merge import LanceMergeInsertBuilder
    from lancedb.table import LanceTable, Tags

    done = []
    changes = {
        LanceDBConnection: ["create_table"],
        LanceMergeInsertBuilder: ["execute"],
        LanceTable: ["add", "create_index", "delete", "optimize", "restore", "set_unenforced_primary_key"],
        Tags: ["create", "delete", "update"],
    }
    for kind, names in changes.items():
        for name in names:
            monkeypatch.setattr(kind, name, counted(getattr(kind, name), done, n))
    return done


def test_a_run_killed_before_any_of_its_steps_is_mended_by_the_next(tmp_path, two):
    """2020 gives way to 2021 and the run ends anywhere; then both are asked for, then the first again."""
    base = tmp_path / "base"
    build_of(base, two[0])
    old, new, both = wanted(two[0]), wanted(two[1]), wanted(*two)
    for n in range(60):
        db = tmp_path / f"{n}"
        shutil.copytree(base, db)
        with pytest.MonkeyPatch.context() as patch:
            done = killed_before(patch, n)
            try:
                build_of(db, two[1])
            except Killed:
                ended = True
            else:
                ended = False
        assert ready(db) in ((old, new) if ended else (new,)), done
        build_of(db, *two)
        assert ready(db) == both, done
        build_of(db, two[0])
        assert ready(db) == old, done
        if not ended:
            break
    assert n >= 5
    assert not ended


BOTH = """
import sys, time
from pathlib import Path
from scripts import build_index
Path(sys.argv[2]).touch()
while not Path(sys.argv[1]).exists():
    time.sleep(0.005)
build_index.main(sys.argv[3:])
"""


def at_once(tmp_path, commands):
    """Runs the script with each command at the same moment: [(exit status, stderr)]."""
    start = tmp_path / f"start-{time.monotonic_ns()}"
    waiting = [tmp_path / f"{start.name}-{n}" for n in range(len(commands))]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, str(start), str(w), *c],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for w, c in zip(waiting, commands, strict=True)
    ]
    deadline = time.monotonic() + 60
    while not all(w.exists() for w in waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    start.touch()
    ended = []
    for p in running:
        _, err = p.communicate(timeout=60)
        ended.append((p.returncode, err))
    return ended


@pytest.mark.parametrize("fresh", [True, False], ids=["a new database", "a growing one"])
def test_two_runs_at_once_lose_and_double_nothing(tmp_path, two, fresh):
    db = tmp_path / "db"
    if not fresh:
        build_of(db, two[0])
    common = ["--records", *(m.record_file for m in two), "--db", str(db)]
    ended = at_once(tmp_path, [[*common, "--record", f"{tmp_path}/{n}.json"] for n in range(2)])
    for n, (code, err) in enumerate(ended):
        if code:
            assert "Traceback" not in err, err
            assert "error:" in err
            assert not Path(f"{tmp_path}/{n}.json").exists()
    assert build_of(db, *two)["rows"] == 200  # mends what a conflict left undone
    assert ready(db) == wanted(*two)
    latest = lancedb.connect(str(db)).open_table("chips").search().limit(1000).to_arrow()["chip_id"].to_pylist()
    assert len(latest) == len(set(latest)) == 200


# ------------------------------------------------------------------------------------------------------------ S3


def test_a_database_on_s3_is_built_grown_and_searched(bucket, tmp_path):
    """Products and database in one bucket, as on AWS Batch."""
    one = make_product(tmp_path, 2020, columns=GRID, product=f"{bucket}/products/2020")
    two = make_product(tmp_path, 2021, columns=GRID, product=f"{bucket}/products/2021")
    db = f"{bucket}/explorer"
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(db)
    assert build_of(db, one)["rows"] == 100
    assert build_of(db, one, two)["rows"] == 200
    before = storage.listing(db)
    assert build_of(db, one, two)["rows"] == 200
    assert storage.listing(db) == before
    chip = chip_at(WORLD, 2021, 7, 7)
    hits = similar(ExplorerDatabase(db), drawn([chip])[0], 3)
    assert hits[0]["chip_id"] == chip.chip_id
    assert len(ready(db)) == 200


def test_the_database_on_s3_is_the_one_on_disk(bucket, two, tmp_path):
    build_of(f"{bucket}/explorer", *two)
    build_of(tmp_path / "db", *two)
    assert ready(f"{bucket}/explorer") == ready(tmp_path / "db")


def test_a_place_where_no_database_can_be_is_said(tmp_path, two):
    (tmp_path / "db").write_text("a file, not a folder")
    with pytest.raises(KilnError):
        build_of(tmp_path / "db", *two)


def test_float16_products_are_taken_as_they_are(tmp_path):
    made = make_product(tmp_path, columns=GRID, kiln=about(storage="float16"))
    build_of(tmp_path / "db", made)
    assert pq.read_schema(f"{made.uri}/part-0000.parquet").field("embeddings").type.value_type == pa.float16()
    assert ready(tmp_path / "db") == wanted(made)


def test_a_folder_that_a_killed_maker_left_without_a_version_is_built_anew(tmp_path, two):
    (tmp_path / "db" / "chips.lance" / "data").mkdir(parents=True)
    (tmp_path / "db" / "chips.lance" / "data" / "half.lance").write_bytes(b"half")
    assert build_of(tmp_path / "db", *two)["rows"] == 200
    assert ready(tmp_path / "db") == wanted(*two)


# ------------------------------------------------------------------------------------------- what is measured, colours


def state_of(db):
    """What lies beside the tagged version."""
    version = ExplorerDatabase(str(db)).table.version
    return json.loads((Path(db) / "state" / f"{version}.json").read_text()), version


def test_time_and_recall_at_the_chosen_settings_are_recorded(tmp_path, two):
    db, record = tmp_path / "db", tmp_path / "index.json"
    build_index.main(["--records", *(m.record_file for m in two), "--db", str(db), "--record", str(record)])
    measured = state_of(db)[0]["measured"]
    assert (measured["rows"], measured["recall_at_10"]) == (200, 1.0)
    assert 0 < measured["query_ms"] < 60_000
    told = json.loads(record.read_text())
    assert told["settings"] == {"probes": database.probes(200), "refine": database.REFINE_FACTOR, "metric": "cosine"}
    assert "query_ms" not in told, "equal runs write equal records"


def test_colours_are_fitted_once_for_a_version_and_again_for_the_next(tmp_path, two):
    db = tmp_path / "db"
    build_of(db, two[0])
    first = state_of(db)[1]
    kept = Path(colours.colours_uri(str(db), first)).read_bytes()
    build_of(db, two[0])
    assert Path(colours.colours_uri(str(db), first)).read_bytes() == kept
    build_of(db, *two)
    second = state_of(db)[1]
    assert second != first
    assert colours.read_colours(str(db), second)
    assert Path(colours.colours_uri(str(db), first)).read_bytes() == kept, "readers of the old version keep theirs"


def test_a_database_of_before_there_were_colours_gets_them(tmp_path, two):
    db = tmp_path / "db"
    build_of(db, *two)
    version = state_of(db)[1]
    Path(colours.colours_uri(str(db), version)).unlink()
    build_of(db, *two)
    assert colours.read_colours(str(db), version)
    assert state_of(db)[1] == version


# ------------------------------------------------------------------------------------------------ published files


ENTRY = {"name": "tiles", "layout": "earth-index", "model": "another model"}


def publish(folder, tile, count, dim=DIM, seed=0):
    """A file as Earth Index writes them; its vectors."""
    folder.mkdir(exist_ok=True)
    made = np.random.default_rng([seed, count]).standard_normal((count, dim)).astype(np.float32)
    rows = {
        "id": [f"{tile}-{k}" for k in range(count)],
        "embedding": list(made),
        "geometry": shapely.to_wkb([shapely.Point(30.05 + k / 10, -10.5) for k in range(count)]).tolist(),
    }
    pq.write_table(pa.table(rows), folder / f"{tile}_2024-01-01_2025-01-01.parquet")
    return {f"tiles:{i}": v for i, v in zip(rows["id"], np.float16(made).tolist(), strict=True)}


def published_of(folder, **changes):
    return published.files_of(published_sets.read_sets([ENTRY | {"files": str(folder)} | changes]))


def test_a_folder_of_published_files_becomes_an_explorer_in_one_command(tmp_path):
    wanted = publish(tmp_path / "synced", "36LXK", 12) | publish(tmp_path / "synced", "36LYK", 7)
    told = json.dumps([ENTRY | {"files": str(tmp_path / "synced")}])
    db = tmp_path / "db"
    build_index.main(["--published", told, "--db", str(db), "--record", str(tmp_path / "r.json")])
    assert ready(db) == wanted
    reader = ExplorerDatabase(str(db))
    (chip,), vectors = reader.chips(["tiles:36LXK-3"])
    assert (chip.dataset, chip.year, chip.nodata_fraction) == ("tiles", 2024, None)
    assert reader.column("cell").to_pylist()[0] == "S11E030"
    assert chip.source.endswith("synced/36LXK_2024-01-01_2025-01-01.parquet")
    assert similar(reader, vectors[0], 1)[0]["chip_id"] == "tiles:36LXK-3"
    assert {k: reader.metadata["tiles"][k] for k in ("model", "dimensions")} == {
        "model": "another model",
        "dimensions": 8,
    }
    assert len(json.loads((tmp_path / "r.json").read_text())["published"]) == 2


def test_published_files_grow_change_and_vanish(tmp_path, monkeypatch):
    folder, db = tmp_path / "synced", tmp_path / "db"
    first = publish(folder, "36LXK", 12)
    build([], [], str(db), Select(), published_of(folder))
    second = publish(folder, "36LYK", 7)
    read = []
    whole = builder.table_rows
    monkeypatch.setattr(builder, "table_rows", lambda s, *a: read.append(s.partition[:5]) or whole(s, *a))
    build([], [], str(db), Select(), published_of(folder))
    assert ready(db) == first | second
    assert read == ["36LYK"], "only what is new"
    changed = publish(folder, "36LXK", 9, seed=1)
    build([], [], str(db), Select(), published_of(folder))
    assert ready(db) == changed | second
    (folder / "36LYK_2024-01-01_2025-01-01.parquet").unlink()
    build([], [], str(db), Select(), published_of(folder))
    assert ready(db) == changed
    before = files(db)
    build([], [], str(db), Select(), published_of(folder))
    assert files(db) == before


def test_select_and_max_rows_hold_for_published_files(tmp_path):
    publish(tmp_path / "synced", "36LXK", 12)
    made = published_of(tmp_path / "synced")
    assert build([], [], str(tmp_path / "a"), Select(bbox=(30, -11, 30.5, -10)), made)["rows"] == 5
    with pytest.raises(ConfigError, match="leaves no chip"):
        build([], [], str(tmp_path / "b"), Select(years=(2019,)), made)
    with pytest.raises(ConfigError, match=r"max_rows: expected at most 11 chips, got 12"):
        build([], [], str(tmp_path / "c"), Select(max_rows=11), made)


def test_ids_that_come_twice_in_published_files_are_refused(tmp_path):
    publish(tmp_path / "synced", "36LXK", 5)
    publish(tmp_path / "synced" / "again", "36LXK", 3)
    with pytest.raises(SourceError, match=r"tiles:36LXK-0 is there already"):
        build([], [], str(tmp_path / "db"), Select(), published_of(tmp_path / "synced"))


def test_dropped_rows_are_told(tmp_path, caplog):
    publish(tmp_path / "synced", "36LXK", 5)
    path = tmp_path / "synced" / "36LXK_2024-01-01_2025-01-01.parquet"
    rows = pq.read_table(path)
    vectors = np.array(rows["embedding"].to_pylist())
    vectors[2] = np.nan
    pq.write_table(rows.set_column(1, "embedding", pa.array(vectors.tolist())), path)
    with caplog.at_level("WARNING"):
        assert build([], [], str(tmp_path / "db"), Select(), published_of(tmp_path / "synced"))["rows"] == 4
    assert "tiles: 1 rows dropped: the vector is missing, not finite or beyond float16" in caplog.text


def test_published_vectors_of_another_model_or_length_are_never_beside_others(tmp_path, two):
    publish(tmp_path / "synced", "36LXK", 5)
    publish(tmp_path / "wide", "36LYK", 5, dim=16)
    record, product = [two[0].record_file], [two[0].uri]
    with pytest.raises(ConfigError, match=r"tiles: another model, 8 numbers; worldcover: Clay v1\.5, class, 8 numbers"):
        build(record, product, str(tmp_path / "db"), Select(), published_of(tmp_path / "synced"))
    both = [*published_of(tmp_path / "synced"), *published_of(tmp_path / "wide", name="wide")]
    with pytest.raises(ConfigError, match="2 different weights, kinds or lengths"):
        build([], [], str(tmp_path / "db"), Select(), both)
    assert not (tmp_path / "db").exists()


def test_published_vectors_of_the_same_weights_are_searched_with_kilns_own(tmp_path, two):
    publish(tmp_path / "synced", "36LXK", 5)
    same = {"model": "Clay v1.5", "weights": about()["weights_sha256"], "embedding": "class"}
    build([two[0].record_file], [two[0].uri], str(tmp_path / "db"), Select(), published_of(tmp_path / "synced", **same))
    hits = similar(ExplorerDatabase(str(tmp_path / "db")), np.ones(DIM), 105)
    assert {h["dataset"] for h in hits} == {"worldcover", "tiles"}
    assert len(hits) == 105


def test_a_table_of_several_models_is_refused(tmp_path, two):
    """No build writes one; a table from elsewhere is not opened."""
    db = tmp_path / "db"
    build_of(db, two[0])
    table = lancedb.connect(str(db)).open_table("chips")
    rows = table.search().limit(100).to_arrow()
    names = pa.array(["worldcover"] * 50 + ["tiles"] * 50)
    told = json.dumps({"worldcover": about(), "tiles": about(model="another model")})
    mixed = rows.set_column(rows.schema.get_field_index("dataset"), "dataset", names)
    other = lancedb.connect(str(tmp_path / "mixed")).create_table(
        "chips", mixed.replace_schema_metadata({"kiln": told})
    )
    other.tags.create("ready", other.version)
    with pytest.raises(ConfigError, match="expected vectors of one model, got 2"):
        ExplorerDatabase(str(tmp_path / "mixed"))


def test_nothing_to_index_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        build_index.main(["--db", str(tmp_path / "db"), "--record", str(tmp_path / "r.json")])
    assert e.value.code == 2
    assert "nothing to index" in capsys.readouterr().err


# ------------------------------------------------------------------------------- types and kinds of vectors in files


INT8 = about(fingerprint="2b" * 32, storage="int8", embedding="both")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """100 places with class tokens and means, both as int8."""
    return make_product(tmp_path_factory.mktemp("both"), columns=GRID, kiln=INT8)


def numbers(made, column="embeddings"):
    """What a product's int8 stand for, in float16, by chip."""
    rows = made.rows()
    levels = np.array(rows[column].to_pylist(), np.float32)
    scale = rows["scale" if column == "embeddings" else "scale_mean"].to_numpy()
    return dict(zip(rows["chip_id"].to_pylist(), np.float16(levels * scale[:, None]).tolist(), strict=True))


@pytest.mark.parametrize(
    ("kind", "column"), [(None, "embeddings"), ("class", "embeddings"), ("mean", "embeddings_mean")], ids=str
)
def test_int8_becomes_float16_and_one_kind_of_both_is_searched_with(tmp_path, both, kind, column):
    db, record = tmp_path / "db", tmp_path / "r.json"
    select = json.dumps({"embedding": kind})
    build_index.main(["--records", both.record_file, "--db", str(db), "--record", str(record), "--select", select])
    assert ready(db) == numbers(both, column)
    assert ExplorerDatabase(str(db)).metadata["worldcover"]["embedding"] == (kind or "class")
    assert json.loads(record.read_text())["embedding"] == {"worldcover": kind or "class"}
    chip_id, vector = next(iter(numbers(both, column).items()))
    assert similar(ExplorerDatabase(str(db)), vector, 1)[0]["chip_id"] == chip_id


def test_vectors_of_int8_are_near_those_that_were_rounded(tmp_path, both):
    build_of(tmp_path / "db", both)
    for row in range(10):
        chip = chip_at(WORLD, 2021, 4, row)
        exact = drawn([chip])[0]
        assert np.abs(ready(tmp_path / "db")[chip.chip_id] - exact).max() <= np.abs(exact).max() / 254 * 1.1


def test_another_kind_is_a_new_table_and_never_beside_the_first(tmp_path, both):
    db = tmp_path / "db"
    first = build_of(db, both)
    second = build_of(db, both, embedding="mean")
    assert first["state"] != second["state"]
    assert ready(db) == numbers(both, "embeddings_mean")
    assert build_of(db, both)["state"] == first["state"]
    assert ready(db) == numbers(both)


def test_a_kind_that_products_do_not_hold_is_refused(tmp_path, two, both):
    with pytest.raises(ConfigError, match=r"2020: its vectors are of kind class, not mean: change index\.select"):
        build_of(tmp_path / "db", two[0], embedding="mean")
    with pytest.raises(ConfigError, match=r"index\.select\.embedding: expected class or mean, got 'best'"):
        build_of(tmp_path / "db", both, embedding="best")
    assert not (tmp_path / "db").exists()


def test_means_are_never_beside_class_tokens_of_the_same_weights(tmp_path, both):
    publish(tmp_path / "synced", "36LXK", 5)
    told = {"model": "Clay v1.5", "weights": about()["weights_sha256"], "embedding": "class"}
    theirs = published_of(tmp_path / "synced", **told)
    with pytest.raises(ConfigError, match=r"tiles: Clay v1\.5, class, 8 numbers; worldcover: Clay v1\.5, mean, 8"):
        build([both.record_file], [both.uri], str(tmp_path / "db"), Select(embedding="mean"), theirs)
    build([both.record_file], [both.uri], str(tmp_path / "db"), Select(), theirs)
    assert len(ready(tmp_path / "db")) == 105
