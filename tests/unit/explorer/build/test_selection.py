"""Which rows a database takes, and products that are refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kiln.errors import ConfigError
from kiln.io import storage
from scripts import build_index
from tests.support.builds import GRID, build_database, product_vectors, read_vectors
from tests.support.products import WORLD, chip_at, make_product, random_vectors, shard_metadata

# --------------------------------------------------------------------------------------------- select and limits


def test_select_takes_datasets_partitions_years_and_bbox(tmp_path, two):
    assert build_database(tmp_path / "a", *two, partitions=("2020",))["rows"] == 100
    assert set(read_vectors(tmp_path / "a")) == set(product_vectors(two[0]))
    assert build_database(tmp_path / "b", *two, years=(2021,))["rows"] == 100
    assert set(read_vectors(tmp_path / "b")) == set(product_vectors(two[1]))
    side = 512 / 12000
    box = (-125.0, 50 - 2 * side, -125 + 3 * side, 50.0)
    assert build_database(tmp_path / "c", *two, bbox=box)["rows"] == 2 * 3 * 2
    want = {chip_at(WORLD, y, c, r).chip_id for y in (2020, 2021) for c in range(3) for r in range(2)}
    assert set(read_vectors(tmp_path / "c")) == want
    assert build_database(tmp_path / "d", *two, datasets=("worldcover",), years=(2020, 2021))["rows"] == 200


def test_another_selection_changes_the_rows(tmp_path, two):
    build_database(tmp_path / "db", *two, years=(2021,))
    assert build_database(tmp_path / "db", *two)["rows"] == 200
    assert read_vectors(tmp_path / "db") == product_vectors(*two)
    assert build_database(tmp_path / "db", *two, years=(2020,))["rows"] == 100
    assert read_vectors(tmp_path / "db") == product_vectors(two[0])


@pytest.mark.parametrize("select", [{"datasets": ("naip",)}, {"partitions": ("1999",)}])
def test_a_selection_of_no_product_is_refused(tmp_path, two, select):
    with pytest.raises(ConfigError, match="leaves no product"):
        build_database(tmp_path / "db", *two, **select)


def test_more_than_max_rows_is_refused_not_cut(tmp_path, two):
    with pytest.raises(ConfigError, match=r"index\.select\.max_rows: expected at most 150 chips, got 200"):
        build_database(tmp_path / "db", *two, max_rows=150)
    assert build_database(tmp_path / "db", *two, max_rows=200)["rows"] == 200


def test_more_than_max_rows_of_a_selection_is_refused_and_the_old_version_stays(tmp_path, two):
    build_database(tmp_path / "db", two[0])
    side = 512 / 12000
    box = (-125.0, 50 - 10 * side, -125 + 4 * side, 50.0)
    with pytest.raises(ConfigError, match=r"max_rows: expected at most 60 chips"):
        build_database(tmp_path / "db", *two, bbox=box, max_rows=60)
    assert read_vectors(tmp_path / "db") == product_vectors(two[0])
    assert build_database(tmp_path / "db", *two, bbox=box, max_rows=80)["rows"] == 80


def test_growing_past_max_rows_is_refused_and_the_old_version_stays(tmp_path, two):
    build_database(tmp_path / "db", two[0], years=(2020, 2021), max_rows=150)
    with pytest.raises(ConfigError, match="max_rows: expected at most 150 chips, got 200"):
        build_database(tmp_path / "db", *two, years=(2020, 2021), max_rows=150)
    assert read_vectors(tmp_path / "db") == product_vectors(two[0])


def test_the_main_refuses_an_unknown_key_of_select(tmp_path, two, capsys):
    command = ["--records", two[0].record_file, "--db", str(tmp_path / "db"), "--record", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as e:
        build_index.main([*command, "--select", '{"box": [0, 1, 2, 3]}'])
    assert e.value.code == 2
    assert "unknown box" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


# ----------------------------------------------------------------------------------------------- broken products


def run_index(capsys, db, *products):
    """Run the script; return the exit status and the message."""
    try:
        build_index.main(["--records", *(m.record_file for m in products), "--db", str(db), "--record", f"{db}.json"])
    except SystemExit as e:
        return e.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_a_truncated_part_is_named(tmp_path, capsys):
    product = make_product(tmp_path, columns=GRID)
    path = Path(product.uri) / "chips/part-0000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 1
    assert "Traceback" not in message
    assert str(path) in message


def test_a_product_of_another_size_than_its_record_is_named(tmp_path, capsys):
    product = make_product(tmp_path / "a", columns=GRID)
    less = make_product(tmp_path / "b", columns=GRID[:5])
    path = Path(product.uri) / "chips/part-0000.parquet"
    path.write_bytes((Path(less.uri) / "chips/part-0000.parquet").read_bytes())
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 1
    assert "Traceback" not in message
    assert str(path) in message
    assert f"Delete {product.uri}.json and run Snakemake again" in message


def test_a_part_with_another_digest_than_its_record_is_named(tmp_path, capsys):
    product = make_product(tmp_path, columns=GRID)
    path = Path(product.uri) / "chips/part-0000.parquet"
    digest = storage.sha256(path)
    pq.write_table(pq.read_table(path), path)  # as a repair by another program, which has no checksums
    record = json.loads(Path(product.record_file).read_text())
    record["files"][0]["size"] = path.stat().st_size
    Path(product.record_file).write_text(json.dumps(record))
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 1
    assert f"{path}: expected sha256 {digest} as in its record, got" in message


def test_a_missing_part_is_named(tmp_path, capsys):
    product = make_product(tmp_path, columns=GRID, kiln=shard_metadata(dimensions=256), row_group=20, part_bytes=60_000)
    assert len(product.record["files"]) > 1
    (Path(product.uri) / "chips/part-0001.parquet").unlink()
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 1
    assert "Traceback" not in message
    assert "chips/part-0001.parquet: does not exist" in message


def test_a_vector_beyond_float16_is_named(tmp_path, capsys):
    def huge(chips):
        vectors = random_vectors(chips)
        vectors[17] *= 1e7
        return vectors

    product = make_product(tmp_path, columns=GRID, vectors=huge)
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 1
    assert "Traceback" not in message
    assert chip_at(WORLD, 2021, 1, 7).chip_id in message
    assert "float16" in message


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"dataset": "worldcover"}', "[]"])
def test_a_broken_record_is_an_error_that_names_it(tmp_path, capsys, two, text):
    product = make_product(tmp_path, columns=GRID[:2])
    Path(product.record_file).write_text(text)
    code, message = run_index(capsys, tmp_path / "db", product)
    assert code == 2
    assert product.record_file in message
