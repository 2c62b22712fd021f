"""S3 inventories: every line is an item or counted, the places of the parts, and damaged inventories."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import shapely

from kiln.archives.sentinel2 import inventory
from kiln.archives.sentinel2.inventory import read_inventory, read_manifest
from kiln.archives.sentinel2.item_name import ItemFilter, parse_name
from kiln.errors import ConfigError, TransientError
from kiln.io import storage
from kiln.io.storage import store
from tests.conftest import ROOT
from tests.support.inventories import FILES, FOLDER, item_id, key, keys_of, manifest, put, row, text

VERSIONS = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate"


def read_parts(uri, keep=None, root=None, workers=None):
    """Read all parts; return the ids by folder and the sums of the other counts."""
    kept, others, rest = {}, Counter(), Counter()
    unreadable = []
    for found in read_inventory(read_manifest(uri, root), keep or ItemFilter(), workers):
        for (partition, folder), ids in found.ids.items():
            assert {parse_name(i).partition for i in ids} == {partition}
            kept.setdefault(folder, []).extend(ids)
        others.update(found.others)
        rest.update({"lines": found.lines, "items": found.items, "filtered": found.filtered})
        unreadable += found.unreadable
    assert rest["lines"] == rest["items"] + others.total() + len(unreadable)
    assert rest["items"] == rest["filtered"] + sum(map(len, kept.values()))
    return {f: sorted(ids) for f, ids in kept.items()}, others, unreadable, rest


# ------------------------------------------------------------------------------------------------------------ the parts


def test_every_line_is_an_item_or_is_counted_by_kind(tmp_path):
    ids = [item_id(n) for n in range(5)]
    old = [f"{FOLDER}2019/{item_id(n)}/{f}" for n in range(3) for f in ("B02.tif", f"{item_id(n)}.json")]
    odd = ["index.html", f"{FOLDER}29/R/KH/catalog.json", "a b/%C3%A9.tif", f"{FOLDER}2019/", "x/y/z"]
    keys = [k for i in ids for k in keys_of(i)] + old + odd
    kept, others, unreadable, rest = read_parts(put(tmp_path, text(keys)))
    assert kept == {FOLDER: ids}
    assert rest["lines"] == len(keys)
    assert unreadable == []
    assert others == {
        **dict.fromkeys(FILES, 5),
        "sentinel-s2-l2a-cogs/2019, outside the layout, .tif": 3,
        "sentinel-s2-l2a-cogs/2019, outside the layout, .json": 3,
        "sentinel-s2-l2a-cogs/29, outside the layout, .json": 1,
        "sentinel-s2-l2a-cogs/2019, outside the layout, without extension": 1,
        "x/y, outside the layout, without extension": 1,
        "no key of the archive": 2,
    }


def test_keys_named_like_items_that_cannot_be_items_are_listed(tmp_path):
    bad = [
        f"{FOLDER}29/R/KH/2020/3/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json",
        f"{FOLDER}29/R/KH/2020/2/S2A_29RKH_20200232_0_L2A/S2A_29RKH_20200232_0_L2A.json",
        f"{FOLDER}29/R/KH/2020/2/mosaic/mosaic.json",
    ]
    kept, _, unreadable, _ = read_parts(put(tmp_path, text([*bad, key(item_id(1))])))
    assert unreadable == bad
    assert kept == {FOLDER: [item_id(1)]}


def test_keys_of_another_collection_are_items_too(tmp_path):
    name = "S2B_T05QKB_20230415T084353_L2A"
    kept, *_ = read_parts(put(tmp_path, text([f"sentinel-2-c1-l2a/{parse_name(name).path}", key(item_id(1))])))
    assert kept == {"sentinel-2-c1-l2a/": [name], FOLDER: [item_id(1)]}


def test_url_encoded_slashes_are_decoded(tmp_path):
    kept, others, *_ = read_parts(put(tmp_path, text(k.replace("/", "%2F") for k in keys_of(item_id(1)))))
    assert kept == {FOLDER: [item_id(1)]}
    assert others == dict.fromkeys(FILES, 1)


@pytest.mark.parametrize("block", [64, 200, 1000, 1 << 22])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_blocks_of_any_size_and_any_end_of_line_lose_no_line(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(inventory, "BLOCK_BYTES", block)
    ids = [item_id(n, month=m) for m in (1, 11) for n in range(20)]
    data = text(k for i in ids for k in keys_of(i))
    data = data.rstrip(b"\n") if not end else data.replace(b"\n", end.encode())
    kept, others, _, rest = read_parts(put(tmp_path, data, b"", data[:0]))
    assert kept == {FOLDER: sorted(ids)}
    assert (rest["lines"], others) == (200, dict.fromkeys(FILES, 40))


def test_a_gzip_of_two_members_is_one_part(tmp_path):
    uri = put(tmp_path, text([key(item_id(1))]))
    data = gzip.compress(text([key(item_id(1))])) + gzip.compress(text([key(item_id(2))]))
    (tmp_path / "data" / "part0.csv.gz").write_bytes(data)
    Path(uri).write_text(json.dumps(manifest({"part0.csv.gz": data})))
    assert read_parts(uri)[0] == {FOLDER: [item_id(1), item_id(2)]}


def test_filters_are_counted(tmp_path):
    ids = [item_id(n, tile, month=m) for tile in ("29RKH", "30RTN") for m in (1, 2) for n in range(4)]
    kept, _, _, rest = read_parts(put(tmp_path, text(map(key, ids))), ItemFilter(months=frozenset({2}), tiles=("30",)))
    assert kept == {FOLDER: [i for i in ids if "30RTN_202002" in i]}
    assert (rest["items"], rest["filtered"]) == (16, 12)


def test_columns_are_found_by_the_schema(tmp_path):
    ids = [item_id(n) for n in range(3)]
    lines = "".join(f'"{key(i)}","1",sentinel-cogs\n' for i in ids).encode()
    assert read_parts(put(tmp_path, lines, schema="Key, Size, Bucket"))[0] == {FOLDER: ids}
    last = "".join(f'"1","{key(i)}"\n' for i in ids).encode()
    assert read_parts(put(tmp_path / "b", last, schema="Size,Key"))[0] == {FOLDER: ids}


def test_only_current_versions_count_in_an_inventory_of_all_versions(tmp_path):
    states = {1: ("true", "false"), 2: ("false", "false"), 3: ("true", "true"), 4: ("true", "")}
    data = "".join(row(key(item_id(n)), "v", *flags, "1", "2") for n, flags in states.items()).encode()
    kept, others, *_ = read_parts(put(tmp_path, data, schema=VERSIONS))
    assert kept == {FOLDER: [item_id(1), item_id(4)]}
    assert others == {"older version or deleted": 2}


def test_parts_read_by_processes_equal_parts_read_in_this_process(tmp_path):
    rng = random.Random(1)
    ids = [item_id(n, f"{z}RKH", month=m) for z in (29, 32) for m in range(1, 13) for n in range(28)]
    keys = [k for i in ids for k in keys_of(i)] + [f"{FOLDER}2019/x.tif"] * 7
    rng.shuffle(keys)
    uri = put(tmp_path, *(text(keys[n::5]) for n in range(5)))
    keep = ItemFilter(months=frozenset({1, 2}), region=shapely.box(-12, 24, -11, 25))
    here, there = read_parts(uri, keep), read_parts(uri, keep, workers=2)
    assert here == there
    assert len(here[0][FOLDER]) == 56


# -------------------------------------------------------------------------------------------------- where the parts are


def test_the_parts_of_a_copied_manifest_are_found_in_the_layout_of_s3_or_next_to_it(tmp_path, serve):
    data = gzip.compress(text([key(item_id(1))]))
    document = json.dumps(manifest({"p.csv.gz": data})).encode()
    for n, place in enumerate(("a/../data", "a/data", "a")):
        home = tmp_path / str(n)
        (home / "a").mkdir(parents=True)
        (home / place).mkdir(exist_ok=True)
        (home / place / "p.csv.gz").write_bytes(data)
        (home / "a" / "manifest.json").write_bytes(document)
        assert read_parts(str(home / "a" / "manifest.json"))[0] == {FOLDER: [item_id(1)]}
        path = "/" + os.path.normpath(f"{place}/p.csv.gz")
        web = serve({"/a/manifest.json": document, path: data})
        assert read_parts(f"{web.url}/a/manifest.json")[0] == {FOLDER: [item_id(1)]}


def test_the_inventory_root_is_the_folder_of_the_complete_keys(tmp_path):
    data = gzip.compress(text([key(item_id(1))]))
    folder = tmp_path / "mirror" / "inv" / "sentinel-cogs" / "all" / "data"
    folder.mkdir(parents=True)
    (folder / "p.csv.gz").write_bytes(data)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest({"p.csv.gz": data})))
    uri = str(tmp_path / "manifest.json")
    assert read_parts(uri, root=str(tmp_path / "mirror"))[0] == {FOLDER: [item_id(1)]}
    with pytest.raises(ConfigError, match=r"expected its part p\.csv\.gz in one of .*Set inventory_root"):
        read_parts(uri)


def test_an_inventory_on_s3_has_its_parts_in_the_destination_bucket(bucket):
    parts = {f"p{n}.csv.gz": gzip.compress(text([key(item_id(n))])) for n in range(3)}
    document = manifest(parts, destinationBucket=f"arn:aws:s3:::{bucket.removeprefix('s3://')}")
    for name, data in parts.items():
        storage.write_bytes(f"{bucket}/inv/sentinel-cogs/all/data/{name}", data)
    storage.write_bytes(f"{bucket}/elsewhere/manifest.json", json.dumps(document).encode())
    expected = {FOLDER: [item_id(n) for n in range(3)]}
    assert read_parts(f"{bucket}/elsewhere/manifest.json")[0] == expected
    assert read_parts(f"{bucket}/elsewhere/manifest.json", workers=2)[0] == expected
    storage.delete(f"{bucket}/inv/sentinel-cogs/all/data/p1.csv.gz")
    for workers in (1, 2):
        with pytest.raises(ConfigError, match=r"inventory part .*data/p1\.csv\.gz: does not exist"):
            read_parts(f"{bucket}/elsewhere/manifest.json", workers=workers)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"<html></html>", "got no JSON"),
        (b"\xff\xfe", "got no JSON"),
        (b"[]", "expected a manifest"),
        (b"{}", "expected a manifest of an S3 inventory, got other JSON .KeyError: 'fileFormat'"),
        (b'{"files": 1, "fileFormat": "CSV", "fileSchema": "Key"}', "expected a manifest"),
        (json.dumps({**manifest({}), "files": [{"key": "a", "size": 1}]}).encode(), "MD5checksum"),
        (json.dumps(manifest({})).encode(), "expected parts, got none"),
        (json.dumps(manifest({"a": b""}, fileFormat="ORC")).encode(), "expected CSV with a column Key, got ORC"),
        (json.dumps(manifest({"a": b""}, fileFormat="Parquet")).encode(), "Parquet"),
        (json.dumps(manifest({"a": b""}, schema="Bucket, Size")).encode(), "expected CSV with a column Key"),
    ],
)
def test_a_document_that_is_not_a_csv_inventory_is_refused_with_a_reason(tmp_path, document, reason):
    path = tmp_path / "manifest.json"
    path.write_bytes(document)
    with pytest.raises(ConfigError, match=f"manifest.json: .*{reason}"):
        read_manifest(str(path))


def test_a_missing_manifest_is_reported_as_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: does not exist"):
        read_manifest(str(tmp_path / "none.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_part_is_named(tmp_path, workers):
    uri = put(tmp_path, *(text([key(item_id(n))]) for n in range(3)))
    (tmp_path / "data" / "part1.csv.gz").unlink()
    with pytest.raises(ConfigError, match=r"inventory part .*part1\.csv\.gz: does not exist"):
        read_parts(uri, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("harm", ["truncated", "another", "empty"])
def test_a_part_of_another_digest_is_refused_and_named(tmp_path, workers, harm):
    uri = put(tmp_path, *(text([key(item_id(n))]) for n in range(3)))
    path = tmp_path / "data" / "part2.csv.gz"
    data = path.read_bytes()
    changed = {"truncated": data[:-9], "another": gzip.compress(text([key(item_id(9))])), "empty": b""}[harm]
    path.write_bytes(changed)
    with pytest.raises(ConfigError, match=r"part2\.csv\.gz: expected the MD5 \w{32} of the manifest, got \w{32}"):
        read_parts(uri, workers=workers)


@pytest.mark.parametrize(
    "data",
    [gzip.compress(text(["a"] * 99))[:-9], b"no gzip", gzip.compress(b"x" * (2 << 20))],
    ids=["truncated", "no gzip", "one line without end"],
)
def test_a_damaged_part_with_a_matching_digest_is_named(tmp_path, data):
    uri = put(tmp_path, b"")
    (tmp_path / "data" / "part0.csv.gz").write_bytes(data)
    Path(uri).write_text(json.dumps(manifest({"part0.csv.gz": data})))
    with pytest.raises(ConfigError, match=r"part0\.csv\.gz: truncated or damaged"):
        read_parts(uri)


@pytest.mark.parametrize(
    "line", ["", "sentinel-cogs\n", "<html>\n", '{"a": 1}\n', '"a","b\n', '"a","b"c","d"\n', "\n", "a\tb\tc\n"]
)
def test_a_line_that_is_not_csv_of_the_schema_is_reported_with_its_number(tmp_path, line):
    good = text(keys_of(item_id(1)))
    uri = put(tmp_path, good + line.encode() + good)
    if not line:
        assert read_parts(uri)[3]["lines"] == 10
        return
    with pytest.raises(ConfigError, match=r"part0\.csv\.gz, line 6: expected CSV of the schema"):
        read_parts(uri)


def test_a_part_of_a_broken_connection_is_retried_and_then_a_transient_error(tmp_path, serve):
    data = gzip.compress(text(keys_of(item_id(1))))
    document = json.dumps(manifest({"p.csv.gz": data})).encode()
    web = serve({"/m/manifest.json": document, "/m/p.csv.gz": data})
    whole = read_manifest(f"{web.url}/m/manifest.json")
    web.break_at = len(data) // 2
    with pytest.raises(TransientError):
        list(read_inventory(whole, ItemFilter()))
    assert [r[:2] for r in web.requests].count(("GET", "/m/p.csv.gz")) == 1 + len(store.CUT_PAUSES_S)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_reading_processes_end_with_the_planning_process(tmp_path, serve, how):
    data = gzip.compress(text(keys_of(item_id(1))))
    parts = {f"{n}.csv.gz": data for n in range(4)}
    document = manifest(parts)
    for file in document["files"]:
        file["size"] = inventory.MIN_PARALLEL_BYTES
    files = {f"/m/{name}": data for name in parts}
    web = serve({"/m/manifest.json": json.dumps(document).encode(), **files})
    web.held = set(files)
    flags = ["--inventory", f"{web.url}/m/manifest.json", "--output", str(tmp_path / "plan.gz")]
    process = subprocess.Popen([sys.executable, "-m", "scripts.plan_units", "sentinel2", *flags], cwd=ROOT)
    assert web.arrived.wait(30)
    below = children(process.pid)
    assert len(below) >= 2
    process.send_signal(how)
    process.wait(20)
    for _ in range(100):
        if not any(Path(f"/proc/{pid}/cmdline").exists() for pid in below):
            break
        time.sleep(0.1)
    left = [pid for pid in below if Path(f"/proc/{pid}/cmdline").exists()]
    assert [Path(f"/proc/{pid}/stat").read_text() for pid in left] == []
    assert not (tmp_path / "plan.gz").exists()
