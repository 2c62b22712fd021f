"""Items of Sentinel-1, Landsat and Sentinel-2 L1C are refused by name; no sound item of L2A is."""

import json

import pytest

from kiln.archives.sentinel2.item import OtherProductError, read_item
from kiln.archives.sentinel2.other_products import other_product, refusal
from kiln.errors import ConfigError
from tests.support.items import NAME, write_item
from tests.support.sentinel2_items import ITEM_URL, make_item
from tests.support.sentinel2_plans import S3, item_document, key, plan_bytes, units_of, write_archive, write_list
from tests.support.sentinel2_plans import refusal as plan_refusal
from tests.support.sentinel2_scenes import make_source, only_reason

PRODUCT = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T132421"
SENTINEL_1 = "S1A_IW_GRDH_1SDV_20200219T063812_20200219T063837_031318_039A5D"
LANDSAT = "LC08_L2SP_203039_20200219_02_T1"


@pytest.mark.parametrize(
    ("item_id", "collection", "properties", "product"),
    [
        (NAME, "sentinel-1-grd", {}, "Sentinel-1"),
        (NAME, "SENTINEL-1", {}, "Sentinel-1"),
        (NAME, "sentinel-s1-l1c", {}, "Sentinel-1"),
        (NAME, "sentinel-3-olci-lfr-l2-netcdf", {}, "Sentinel-3"),
        (NAME, "sentinel-5p-l2-netcdf", {}, "Sentinel-5P"),
        (NAME, "sentinel-2-l1c", {}, "Sentinel-2 L1C"),
        (NAME, "sentinel-s2-l1c", {}, "Sentinel-2 L1C"),
        (NAME, "landsat-c2-l2", {}, "Landsat"),
        (NAME, None, {"platform": "SENTINEL-1A"}, "Sentinel-1"),
        (NAME, None, {"platform": "landsat-8"}, "Landsat"),
        (NAME, None, {"constellation": "Sentinel-1"}, "Sentinel-1"),
        (NAME, None, {"constellation": "sentinel 1"}, "Sentinel-1"),
        (NAME, None, {"s2:product_type": "S2MSI1C"}, "Sentinel-2 L1C"),
        (NAME, None, {"product:type": "S2MSI1C"}, "Sentinel-2 L1C"),
        (NAME, None, {"productType": "S2MSI1B"}, "Sentinel-2 L1C"),
        (NAME, None, {"processing:level": "L1C"}, "Sentinel-2 L1C"),
        (NAME, None, {"processing:level": "Level-1C"}, "Sentinel-2 L1C"),
        (NAME, None, {"processing:level": "L1"}, "Sentinel-2 L1C"),
        (NAME, None, {"processingLevel": "LEVEL1C"}, "Sentinel-2 L1C"),
        (PRODUCT.replace("MSIL2A", "MSIL1C"), None, {}, "Sentinel-2 L1C"),
        (NAME.replace("L2A", "L1C"), None, {}, "Sentinel-2 L1C"),
        (SENTINEL_1, None, {}, "Sentinel-1"),
        (LANDSAT, None, {}, "Landsat"),
    ],
)
def test_an_item_of_another_product_is_refused_by_its_name(item_id, collection, properties, product):
    feature = {**make_item("v1"), "id": item_id, "collection": collection}
    feature["properties"] |= properties
    reason = refusal(feature, ITEM_URL)
    assert reason.startswith(f"{ITEM_URL}: expected an item of Sentinel-2 L2A, got one of {product} (")
    assert read_item(feature, ITEM_URL).refusal == reason


@pytest.mark.parametrize(
    ("item_id", "collection", "properties"),
    [
        (NAME, "sentinel-2-l2a", {"platform": "sentinel-2a", "s2:product_type": "S2MSI2A"}),  # Earth Search v1
        ("S2A_T29RKH_20200219T112111_L2A", "sentinel-2-c1-l2a", {"constellation": "sentinel-2"}),
        (NAME, "sentinel-2-pre-c1-l2a", {}),
        (NAME, "sentinel-s2-l2a-cogs", {"platform": "sentinel-2b", "constellation": "sentinel-2"}),  # v0
        (NAME, "sentinel-s2-l2a", {}),
        (PRODUCT.replace("_N0214", ""), "sentinel-2-l2a", {"platform": "Sentinel-2A", "constellation": "Sentinel 2"}),
        (f"{PRODUCT}.SAFE", "SENTINEL-2", {"productType": "S2MSI2A", "processingLevel": "S2MSI2A"}),
        (PRODUCT, "sentinel-2-l2a", {"product:type": "S2MSI2A", "processing:level": "L2", "platform": "sentinel-2c"}),
        (PRODUCT, "sentinel-2-l2a", {"processing:level": "L2A", "platform": "S2B"}),
        (PRODUCT, "sentinel-2-l2a", {"processing:level": "Level-2A"}),
        (NAME, "landsat-and-sentinel-2-l2a", {}),
        (NAME, "plot-s1", {"processing:level": 2}),
        (NAME, None, {}),
    ],
)
def test_no_item_of_l2a_is_refused(item_id, collection, properties):
    feature = {**make_item("v1"), "id": item_id, "collection": collection}
    feature["properties"] |= properties
    assert read_item(feature, ITEM_URL).refusal == ""


def test_no_real_item_is_refused(shared):
    if not shared:
        pytest.skip("no real items here")
    paths = sorted((shared / "archive").rglob("S2*_L2A.json"))
    assert len(paths) == 4
    assert [read_item(path.read_bytes(), str(path)).refusal for path in paths] == [""] * 4


def test_an_item_of_another_product_without_a_tile_is_refused_by_its_name_too():
    feature = {**make_item("v1"), "id": SENTINEL_1, "properties": {"datetime": "2020-02-19T06:38:12Z"}}
    with pytest.raises(OtherProductError, match=r"got one of Sentinel-1 \(id 'S1A_IW_GRDH"):
        read_item(feature, ITEM_URL)


@pytest.mark.parametrize("properties", [{"s2:product_type": "S2MSI1C"}, {"platform": "sentinel-1a"}])
def test_an_item_of_another_product_is_a_failed_row(tmp_path, properties):
    written = write_item(tmp_path)
    written.change(**properties)
    assert "expected an item of Sentinel-2 L2A, got one of Sentinel-" in only_reason(make_source(tmp_path, written))


# ------------------------------------------------------------------------------------------------------- in a plan


L1C = {"s2:product_type": "S2MSI1C"}


def test_a_listed_item_of_another_product_is_planned_and_supersedes_no_item(tmp_path):
    level_1 = item_document("S2A_29RKH_20200219_1_L2A", baseline="09.00", **L1C)
    path = tmp_path / "S2A_29RKH_20200219_0_L1C.json"
    path.write_text(json.dumps({**level_1, "id": path.stem}))
    archive = write_archive(tmp_path / "archive", [item_document(NAME), level_1])
    items = write_list(tmp_path, [S3 + key(NAME), S3 + key(level_1["id"]), str(path)])
    units = units_of(plan_bytes(tmp_path / "p.gz", items=items, archive=archive))
    assert units == sorted([NAME, level_1["id"], path.stem]), "each has a row, the two others one with the reason"


@pytest.mark.parametrize("name", ["sentinel-1-grd", "sentinel-2-l1c", "landsat-c2-l2"])
def test_a_collection_of_another_name_is_refused_before_it_is_searched(tmp_path, serve_items, name):
    api = serve_items([item_document(NAME)])
    message = plan_refusal(tmp_path, ConfigError, search=api.url, collection=name, dates="2020-02-19")
    assert message.startswith(f"sentinel2.collection: expected a collection with items of Sentinel-2 L2A, got {name}, ")
    assert not api.searches


@pytest.mark.parametrize("changes", [{"id": SENTINEL_1, "properties": {"datetime": "2020-02-19T06:38:12Z"}}, {}])
def test_a_collection_whose_items_are_all_of_another_product_is_refused(tmp_path, serve_items, changes):
    documents = [item_document(f"S2A_29RKH_202002{day}_0_L2A", **L1C) | changes for day in range(18, 20)]
    documents = [d | {"id": f"{d['id']}{n}"} for n, d in enumerate(documents)]
    message = plan_refusal(tmp_path, ConfigError, search=serve_items(documents).url, dates="2020-02-18/2020-02-20")
    assert "sentinel2.collection: expected" in message
    assert ("got one of Sentinel-1 (" if changes else "got one of Sentinel-2 L1C (") in message


def test_a_large_collection_of_another_product_is_refused_after_its_first_page(tmp_path, serve_items):
    documents = [item_document(NAME, **L1C) | {"id": f"scene{n}"} for n in range(250)]
    api = serve_items(documents)
    plan_refusal(tmp_path, ConfigError, search=api.url, dates="2020-02-19")
    assert len(api.searches) == 1


def test_a_collection_of_several_products_is_planned(tmp_path, serve_items):
    documents = [item_document(NAME), item_document(NAME.replace("_0_", "_1_"), **L1C)]
    data = plan_bytes(tmp_path / "p.gz", search=serve_items(documents).url, dates="2020-02-19")
    assert units_of(data) == [d["id"] for d in documents]


@pytest.mark.parametrize("text", ["", "sentinel-2a", "Sentinel 2", "SENTINEL-2", "L2A", "L2", "sentinel-12", "s1"])
def test_texts_that_name_no_other_product(text):
    assert other_product(text) == ""
