"""Comparing two files of the same chips: cosines, recall, differing settings, and files that do not match."""

import json
from pathlib import Path

import numpy as np
import pytest

from kiln.archives.worldcover.columns import COLUMNS
from kiln.cli import compare
from kiln.formats import embeddings_file, vectors
from kiln.formats.ledger import ledger_table, write_ledger
from kiln.formats.parquet import open_file
from kiln.io import storage
from kiln.product.compare import compare_vectors, read_vectors, setting_differences
from tests.support.products import WORLD, chip_at, shard_metadata

CHIPS = [chip_at(WORLD, 2021, n, 600) for n in range(40)]


def write_file(path: Path, values: np.ndarray, stored: vectors.VectorDtype = "float32", offset: int = 0) -> Path:
    """Write an embeddings file of chips from number `offset` on, with these vectors [n, D]."""
    columns = embeddings_file.schema(
        values.shape[1], stored, COLUMNS, shard_metadata(vector_dtype=stored, dimensions=values.shape[1])
    )
    with embeddings_file.ShardWriter(path, columns) as out:
        out.append(CHIPS[offset : offset + len(values)], vectors.store({"embeddings": values}, stored))
    return path


@pytest.fixture
def drawn() -> np.ndarray:
    return 5 + np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)


def test_cosines_and_recall_are_those_of_the_numbers_in_the_files(tmp_path: Path, drawn: np.ndarray) -> None:
    other = drawn.copy()
    other[4] = drawn[4] + 2 * drawn[5]
    first, second = write_file(tmp_path / "a.parquet", drawn), write_file(tmp_path / "b.parquet", other)
    comparison = compare_vectors(read_vectors(str(first), "embeddings"), read_vectors(str(second), "embeddings"))
    off = comparison.cosines < 1 - 1e-6
    assert off.sum() == 1
    a, b = drawn[4].astype(float), other[4].astype(float)
    assert comparison.cosines[off] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    a, b = a - drawn.mean(0), b - drawn.mean(0)
    assert comparison.centred_cosines.min() == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    true, near = (nearest_by_hand(v) for v in (drawn, other))
    assert comparison.recall == pytest.approx(np.mean([len(x & y) / 10 for x, y in zip(true, near, strict=True)]))
    assert 0.9 < comparison.recall < 1


def nearest_by_hand(values: np.ndarray) -> list[set[int]]:
    """Return the ten nearest neighbours of each vector by cosine, computed one at a time."""
    neighbours = []
    for n, v in enumerate(values):
        cosines = [-2.0 if m == n else v @ w / np.linalg.norm(v) / np.linalg.norm(w) for m, w in enumerate(values)]
        neighbours.append(set(np.argsort(cosines)[-10:].tolist()))
    return neighbours


def test_chips_are_matched_by_their_ids(tmp_path: Path, drawn: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_file(tmp_path / "a.parquet", drawn), write_file(tmp_path / "b.parquet", drawn[10:], offset=10)
    compare.main([str(first), str(second)])
    output = capsys.readouterr().out
    assert output.startswith(
        "the same settings\n20 chips in both files, 10 in the first alone, 0 in the second alone\n"
    )
    assert "recall@10 1.0000" in output


def test_stored_whole_numbers_are_read_with_their_scale(tmp_path: Path, drawn: np.ndarray, bucket: str) -> None:
    first, second = write_file(tmp_path / "a.parquet", drawn), write_file(tmp_path / "b.parquet", drawn, "int8")
    storage.write_bytes(f"{bucket}/b.parquet", second.read_bytes())
    a, b = read_vectors(str(first), "embeddings"), read_vectors(f"{bucket}/b.parquet", "embeddings")
    assert np.abs(a.values - b.values).max() < np.abs(drawn).max() / 127
    assert setting_differences(a.metadata, b.metadata) == ["vector_dtype: float32 and int8"]


def test_int8_vectors_of_a_real_job_have_cosines_above_0_999(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bench.workload import make_naip, write_weights

    load = make_naip(tmp_path / "archive", 1100)
    shards = [
        load.embed(write_weights(tmp_path, "tiny", precision), tmp_path / precision, "--batch-size", "4")
        for precision in ("float32", "int8")
    ]
    kiln = [json.loads(open_file(p).schema_arrow.metadata[b"kiln"]) for p in shards]
    assert [k["precision"] for k in kiln] == ["float32", "int8"]
    assert kiln[0]["fingerprint"] != kiln[1]["fingerprint"]
    compare.main(list(map(str, shards)))
    output = capsys.readouterr().out.splitlines()
    assert output[:2] == ["precision: float32 and int8", "16 chips in both files"]
    lowest = float(next(line for line in output if line.startswith("cosine  ")).split()[1])
    assert 0.999 < lowest < 1


def test_a_missing_vector_column_is_an_error(
    tmp_path: Path, drawn: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(write_file(tmp_path / "a.parquet", drawn))
    with pytest.raises(SystemExit):
        compare.main([first, first, "--column", "embeddings_mean"])
    assert "a.parquet: expected a column embeddings_mean, got embedding class without it" in capsys.readouterr().err


def test_files_that_cannot_be_compared_are_errors(
    tmp_path: Path, drawn: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    first = write_file(tmp_path / "a.parquet", drawn)
    rotten = tmp_path / "rotten.parquet"
    rotten.write_bytes(first.read_bytes()[:-100])
    ledger = tmp_path / "a.ledger.parquet"
    write_ledger(ledger, ledger_table([]))
    for other, code, text in (
        (write_file(tmp_path / "far.parquet", drawn[:5], offset=35), 2, "no chip in common"),
        (write_file(tmp_path / "short.parquet", drawn[:, :8]), 2, "got 16 and 8 numbers"),
        (ledger, 1, "a.ledger.parquet: expected an embeddings file of Kiln"),
        (rotten, 1, "rotten.parquet: expected a Parquet file"),
        (tmp_path / "gone.parquet", 1, "gone.parquet: does not exist"),
    ):
        with pytest.raises(SystemExit) as stop:
            compare.main([str(first), str(other)])
        assert stop.value.code == code
        assert text in capsys.readouterr().err
