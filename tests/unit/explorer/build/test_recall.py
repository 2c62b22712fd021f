"""The recall of the search that a build measures."""

import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, SourceError
from kiln.explorer.build import builder, recall
from kiln.explorer.database import ExplorerDatabase
from tests.support.builds import build_database, read_vectors
from tests.support.explorers import similar
from tests.support.products import make_product, shard_metadata


def test_ivf_sq_is_built_above_the_threshold_and_its_recall_is_true(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    measured = build_database(tmp_path / "db", many)
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
    for q in range(0, 6000, 200):  # compared with a search by NumPy
        best = set(ids[np.argsort(-(unit @ unit[q]), kind="stable")[:10]])
        found += len(best & {r["chip_id"] for r in similar(db, unit[q], 10)})
    assert found / 300 >= 0.95


def test_search_is_exact_below_the_threshold(tmp_path, many):
    measured = build_database(tmp_path / "db", many)
    assert (measured["search"], measured["recall_at_10"]) == ("exact", 1.0)
    assert not ExplorerDatabase(str(tmp_path / "db")).indexed


def test_poor_recall_is_refused_and_readers_keep_the_old_version(tmp_path, two, many, monkeypatch):
    build_database(tmp_path / "db", two[0])
    before = read_vectors(tmp_path / "db")
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    monkeypatch.setattr(builder, "MIN_RECALL", 1.01)
    with pytest.raises(SourceError, match="the old version stays tagged"):
        build_database(tmp_path / "db", many)
    assert read_vectors(tmp_path / "db") == before


@pytest.mark.parametrize(("measured", "good"), [(0.949, False), (0.95, True)])
def test_a_recall_under_095_fails(tmp_path, two, monkeypatch, measured, good):
    monkeypatch.setattr(builder, "measure_recall", lambda chips: {"rows": 100, "recall_at_10": measured})
    if good:
        assert build_database(tmp_path / "db", two[0])["recall_at_10"] == measured
    else:
        with pytest.raises(SourceError, match=r"recall@10 is 0\.949, under 0\.95"):
            build_database(tmp_path / "db", two[0])
        with pytest.raises(ConfigError, match="no finished explorer database"):
            ExplorerDatabase(str(tmp_path / "db"))


def test_recall_is_measured_for_chips_and_for_means_of_marks(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    queries = recall.draw_queries(vectors)
    assert np.linalg.norm(queries, axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    cosine = (queries * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert (cosine > 0.999).sum() in range(50, 75)  # chips, and single likes
    assert (cosine < 0.95).sum() in range(25, 50)  # means


def test_rows_added_later_are_found_through_the_index(tmp_path, many, monkeypatch):
    monkeypatch.setattr(builder, "MIN_INDEXED_ROWS", 2000)
    build_database(tmp_path / "db", many)
    rng = np.random.default_rng(9)
    more = make_product(
        tmp_path, 2020, columns=[Column(k, 0, 50) for k in range(4)], kiln=shard_metadata(dimensions=64),
        vectors=lambda chips: 30 + rng.standard_normal((len(chips), 64)),
    )  # fmt: skip
    measured = build_database(tmp_path / "db", many, more)
    assert (measured["rows"], measured["search"]) == (6200, "IVF_SQ")
    db = ExplorerDatabase(str(tmp_path / "db"))
    hits = similar(db, np.full(64, 30.0), 10)
    assert {h["year"] for h in hits} == {2020}
    stats = db.table.index_stats(next(i.name for i in db.table.list_indices() if i.columns == ["vector"]))
    assert stats.num_unindexed_rows == 0
