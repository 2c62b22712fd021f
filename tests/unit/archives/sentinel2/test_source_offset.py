"""The radiometric offset of Sentinel-2: subtracted only where the pixels have it."""

import numpy as np
import pytest
import rasterio

from kiln.archives.sentinel2 import source as sentinel2
from kiln.archives.sentinel2.scene import (
    OFFSET,
)
from tests.support.items import FILES, plane, write_item
from tests.support.sentinel2_scenes import (
    BASELINE_04,
    OFFSET_FLAG,
    chip_area,
    make_source,
    only_reason,
    read_chips,
    read_notes,
)

OFFSET_CASES = {
    "before 04.00": ("v1", {}, {}, False, ("no_offset",)),
    "before 04.00, on dark pixels": ("v1", {}, {"high": 900}, False, ("no_offset",)),
    "before 04.00, flagged": ("v1", {OFFSET_FLAG: True}, {}, False, ("no_offset",)),
    "v0, before 04.00": ("v0", {}, {}, False, ("no_offset",)),
    "04.00, not applied": ("v1", BASELINE_04, {}, True, ("offset_subtracted",)),
    "05.11, not applied": ("v1", {"s2:processing_baseline": "05.11"}, {}, True, ("offset_subtracted",)),
    "04.00, applied": ("v1", BASELINE_04 | {OFFSET_FLAG: True}, {}, False, ("offset_applied_by_producer",)),
    "04.00, flag false on corrected pixels": ("v1", BASELINE_04, {"high": 900}, False, ("offset_flag_contradicted",)),
    "04.00, flag missing": (
        "v1",
        BASELINE_04 | {OFFSET_FLAG: None},
        {},
        True,
        ("offset_flag_missing", "offset_subtracted"),
    ),
    "04.00, flag missing, corrected pixels": (
        *("v1", BASELINE_04 | {OFFSET_FLAG: None}, {"high": 900}, False),
        ("offset_flag_missing", "offset_flag_contradicted"),
    ),
    "collection 1": ("c1", BASELINE_04, {}, True, ("offset_flag_missing", "offset_subtracted")),
    "v0, applied": (
        *("v0", {"sentinel:processing_baseline": "04.00", "sentinel:boa_offset_applied": True}, {}, False),
        ("offset_applied_by_producer",),
    ),
    "v0, not applied": (
        *("v0", {"sentinel:processing_baseline": "04.00", "sentinel:boa_offset_applied": False}, {}, True),
        ("offset_subtracted",),
    ),
    "v0, flag missing": (
        *("v0", {"sentinel:processing_baseline": "04.00"}, {}, True),
        ("offset_flag_missing", "offset_subtracted"),
    ),
    "baseline unknown, applied": (
        *("v0", {"sentinel:product_id": None, "sentinel:boa_offset_applied": True}, {}, False),
        ("offset_applied_by_producer",),
    ),
}


@pytest.mark.parametrize("row", OFFSET_CASES.values(), ids=OFFSET_CASES)
def test_the_offset_is_subtracted_only_where_pixels_have_it(tmp_path, row):
    style, properties, drawn, subtracted, notes = row
    written = write_item(tmp_path, style=style, **(drawn or {"low": 1001}))
    written.change(**properties)
    item = written.json()
    for asset in item["assets"].values():
        asset.pop("raster:bands", None)
    written.write(item)
    source = make_source(tmp_path, written)
    chips = read_chips(source)
    assert len(chips) == 16
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands) - OFFSET * subtracted) for c in chips)
    assert {c.extra["offset_applied"] for c in chips} == {subtracted}
    assert read_notes(source) == notes


@pytest.mark.parametrize(
    ("properties", "offset", "subtracted", "notes"),
    [
        ({}, -0.1, False, ("no_offset", "raster_offset_contradicts")),
        (BASELINE_04, 0, True, ("raster_offset_contradicts", "offset_subtracted")),
        (BASELINE_04, -0.1, True, ("offset_subtracted",)),
        (BASELINE_04 | {OFFSET_FLAG: True}, -0.1, False, ("offset_applied_by_producer",)),
        (BASELINE_04 | {OFFSET_FLAG: True}, 0, False, ("offset_applied_by_producer", "raster_offset_contradicts")),
    ],
)
def test_raster_bands_do_not_decide_about_the_offset(tmp_path, properties, offset, subtracted, notes):
    written = write_item(tmp_path, low=1001, properties=properties)
    item = written.json()
    for asset in item["assets"].values():
        asset["raster:bands"][0]["offset"] = offset
    written.write(item)
    source = make_source(tmp_path, written)
    assert {c.extra["offset_applied"] for c in read_chips(source)} == {subtracted}
    assert read_notes(source) == notes


def test_an_item_without_baseline_and_flag_fails(tmp_path):
    written = write_item(
        tmp_path, properties={OFFSET_FLAG: False, "s2:processing_baseline": None, "s2:product_uri": None}
    )
    assert "expected a processing baseline" in only_reason(make_source(tmp_path, written))


@pytest.mark.parametrize(("dark", "subtracted"), [(20, True), (21, False)])
def test_the_fraction_of_dark_clear_pixels_decides_at_its_limit(tmp_path, dark, subtracted):
    pixels = {b: plane(64, n, 1001) for n, b in enumerate(("blue", "green", "red"))}
    for p in pixels.values():
        p[0, :dark] = 500  # 20 of 4096 are 0.49 %
    written = write_item(tmp_path, bands=pixels, low=1001, properties=BASELINE_04)
    (extra,) = {c.extra["offset_applied"] for c in read_chips(make_source(tmp_path, written))}
    assert extra == subtracted
    (extra,) = {
        c.extra["offset_applied"] for c in read_chips(make_source(tmp_path, written, offset_max_dark_fraction=0.006))
    }
    assert extra


def test_the_offset_makes_no_valid_pixel_nodata(tmp_path):
    pixels = {b: plane(32 if b not in sentinel2.FINE_BANDS else 64, n, 1001, 1200) for n, b in enumerate(FILES)}
    for p in pixels.values():
        p[:2, : len(p) // 8] = 700  # would be below 0
    written = write_item(tmp_path, bands=pixels, properties=BASELINE_04)
    source = make_source(tmp_path, written, offset_max_dark_fraction=1.0)
    chips = read_chips(source)
    assert read_notes(source)[-1] == "offset_subtracted"
    assert all(np.array_equal(c.pixels, np.maximum(chip_area(c, written.bands), 1001) - 1000) for c in chips)
    assert [c.nodata_fraction for c in chips] == [0] * 16


def test_the_evidence_is_read_from_overviews_if_there_are_any(tmp_path):
    dark = {b: np.where(np.indices((1024, 1024)).sum(axis=0) % 2, 1001, 900) for b in ("blue", "green", "red")}
    dark = {b: p.astype(np.uint16) for b, p in dark.items()}
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    written = write_item(tmp_path, side=1024, bands=dark, low=1001, properties=BASELINE_04, **tiles)
    assert read_notes(make_source(tmp_path, written, chip=256))[-1] == "offset_flag_contradicted"
    for name, value in (("B02", 1500), ("B03", 900), ("B04", 900)):
        path = written.folder / f"{name}.tif"
        with rasterio.open(path, "r+") as file:
            file.write(np.full((1, 1024, 1024), value, np.uint16))
            file.build_overviews([2], rasterio.enums.Resampling.average)
            file.write(dark["blue"], 1)
    assert read_notes(make_source(tmp_path, written, chip=256))[-1] == "offset_subtracted"
