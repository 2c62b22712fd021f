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
    embed_scenes(Scenes(SHARD), tmp_path / "first", tmp_path / "parts")
    before = checkpoint_names(tmp_path / "parts")
    again = Scenes(SHARD, version)
    embed_scenes(again, tmp_path / "o", tmp_path / "parts", about=about)
    assert sorted(again.read) == (["s:d", "s:g"] if used else list(SHARD))
    names = {p.name for p in (tmp_path / "parts").iterdir()}
    assert set(before.values()) <= names
    assert len(names) == len(before) * (1 if used or not version else 2)


def test_all_checkpoints_of_a_shard_are_deleted_and_no_other_file(tmp_path):
    shard, other = {"s:a": [1], "s:b": [2], "s:c": ["n"]}, {"s:aa": [3], "s:a-b": [4], "s": [5]}
    for version in "12":
        embed_scenes(Scenes(shard, version), tmp_path / "o", tmp_path / "parts")
    embed_scenes(Scenes(other), tmp_path / "o", tmp_path / "parts")
    for name in ("README.txt", "s-a.parquet", "s-a", ".s-a-0123456789ab.parquet.elsewhere.1.partial"):
        (tmp_path / "parts" / name).write_text("not a part")
    assert len(list((tmp_path / "parts").iterdir())) == 13
    source = Scenes(shard | {"s:never": [7]})
    embed_scenes(source, tmp_path / "o", tmp_path / "parts")
    Checkpoints.for_metadata(str(tmp_path / "parts"), METADATA).delete(source.units())
    left = {re.sub(r"-[0-9a-f]{12}\.parquet$", "", p.name) for p in (tmp_path / "parts").iterdir()}
    assert left == {"s-aa", "s-a-b", "s", "README.txt", "s-a.parquet", "s-a", *(n for n in left if n[0] == ".")}


def test_deleting_checkpoints_that_do_not_exist_is_no_error(tmp_path):
    Checkpoints.for_metadata(str(tmp_path / "never"), METADATA).delete(Scenes(SHARD).units())
    assert not (tmp_path / "never").exists()


def cut_short(part, other):
    part.write_bytes(part.read_bytes()[:-40])


def emptied(part, other):
    part.write_bytes(b"")


def rotten(part, other):
    data = bytearray(part.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    part.write_bytes(data)


def a_web_page(part, other):
    part.write_text("<html>Please sign in</html>")


def another_table(part, other):
    pq.write_table(pa.table({"x": [1, 2]}), part)


def without_entry(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)


def an_entry_of_other_names(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata({b"kiln-entry": b'{"unit": {}, "colour": 1}'}), part)


def an_entry_that_is_no_json(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata({b"kiln-entry": b"none"}), part)


def fewer_columns(part, other):
    pq.write_table(pq.read_table(part).drop_columns(["geometry"]), part)


def fewer_rows(part, other):
    pq.write_table(pq.read_table(part).slice(1), part)


def another_unit(part, other):
    part.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short, emptied, rotten, a_web_page, another_table, without_entry, an_entry_of_other_names,
        an_entry_that_is_no_json, fewer_columns, fewer_rows, another_unit,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported_and_its_scene_is_embedded_again(tmp_path, caplog, spoil):
    without = embed_scenes(Scenes(SHARD), tmp_path / "without", tmp_path / "parts")
    part, other = (tmp_path / "parts" / checkpoint_names(tmp_path / "parts")[u] for u in ("s:c", "s:a"))
    whole = part.read_bytes()
    spoil(part, other)
    again = Scenes(SHARD)
    assert embed_scenes(again, tmp_path / "o", tmp_path / "parts") == without
    assert sorted(again.read) == ["s:c", "s:d", "s:g"]
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(part) in told
    assert part.read_bytes() == whole


def test_a_damaged_checkpoint_on_s3_is_reported_by_its_uri(tmp_path, bucket, caplog):
    without = embed_scenes(Scenes(SHARD), tmp_path / "without", f"{bucket}/parts")
    (part,) = [uri for uri in storage.listing(f"{bucket}/parts") if "/s-c-" in uri]
    storage.write_bytes(part, b"<html>")
    again = Scenes(SHARD)
    assert embed_scenes(again, tmp_path / "o", f"{bucket}/parts") == without
    assert sorted(again.read) == ["s:c", "s:d", "s:g"]
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert part in told
    Checkpoints.for_metadata(f"{bucket}/parts", METADATA).delete(again.units())
    assert storage.listing(bucket) == {}


def test_a_hive_folder_name_is_not_read_as_a_column(tmp_path):
    folder = tmp_path / "year=2019" / "state=nd"
    without = embed_scenes(Scenes(SHARD), tmp_path / "without", folder)
    again = Scenes(SHARD)
    assert embed_scenes(again, tmp_path / "o", folder) == without
    assert sorted(again.read) == ["s:d", "s:g"]


@pytest.mark.parametrize("folder", ["parts/", "./parts", "a/../parts", "parts//deep"])
def test_the_folder_of_checkpoints_has_many_spellings(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    embed_scenes(Scenes(SHARD), tmp_path / "first", folder)
    again = Scenes(SHARD)
    embed_scenes(again, tmp_path / "o", folder)
    assert sorted(again.read) == ["s:d", "s:g"]
    Checkpoints.for_metadata(folder, METADATA).delete(again.units())
    assert not list((tmp_path / "parts").rglob("*.parquet"))
