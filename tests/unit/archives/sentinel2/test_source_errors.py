"""Sentinel-2 items and bands that are missing, damaged or of another kind, and settings that are refused."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.sentinel2 import source as sentinel2
from kiln.archives.sentinel2.config import Config
from kiln.errors import ConfigError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped
from tests.support.items import CORNER, plane, write_item, write_raster
from tests.support.sentinel2_scenes import (
    OTHER_NAME,
    chip_area,
    make_source,
    only_reason,
    read_chips,
    read_events,
    scl_mask,
)


def test_a_missing_band_asset_fails_with_its_name(tmp_path):
    written = write_item(tmp_path)
    item = written.json()
    del item["assets"]["rededge1"], item["assets"]["scl"]
    written.write(item)
    reason = only_reason(make_source(tmp_path, written))
    assert reason.endswith("expected an asset for rededge1 (B05), scl (SCL), got none.")


@pytest.mark.parametrize("name", ["B04", "B11", "SCL"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in</html>"), "is not a readable raster"),
    ],
    ids=["missing", "zero bytes", "html"],
)
def test_a_file_that_is_not_a_raster_fails_the_item_and_is_named(tmp_path, name, damage, message):
    written = write_item(tmp_path)
    damage(written.folder / f"{name}.tif")
    reason = only_reason(make_source(tmp_path, written))
    assert f"{written.folder}/{name}.tif" in reason
    assert message in reason
    assert {"B04": "red", "B11": "swir16", "SCL": "scl"}[name] in reason


UTM = "+proj=utm +zone=29 +datum=WGS84 +type=crs"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("B05", {"pixels": plane(4, 1)}, "got 4 x 4 px of 160 m from (199980, 2.80002e+06)"),
        (
            "B05",
            {"pixels": plane(31, 1)},
            "rededge1 does not cover red: expected 64 x 64 px of 10 m from (199980, 2.80002e+06), got 31 x 31 px",
        ),
        ("B11", {"epsg": 32630}, "swir16: expected EPSG:32629 as red"),
        ("B02", {"corner": (CORNER[0] + 10, CORNER[1])}, "got 64 x 64 px of 10 m from (199990"),
        ("SCL", {"corner": (CORNER[0], CORNER[1] - 20)}, "got 32 x 32 px"),
        ("B12", {"pixels": plane(32, 1).astype(np.float32)}, "swir22: expected one band of uint16, got 1 x float32"),
        ("SCL", {"pixels": plane(32, 1)}, "scl: expected one band of uint8, got 1 x uint16"),
        ("B04", {"pixels": plane(32, 1)}, "does not cover"),
        ("B04", {"epsg": 4326}, "expected the CRS of a UTM zone, got EPSG:4326"),
        ("B04", {"crs": f"{UTM} +units=us-ft"}, "expected the CRS of a UTM zone, got PROJCS"),
        ("B04", {"crs": f"{UTM} +units=km"}, "expected the CRS of a UTM zone, got PROJCS"),
        ("B02", {"crs": f"{UTM} +units=us-ft"}, "blue: expected EPSG:32629 as red"),
        ("B04", {"transform": from_origin(*CORNER, 10, 11)}, "square and north-up"),
        ("B04", {"transform": from_origin(*CORNER, 10, 10.02)}, "got pixels of 10 x 10.02, 0.20% off square"),
        ("B04", {"transform": rasterio.Affine.identity()}, "expected a transform in the file"),
    ],
)
def test_a_band_of_another_shape_place_or_kind_fails_the_item_and_is_named(tmp_path, name, changes, message):
    written = write_item(tmp_path)
    coarse = name not in ("B02", "B04")
    options = {"pixels": plane(32 if coarse else 64, 1), "side": 64, "corner": CORNER, "epsg": 32629} | changes
    if name == "SCL" and "pixels" not in changes:
        options["pixels"] = scl_mask()
    (written.folder / f"{name}.tif").unlink()
    write_raster(written.folder / f"{name}.tif", **options)
    assert message in only_reason(make_source(tmp_path, written))


def test_a_band_of_40_m_is_repeated_to_10_m(tmp_path):
    written = write_item(tmp_path, bands={"rededge1": plane(16, 3), "swir22": plane(64, 4)})
    assert all(
        np.array_equal(c.pixels, chip_area(c, written.bands)) for c in read_chips(make_source(tmp_path, written))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "a web page"),
        ("{}", "expected a STAC item"),
        ('{"type": "FeatureCollection"}', "not a Feature (FeatureCollection)"),
        ("", "not JSON"),
        (None, "does not exist"),
    ],
)
def test_a_document_that_is_not_an_item_fails_with_an_estimate_of_its_chips(tmp_path, text, message):
    written = write_item(tmp_path)
    path = written.folder / f"{written.entry['id']}.json"
    path.unlink() if text is None else path.write_text(text)
    source = make_source(tmp_path, written, chip=256)
    assert message in only_reason(source)
    (unit,) = source.units()
    assert (unit.expected, unit.expected_known, unit.source) == (42 * 42, False, str(path))


def test_an_item_of_another_name_than_the_plans_fails(tmp_path):
    written = write_item(tmp_path)
    written.write(written.json() | {"id": "S2A_29RKH_20200219_1_L2A"})
    assert "of the plan, got S2A_29RKH_20200219_1_L2A" in only_reason(make_source(tmp_path, written))


def test_the_projection_of_the_item_is_used_only_if_the_file_has_none(tmp_path):
    written = write_item(tmp_path, crs=None)
    assert {c.crs for c in read_chips(make_source(tmp_path, written))} == {"EPSG:32629"}
    written.change(**{"proj:epsg": 32630})
    assert {c.crs for c in read_chips(make_source(tmp_path, written))} == {"EPSG:32630"}
    written.change(**{"proj:epsg": None})
    assert "expected a CRS in the file or its .aux.xml, got none." in only_reason(make_source(tmp_path, written))
    written = write_item(tmp_path)
    written.change(**{"proj:epsg": None})
    assert {c.crs for c in read_chips(make_source(tmp_path, written))} == {"EPSG:32629"}
    written.change(**{"proj:epsg": 32660})
    assert {c.crs for c in read_chips(make_source(tmp_path, written))} == {"EPSG:32629"}


def test_a_truncated_file_loses_only_the_chips_of_the_missing_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    written = write_item(tmp_path, blockysize=16)
    path = written.folder / "B08.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    events = read_events(make_source(tmp_path, written))
    assert [c.row for c in events if isinstance(c, Chip)] == [0] * 4 + [1] * 4
    lost = [e for e in events if isinstance(e, Dropped)]
    assert {(e.kind, e.count) for e in lost} == {("failed", 1)}
    assert len(lost) == 8
    assert all(f"{path}: nir is unreadable" in e.reason for e in lost)


def test_a_damaged_item_does_not_affect_its_neighbours(tmp_path):
    names = [f"S2A_29RKH_2020021{n}_0_L2A" for n in range(4)]
    written = [write_item(tmp_path, n, seed=i, side=16) for i, n in enumerate(names)]
    (written[1].folder / "B8A.tif").write_bytes(b"no TIFF")
    (written[2].folder / f"{names[2]}.json").unlink()
    kinds = [(type(e).__name__, names.index(e.unit_id[10:])) for e in read_events(make_source(tmp_path, *written))]
    assert kinds == [("Opened", 0), ("Chip", 0), ("Dropped", 1), ("Dropped", 2), ("Opened", 3), ("Chip", 3)]


@pytest.mark.parametrize("items", [None, {}, {"other": "x"}, ["a"]])
def test_a_plan_without_the_addresses_of_its_items_is_refused(items):
    shard = ShardPlan("sentinel2", "p", "s", ("a",), 16, 0, 0, "", {} if items is None else {"items": items})
    with pytest.raises(ConfigError, match=r"shard s: expected the addresses of its items.*Make the plan again"):
        sentinel2.open_source(shard, Config())


def test_a_repeated_item_in_a_shard_is_a_config_error():
    with pytest.raises(ConfigError, match="got one twice"):
        make_source("/nowhere", *[{"id": "a", "href": "b"}] * 2)


@pytest.mark.parametrize("wrong", [{"chip": 255}, {"chip": 0}, {"offset_max_dark_fraction": 1.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"chip_size|offset_max_dark_fraction"):
        make_source("/nowhere", **wrong)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/B04.tif", "gs://bucket/B04.tif: expected a path, s3://, http:// or https://"),
        ("file:///data/B04.tif", "file:///data/B04.tif: expected a path, s3://, http:// or https://"),
        ("ftp://host/B04.tif", "ftp://host/B04.tif: expected a path, s3://"),
        ("/vsicurl/http://127.0.0.1:9/B04.tif", "expected a path, s3://, http:// or https://"),
        ("/data/B\0.tif", "expected an address of printable text"),
        (f"/data/{'x' * 5000}.tif", "expected an address of printable text"),
    ],
    ids=["gs", "file", "ftp", "vsicurl", "NUL", "long"],
)
def test_one_odd_address_fails_its_item_and_no_other(tmp_path, address, message):
    odd, sound = write_item(tmp_path), write_item(tmp_path, OTHER_NAME, seed=2)
    item = odd.json()
    item["assets"]["red"]["href"] = address
    odd.write(item)
    source = make_source(tmp_path, odd, sound)
    events = read_events(source)
    failed = [e for e in events if isinstance(e, Dropped) and e.kind == "failed"]
    assert [(e.unit_id, message in e.reason) for e in failed] == [(odd.unit_id, True)]
    assert "red cannot be read" in failed[0].reason or "red is missing" in failed[0].reason
    assert {e.unit_id for e in events if isinstance(e, Chip)} == {sound.unit_id}
    assert len([e for e in events if isinstance(e, Chip)]) == 16


def test_an_item_of_deeply_nested_json_fails_alone(tmp_path):
    odd, sound = write_item(tmp_path), write_item(tmp_path, OTHER_NAME, seed=2)
    (odd.folder / f"{odd.entry['id']}.json").write_text("[" * 200_000)
    events = read_events(make_source(tmp_path, odd, sound))
    (failed,) = [e for e in events if isinstance(e, Dropped) and e.kind == "failed"]
    assert "a file that is not JSON" in failed.reason
    assert len([e for e in events if isinstance(e, Chip)]) == 16
