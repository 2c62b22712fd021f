"""A disk that is full ends a step with one line that names the place, and leaves nothing partial."""

import tempfile
from pathlib import Path

import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import StorageError
from kiln.explorer.build import Select, build
from kiln.model import checkpoint
from kiln.product import external_sort
from tests.conftest import UNTRAINED
from tests.support.full_disk import small_disk, small_files
from tests.support.products import make_product, merge_shards, run_merge, write_shards

COLUMNS = [Column(k, 0, 40) for k in range(12)]


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_merge_measures_the_space_for_temporary_files_first(tmp_path, monkeypatch, capsys):
    plan, _, shards = write_shards(tmp_path / "run", columns=COLUMNS)
    with small_disk(tmp_path / "small", "100k") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        code, error = run_merge(capsys, plan, shards, tmp_path / "product")
        assert code == 1
        assert f"TMPDIR {small}: expected 506.9 kB of free space to sort 480 rows, got " in error
        assert "Free some, or set TMPDIR to a folder on a larger disk." in error
        assert "Traceback" not in error
        assert list(small.iterdir()) == []
    assert files_in(tmp_path / "product") == []


def test_a_merge_whose_temporary_files_do_not_fit_names_their_folder(tmp_path, monkeypatch, capsys):
    plan, _, shards = write_shards(tmp_path / "run", columns=COLUMNS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with small_files(20_000):
        code, error = run_merge(capsys, plan, shards, tmp_path / "product")
    assert code == 1
    assert f"error: {tmp_path}/kiln-merge-" in error
    assert "cannot be written: File too large. Choose another place, or free it." in error
    assert list(tmp_path.glob("kiln-*")) == []
    assert files_in(tmp_path / "product") == []


def test_a_product_that_does_not_fit_leaves_no_partial_file(tmp_path, capsys):
    plan, _, shards = write_shards(tmp_path / "run", columns=COLUMNS)
    with small_disk(tmp_path / "small", "16k") as small:
        code, error = run_merge(capsys, plan, shards, small / "product")
        assert code == 1
        assert f"error: {small}/product/" in error
        assert "cannot be written: No space left on device" in error
        assert not [name for name in files_in(small) if ".partial" in name]


def test_a_database_that_does_not_fit_is_an_error_that_names_it(tmp_path):
    product = make_product(tmp_path / "run", columns=COLUMNS)
    database = tmp_path / "db"
    with small_files(10_000), pytest.raises(StorageError) as error:
        build([product.record_file], [product.uri], str(database), Select())
    assert str(error.value).startswith(f"{database}: cannot be written: File too large. Free some space")
    build([product.record_file], [product.uri], str(database), Select())


def test_weights_that_do_not_fit_leave_no_file(tmp_path):
    with small_disk(tmp_path / "small", "8k") as small:
        output = small / "weights.safetensors"
        with pytest.raises(StorageError, match=r"weights\.safetensors: cannot be written: No space left on device"):
            checkpoint.make_weights("untrained", str(output), untrained=UNTRAINED, scratch=tmp_path)
        assert list(small.iterdir()) == []


def test_the_space_that_a_merge_asks_for_is_at_least_what_it_takes(tmp_path, monkeypatch):
    _, names, shards = write_shards(tmp_path / "run", columns=COLUMNS)
    taken, real = [], external_sort.Buckets.read

    def read(self, bucket, memory):
        taken.append(sum(p.stat().st_size for p in self.folder.iterdir() if p.is_file()))
        return real(self, bucket, memory)

    asked = []
    monkeypatch.setattr(external_sort.Buckets, "read", read)
    monkeypatch.setattr(external_sort.storage, "check_free_space", lambda folder, size, purpose: asked.append(size))
    merge_shards(names, shards, tmp_path / "product")
    assert 0 < taken[0] <= asked[0]
