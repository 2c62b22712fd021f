"""Checkpoints with patches, int8 vectors and both kinds of embeddings."""

import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from kiln.engine import pipeline
from kiln.engine.checkpoints import Checkpoints
from kiln.engine.pipeline import Budget
from kiln.errors import TransientError
from kiln.formats.records import Chip
from kiln.io import storage
from kiln.model.embedder import EmbedPolicy
from tests.support.checkpoints import CHECKPOINTED, METADATA, SHARD, Scenes, checkpoint_names

PATCHES_METADATA = METADATA | {"patches": {"shape": [2, 2, 32], "vector_dtype": "float16"}}


class RandomScenes(Scenes):
    """Scenes whose chips differ, for a real encoder; a value of 0 is not finite."""

    def chip(self, u, n, value):
        chip = super().chip(u, n, value)
        if isinstance(chip, Chip):
            chip.pixels = np.random.default_rng(value).normal(size=(2, 16, 16)).astype(np.float32)
            chip.pixels[0, 0, 0] = np.nan if value == 0 else 1
        return chip


def embed_with_patches(source, path, checkpoint_folder=None, *, encoder, batch=3):
    """Embed both kinds of vectors as int8 and patches; return the bytes of both files, and the ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patch_path = path.with_suffix(".patches")
    outcome = pipeline.embed(
        source,
        lambda: encoder,
        32,
        path,
        PATCHES_METADATA,
        policy=EmbedPolicy("zeros", 10.0, "int8", "both", patches=True),
        budget=Budget(batch, 2, 1000),
        max_failed_fraction=1.0,
        checkpoints=Checkpoints.for_metadata(str(checkpoint_folder), PATCHES_METADATA) if checkpoint_folder else None,
        patch_path=patch_path,
    )
    return path.read_bytes(), patch_path.read_bytes(), outcome.ledger.to_pylist()


def checkpoint_files(folder, unit):
    """Return the files of a unit's checkpoint: rows and patches."""
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(unit.replace(":", "-")))


@pytest.mark.parametrize(
    "finished",
    [["s:a"], ["s:h"], ["s:c", "s:e"], ["s:b", "s:f"], CHECKPOINTED, []],
    ids=lambda u: " ".join(u) or "none",
)
def test_patches_and_scales_are_bit_equal_with_any_checkpoints(tmp_path, encoder, encoded, finished):
    folder = tmp_path / "checkpoints"
    expected = embed_with_patches(RandomScenes(SHARD), tmp_path / "without", encoder=encoder)
    assert embed_with_patches(RandomScenes(SHARD), tmp_path / "first", folder, encoder=encoder) == expected
    for u in CHECKPOINTED:
        unit_files = checkpoint_files(folder, u)
        assert len(unit_files) == (1 if u in ("s:b", "s:f") else 2), "a scene without rows has no patches"
        for name in unit_files:
            if u not in finished:
                (folder / name).unlink()
    encoded.clear()
    assert embed_with_patches(RandomScenes(SHARD), tmp_path / "with", folder, encoder=encoder) == expected
    assert not {i.rpartition(":")[0] for i in encoded} & set(finished)
    rows = pq.read_table(tmp_path / "with")
    assert pq.read_table(tmp_path / "with.patches")["chip_id"].equals(rows["chip_id"])
    assert not [p for p in folder.iterdir() if "partial" in p.name]


@pytest.mark.parametrize("damage", ["gone", "short", "rotten", "others"])
def test_a_checkpoint_without_its_own_complete_patches_is_ignored(tmp_path, encoder, encoded, caplog, damage):
    folder = tmp_path / "checkpoints"
    expected = embed_with_patches(RandomScenes(SHARD), tmp_path / "first", folder, encoder=encoder)
    patches_, _ = (
        folder / name for name in sorted(checkpoint_files(folder, "s:c"), key=lambda n: ".patches." not in n)
    )
    data = bytearray(patches_.read_bytes())
    if damage == "gone":
        patches_.unlink()
    elif damage == "short":
        patches_.write_bytes(data[:-40])
    elif damage == "rotten":
        data[len(data) // 2] ^= 0xFF
        patches_.write_bytes(data)
    else:
        patches_.write_bytes(
            (folder / next(n for n in checkpoint_files(folder, "s:a") if ".patches." in n)).read_bytes()
        )
    encoded.clear()
    with caplog.at_level(logging.WARNING):
        assert embed_with_patches(RandomScenes(SHARD), tmp_path / "again", folder, encoder=encoder) == expected
    assert "checkpoint ignored" in caplog.text
    assert {i.rpartition(":")[0] for i in encoded} == {"s:c", "s:g"}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), TransientError("busy")], ids=repr)
def test_patches_of_an_unfinished_scene_leave_no_file(tmp_path, encoder, error):
    class Breaks:
        cls_token, seen = encoder.cls_token, 0

        def __call__(self, *args, **kwargs):
            self.seen += 1
            if self.seen == 3:
                raise error
            return encoder(*args, **kwargs)

    folder = tmp_path / "checkpoints"
    with pytest.raises(type(error)):
        embed_with_patches(
            RandomScenes({"s:a": [1, 2], "s:c": list(range(3, 13))}), tmp_path / "o", folder, encoder=Breaks(), batch=2
        )
    assert [n for n in checkpoint_names(folder).values() if "patches" not in n] == checkpoint_files(folder, "s:a")[:1]
    assert not checkpoint_files(folder, "s:c")
    Checkpoints.for_metadata(str(folder), PATCHES_METADATA).delete(RandomScenes(SHARD).units())
    assert not list(folder.iterdir())


def test_patches_of_checkpoints_on_s3_are_reused(bucket, tmp_path, encoder, encoded):
    folder = f"{bucket}/checkpoints"

    def embed_there(source, path):
        patch_path = path.with_suffix(".patches")
        pipeline.embed(
            source, lambda: encoder, 32, path, PATCHES_METADATA,
            policy=EmbedPolicy("zeros", 10.0, "int8", "both", patches=True),
            budget=Budget(3, 2, 1000), max_failed_fraction=1.0, patch_path=patch_path,
            checkpoints=Checkpoints.for_metadata(folder, PATCHES_METADATA),
        )  # fmt: skip
        return path.read_bytes(), patch_path.read_bytes()

    first = embed_there(RandomScenes(SHARD), tmp_path / "first")
    assert sum(".patches." in uri for uri in storage.listing(folder)) == 4
    encoded.clear()
    assert embed_there(RandomScenes(SHARD), tmp_path / "again") == first
    assert {i.rpartition(":")[0] for i in encoded} == {"s:g"}
