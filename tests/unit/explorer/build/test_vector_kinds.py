"""Types and kinds of vectors in products."""

import json

import numpy as np
import pytest

from kiln.errors import ConfigError
from kiln.explorer.build import Select, build
from kiln.explorer.database import ExplorerDatabase
from scripts import build_index
from tests.support.builds import (
    build_database,
    dequantised_vectors,
    find_published,
    read_vectors,
    write_published,
)
from tests.support.explorers import similar
from tests.support.products import WORLD, chip_at, random_vectors, shard_metadata


@pytest.mark.parametrize(
    ("kind", "column"), [(None, "embeddings"), ("class", "embeddings"), ("mean", "embeddings_mean")], ids=str
)
def test_int8_becomes_float16_and_one_kind_of_two_is_indexed(tmp_path, both, kind, column):
    db, record = tmp_path / "db", tmp_path / "r.json"
    select = json.dumps({"embedding": kind})
    build_index.main(["--records", both.record_file, "--db", str(db), "--record", str(record), "--select", select])
    assert read_vectors(db) == dequantised_vectors(both, column)
    assert ExplorerDatabase(str(db)).metadata["worldcover"]["embedding"] == (kind or "class")
    assert json.loads(record.read_text())["embedding"] == {"worldcover": kind or "class"}
    chip_id, vector = next(iter(dequantised_vectors(both, column).items()))
    assert similar(ExplorerDatabase(str(db)), vector, 1)[0]["chip_id"] == chip_id


def test_vectors_of_int8_are_near_the_exact_ones(tmp_path, both):
    build_database(tmp_path / "db", both)
    for row in range(10):
        chip = chip_at(WORLD, 2021, 4, row)
        exact = random_vectors([chip])[0]
        assert np.abs(read_vectors(tmp_path / "db")[chip.chip_id] - exact).max() <= np.abs(exact).max() / 254 * 1.1


def test_another_kind_makes_a_new_table(tmp_path, both):
    db = tmp_path / "db"
    first = build_database(db, both)
    second = build_database(db, both, embedding="mean")
    assert first["state"] != second["state"]
    assert read_vectors(db) == dequantised_vectors(both, "embeddings_mean")
    assert build_database(db, both)["state"] == first["state"]
    assert read_vectors(db) == dequantised_vectors(both)


def test_a_kind_that_products_do_not_hold_is_refused(tmp_path, two, both):
    with pytest.raises(ConfigError, match=r"2020: expected vectors of kind mean, got class\. Change index\.select"):
        build_database(tmp_path / "db", two[0], embedding="mean")
    with pytest.raises(ConfigError, match=r"index\.select\.embedding: expected class or mean, got 'best'"):
        build_database(tmp_path / "db", both, embedding="best")
    assert not (tmp_path / "db").exists()


def test_means_and_class_tokens_of_the_same_weights_are_refused_together(tmp_path, both):
    write_published(tmp_path / "synced", "36LXK", 5)
    identity = {"model": "Clay v1.5", "weights": shard_metadata()["weights_sha256"], "embedding": "class"}
    published = find_published(tmp_path / "synced", **identity)
    with pytest.raises(ConfigError, match=r"tiles: Clay v1\.5, class, 8 numbers; worldcover: Clay v1\.5, mean, 8"):
        build([both.record_file], [both.uri], str(tmp_path / "db"), Select(embedding="mean"), published)
    build([both.record_file], [both.uri], str(tmp_path / "db"), Select(), published)
    assert len(read_vectors(tmp_path / "db")) == 105
