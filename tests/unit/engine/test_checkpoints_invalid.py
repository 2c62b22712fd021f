"""Checkpoints that are not used: of another state or damaged; and the deletion of checkpoints."""

import logging
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.engine.checkpoints import Checkpoints
from kiln.io import storage
from tests.support.checkpoints import METADATA, SHARD, Scenes, checkpoint_names, embed_scenes


@pytest.mark.parametrize(
    ("about", "version", "used"),
    [
        (METADATA, "1", True),
        (METADATA | {"sources": {"other": 2}}, "1", True),  # the state of a unit's files is in its version
        (METADATA, "2", False),
        (METADATA | {"software": {"torch": "2"}}, "1", False),
        (METADATA | {"fingerprint": "f2"}, "1", False),
        (METADATA, "", False),
    ],
)
def test_a_checkpoint_is_used_only_for_the_same_files_settings_and_software(tmp_path, about, version, used):
    embed_scenes(Scenes(SHARD), tmp_path / "first", tmp_path / "checkpoints")
    before = checkpoint_names(tmp_path / "checkpoints")
    retry = Scenes(SHARD, version)
    embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints", about=about)
    assert sorted(retry.read) == (["s:d", "s:g"] if used else list(SHARD))
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert set(before.values()) <= names
    assert len(names) == len(before) * (1 if used or not version else 2)


def test_all_checkpoints_of_a_shard_are_deleted_and_no_other_file(tmp_path):
    shard, other = {"s:a": [1], "s:b": [2], "s:c": ["n"]}, {"s:aa": [3], "s:a-b": [4], "s": [5]}
    for version in "12":
        embed_scenes(Scenes(shard, version), tmp_path / "o", tmp_path / "checkpoints")
    embed_scenes(Scenes(other), tmp_path / "o", tmp_path / "checkpoints")
    for name in ("README.txt", "s-a.parquet", "s-a", ".s-a-0123456789ab.parquet.elsewhere.1.partial"):
        (tmp_path / "checkpoints" / name).write_text("not a checkpoint")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 13
    source = Scenes(shard | {"s:never": [7]})
    embed_scenes(source, tmp_path / "o", tmp_path / "checkpoints")
    Checkpoints.for_metadata(str(tmp_path / "checkpoints"), METADATA).delete(source.units())
    left = {re.sub(r"-[0-9a-f]{12}\.parquet$", "", p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert left == {"s-aa", "s-a-b", "s", "README.txt", "s-a.parquet", "s-a", *(n for n in left if n[0] == ".")}


def test_deleting_checkpoints_that_do_not_exist_is_no_error(tmp_path):
    Checkpoints.for_metadata(str(tmp_path / "never"), METADATA).delete(Scenes(SHARD).units())
    assert not (tmp_path / "never").exists()


def truncated(checkpoint, other):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-40])


def emptied(checkpoint, other):
    checkpoint.write_bytes(b"")


def zeroed(checkpoint, other):
    data = bytearray(checkpoint.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    checkpoint.write_bytes(data)


def a_web_page(checkpoint, other):
    checkpoint.write_text("<html>Please sign in</html>")


def another_table(checkpoint, other):
    pq.write_table(pa.table({"x": [1, 2]}), checkpoint)


def without_entry(checkpoint, other):
    pq.write_table(pq.read_table(checkpoint).replace_schema_metadata(None), checkpoint)


def an_entry_of_other_names(checkpoint, other):
    pq.write_table(
        pq.read_table(checkpoint).replace_schema_metadata({b"kiln-entry": b'{"unit": {}, "colour": 1}'}), checkpoint
    )


def an_entry_that_is_no_json(checkpoint, other):
    pq.write_table(pq.read_table(checkpoint).replace_schema_metadata({b"kiln-entry": b"none"}), checkpoint)


def fewer_columns(checkpoint, other):
    pq.write_table(pq.read_table(checkpoint).drop_columns(["geometry"]), checkpoint)


def fewer_rows(checkpoint, other):
    pq.write_table(pq.read_table(checkpoint).slice(1), checkpoint)


def another_unit(checkpoint, other):
    checkpoint.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        truncated, emptied, zeroed, a_web_page, another_table, without_entry, an_entry_of_other_names,
        an_entry_that_is_no_json, fewer_columns, fewer_rows, another_unit,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported_and_its_scene_is_embedded_again(tmp_path, caplog, damage):
    expected = embed_scenes(Scenes(SHARD), tmp_path / "without", tmp_path / "checkpoints")
    checkpoint, other = (
        tmp_path / "checkpoints" / checkpoint_names(tmp_path / "checkpoints")[u] for u in ("s:c", "s:a")
    )
    original = checkpoint.read_bytes()
    damage(checkpoint, other)
    retry = Scenes(SHARD)
    assert embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints") == expected
    assert sorted(retry.read) == ["s:c", "s:d", "s:g"]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(checkpoint) in warning
    assert checkpoint.read_bytes() == original


def test_a_damaged_checkpoint_on_s3_is_reported_by_its_uri(tmp_path, bucket, caplog):
    expected = embed_scenes(Scenes(SHARD), tmp_path / "without", f"{bucket}/checkpoints")
    (checkpoint,) = [uri for uri in storage.listing(f"{bucket}/checkpoints") if "/s-c-" in uri]
    storage.write_bytes(checkpoint, b"<html>")
    retry = Scenes(SHARD)
    assert embed_scenes(retry, tmp_path / "o", f"{bucket}/checkpoints") == expected
    assert sorted(retry.read) == ["s:c", "s:d", "s:g"]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert checkpoint in warning
    Checkpoints.for_metadata(f"{bucket}/checkpoints", METADATA).delete(retry.units())
    assert storage.listing(bucket) == {}


def test_a_hive_folder_name_is_not_read_as_a_column(tmp_path):
    folder = tmp_path / "year=2019" / "state=nd"
    expected = embed_scenes(Scenes(SHARD), tmp_path / "without", folder)
    retry = Scenes(SHARD)
    assert embed_scenes(retry, tmp_path / "o", folder) == expected
    assert sorted(retry.read) == ["s:d", "s:g"]


@pytest.mark.parametrize("folder", ["checkpoints/", "./checkpoints", "a/../checkpoints", "checkpoints//deep"])
def test_the_folder_of_checkpoints_has_many_spellings(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    embed_scenes(Scenes(SHARD), tmp_path / "first", folder)
    retry = Scenes(SHARD)
    embed_scenes(retry, tmp_path / "o", folder)
    assert sorted(retry.read) == ["s:d", "s:g"]
    Checkpoints.for_metadata(folder, METADATA).delete(retry.units())
    assert not list((tmp_path / "checkpoints").rglob("*.parquet"))
