"""Lists of Sentinel-2 items: every line is an item or reported; addresses and copies of items."""

import gzip
import json

import pytest

from kiln.archives.sentinel2.item_lists import list_file
from kiln.archives.sentinel2.item_name import ItemFilter, parse_name
from kiln.archives.sentinel2.versions import select_items
from kiln.io import storage
from tests.support import plans
from tests.support.inventories import FOLDER, key
from tests.support.sentinel2_plans import (
    ALL_DATES,
    IDS,
    S3,
    VERSION_0,
    WEB,
    check_counts,
    item_document,
    plan_bytes,
    units_of,
    write_list,
)
from tests.support.stac_api import COLLECTION


def test_a_relative_archive_folder_is_prefixed_once(tmp_path):
    items = write_list(tmp_path, [key(IDS[0]), WEB + key(IDS[1]), S3 + key(IDS[2]), WEB + key(IDS[0])])
    (shard,) = plans.lines(plan_bytes(tmp_path / "p.gz", items=items, archive="sample/s2"))
    assert shard["details"]["items"] == {i: f"sample/s2/{key(i)}" for i in sorted(IDS[:3])}


def test_every_line_of_a_list_is_an_item_or_reported(tmp_path, caplog):
    lines = [key(VERSION_0), "", "# a comment", S3 + key(VERSION_0), WEB + key(IDS[3]), f"/mirror/{key(IDS[4])}", "  "]
    lines += [
        "hello",
        f"{FOLDER}29/R/KH/2020/2/{VERSION_0}/B02.tif",
        f"{S3}{FOLDER}2019/{VERSION_0}/B02.tif",
        "x" * 5000,
    ]
    caplog.set_level("INFO")
    shards = plans.lines(plan_bytes(tmp_path / "p.gz", items=write_list(tmp_path, lines)))
    addresses = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert addresses == {VERSION_0: S3 + key(VERSION_0), IDS[3]: S3 + key(IDS[3]), IDS[4]: f"/mirror/{key(IDS[4])}"}
    log = caplog.text
    assert "11 lines: 4 items, 3 selected, 0 filtered out, 0 too cloudy, 0 older versions, 1 duplicates" in log
    for expected in ("2 x empty line", "1 x comment", "1 x overlong line", "not an item: hello"):
        assert expected in log
    assert f"not an item: {FOLDER}29/R/KH/2020/2/{VERSION_0}/B02.tif" in log
    assert f"not an item: {S3}{FOLDER}2019/{VERSION_0}/B02.tif" in log


def test_a_list_is_the_same_plain_and_gzip_by_path_http_and_s3(tmp_path, serve, bucket):
    lines = "".join(f"{key(i)}\r\n" for i in IDS).encode()
    packed = gzip.compress(b"\xef\xbb\xbf" + lines)
    (tmp_path / "items.txt").write_bytes(lines)
    storage.write_bytes(f"{bucket}/items.gz", packed)
    web = serve({"/items": packed})
    sources = [tmp_path / "items.txt", f"{bucket}/items.gz", f"{web.url}/items"]
    made = {plan_bytes(tmp_path / f"{n}.gz", items=source) for n, source in enumerate(sources)}
    assert len(made) == 1
    assert units_of(made.pop()) == sorted(IDS)


def test_items_outside_the_archive_are_read_and_keep_their_addresses(tmp_path, serve):
    strange = {**item_document(VERSION_0), "id": "my-scene"}
    web = serve({"/x/my.json": json.dumps(strange).encode(), "/x/bad.json": b"<html>", "/x/list.json": b"[]"})
    (tmp_path / "other.json").write_text(json.dumps(item_document(IDS[30])))
    lines = [f"{web.url}/x/my.json", f"{web.url}/x/bad.json", f"{web.url}/x/list.json", f"{web.url}/x/none.json"]
    lines.append(str(tmp_path / "other.json"))
    gathered = list_file(write_list(tmp_path, lines), "s3://sentinel-cogs", ItemFilter())
    select_items(gathered, None)
    check_counts(gathered.counts)
    found = {p: {i: gathered.address(i, a) for i, a in places.items()} for p, places in gathered.locations.items()}
    assert found["29R-2020-02"] == {"my-scene": lines[0]}
    assert found[parse_name(IDS[30]).partition] == {IDS[30]: lines[4]}
    assert [u.split(":")[0] + ":" + u.split(":")[1] for u in gathered.counts.unreadable] == ["http://127.0.0.1"] * 3


@pytest.mark.parametrize("turned", [1, -1])
def test_an_item_at_several_addresses_is_one_unit_at_the_alphabetically_first(tmp_path, turned):
    lines = [f"/mirror/b/{key(VERSION_0)}", f"/mirror/a/{key(VERSION_0)}", f"/mirror/c/{key(VERSION_0)}"][::turned]
    (shard,) = plans.lines(plan_bytes(tmp_path / "p.gz", items=write_list(tmp_path, lines)))
    assert shard["details"]["items"] == {VERSION_0: f"/mirror/a/{key(VERSION_0)}"}


def test_versions_with_custom_names_are_recognised(tmp_path):
    for n, baseline in enumerate(("02.14", "05.00")):
        (tmp_path / f"{n}.json").write_text(
            json.dumps({**item_document(VERSION_0, baseline=baseline), "id": f"mine-{n}"})
        )
    items = write_list(tmp_path, [tmp_path / "0.json", tmp_path / "1.json"])
    assert units_of(plan_bytes(tmp_path / "p.gz", items=items)) == ["mine-1"]


def test_an_item_of_an_api_has_the_address_of_its_canonical_link_or_its_own(serve_items, tmp_path):
    documents = [item_document(i) for i in IDS[:4]]
    documents[1]["links"] = [{"rel": "canonical", "href": WEB + key(IDS[1])}]  # the form of v0
    documents[2]["links"] = [{"rel": "canonical", "href": "https://example.org/page.html"}]
    documents[3]["links"] = []
    api = serve_items(documents)
    own = [f"{api.url}/collections/{COLLECTION}/items/{i}" for i in IDS[:4]]
    expected = {IDS[0]: S3 + key(IDS[0]), IDS[1]: S3 + key(IDS[1]), IDS[2]: own[2], IDS[3]: own[3]}
    search = plan_bytes(tmp_path / "a.gz", search=api.url, **ALL_DATES)
    assert {i: a for s in plans.lines(search) for i, a in s["details"]["items"].items()} == expected
    assert plan_bytes(tmp_path / "b.gz", items=write_list(tmp_path, own)) == search


def test_an_item_of_an_api_that_is_not_of_sentinel_2_is_listed(serve_items, tmp_path, caplog):
    odd = item_document(IDS[1])
    odd["properties"]["datetime"] = None
    api = serve_items([item_document(IDS[0]), odd])
    api.meets = lambda item, asked: True
    caplog.set_level("INFO")
    assert units_of(plan_bytes(tmp_path / "p.gz", search=api.url, **ALL_DATES)) == [IDS[0]]
    assert f"not an item: {S3}{key(IDS[1])}" in caplog.text
