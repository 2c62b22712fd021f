"""Versions of one Sentinel-2 product: the newest is selected, and both halves of a scene."""

import itertools
import json
from datetime import UTC, datetime

import pytest

from kiln.archives.sentinel2.item_lists import list_file
from kiln.archives.sentinel2.item_name import ItemFilter
from kiln.archives.sentinel2.versions import newest, select_items
from kiln.errors import TransientError
from tests.support.inventories import key
from tests.support.sentinel2_items import make_version
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

# ---------------------------------------------------------------------------- selection among the versions of a product


def select_newest(*items):
    selections = {tuple(i.item_id for i in newest(order)[0]) for order in itertools.permutations(items)}
    assert len({tuple(sorted(f)) for f in selections}) == 1, "the order of the items must not matter"
    return sorted(selections.pop())


def test_the_version_of_the_highest_baseline_is_selected_regardless_of_names():
    first = make_version(item_id="x_0", baseline="05.00", generation_time="2020")
    assert select_newest(first, make_version(item_id="x_1", baseline="02.14", generation_time="2023")) == ["x_0"]
    assert select_newest(first, make_version(item_id="x_1", baseline="05.10", generation_time="2019")) == ["x_1"]
    assert select_newest(first, make_version(item_id="x_1", baseline="")) == ["x_0"]


def test_the_latest_processed_of_equal_baselines_is_selected():
    early, late = "2020-02-19T12:39:47.000000+00:00", "2020-02-20T01:00:00.000000+00:00"
    assert select_newest(
        make_version(item_id="x_0", generation_time=late), make_version(item_id="x_1", generation_time=early)
    ) == ["x_0"]


def test_otherwise_equal_versions_are_decided_by_name():
    assert select_newest(make_version(item_id="x_1"), make_version(item_id="x_0"), make_version(item_id="x_2")) == [
        "x_0"
    ]


def test_halves_of_two_datastrips_are_both_selected_and_have_their_own_versions():
    halves = [
        make_version(item_id="x_0", sensing="20200219T113105"),
        make_version(item_id="x_1", sensing="20200219T113300"),
        make_version(item_id="x_2", sensing="20200219T113300", baseline="05.00"),
    ]
    assert select_newest(*halves) == ["x_0", "x_2"]


@pytest.mark.parametrize(
    "other",
    [{"zone": 30}, {"square": "KJ"}, {"platform": "sentinel-2b"}, {"datetime": datetime(2020, 2, 20, tzinfo=UTC)}],
)
def test_another_tile_platform_or_day_is_another_product(other):
    assert select_newest(make_version(item_id="x_0"), make_version(item_id="x_1", baseline="05.00", **other)) == [
        "x_0",
        "x_1",
    ]


def test_an_item_without_sensing_time_supersedes_no_other_and_is_selected():
    silent = make_version(item_id="x_0", sensing="", baseline="05.00")
    assert select_newest(silent, make_version(item_id="x_1"), make_version(item_id="x_2", sensing="")) == [
        "x_0",
        "x_1",
        "x_2",
    ]


def test_a_repeated_item_is_selected_once_and_superseded_items_are_returned():
    a, b, c = (
        make_version(item_id="x_0"),
        make_version(item_id="x_1", baseline="05.00"),
        make_version(item_id="y", square="KJ"),
    )
    stay, gone = newest([a, c, b, c, a])
    assert [i.item_id for i in stay] == ["y", "x_1"]
    assert [(old.item_id, new.item_id) for old, new in gone] == [("x_0", "x_1"), ("y", "y"), ("x_0", "x_1")]


# -------------------------------------------------------------------------------------------------- selection in a plan


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
