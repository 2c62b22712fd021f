"""Items whose `datetime` is a day later than their ids: one day decides about filters and partitions everywhere."""

import pytest

from kiln.archives.sentinel2.item import read_item
from kiln.errors import ConfigError
from tests.support import plans
from tests.support.inventories import keys_of, put, text
from tests.support.sentinel2_plans import S3, WEB, item_document, key, plan_bytes, units_of, write_archive, write_list
from tests.support.stac_api import COLLECTION

MIDNIGHT = "S2A_T01CCV_20260131T235736_L2A"
NEXT_DAY = "S2A_T01CCV_20260201T000112_L2A"
PRODUCT = "S2A_MSIL2A_20260131T235736_N0511_R030_T01CCV_20260201T040000"
DOCUMENTS = [
    item_document(MIDNIGHT, sensing="235736", datetime="2026-02-01T00:01:05Z"),
    item_document(NEXT_DAY, sensing="000112", datetime="2026-02-01T00:03:05Z"),
]


@pytest.fixture
def ways(tmp_path, serve_items):
    """The settings of an inventory, a search and two lists: of keys, and of addresses in an API."""
    archive = write_archive(tmp_path / "archive", DOCUMENTS)
    api = serve_items(DOCUMENTS)
    urls = [f"{api.url}/collections/{COLLECTION}/items/{d['id']}" for d in DOCUMENTS]
    settings = [
        {"inventory": put(tmp_path / "inventory", text(k for d in DOCUMENTS for k in keys_of(d["id"])))},
        {"search": api.url, "collection": COLLECTION},
        {"items": write_list(tmp_path, [S3 + key(MIDNIGHT), WEB + key(NEXT_DAY)])},
        {"items": write_list(tmp_path, urls, "urls.txt")},
    ]
    return [{**way, "archive": archive} for way in settings]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"dates": "2026-01-31"}, [MIDNIGHT]),
        ({"dates": "2026-02-01"}, [NEXT_DAY]),
        ({"dates": "../2026-01-31"}, [MIDNIGHT]),
        ({"dates": "2026-02-01/.."}, [NEXT_DAY]),
        ({"dates": "2026-01-31/2026-02-01"}, [MIDNIGHT, NEXT_DAY]),
        ({"dates": "2026-01-01/2026-02-28", "months": [1]}, [MIDNIGHT]),
        ({"dates": "2026-01-01/2026-02-28", "months": [2]}, [NEXT_DAY]),
    ],
)
def test_the_day_in_the_id_filters_an_inventory_a_search_and_lists_alike(ways, tmp_path, filters, ids):
    found = [plan_bytes(tmp_path / f"{n}.gz", **way, **filters) for n, way in enumerate(ways)]
    assert [units_of(data) for data in found] == [ids] * len(ways)
    assert len(set(found)) == 1


def test_no_item_of_a_day_without_items_is_planned(ways, tmp_path):
    for way in ways:
        with pytest.raises(ConfigError, match="the filters leave none"):
            plan_bytes(tmp_path / "p.gz", **way, dates="2026-02-02")


def test_the_day_in_the_id_decides_about_the_partition(ways, tmp_path):
    for n, way in enumerate(ways):
        shards = plans.lines(plan_bytes(tmp_path / f"{n}.gz", **way, dates="2026-01-01/2026-12-31"))
        assert {s["partition"]: s["units"] for s in shards} == {"01C-2026-01": [MIDNIGHT], "01C-2026-02": [NEXT_DAY]}


def test_versions_of_one_acquisition_whose_times_differ_about_midnight_are_versions(tmp_path, serve_items):
    again = MIDNIGHT.replace("235736", "235737")
    documents = [
        DOCUMENTS[0],
        item_document(again, sensing="235736", baseline="05.11", datetime="2026-01-31T23:59:59Z"),
    ]
    archive = write_archive(tmp_path / "archive", documents)
    items = write_list(tmp_path, [S3 + key(d["id"]) for d in documents])
    assert units_of(plan_bytes(tmp_path / "p.gz", items=items, archive=archive)) == [again]


@pytest.mark.parametrize(
    ("item_id", "day"),
    [
        (MIDNIGHT, "2026-01-31"),
        (PRODUCT, "2026-01-31"),  # an item of the Planetary Computer or the Copernicus Data Space
        (f"{PRODUCT}.SAFE", "2026-01-31"),
        ("S2A_1CCV_20260131_0_L2A", "2026-01-31"),
        ("S2A_1CCV_20261331_0_L2A", "2026-02-01"),  # no day
        ("scene-20260131", "2026-02-01"),
    ],
)
def test_the_day_is_in_the_id_of_every_catalogue_else_in_datetime(item_id, day):
    item = read_item({**DOCUMENTS[0], "id": item_id}, "https://host/item.json")
    assert f"{item.day}" == day
    assert item.partition == f"01C-{day[:7]}"
    assert item.datetime.isoformat() == "2026-02-01T00:01:05+00:00", "rows have the time of acquisition"
