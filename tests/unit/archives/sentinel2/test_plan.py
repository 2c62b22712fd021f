"""Sentinel-2's plan: the same bytes from an inventory, a search and a list; its shards and reports."""

import json
import random
from pathlib import Path

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping

from kiln.archives.sentinel2 import plan
from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.item_lists import canonical, list_search
from kiln.archives.sentinel2.item_name import ItemFilter, footprint, parse_name
from kiln.archives.sentinel2.versions import select_items
from kiln.formats import plan_file
from kiln.io import storage
from tests.support import plans
from tests.support.inventories import FILES, FOLDER, key, keys_of, put, text
from tests.support.sentinel2_plans import (
    ALL_DATES,
    DOCUMENTS,
    IDS,
    S3,
    VERSION_0,
    VERSION_1,
    WEB,
    item_document,
    plan_bytes,
    units_of,
    write_archive,
    write_list,
)
from tests.support.stac_api import COLLECTION

# ------------------------------------------------------------------------------------------------- one plan, three ways


@pytest.fixture
def three_ways(tmp_path, serve_items):
    """The settings of an inventory, a search and a list of the same items, with versions and halves."""
    pairs = [item_document(i.replace("_0_", "_1_"), generated="2021-01-01T00:00:00Z") for i in IDS[:10]]
    halves = [item_document(i.replace("_0_", "_1_"), sensing="112121") for i in IDS[20:30]]
    documents = [*DOCUMENTS, *pairs, *halves]
    archive = write_archive(tmp_path / "archive", documents)
    ids = [d["id"] for d in documents]
    inventory = put(tmp_path / "inventory", *(text(k for i in ids[n::3] for k in keys_of(i)) for n in range(3)))
    items = write_list(tmp_path, [(S3, WEB, "", f"{archive}/")[n % 4] + key(i) for n, i in enumerate(ids)])
    api = serve_items(random.Random(1).sample(documents, len(documents)))
    ways = ({"inventory": inventory}, {"search": api.url, **ALL_DATES}, {"items": items})
    return {next(iter(settings)): {**settings, "archive": archive} for settings in ways}


def test_an_inventory_a_search_and_a_list_of_the_same_items_give_the_same_bytes(three_ways, tmp_path):
    inventory, search, items = (
        plan_bytes(tmp_path / f"{way}.gz", **three_ways[way]) for way in ("inventory", "search", "items")
    )
    assert inventory == search == items
    units = units_of(items)
    assert len(units) == len(IDS) + 10
    assert {u for u in units if "_1_" in u} == {i.replace("_0_", "_1_") for i in IDS[:10] + IDS[20:30]}
    assert not {u for u in units if "_0_" in u} & set(IDS[:10])


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"years": [2020]}, 130),
        ({"months": [3, 4]}, 60 + 10),
        ({"tiles": ["29RLH", 30]}, 80),
        ({"tiles": ["29R"], "months": [2]}, 40),
        ({"bbox": [-11.9, 24.4, -11.8, 24.5]}, 50),
        ({"max_cloud_cover": 20}, 10 + 15 + 4 * 5),
        ({"dates": "2020-02-03/2020-02-04"}, 3 * 2),
        ({"dates": "2020-02-03"}, 3),
    ],
)
def test_filters_select_the_same_items_of_an_inventory_a_search_and_a_list(three_ways, tmp_path, filters, count):
    plans_made = {
        way: plan_bytes(tmp_path / f"{way}.gz", **(settings | filters)) for way, settings in three_ways.items()
    }
    assert len(set(plans_made.values())) == 1, {way: len(units_of(p)) for way, p in plans_made.items()}
    assert len(units_of(plans_made["items"])) == count


def test_a_real_item_gives_the_same_plan_from_inventory_search_and_list(shared, tmp_path, serve_items):
    if shared is None:
        pytest.skip("needs the folder of real items")
    archive = shared / "archive" / "sentinel-cogs"
    (path,) = archive.rglob("S2A_29RKH_20200219_0_L2A.json")
    name = "S2A_29RKH_20200219_0_L2A"
    keys = [p.relative_to(archive).as_posix() for p in path.parent.iterdir()]
    api = serve_items([json.loads(path.read_text())])
    ways = [
        {"inventory": put(tmp_path, text(keys))},
        {"search": api.url, "bbox": [-12, 24, -11, 25]},
        {"items": write_list(tmp_path, [WEB + key(name)])},
        {"items": write_list(tmp_path, [f"{api.url}/collections/{COLLECTION}/items/{name}"], "b.txt")},
        {"items": write_list(tmp_path, [path], "c.txt")},
    ]
    data = [plan_bytes(tmp_path / f"{n}.gz", archive=archive, **way) for n, way in enumerate(ways)]
    assert len(set(data)) == 1
    (shard,) = plans.lines(data[0])
    assert shard["details"]["items"] == {name: str(path)}
    assert read_item(storage.read_bytes(str(path)), str(path)).partition == shard["partition"] == "29R-2020-02"


def test_real_items_of_a_search_have_their_canonical_addresses(shared, serve_items, tmp_path):
    if shared is None:
        pytest.skip("needs the folder of real items")
    documents = [json.loads(p.read_text()) for p in sorted((shared / "archive" / "stac").glob("*.json"))]
    for item in documents:
        item["collection"] = COLLECTION
    shards = plans.lines(plan_bytes(tmp_path / "p.gz", search=serve_items(documents).url, dates="2022-01-01/.."))
    addresses = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert addresses == {d["id"]: S3 + key(d["id"]) for d in documents}
    assert {s["partition"] for s in shards} == {"12R-2024-01", "33T-2022-01", "33T-2022-02"}


@pytest.mark.parametrize(
    ("address", "same"),
    [
        (WEB + "a/b.json", "s3://sentinel-cogs/a/b.json"),
        ("https://sentinel-cogs.s3.amazonaws.com/a/b.json", "s3://sentinel-cogs/a/b.json"),
        ("https://s3.us-west-2.amazonaws.com/sentinel-cogs/a.json", "s3://sentinel-cogs/a.json"),
        ("https://other.bucket.s3-eu-central-1.amazonaws.com/a", "s3://other.bucket/a"),
        ("https://example.org/sentinel-cogs/a.json", "https://example.org/sentinel-cogs/a.json"),
        ("s3://sentinel-cogs-mirror/a.json", "s3://sentinel-cogs-mirror/a.json"),
    ],
)
def test_an_address_has_one_canonical_spelling(address, same):
    assert canonical(address, "s3://sentinel-cogs") == same
    assert canonical(address, "/data/") == same.replace("s3://sentinel-cogs/", "/data/")


# ----------------------------------------------------------------------------------------------------- the plan's lines


def test_a_shard_contains_what_its_job_needs(tmp_path):
    data = plan_bytes(tmp_path / "p.gz", items=write_list(tmp_path, map(key, IDS[:3])), chip_size=512)
    (shard,) = plans.lines(data)
    assert shard.pop("name").startswith("0.0-003-")
    assert shard == {
        "dataset": "sentinel2",
        "partition": "29R-2020-02",
        "units": sorted(IDS[:3]),
        "chip_size": 512,
        "expected": 3 * 21 * 21,
        "read_bytes": 3 * plan.TILE_BYTES,
        "archive": "s3://sentinel-cogs",
        "details": {"items": {i: S3 + key(i) for i in sorted(IDS[:3])}},
    }
    assert [s.partition for s in plan_file.read_plan(str(tmp_path / "p.gz"))] == ["29R-2020-02"]


def test_a_full_tile_has_42_by_42_chips_of_256(tmp_path):
    (shard,) = plans.lines(plan_bytes(tmp_path / "p.gz", items=write_list(tmp_path, [key(IDS[0])])))
    assert shard["expected"] == 42 * 42


def test_every_shard_holds_one_grid_zone_and_month_and_at_most_twice_the_requested_number(tmp_path):
    names = str(tmp_path / "names.json")
    items = write_list(tmp_path, map(key, IDS))
    shards = plans.lines(plan_bytes(tmp_path / "p.gz", items=items, items_per_shard=5, names=names))
    assert sorted(u for s in shards for u in s["units"]) == sorted(IDS)
    for shard in shards:
        assert {parse_name(u).partition for u in shard["units"]} == {shard["partition"]}
        assert len(shard["units"]) <= 10
    names_by_partition = plan_file.read_names(names)
    assert set(names_by_partition) == {"29R-2020-02", "29R-2020-03", "30R-2020-02", "30R-2020-03"}
    assert {(p, n) for p, shard_names in names_by_partition.items() for n in shard_names} == {
        (s["partition"], s["name"]) for s in shards
    }


@settings(deadline=None, max_examples=25)
@given(st.integers(0, len(IDS) - 1), st.integers(2, 12))
def test_one_item_more_or_less_changes_at_most_two_shards(n, nominal):
    def names(ids):
        gathered = list_search(map(item_document, ids), "s3://sentinel-cogs", ItemFilter())
        select_items(gathered, None)
        return {(s.partition, s.name) for s in plan.shard_plans(gathered, nominal, 256, "s3://sentinel-cogs")}

    with_it, without = names(IDS), names(IDS[:n] + IDS[n + 1 :])
    assert 1 <= len(with_it - without) <= 2
    assert len(without - with_it) <= 2


def test_the_plan_is_the_same_bytes_in_another_order(tmp_path):
    first = plan_bytes(tmp_path / "a.gz", items=write_list(tmp_path, map(key, IDS)), items_per_shard=7)
    shuffled = write_list(tmp_path, map(key, random.Random(3).sample(IDS * 2, 2 * len(IDS))))
    assert plan_bytes(tmp_path / "b.gz", items=shuffled, items_per_shard=7) == first


# ------------------------------------------------------------------------------------------------- inventory and search


def test_the_report_of_an_inventory_contains_every_kind(tmp_path, caplog):
    keys = [k for i in IDS for k in keys_of(i)] + [f"{FOLDER}2019/{VERSION_0}/B02.tif"] * 64
    keys += [f"{FOLDER}29/R/KH/2020/3/{VERSION_0}/{VERSION_0}.json"]
    caplog.set_level("INFO")
    plan_bytes(tmp_path / "p.gz", inventory=put(tmp_path, text(keys), text(keys[:5])), months=[2])
    log = caplog.text
    assert "670 lines: 121 items, 60 selected, 60 filtered out, 0 too cloudy, 0 older versions, 1 duplicates" in log
    assert "64 x sentinel-s2-l2a-cogs/2019, outside the layout, .tif" in log
    assert all(f"121 x {file}" in log for file in FILES)
    assert f"not an item: {FOLDER}29/R/KH/2020/3/{VERSION_0}/{VERSION_0}.json" in log


def test_an_inventory_on_s3_is_planned_from_s3_and_versions_are_read_there(bucket, tmp_path):
    documents = [item_document(VERSION_0), item_document(VERSION_1, baseline="05.00"), item_document(IDS[40])]
    local = Path(put(tmp_path, text(key(d["id"]) for d in documents)))
    manifest = json.loads(local.read_text())
    manifest["destinationBucket"] = "arn:aws:s3:::" + bucket.removeprefix("s3://")
    storage.write_bytes(f"{bucket}/inv/manifest.json", json.dumps(manifest).encode())
    part = (tmp_path / "data" / "part0.csv.gz").read_bytes()
    storage.write_bytes(f"{bucket}/{manifest['files'][0]['key']}", part)
    for d in documents:
        storage.write_bytes(f"{bucket}/archive/{key(d['id'])}", json.dumps(d).encode())
    inventory, archive = f"{bucket}/inv/manifest.json", f"{bucket}/archive"
    shards = plans.lines(plan_bytes(f"{bucket}/plan.gz", inventory=inventory, archive=archive))
    addresses = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert addresses == {i: f"{bucket}/archive/{key(i)}" for i in (VERSION_1, IDS[40])}


def test_overlapping_areas_give_every_item_once(serve_items, tmp_path):
    api = serve_items(DOCUMENTS)
    tile = footprint("29RKH")
    shapes = [tile, tile.buffer(0.1), shapely.affinity.translate(tile, 0.5, 0)]
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(s)} for s in shapes]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    units = units_of(plan_bytes(tmp_path / "p.gz", search=api.url, area=area))
    assert units == sorted(i for i in IDS if "_29R" in i)
    assert units == units_of(plan_bytes(tmp_path / "i.gz", items=write_list(tmp_path, map(key, IDS)), area=area))
