"""NumPy exports: vectors that can be mapped, ids in the same order, files that appear together."""

import json

import numpy as np
import pytest

import kiln
from kiln.errors import SourceError
from kiln.io import storage
from kiln.product.export.writers.numpy_folder import npy_writer
from kiln.product.rows.row_filter import RowFilter
from kiln.product.rows.row_stream import RowStream
from tests.support.exports import DIMENSIONS


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_vectors_and_ids_are_the_products(source, tmp_path):
    result = kiln.export(source.uri, tmp_path / "out", "npy")
    for column in source.columns:
        name = {"embeddings": "vectors.npy", "embeddings_mean": "vectors_mean.npy"}[column]
        matrix = np.load(tmp_path / "out" / name, mmap_mode="r")
        assert isinstance(matrix, np.memmap)
        assert matrix.dtype == ("float16" if source.vector_dtype == "float16" else "float32")
        assert np.array_equal(matrix, source.numbers(column))
    assert (tmp_path / "out" / "ids.txt").read_text().splitlines() == source.ids
    assert result.sizes == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert len(result.sizes) == 2 + len(source.columns)


def test_the_metadata_state_products_and_filter(untrained, tmp_path):
    kiln.export(untrained.uri, tmp_path, "npy", row_filter=RowFilter(max_cloud=0.5))
    facts = json.loads((tmp_path / "metadata.json").read_text())
    assert facts["untrained"] is True
    assert facts["exports"][0]["filter"] == {"max_cloud": 0.5}


def test_no_rows_are_a_matrix_without_rows(source, tmp_path):
    kiln.export(source.uri, tmp_path, "npy", row_filter=RowFilter(years=(1999,)))
    assert np.load(tmp_path / "vectors.npy").shape == (0, DIMENSIONS)
    assert (tmp_path / "ids.txt").read_text() == ""


@pytest.mark.parametrize("counts", [[], [0], [3], [1, 0, 99_999, 1]])
def test_a_matrix_may_grow_to_any_length(tmp_path, counts):
    pieces = [np.random.default_rng(n).random((count, 3), np.float32) for n, count in enumerate(counts)]
    with npy_writer(tmp_path / "a.npy", 3, "float32") as array:
        for piece in pieces:
            array.append(piece)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.concatenate([np.empty((0, 3), np.float32), *pieces]))


def test_the_metadata_appear_last_and_old_ones_go_first(source, tmp_path, monkeypatch):
    """A reader that waits for metadata.json never sees files of two exports."""
    kiln.export(source.uri, tmp_path, "npy")
    (tmp_path / "vectors_mean.npy").write_bytes(b"of an earlier export")
    events, path_type, delete = [], type(tmp_path), storage.delete
    replace = path_type.replace
    monkeypatch.setattr(path_type, "replace", lambda self, target: events.append(target.name) or replace(self, target))
    monkeypatch.setattr(storage, "delete", lambda uri: events.append(f"-{uri.rpartition('/')[2]}") or delete(uri))
    kiln.export(source.uri, tmp_path, "npy")
    assert events[-2:] == ["ids.txt", "metadata.json"]
    assert "-metadata.json" in events
    assert events.index("-metadata.json") < events.index("vectors.npy")
    assert ("vectors_mean.npy" in files(tmp_path)) == (len(source.columns) == 2)


def test_an_error_leaves_the_earlier_files(source, tmp_path, monkeypatch):
    kiln.export(source.uri, tmp_path / "out", "npy", row_filter=RowFilter(years=(2021,)))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def broken(self, *args, **options):
        yield from ()
        raise SourceError("gone")

    monkeypatch.setattr(RowStream, "batches", broken)
    for folder in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(SourceError):
            kiln.export(source.uri, folder, "npy")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert files(tmp_path / "new") == []
