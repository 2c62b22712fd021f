"""Versions of one Sentinel-2 product: the newest is selected, and both halves of a scene."""

import json

from kiln.archives.sentinel2.item_lists import list_file
from kiln.archives.sentinel2.item_name import ItemFilter
from kiln.archives.sentinel2.versions import select_items
from kiln.errors import TransientError
from tests.support.inventories import key
from tests.support.sentinel2_plans import (
    IDS,
    VERSION_0,
    VERSION_1,
    check_counts,
    item_document,
    plan_bytes,
    refusal,
    units_of,
    write_archive,
    write_list,
)


def selected_ids(documents, tmp_path, max_cloud=None):
    """Select among items listed by key; return their ids and the counts."""
    gathered = list_file(
        write_list(tmp_path, (key(d["id"]) for d in documents)), write_archive(tmp_path / "a", documents), ItemFilter()
    )
    select_items(gathered, max_cloud)
    check_counts(gathered.counts)
    return sorted(i for places in gathered.locations.values() for i in places), gathered.counts


def test_the_newest_of_two_versions_is_selected_regardless_of_its_number(tmp_path):
    for older, newer in ((VERSION_0, VERSION_1), (VERSION_1, VERSION_0)):
        ids, counts = selected_ids(
            [item_document(older, baseline="02.14"), item_document(newer, baseline="05.00")], tmp_path
        )
        assert ids == [newer]
        assert (counts.superseded, counts.read) == (1, 2)


def test_both_halves_of_a_scene_are_selected(tmp_path):
    ids, counts = selected_ids(
        [item_document(VERSION_0, sensing="112120"), item_document(VERSION_1, sensing="112139")], tmp_path
    )
    assert ids == [VERSION_0, VERSION_1]
    assert counts.superseded == 0


def test_items_without_a_rival_version_are_not_read(tmp_path):
    lone = [VERSION_1, "S2B_29RKH_20200219_0_L2A", "S2A_29RKH_20200220_1_L2A", "S2A_29RKJ_20200219_0_L2A"]
    items = write_list(tmp_path, map(key, lone))
    gathered = list_file(items, str(tmp_path / "nowhere"), ItemFilter())
    select_items(gathered, None)
    assert (gathered.counts.read, gathered.counts.selected) == (0, 4)


def test_items_of_collection_1_and_v1_of_one_scene_are_versions_of_each_other(tmp_path):
    newer = "S2A_T29RKH_20200219T112111_L2A"
    ids, _ = selected_ids([item_document(VERSION_0), item_document(newer, baseline="05.00")], tmp_path)
    assert ids == [newer]


def test_an_unreadable_item_is_selected_and_reported(tmp_path, caplog):
    documents = [item_document(VERSION_0), item_document(VERSION_1, baseline="05.00")]
    archive = write_archive(tmp_path / "a", documents)
    items = write_list(tmp_path, [key(VERSION_0), key(VERSION_1)])
    for harm in ("gone", "<html>", json.dumps(item_document(IDS[7]))):
        path = tmp_path / "a" / key(VERSION_1)
        path.unlink(missing_ok=True)
        if harm != "gone":
            path.write_text(harm)
        caplog.clear()
        caplog.set_level("INFO")
        assert units_of(plan_bytes(tmp_path / "p.gz", items=items, archive=archive)) == [VERSION_0, VERSION_1]
        assert f"selected, but cannot be read: {path}" in caplog.text


def test_a_busy_server_while_versions_are_read_is_a_transient_error(tmp_path, serve):
    web = serve({}, status=503)
    items = write_list(tmp_path, [key(VERSION_0), key(VERSION_1)])
    assert "503" in refusal(tmp_path, TransientError, items=items, archive=web.url)


def test_cloud_cover_is_filtered_before_versions_as_an_api_does(tmp_path):
    documents = [
        item_document(VERSION_0, cloud=10.0),
        item_document(VERSION_1, baseline="05.00", cloud=90.0),
        item_document(IDS[5], cloud=None),
    ]
    ids, counts = selected_ids(documents, tmp_path, max_cloud=50.0)
    assert ids == sorted([VERSION_0, IDS[5]]), "an item without a cloud cover is selected"
    assert (counts.cloudy, counts.superseded, counts.read) == (1, 0, 3)
