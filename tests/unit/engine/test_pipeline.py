"""The pipeline: errors, threads, and vectors that depend only on their own chip."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kiln.engine import pipeline
from kiln.engine.pipeline import Budget
from kiln.errors import TransientError
from kiln.formats import vectors
from kiln.formats.records import Dropped
from kiln.model.embedder import Embedder, EmbedPolicy
from tests.support.chips import PLAIN, ListSource, make_chip
from tests.support.engine import Echo, embed, threads_left


@pytest.mark.parametrize("error", [TransientError("throttled"), ValueError("a bug"), MemoryError()])
def test_any_other_error_of_a_read_ends_the_job_and_its_threads(tmp_path, error):
    chips = [make_chip(n) for n in range(30)]
    with pytest.raises(type(error)) as caught:
        embed(ListSource(chips, {"u": 30}, broken=error), Echo(), tmp_path / "o")
    assert caught.value is error
    assert threads_left() == []


def test_an_error_of_the_encoder_ends_the_job_and_its_threads(tmp_path):
    chips = [make_chip(n) for n in range(200)]
    with pytest.raises(RuntimeError, match="out of memory"):
        embed(ListSource(chips, {"u": 200}), Echo(fails_at=1), tmp_path / "o", ahead=300)
    assert threads_left() == []


def test_an_error_of_the_source_ends_the_job_and_its_threads(tmp_path):
    class Broken(ListSource):
        def chips(self, loaded):
            yield next(loaded).value
            raise ArithmeticError("stitching")

    with pytest.raises(ArithmeticError, match="stitching"):
        embed(Broken([make_chip(n) for n in range(50)], {"u": 50}), Echo(), tmp_path / "o")
    assert threads_left() == []


# -------------------------------------------------------------------------------------------------------------- vectors


def vectors_of(path) -> dict[str, bytes]:
    rows = pq.read_table(path)
    return {
        c: np.asarray(v).tobytes()
        for c, v in zip(rows["chip_id"].to_pylist(), rows["embeddings"].to_numpy(), strict=True)
    }


def test_a_vector_is_bit_equal_alone_and_among_any_others(tmp_path, encoder):
    rng = np.random.default_rng(1)
    chips = [make_chip(n, pixels=rng.normal(size=(2, 16, 16)).astype(np.float32)) for n in range(7)]

    def run(which: list[int], name: str) -> dict[str, bytes]:
        copies = [make_chip(n, pixels=chips[n].pixels.copy()) for n in which]
        embed(ListSource(copies, {"u": len(which)}), encoder, tmp_path / name, dim=32)
        return vectors_of(tmp_path / name)

    together = run(list(range(7)), "all")
    assert len(set(together.values())) == 7
    assert run([6, 2, 5, 0, 1], "mixed") == {k: together[k] for k in ("u:6", "u:2", "u:5", "u:0", "u:1")}
    assert run([3], "alone") == {"u:3": together["u:3"]}


def test_the_encoder_receives_full_batches(tmp_path):
    echo = Echo()
    events = [make_chip(1), Dropped("u", "cloud", 4), *(make_chip(n) for n in range(2, 8))]
    embed(ListSource(events, {"u": 11}), echo, tmp_path / "o", batch=3)
    assert echo.sizes == [3, 3, 3]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_chips_of_different_pixel_sizes_are_encoded_with_their_own(tmp_path, encoder, size):
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(7, 2, 16, 16)).astype(np.float32)
    gsds = [1.0, 0.6, 0.6, 2.5, 1.0, 1.0, 0.6]
    events = [make_chip(n, pixels=pixels[n].copy(), pixel_size=g) for n, g in enumerate(gsds)]
    pipeline.embed(
        ListSource(events, {"u": 7}), lambda: encoder, 32, tmp_path / "o", {},
        policy=EmbedPolicy("zeros", None), budget=Budget(size, 2, 1 << 20), max_failed_fraction=0,
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "o")
    assert rows["pixel_size"].to_pylist() == gsds
    unknown = torch.zeros(1, 4)
    for n, gsd in enumerate(gsds):
        vector = rows["embeddings"][n].as_py()
        x = torch.from_numpy(pixels[n])[None]
        metadata = {"wavelengths": torch.tensor([0.5, 0.6]), "time": unknown, "latlon": unknown}
        assert vector == pytest.approx(encoder(x, gsd=gsd, **metadata)[0, 0].tolist(), abs=1e-5)
        assert vector != pytest.approx(encoder(x, gsd=10.0, **metadata)[0, 0].tolist(), abs=1e-4)
        embed_alone = Embedder(encoder, PLAIN, EmbedPolicy("zeros", None), size)
        alone = embed_alone([make_chip(n, pixels=pixels[n], pixel_size=gsd)])
        assert np.array_equal(np.array(vector, np.float32), alone["embeddings"][0])


def test_rows_that_wait_for_their_row_group_hold_no_pixels(tmp_path):
    chips = [make_chip(n) for n in range(9)]
    embed(ListSource(chips, {"u": 9}), Echo(), tmp_path / "o")
    assert sum(c.pixels.nbytes for c in chips) == 0


# ------------------------------------------------------------------------------------ class, mean, both and all patches


@pytest.mark.parametrize("vector_dtype", vectors.VECTOR_DTYPES)
def test_files_of_every_kind_hold_the_same_chips_and_are_reproducible(tmp_path, encoder, vector_dtype):
    rng = np.random.default_rng(11)
    pixels = rng.normal(size=(7, 2, 16, 16)).astype(np.float32)
    pixels[3, 0, 0, 0] = np.nan

    def events():
        return [make_chip(n, pixels=pixels[n].copy()) for n in range(7)]

    tables = {}
    for embedding in vectors.EMBEDDINGS:
        for again in (0, 1):
            path, patch_path = tmp_path / f"{embedding}{again}", tmp_path / f"{embedding}{again}.patches"
            outcome = embed(
                ListSource(events(), {"u": 7}), encoder, path, vector_dtype=vector_dtype, dim=32, embedding=embedding,
                patches=patch_path, batch=2 + again,
            )  # fmt: skip
            assert (outcome.ledger["failed"].to_pylist(), outcome.rows) == ([1], 6)
        tables[embedding] = pq.read_table(path)
        assert tables[embedding]["chip_id"].to_pylist() == [f"u:{n}" for n in (0, 1, 2, 4, 5, 6)]
        patch_rows = pq.read_table(patch_path)
        assert patch_rows["chip_id"].equals(tables[embedding]["chip_id"])
        assert json.loads(patch_rows.schema.metadata[b"kiln"])["patches"] == {
            "shape": [2, 2, 32],
            "vector_dtype": "float16",
        }
        patches = np.array(patch_rows["patches"].to_pylist(), np.float32).reshape(6, 4, 32)
        for name, kind in vectors.KINDS[embedding].items():
            stored = vectors.read(tables[embedding], name)
            if kind == "mean":
                np.testing.assert_allclose(stored, patches.mean(axis=1), atol=0.02)
    assert np.array_equal(vectors.read(tables["both"]), vectors.read(tables["class"]))
    assert np.array_equal(vectors.read(tables["both"], "embeddings_mean"), vectors.read(tables["mean"]))
    assert not np.allclose(vectors.read(tables["mean"]), vectors.read(tables["class"]), atol=0.05)


def test_the_same_batches_give_the_same_bytes_in_every_kind(tmp_path, encoder):
    pixels = np.random.default_rng(12).normal(size=(9, 2, 16, 16)).astype(np.float32)
    for vector_dtype, embedding in itertools.product(vectors.VECTOR_DTYPES, vectors.EMBEDDINGS):
        seen = set()
        for again in range(2):
            events = [make_chip(n, pixels=p.copy()) for n, p in enumerate(pixels)]
            path, patch_path = tmp_path / f"{again}", tmp_path / f"{again}.patches"
            embed(
                ListSource(events, {"u": 9}), encoder, path, vector_dtype=vector_dtype, dim=32, embedding=embedding,
                patches=patch_path, threads=1 + again,
            )  # fmt: skip
            seen.add((path.read_bytes(), patch_path.read_bytes()))
        assert len(seen) == 1


def test_patches_that_float16_cannot_represent_fail(tmp_path):
    patch_path = tmp_path / "o.patches"
    source = ListSource([make_chip(1), make_chip(2), make_chip(3)], {"u": 3})
    outcome = embed(source, Echo({2: 1e6}), tmp_path / "o", patches=patch_path)
    entry = outcome.ledger.to_pylist()[0]
    assert (entry["embedded"], entry["failed"], entry["reason"]) == (2, 1, "vector not finite in float16")
    assert pq.read_table(patch_path)["chip_id"].to_pylist() == ["u:1", "u:3"]


def test_a_shard_without_a_chip_has_an_empty_file_of_patches(tmp_path):
    embed(ListSource([Dropped("u", "nodata", 2, "sea")], {"u": 2}), Echo(), tmp_path / "o", patches=tmp_path / "p")
    assert pq.read_table(tmp_path / "p").num_rows == 0
    assert pq.read_schema(tmp_path / "p").field("patches").type.list_size == 16
