"""Sentinel-2's plan: the same bytes from an inventory, a search and a list; every line told; versions and halves."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping

from kiln.archives.sentinel2 import plan
from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.item_lists import canonical, list_file, list_search
from kiln.archives.sentinel2.item_name import ItemFilter, footprint, parse_name
from kiln.archives.sentinel2.versions import select_items
from kiln.errors import ConfigError, TransientError
from kiln.formats import plan_file
from kiln.io import storage
from tests.support import plans
from tests.support.stac_api import COLLECTION, StacApi
from tests.unit.archives.sentinel2.test_inventory import FILES, FOLDER, item_id, key, keys_of, put, text

S3 = "s3://sentinel-cogs/"
WEB = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/"


def document(name, sensing="112120", baseline="02.14", cloud=5.0, made="2020-02-19T12:39:47Z", **said):
    """An item of Earth Search v1, as far as a plan looks at it."""
    parsed = parse_name(name)
    day = f"{parsed.year}{parsed.month:02d}{parsed.day:02d}"
    properties = {
        "datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T11:34:25.405000Z",
        "platform": f"sentinel-2{parsed.platform[-1].lower()}",
        "eo:cloud_cover": cloud,
        "mgrs:utm_zone": parsed.zone,
        "mgrs:latitude_band": parsed.band,
        "mgrs:grid_square": parsed.square,
        "s2:processing_baseline": baseline,
        "s2:generation_time": made,
        "s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_MPS__20200219T123947_S{day}T{sensing}_N{baseline}",
        **said,
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "geometry": mapping(footprint(parsed.tile)),
        "properties": properties,
        "links": [{"rel": "canonical", "href": S3 + key(name), "type": "application/json"}],
        "assets": {},
    }


def stored(folder, documents):
    """An archive on this machine that has these items."""
    for said in documents:
        path = folder / key(said["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))
    return str(folder)


def listed(folder, lines, name="items.txt"):
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.fixture
def serve_items():
    started = []

    def start(documents, **options):
        started.append(StacApi(documents, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def planned(output, **settings):
    """The bytes of a plan."""
    return plans.write("sentinel2", output, **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()})


def units_of(data):
    return sorted(plans.units(data))


def refused(tmp_path, error=ConfigError, **settings):
    """The message of an error that leaves no plan."""
    with pytest.raises(error) as e:
        planned(tmp_path / "out" / "plan.gz", **settings)
    assert not list(tmp_path.glob("out/*"))
    return str(e.value)


def balanced(counts):
    assert counts.lines == counts.items + counts.others.total() + len(counts.unreadable)
    gone = counts.filtered + counts.cloudy + counts.superseded + counts.duplicates
    assert counts.items == counts.selected + gone
    return counts


IDS = [item_id(n, tile, month=m) for tile in ("29RKH", "29RLH", "30RTN") for m in (2, 3) for n in range(20)]
DOCUMENTS = [document(i, cloud=5.0 * (n % 20)) for n, i in enumerate(IDS)]
EVERY = {"dates": "2020-01-01/2020-12-31"}


# -------------------------------------------------------------------------------------------- one plan, three ways


@pytest.fixture
def three(tmp_path, serve_items):
    """The settings of an inventory, a search and a list of the same items, among them versions and halves."""
    pairs = [document(i.replace("_0_", "_1_"), made="2021-01-01T00:00:00Z") for i in IDS[:10]]
    halves = [document(i.replace("_0_", "_1_"), sensing="112121") for i in IDS[20:30]]
    documents = [*DOCUMENTS, *pairs, *halves]
    archive = stored(tmp_path / "archive", documents)
    ids = [d["id"] for d in documents]
    inventory = put(tmp_path / "inventory", *(text(k for i in ids[n::3] for k in keys_of(i)) for n in range(3)))
    items = listed(tmp_path, [(S3, WEB, "", f"{archive}/")[n % 4] + key(i) for n, i in enumerate(ids)])
    api = serve_items(random.Random(1).sample(documents, len(documents)))
    ways = ({"inventory": inventory}, {"search": api.url, **EVERY}, {"items": items})
    return {next(iter(settings)): {**settings, "archive": archive} for settings in ways}


def test_the_same_items_make_the_same_bytes_whichever_way_they_come(three, tmp_path):
    inventory, search, items = (
        planned(tmp_path / f"{way}.gz", **three[way]) for way in ("inventory", "search", "items")
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
    ],
)
def test_filters_take_the_same_items_whichever_way_they_come(three, tmp_path, filters, count):
    plans_made = {way: planned(tmp_path / f"{way}.gz", **(said | filters)) for way, said in three.items()}
    assert len(set(plans_made.values())) == 1, {way: len(units_of(p)) for way, p in plans_made.items()}
    assert len(units_of(plans_made["items"])) == count


def test_the_real_scene_is_the_same_plan_from_each_of_the_three(shared, tmp_path, serve_items):
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
        {"items": listed(tmp_path, [WEB + key(name)])},
        {"items": listed(tmp_path, [f"{api.url}/collections/{COLLECTION}/items/{name}"], "b.txt")},
        {"items": listed(tmp_path, [path], "c.txt")},
    ]
    made = [planned(tmp_path / f"{n}.gz", archive=archive, **way) for n, way in enumerate(ways)]
    assert len(set(made)) == 1
    (shard,) = plans.lines(made[0])
    assert shard["details"]["items"] == {name: str(path)}
    assert read_item(storage.read_bytes(str(path)), str(path)).partition == shard["partition"] == "29R-2020-02"


def test_real_items_of_three_baselines_of_a_search_have_their_canonical_addresses(shared, serve_items, tmp_path):
    if shared is None:
        pytest.skip("needs the folder of real items")
    documents = [json.loads(p.read_text()) for p in sorted((shared / "archive" / "stac").glob("*.json"))]
    for said in documents:
        said["collection"] = COLLECTION
    shards = plans.lines(planned(tmp_path / "p.gz", search=serve_items(documents).url, dates="2022-01-01/.."))
    found = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert found == {d["id"]: S3 + key(d["id"]) for d in documents}
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
def test_an_address_has_one_spelling(address, same):
    assert canonical(address, "s3://sentinel-cogs") == same
    assert canonical(address, "/data/") == same.replace("s3://sentinel-cogs/", "/data/")


# ------------------------------------------------------------------------------------------------ the plan's lines


def test_a_shard_says_what_its_job_needs(tmp_path):
    data = planned(tmp_path / "p.gz", items=listed(tmp_path, map(key, IDS[:3])), chip_size=512)
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
    (shard,) = plans.lines(planned(tmp_path / "p.gz", items=listed(tmp_path, [key(IDS[0])])))
    assert shard["expected"] == 42 * 42


def test_every_shard_holds_one_grid_zone_and_month_and_no_more_than_twice_what_was_asked(tmp_path):
    names = str(tmp_path / "names.json")
    items = listed(tmp_path, map(key, IDS))
    shards = plans.lines(planned(tmp_path / "p.gz", items=items, items_per_shard=5, names=names))
    assert sorted(u for s in shards for u in s["units"]) == sorted(IDS)
    for shard in shards:
        assert {parse_name(u).partition for u in shard["units"]} == {shard["partition"]}
        assert len(shard["units"]) <= 10
    told = plan_file.read_names(names)
    assert set(told) == {"29R-2020-02", "29R-2020-03", "30R-2020-02", "30R-2020-03"}
    assert {(p, n) for p, found in told.items() for n in found} == {(s["partition"], s["name"]) for s in shards}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, len(IDS) - 1), st.integers(2, 12))
def test_one_item_more_or_less_changes_at_most_two_shards(n, nominal):
    def names(ids):
        gathered = list_search(map(document, ids), "s3://sentinel-cogs", ItemFilter())
        select_items(gathered, None)
        return {(s.partition, s.name) for s in plan.shard_plans(gathered, nominal, 256, "s3://sentinel-cogs")}

    with_it, without = names(IDS), names(IDS[:n] + IDS[n + 1 :])
    assert 1 <= len(with_it - without) <= 2
    assert len(without - with_it) <= 2


def test_the_plan_is_the_same_bytes_in_another_order(tmp_path):
    first = planned(tmp_path / "a.gz", items=listed(tmp_path, map(key, IDS)), items_per_shard=7)
    shuffled = listed(tmp_path, map(key, random.Random(3).sample(IDS * 2, 2 * len(IDS))))
    assert planned(tmp_path / "b.gz", items=shuffled, items_per_shard=7) == first


# ------------------------------------------------------------------------------------------------------ versions


def kept(documents, tmp_path, max_cloud=None):
    """What stays of items that are listed by key, and the counts."""
    gathered = list_file(
        listed(tmp_path, (key(d["id"]) for d in documents)), stored(tmp_path / "a", documents), ItemFilter()
    )
    select_items(gathered, max_cloud)
    balanced(gathered.counts)
    return sorted(i for places in gathered.locations.values() for i in places), gathered.counts


ONE = "S2A_29RKH_20200219_0_L2A"
TWO = "S2A_29RKH_20200219_1_L2A"


def test_of_two_versions_the_newest_stays_whatever_the_number_in_its_name(tmp_path):
    for older, newer in ((ONE, TWO), (TWO, ONE)):
        ids, counts = kept([document(older, baseline="02.14"), document(newer, baseline="05.00")], tmp_path)
        assert ids == [newer]
        assert (counts.superseded, counts.read) == (1, 2)


def test_the_halves_of_a_scene_both_stay(tmp_path):
    ids, counts = kept([document(ONE, sensing="112120"), document(TWO, sensing="112139")], tmp_path)
    assert ids == [ONE, TWO]
    assert counts.superseded == 0


def test_a_lone_second_number_and_other_platforms_and_days_are_not_read(tmp_path):
    lone = [TWO, "S2B_29RKH_20200219_0_L2A", "S2A_29RKH_20200220_1_L2A", "S2A_29RKJ_20200219_0_L2A"]
    items = listed(tmp_path, map(key, lone))
    gathered = list_file(items, str(tmp_path / "nowhere"), ItemFilter())
    select_items(gathered, None)
    assert (gathered.counts.read, gathered.counts.selected) == (0, 4)


def test_names_of_collection_1_and_of_v1_of_one_scene_are_versions_of_each_other(tmp_path):
    newer = "S2A_T29RKH_20200219T112111_L2A"
    ids, _ = kept([document(ONE), document(newer, baseline="05.00")], tmp_path)
    assert ids == [newer]


def test_an_item_that_cannot_be_read_stays_and_is_told(tmp_path, caplog):
    documents = [document(ONE), document(TWO, baseline="05.00")]
    archive = stored(tmp_path / "a", documents)
    items = listed(tmp_path, [key(ONE), key(TWO)])
    for harm in ("gone", "<html>", json.dumps(document(IDS[7]))):
        path = tmp_path / "a" / key(TWO)
        path.unlink(missing_ok=True)
        if harm != "gone":
            path.write_text(harm)
        caplog.clear()
        caplog.set_level("INFO")
        assert units_of(planned(tmp_path / "p.gz", items=items, archive=archive)) == [ONE, TWO]
        assert f"selected, but cannot be read: {path}" in caplog.text


def test_a_store_that_is_busy_while_versions_are_read_ends_the_plan(tmp_path, serve):
    web = serve({}, status=503)
    items = listed(tmp_path, [key(ONE), key(TWO)])
    assert "503" in refused(tmp_path, TransientError, items=items, archive=web.url)


def test_clouds_are_looked_at_before_versions_as_an_api_does(tmp_path):
    documents = [document(ONE, cloud=10.0), document(TWO, baseline="05.00", cloud=90.0), document(IDS[5], cloud=None)]
    ids, counts = kept(documents, tmp_path, max_cloud=50.0)
    assert ids == sorted([ONE, IDS[5]]), "an item that does not tell its clouds stays"
    assert (counts.cloudy, counts.superseded, counts.read) == (1, 0, 3)


# ------------------------------------------------------------------------------------------------------ the list


def test_an_archive_in_a_folder_of_the_working_directory_is_named_once(tmp_path):
    items = listed(tmp_path, [key(IDS[0]), WEB + key(IDS[1]), S3 + key(IDS[2]), WEB + key(IDS[0])])
    (shard,) = plans.lines(planned(tmp_path / "p.gz", items=items, archive="sample/s2"))
    assert shard["details"]["items"] == {i: f"sample/s2/{key(i)}" for i in sorted(IDS[:3])}


def test_every_line_of_a_list_is_an_item_or_told(tmp_path, caplog):
    lines = [key(ONE), "", "# a comment", S3 + key(ONE), WEB + key(IDS[3]), f"/mirror/{key(IDS[4])}", "  "]
    lines += ["hello", f"{FOLDER}29/R/KH/2020/2/{ONE}/B02.tif", f"{S3}{FOLDER}2019/{ONE}/B02.tif", "x" * 5000]
    caplog.set_level("INFO")
    shards = plans.lines(planned(tmp_path / "p.gz", items=listed(tmp_path, lines)))
    addresses = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert addresses == {ONE: S3 + key(ONE), IDS[3]: S3 + key(IDS[3]), IDS[4]: f"/mirror/{key(IDS[4])}"}
    said = caplog.text
    assert "11 lines: 4 items, 3 selected, 0 filtered out, 0 too cloudy, 0 older versions, 1 duplicates" in said
    for told in ("2 x empty line", "1 x comment", "1 x overlong line", "not an item: hello"):
        assert told in said
    assert f"not an item: {FOLDER}29/R/KH/2020/2/{ONE}/B02.tif" in said
    assert f"not an item: {S3}{FOLDER}2019/{ONE}/B02.tif" in said


def test_a_list_is_the_same_plain_and_gzip_by_path_http_and_s3(tmp_path, serve, bucket):
    lines = "".join(f"{key(i)}\r\n" for i in IDS).encode()
    packed = gzip.compress(b"\xef\xbb\xbf" + lines)
    (tmp_path / "items.txt").write_bytes(lines)
    storage.write_bytes(f"{bucket}/items.gz", packed)
    web = serve({"/items": packed})
    sources = [tmp_path / "items.txt", f"{bucket}/items.gz", f"{web.url}/items"]
    made = {planned(tmp_path / f"{n}.gz", items=source) for n, source in enumerate(sources)}
    assert len(made) == 1
    assert units_of(made.pop()) == sorted(IDS)


def test_items_elsewhere_are_read_and_keep_their_addresses(tmp_path, serve):
    strange = {**document(ONE), "id": "my-scene"}
    web = serve({"/x/my.json": json.dumps(strange).encode(), "/x/bad.json": b"<html>", "/x/list.json": b"[]"})
    (tmp_path / "other.json").write_text(json.dumps(document(IDS[30])))
    lines = [f"{web.url}/x/my.json", f"{web.url}/x/bad.json", f"{web.url}/x/list.json", f"{web.url}/x/none.json"]
    lines.append(str(tmp_path / "other.json"))
    gathered = list_file(listed(tmp_path, lines), "s3://sentinel-cogs", ItemFilter())
    select_items(gathered, None)
    balanced(gathered.counts)
    found = {p: {i: gathered.address(i, a) for i, a in places.items()} for p, places in gathered.locations.items()}
    assert found["29R-2020-02"] == {"my-scene": lines[0]}
    assert found[parse_name(IDS[30]).partition] == {IDS[30]: lines[4]}
    assert [u.split(":")[0] + ":" + u.split(":")[1] for u in gathered.counts.unreadable] == ["http://127.0.0.1"] * 3


@pytest.mark.parametrize("turned", [1, -1])
def test_an_item_at_two_addresses_is_one_unit_at_the_first_of_them_by_alphabet(tmp_path, turned):
    lines = [f"/mirror/b/{key(ONE)}", f"/mirror/a/{key(ONE)}", f"/mirror/c/{key(ONE)}"][::turned]
    (shard,) = plans.lines(planned(tmp_path / "p.gz", items=listed(tmp_path, lines)))
    assert shard["details"]["items"] == {ONE: f"/mirror/a/{key(ONE)}"}


def test_versions_with_names_of_their_own_are_told_apart_too(tmp_path):
    for n, baseline in enumerate(("02.14", "05.00")):
        (tmp_path / f"{n}.json").write_text(json.dumps({**document(ONE, baseline=baseline), "id": f"mine-{n}"}))
    items = listed(tmp_path, [tmp_path / "0.json", tmp_path / "1.json"])
    assert units_of(planned(tmp_path / "p.gz", items=items)) == ["mine-1"]


def test_an_item_of_an_api_is_addressed_by_its_canonical_link_or_else_itself(serve_items, tmp_path):
    documents = [document(i) for i in IDS[:4]]
    documents[1]["links"] = [{"rel": "canonical", "href": WEB + key(IDS[1])}]  # as v0 has it
    documents[2]["links"] = [{"rel": "canonical", "href": "https://example.org/page.html"}]
    documents[3]["links"] = []
    api = serve_items(documents)
    own = [f"{api.url}/collections/{COLLECTION}/items/{i}" for i in IDS[:4]]
    expected = {IDS[0]: S3 + key(IDS[0]), IDS[1]: S3 + key(IDS[1]), IDS[2]: own[2], IDS[3]: own[3]}
    search = planned(tmp_path / "a.gz", search=api.url, **EVERY)
    assert {i: a for s in plans.lines(search) for i, a in s["details"]["items"].items()} == expected
    assert planned(tmp_path / "b.gz", items=listed(tmp_path, own)) == search


def test_what_an_api_gives_that_is_no_item_of_sentinel_2_is_listed(serve_items, tmp_path, caplog):
    odd = document(IDS[1])
    odd["properties"]["datetime"] = None
    api = serve_items([document(IDS[0]), odd])
    api.meets = lambda item, asked: True
    caplog.set_level("INFO")
    assert units_of(planned(tmp_path / "p.gz", search=api.url, **EVERY)) == [IDS[0]]
    assert f"not an item: {S3}{key(IDS[1])}" in caplog.text


# -------------------------------------------------------------------------------------------- inventory and search


def test_the_report_of_an_inventory_tells_every_kind(tmp_path, caplog):
    keys = [k for i in IDS for k in keys_of(i)] + [f"{FOLDER}2019/{ONE}/B02.tif"] * 64
    keys += [f"{FOLDER}29/R/KH/2020/3/{ONE}/{ONE}.json"]
    caplog.set_level("INFO")
    planned(tmp_path / "p.gz", inventory=put(tmp_path, text(keys), text(keys[:5])), months=[2])
    said = caplog.text
    assert "670 lines: 121 items, 60 selected, 60 filtered out, 0 too cloudy, 0 older versions, 1 duplicates" in said
    assert "64 x sentinel-s2-l2a-cogs/2019, outside the layout, .tif" in said
    assert all(f"121 x {file}" in said for file in FILES)
    assert f"not an item: {FOLDER}29/R/KH/2020/3/{ONE}/{ONE}.json" in said


def test_an_inventory_on_s3_is_planned_where_it_lies_and_versions_are_read_there(bucket, tmp_path):
    documents = [document(ONE), document(TWO, baseline="05.00"), document(IDS[40])]
    local = Path(put(tmp_path, text(key(d["id"]) for d in documents)))
    said = json.loads(local.read_text())
    said["destinationBucket"] = "arn:aws:s3:::" + bucket.removeprefix("s3://")
    storage.write_bytes(f"{bucket}/inv/manifest.json", json.dumps(said).encode())
    part = (tmp_path / "data" / "part0.csv.gz").read_bytes()
    storage.write_bytes(f"{bucket}/{said['files'][0]['key']}", part)
    for d in documents:
        storage.write_bytes(f"{bucket}/archive/{key(d['id'])}", json.dumps(d).encode())
    inventory, archive = f"{bucket}/inv/manifest.json", f"{bucket}/archive"
    shards = plans.lines(planned(f"{bucket}/plan.gz", inventory=inventory, archive=archive))
    found = {i: a for s in shards for i, a in s["details"]["items"].items()}
    assert found == {i: f"{bucket}/archive/{key(i)}" for i in (TWO, IDS[40])}


def test_overlapping_areas_give_no_item_twice(serve_items, tmp_path):
    api = serve_items(DOCUMENTS)
    tile = footprint("29RKH")
    shapes = [tile, tile.buffer(0.1), shapely.affinity.translate(tile, 0.5, 0)]
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(s)} for s in shapes]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    units = units_of(planned(tmp_path / "p.gz", search=api.url, area=area))
    assert units == sorted(i for i in IDS if "_29R" in i)
    assert units == units_of(planned(tmp_path / "i.gz", items=listed(tmp_path, map(key, IDS)), area=area))


# ------------------------------------------------------------------------------------------------------ bad input


def test_a_page_that_fails_for_good_leaves_no_plan(serve_items, tmp_path):
    ids = [item_id(n, f"{zone}RKH", month=m) for zone in (29, 32) for m in (1, 2, 3) for n in range(28)]
    api = serve_items([document(i) for i in ids])
    api.trouble = {2: [404]}
    assert "refuses with 404" in refused(tmp_path, search=api.url, **EVERY)
    api.matched = 3
    assert "expected 171 items, got 168" in refused(tmp_path, TransientError, search=api.url, **EVERY)
    api.matched, api.trouble, api.wait = 0, {2: [429]}, "1"
    assert len(units_of(planned(tmp_path / "p.gz", search=api.url, **EVERY))) == 168


def test_an_api_that_answers_html_is_refused_in_words(serve, tmp_path):
    web = serve({"/": b"<html>Sign in</html>"})
    assert "STAC API" in refused(tmp_path, search=f"{web.url}/", **EVERY)


def test_filters_that_leave_nothing_are_said_to(serve_items, tmp_path):
    inventory = put(tmp_path, text(map(key, IDS)))
    items = listed(tmp_path, map(key, IDS))
    days = {"dates": "2021-01-01/2021-01-02"}
    for filters in ({"years": [2016]}, {"months": [7]}, {"tiles": ["31"]}, {"bbox": [0, 0, 1, 1]}, days):
        for way in ({"inventory": inventory}, {"items": items}):
            assert "the filters leave none of 120 items" in refused(tmp_path, **way, **filters)
    api = serve_items(DOCUMENTS)
    assert "leave none of 120" in refused(tmp_path, search=api.url, years=[2016], **EVERY)
    assert "got none in 0 lines" in refused(tmp_path, search=api.url, bbox=[0, 0, 1, 1])


def test_lists_and_inventories_without_an_item_are_refused(tmp_path):
    said = refused(tmp_path, items=listed(tmp_path, ["", "<html>", "</html>"]))
    assert "items.txt: expected items of Sentinel-2, got none in 3 lines" in said
    inventory = put(tmp_path, text([f"{FOLDER}2019/{ONE}/B02.tif"]))
    assert "got none in 1 lines" in refused(tmp_path, inventory=inventory)


def test_a_missing_or_truncated_list_is_told(tmp_path):
    assert "none.txt: does not exist" in refused(tmp_path, items=tmp_path / "none.txt")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(text(map(key, IDS)))[:-9])
    assert "cut.gz: truncated or damaged" in refused(tmp_path, items=tmp_path / "cut.gz")


def test_a_missing_part_leaves_no_plan(tmp_path):
    inventory = put(tmp_path, text(map(key, IDS)))
    shutil.rmtree(tmp_path / "data")
    assert "part0.csv.gz" in refused(tmp_path, inventory=inventory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chip_size": 20_000}, "chip_size: expected 8 to 10980, got 20000"),
        ({"bbox": [1, 4, 3, 2]}, "bbox: expected"),
        ({"bbox": [1, 2, 1, 4]}, "bbox: expected"),
        ({"bbox": [float("nan"), 2, 1, 4]}, "bbox: expected"),
        ({"bbox": [0, 0, 200, 10]}, "bbox: expected"),
        ({"tiles": ["61R"]}, "tiles: expected"),
        ({"tiles": ["29RK"]}, "tiles: expected"),
        ({"tiles": ["29I"]}, "tiles: expected"),
        ({"dates": "2021-01-01/2020-01-01"}, "dates: expected"),
        ({"dates": "../.."}, "dates: expected"),
        ({"bbox": [0, 0, 1, 1], "area": "a.geojson"}, "area and bbox: expected one of them"),
        ({"search": "http://127.0.0.1:9"}, "exactly one of inventory, search, items, got search and items"),
        ({"inventory_root": "a"}, "inventory_root: expected together with inventory"),
        ({"area": "none.geojson"}, "none.geojson: does not exist"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    assert message in refused(tmp_path, items=listed(tmp_path, [key(ONE)]), **settings)


def test_a_search_without_area_or_dates_is_refused(tmp_path):
    assert "search: expected area, bbox or dates" in refused(tmp_path, search="http://127.0.0.1:9")


def test_an_area_and_a_box_across_the_antimeridian_find_tiles_on_both_sides(tmp_path):
    ids = [item_id(1, t) for t in ("60KYF", "01KAB", "60KXF", "31NAA")]
    data = planned(tmp_path / "p.gz", items=listed(tmp_path, map(key, ids)), bbox=[179.5, -19, -179.5, -16])
    assert units_of(data) == sorted(ids[:2])
