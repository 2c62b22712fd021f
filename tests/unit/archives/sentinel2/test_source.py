"""Sentinel-2 scenes: where chips lie, what SCL takes away, what becomes of the offset, how bad and remote files end."""

import itertools
import json
from collections import Counter

import boto3
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.windows import Window

from kiln.archives import raster_reading
from kiln.archives.sentinel2 import assets
from kiln.archives.sentinel2 import source as sentinel2
from kiln.archives.sentinel2.assets import BandFiles, Candidate
from kiln.archives.sentinel2.config import Config
from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.scene import (
    OFFSET,
    SceneGrid,
    count_in_blocks,
    cut_at_antimeridian,
    dark_fraction,
    offset_rule,
    repeat_pixels,
    sample_step,
    subtract,
)
from kiln.archives.sentinel2.source import Sentinel2Source
from kiln.engine.read_ahead import read_ahead
from kiln.errors import ConfigError, SourceError, TransientError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Opened
from kiln.io import gdal, storage
from tests.support.items import BUCKET, CORNER, FILES, Made, plane, write_item, write_raster

CHIP = 16
OTHER = "S2B_29RKH_20200224_0_L2A"
LATE = {"s2:processing_baseline": "04.00"}


def make(root, *made, chip=CHIP, max_nodata=0.05, max_cloud=0.5, **more):
    more = {"rewrite": [(BUCKET, str(root))]} | more
    entries = [m.entry if isinstance(m, Made) else m for m in made]
    return Sentinel2Source(
        [Candidate(e["id"], e["href"]) for e in entries], chip=chip, max_nodata=max_nodata, max_cloud=max_cloud, **more
    )


def events(source, threads=2):
    """All that a source gives, after its check; every unit's account closes."""
    source.check()
    found = list(source.chips(read_ahead(source.reads(), threads, 1 << 30)))
    opened = {e.unit_id: e.expected for e in found if isinstance(e, Opened)}
    counts = Counter()
    for e in found:
        counts[e.unit_id] += e.count if isinstance(e, Dropped) else isinstance(e, Chip)
    for unit in source.units():
        assert counts[unit.unit_id] == opened.get(unit.unit_id, unit.expected)
    order = [k for k, _ in itertools.groupby(e.unit_id for e in found)]
    assert order == [u.unit_id for u in source.units()]
    return found


def cut(source):
    return [e for e in events(source) if isinstance(e, Chip)]


def dropped(source):
    return [(e.kind, e.count, e.reason) for e in events(source) if isinstance(e, Dropped)]


def notes(source):
    return next(e.notes for e in events(source) if isinstance(e, Opened))


def only_reason(source):
    """Why the only item failed; that nothing else came of it."""
    (event,) = events(source)
    assert (type(event), event.kind) == (Dropped, "failed")
    return event.reason


def at(chip, whole):
    """The same place of [..., rows, cols]."""
    y, x = chip.row * CHIP, chip.col * CHIP
    return whole[..., y : y + CHIP, x : x + CHIP]


# ------------------------------------------------------------------------------------------------ where chips are


def test_chips_are_ten_bands_at_10_m_from_the_top_left_coarse_ones_by_repetition(tmp_path):
    made = write_item(tmp_path, side=72)
    chips = cut(make(tmp_path, made))
    places = [(r, c) for r in range(4) for c in range(4)]  # 8 px to the right and below are no whole chip
    assert [c.chip_id for c in chips] == [f"{made.unit_id}:{c}:{r}" for r, c in places]
    assert [(c.row, c.col) for c in chips] == places
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in chips)
    assert chips[0].pixels.dtype == np.uint16


@pytest.mark.parametrize("block", [None, 16, 32, 64])
@pytest.mark.parametrize("strip", [1, 40, 256])
def test_strips_give_what_a_whole_read_gives_and_no_block_is_read_twice(tmp_path, monkeypatch, block, strip):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", strip)
    tiles = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {"blockysize": 15}
    made = write_item(tmp_path, side=176, **tiles)
    asked, read = [], BandFiles.read

    def noted(self, band, **how):
        asked.append((band, how.get("window")))
        return read(self, band, **how)

    monkeypatch.setattr(BandFiles, "read", noted)
    chips = cut(make(tmp_path, made))
    assert len(chips) == 121
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in chips)
    assert Counter(band for band, _ in asked)["scl"] == 1
    for band in FILES:
        windows = sorted((w.row_off, w.row_off + w.height) for b, w in asked if b == band)
        rows = len(made.bands[0]) // (1 if band in sentinel2.FINE_BANDS else 2)
        assert (windows[0][0], windows[-1][1]) == (0, rows)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
        if block:
            assert all(start % block == 0 for start, _ in windows)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_reading_threads_changes_nothing(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    made = [write_item(tmp_path, seed=1, blockysize=16), write_item(tmp_path, OTHER, seed=2, blockysize=8)]
    found = [e for e in events(make(tmp_path, *made), threads) if isinstance(e, Chip)]
    assert len({c.chip_id for c in found}) == len(found) == 32
    assert all(np.array_equal(c.pixels, at(c, made[i // 16].bands)) for i, c in enumerate(found))


@pytest.mark.parametrize("epsg", [32629, 32733, 32601])
@pytest.mark.parametrize("size", [64, 640])
def test_footprints_and_centres_follow_the_red_bands_own_transform(tmp_path, epsg, size):
    corner = (399_960.0, 5_300_040.0)
    made = write_item(tmp_path, corner=corner, epsg=epsg)
    for band, name in (FILES | {"scl": "SCL"}).items():
        side = 32 if band == "scl" or band not in sentinel2.FINE_BANDS else 64
        pixels = np.full((side, side), 5, np.uint8) if band == "scl" else plane(side, 1)
        write_raster(made.folder / f"{name}.tif", pixels, size, corner, epsg)
    chips = cut(make(tmp_path, made))
    assert len(chips) == 16
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    with rasterio.open(made.folder / "B04.tif") as file:
        for chip in chips:
            row, col = chip.row * CHIP, chip.col * CHIP
            corners = [(row, col), (row + CHIP, col), (row + CHIP, col + CHIP), (row, col + CHIP)]
            ring = [to_degrees(*file.xy(r, c, offset="ul")) for r, c in corners]
            np.testing.assert_allclose(shapely.get_coordinates(chip.footprint)[:4], ring, rtol=0, atol=1e-10)
            assert chip.footprint.is_valid
            assert chip.footprint.exterior.is_ccw
            assert chip.center == pytest.approx(
                to_degrees(*file.xy(row + CHIP / 2, col + CHIP / 2, offset="ul")), abs=1e-10
            )
            assert (chip.x0, chip.y0) == file.xy(row, col, offset="ul")
            assert (chip.crs, chip.pixel_size) == (f"EPSG:{epsg}", pytest.approx(size / 64 * 10))


def test_a_full_tile_has_42_by_42_chips_and_none_lies_where_another_does(tmp_path):
    grid = SceneGrid(10_980, 10_980, from_origin(*CORNER, 10, 10), "EPSG:32629", 256)
    footprints, centers = grid.footprints()
    assert footprints.shape == centers.shape[:2] == (42, 42)
    assert len({tuple(c) for c in centers.reshape(-1, 2)}) == 42 * 42
    metres = shapely.transform(
        footprints.ravel(), pyproj.Transformer.from_crs(4326, 32629, always_xy=True).transform, interleaved=False
    )
    assert shapely.area(metres) == pytest.approx(2560**2)
    assert shapely.union_all(shapely.set_precision(metres, 0.001)).area == pytest.approx(42 * 42 * 2560**2)


def test_a_full_tile_of_nodata_is_opened_as_1764_chips(tmp_path):
    made = write_item(tmp_path)
    for band, name in (FILES | {"scl": "SCL"}).items():
        side = 10_980 if band in sentinel2.FINE_BANDS else 5490
        told = {"width": side, "height": side, "dtype": "uint8" if band == "scl" else "uint16", "sparse_ok": True}
        told |= {"driver": "GTiff", "count": 1, "crs": "EPSG:32629", "compress": "deflate", "tiled": True}
        size = 109_800 / side
        rasterio.open(made.folder / f"{name}.tif", "w", transform=from_origin(*CORNER, size, size), **told).close()
    source = make(tmp_path, made, chip=256)
    opened, nothing = events(source)
    assert (opened.expected, nothing.kind, nothing.count) == (1764, "nodata", 1764)
    assert opened.notes == ("bands_not_read",)
    assert source.units()[0].expected_known


def test_a_row_tells_its_platform_tile_baseline_and_sun(tmp_path):
    made = write_item(tmp_path, side=16)
    (chip,) = cut(make(tmp_path, made))
    assert (chip.unit_id, chip.item_id) == (made.unit_id, made.entry["id"])
    assert chip.datetime.isoformat() == "2020-02-19T11:34:25.405000+00:00"
    assert chip.extra == {
        "platform": "sentinel-2a",
        "mgrs_tile": "29RKH",
        "processing_baseline": "02.14",
        "offset_applied": False,
        "sun_elevation": 48.25,
    }
    assert chip.source == str(made.folder / "B04.tif")
    assert chip.sources == tuple(str(made.folder / f"{f}.tif") for f in FILES.values())
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0, 0)


@pytest.mark.parametrize("style", ["v0", "v1", "c1"])
def test_items_of_every_spelling_give_the_same_chips(tmp_path, style):
    made = write_item(tmp_path, style=style, properties={"s2:processing_baseline": "02.14"})
    chips = cut(make(tmp_path, made))
    assert len(chips) == 16
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in chips)


def test_jpeg_2000_gives_the_chips_of_tiff(tmp_path):
    made = write_item(tmp_path, suffix="jp2", side=128, blockxsize=64, blockysize=64)
    with rasterio.open(made.folder / "B04.jp2") as file:
        assert file.driver == "JP2OpenJPEG"
    chips = cut(make(tmp_path, made))
    assert len(chips) == 64
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in chips)


def test_jpeg_2000_with_the_offset_has_it_taken_off(tmp_path):
    made = write_item(tmp_path, suffix="jp2", properties=LATE, low=1500)
    source = make(tmp_path, made)
    assert all(np.array_equal(c.pixels, at(c, made.bands) - OFFSET) for c in cut(source))


# ------------------------------------------------------------------------------------------- the ends of the Earth


@pytest.mark.parametrize(
    ("epsg", "east", "north"),
    [
        (32660, 637_000, 7_300_000),
        (32601, 357_000, 7_300_000),
        (32701, 357_000, 2_700_000),
        (32760, 637_000, 2_700_000),
    ],
)
def test_chips_over_the_antimeridian_are_cut_there(tmp_path, epsg, east, north):
    made = write_item(tmp_path, epsg=epsg, corner=(float(east), float(north)), side=1024)
    chips = cut(make(tmp_path, made, chip=64))
    crossing = [c for c in chips if c.footprint.geom_type == "MultiPolygon"]
    assert 0 < len(crossing) < len(chips) == 256
    to_metres = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform
    for chip in chips:
        assert chip.footprint.is_valid
        w, _, e, _ = chip.footprint.bounds
        parts = list(chip.footprint.geoms) if chip in crossing else [chip.footprint]
        assert all(p.exterior.is_ccw for p in parts)
        assert all(shapely.bounds(p)[2] - shapely.bounds(p)[0] < 0.1 for p in parts)
        assert (w, e) == (-180, 180) if chip in crossing else e - w < 0.1
        area = sum(shapely.transform(p, to_metres, interleaved=False).area for p in parts)
        assert area == pytest.approx(640**2, rel=1e-3)
        assert -180 <= chip.center[0] <= 180
        assert abs(chip.center[0]) > 179


def test_a_chip_that_only_touches_the_antimeridian_is_one_polygon():
    ring = np.array([[179.9, 1.0], [179.9, 0.9], [-180.0, 0.9], [-180.0, 1.0]])
    shape = cut_at_antimeridian(ring)
    assert (shape.geom_type, shape.bounds) == ("Polygon", (179.9, 0.9, 180.0, 1.0))


@pytest.mark.parametrize(("epsg", "north"), [(32633, 9_300_040.0), (32721, 1_200_000.0)])
def test_footprints_of_polar_tiles_are_valid_and_small(tmp_path, epsg, north):
    made = write_item(tmp_path, epsg=epsg, corner=(399_960.0, north))
    chips = cut(make(tmp_path, made))
    assert len(chips) == 16
    for chip in chips:
        west, south, east, top = chip.footprint.bounds
        assert chip.footprint.is_valid
        assert abs(chip.center[1]) > 79
        assert (east - west) < 0.05
        assert (top - south) < 0.01


# ------------------------------------------------------------------------------------------------- nodata and cloud


def mask(side=32, fill=5):
    return np.full((side, side), fill, np.uint8)


def test_nodata_and_cloud_are_counted_apart_each_by_its_own_limit(tmp_path):
    scl = mask()
    scl[:8, :8] = 0  # all of chip 0, 0
    scl[0, 8:11] = 0  # 3 of 64 pixels of chip 1, 0: just within the limit
    scl[0, 16:20] = 0  # 4 of chip 2, 0: just beyond
    scl[8:12, :8] = [1, 3, 8, 9, 10, 8, 8, 8]  # half of chip 0, 1: just within
    scl[8:12, 8:16], scl[12, 8] = 9, 9  # one more of chip 1, 1: just beyond
    scl[8:10, 16:24] = 11  # snow is no cloud
    made = write_item(tmp_path, scl=scl)
    source = make(tmp_path, made)
    chips = {(c.col, c.row): c for c in cut(source)}
    assert len(chips) == 13
    assert set(itertools.product(range(4), range(4))) - set(chips) == {(0, 0), (2, 0), (1, 1)}
    assert dropped(source) == [
        ("nodata", 2, "more nodata than max_nodata"),
        ("cloud", 1, "more cloud than max_cloud"),
    ]
    assert (chips[1, 0].nodata_fraction, chips[0, 1].cloud_fraction) == (3 / 64, 0.5)
    assert chips[2, 1].cloud_fraction == 0


def test_cloud_is_a_share_of_the_valid_pixels(tmp_path):
    scl = mask(8)
    scl[:2], scl[2:5] = 0, 9
    made = write_item(tmp_path, side=16, scl=scl)
    (chip,) = cut(make(tmp_path, made, max_nodata=0.3))
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0.25, 0.5)
    assert dropped(make(tmp_path, made, max_nodata=0.3, max_cloud=0.49)) == [("cloud", 1, "more cloud than max_cloud")]
    assert [k for k, _, _ in dropped(make(tmp_path, made, max_cloud=0.1))] == ["nodata"]


def test_zeros_in_all_bands_are_nodata_and_zeros_in_some_are_not(tmp_path):
    made = write_item(tmp_path, side=32)
    zeros = {b: np.where(np.arange(len(p)) < len(p) // 2, 0, p) for b, p in bands_of(made).items()}
    made = write_item(tmp_path, side=32, bands=zeros)
    assert [(c.col, c.nodata_fraction) for c in cut(make(tmp_path, made))] == [(1, 0), (1, 0)]
    assert dropped(make(tmp_path, made)) == [("nodata", 1, "more nodata than max_nodata")] * 2
    made = write_item(tmp_path, side=32, bands={b: p for b, p in zeros.items() if b != "swir22"})
    assert [c.nodata_fraction for c in cut(make(tmp_path, made))] == [0] * 4


def bands_of(made):
    """Bands as they lie in the files."""
    found = {}
    for band, name in FILES.items():
        with rasterio.open(made.folder / f"{name}.tif") as file:
            found[band] = file.read(1)
    return found


def test_an_empty_chip_is_dropped_whatever_the_limit(tmp_path):
    scl = mask(16)
    scl[:8] = 0
    scl[8:, 1:8] = 0
    made = write_item(tmp_path, side=32, scl=scl)
    assert [(c.col, c.row) for c in cut(make(tmp_path, made, max_nodata=1.0))] == [(0, 1), (1, 1)]


def test_impossible_classes_are_noted_and_taken_as_valid_and_clear(tmp_path):
    scl = mask()
    scl[0, :5] = [12, 12, 13, 255, 12]
    source = make(tmp_path, write_item(tmp_path, scl=scl))
    assert notes(source) == ("no_offset", "scl_impossible (5 px)")
    assert [(c.nodata_fraction, c.cloud_fraction) for c in cut(source)] == [(0, 0)] * 16


@pytest.mark.parametrize(("fill", "kind"), [(9, "cloud"), (0, "nodata")])
def test_a_scene_that_cannot_pass_is_empty_and_no_band_is_read(tmp_path, monkeypatch, fill, kind):
    made = write_item(tmp_path, scl=mask(fill=fill))
    for name in set(FILES.values()) - {"B04"}:
        path = made.folder / f"{name}.tif"
        path.write_bytes(bytes(path.stat().st_size))  # would fail if it were opened
    assert [(k, n) for k, n, _ in dropped(make(tmp_path, made))] == [(kind, 16)]
    assert notes(make(tmp_path, made)) == ("bands_not_read",)


def test_of_a_swath_edge_only_the_rows_and_columns_of_its_chips_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    scl = mask(fill=0)
    scl[8:24, 16:24] = 4
    scl[16:24, 24:] = 4
    made = write_item(tmp_path, scl=scl, blockysize=16)
    asked, read = [], BandFiles.read

    def noted(self, band, **how):
        asked.append((band, how.get("window")))
        return read(self, band, **how)

    monkeypatch.setattr(BandFiles, "read", noted)
    chips = cut(make(tmp_path, made))
    assert [(c.col, c.row) for c in chips] == [(2, 1), (2, 2), (3, 2)]
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in chips)
    assert [w for b, w in asked if b == "blue"] == [Window(32, 16, 16, 16), Window(32, 32, 32, 16)]


def test_a_scene_smaller_than_a_chip_expects_none_and_says_why(tmp_path):
    opened, nothing = events(make(tmp_path, write_item(tmp_path, side=8)))
    assert (opened.expected, nothing.kind, nothing.count) == (0, "nodata", 0)
    assert "smaller than a chip" in nothing.reason


# ------------------------------------------------------------------------------------------------------- the offset


FLAG = "earthsearch:boa_offset_applied"
TABLE = {
    "before 04.00": ("v1", {}, {}, False, ("no_offset",)),
    "before 04.00, on dark pixels": ("v1", {}, {"high": 900}, False, ("no_offset",)),
    "before 04.00, flagged": ("v1", {FLAG: True}, {}, False, ("no_offset",)),
    "v0, before 04.00": ("v0", {}, {}, False, ("no_offset",)),
    "04.00, not applied": ("v1", LATE, {}, True, ("offset_subtracted",)),
    "05.11, not applied": ("v1", {"s2:processing_baseline": "05.11"}, {}, True, ("offset_subtracted",)),
    "04.00, applied": ("v1", LATE | {FLAG: True}, {}, False, ("offset_applied_by_producer",)),
    "04.00, flag false on corrected pixels": ("v1", LATE, {"high": 900}, False, ("offset_flag_contradicted",)),
    "04.00, flag missing": ("v1", LATE | {FLAG: None}, {}, True, ("offset_flag_missing", "offset_subtracted")),
    "04.00, flag missing, corrected pixels": (
        *("v1", LATE | {FLAG: None}, {"high": 900}, False),
        ("offset_flag_missing", "offset_flag_contradicted"),
    ),
    "collection 1": ("c1", LATE, {}, True, ("offset_flag_missing", "offset_subtracted")),
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


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_offset_is_subtracted_exactly_where_it_is_there(tmp_path, row):
    style, said, drawn, subtracted, told = row
    made = write_item(tmp_path, style=style, **(drawn or {"low": 1001}))
    made.change(**said)
    item = made.json()
    for asset in item["assets"].values():
        asset.pop("raster:bands", None)
    made.write(item)
    source = make(tmp_path, made)
    chips = cut(source)
    assert len(chips) == 16
    assert all(np.array_equal(c.pixels, at(c, made.bands) - OFFSET * subtracted) for c in chips)
    assert {c.extra["offset_applied"] for c in chips} == {subtracted}
    assert notes(source) == told


@pytest.mark.parametrize(
    ("said", "offset", "subtracted", "told"),
    [
        ({}, -0.1, False, ("no_offset", "raster_offset_contradicts")),
        (LATE, 0, True, ("raster_offset_contradicts", "offset_subtracted")),
        (LATE, -0.1, True, ("offset_subtracted",)),
        (LATE | {FLAG: True}, -0.1, False, ("offset_applied_by_producer",)),
        (LATE | {FLAG: True}, 0, False, ("offset_applied_by_producer", "raster_offset_contradicts")),
    ],
)
def test_what_raster_bands_say_decides_nothing(tmp_path, said, offset, subtracted, told):
    made = write_item(tmp_path, low=1001, properties=said)
    item = made.json()
    for asset in item["assets"].values():
        asset["raster:bands"][0]["offset"] = offset
    made.write(item)
    source = make(tmp_path, made)
    assert {c.extra["offset_applied"] for c in cut(source)} == {subtracted}
    assert notes(source) == told


def test_an_item_that_tells_neither_baseline_nor_flag_fails(tmp_path):
    made = write_item(tmp_path, properties={FLAG: False, "s2:processing_baseline": None, "s2:product_uri": None})
    assert "expected a processing baseline" in only_reason(make(tmp_path, made))


@pytest.mark.parametrize(
    ("name", "flag", "subtracted", "told"),
    [
        ("S2A_33TWN_20220122_0_L2A", "as it is", False, ("no_offset",)),
        ("S2B_33TWN_20220226_0_L2A", "as it is", True, ()),
        ("S2B_33TWN_20220226_0_L2A", None, True, ("offset_flag_missing",)),
        ("S2A_12RWT_20240106_0_L2A", "as it is", False, ("offset_applied_by_producer",)),
        ("S2A_12RWT_20240106_0_L2A", False, True, ()),
    ],
)
def test_the_offset_of_real_items(shared, name, flag, subtracted, told):
    if not shared:
        pytest.skip("no real items here")
    item = json.loads((shared / "archive" / "stac" / f"{name}.json").read_text())
    if flag != "as it is":
        item["properties"][FLAG] = flag
    assert offset_rule(read_item(item, name)) == (subtracted, told)


@pytest.mark.parametrize(("dark", "subtracted"), [(20, True), (21, False)])
def test_the_share_of_dark_clear_pixels_decides_at_its_limit(tmp_path, dark, subtracted):
    pixels = {b: plane(64, n, 1001) for n, b in enumerate(("blue", "green", "red"))}
    for p in pixels.values():
        p[0, :dark] = 500  # 20 of 4096 are 0.49 %
    made = write_item(tmp_path, bands=pixels, low=1001, properties=LATE)
    (extra,) = {c.extra["offset_applied"] for c in cut(make(tmp_path, made))}
    assert extra == subtracted
    (extra,) = {c.extra["offset_applied"] for c in cut(make(tmp_path, made, offset_max_dark_fraction=0.006))}
    assert extra


@pytest.mark.parametrize("cls", range(12))
def test_only_clear_classes_are_asked_about_the_offset(cls):
    dark = np.full((3, 8, 8), 500, np.uint16)
    assert dark_fraction(dark, np.full((4, 4), cls, np.uint8), 2, 1) == (cls in (2, 4, 5, 6, 7))


def test_a_pixel_is_dark_only_if_all_three_visible_bands_are_and_nodata_counts_for_nothing():
    visible = np.full((3, 2, 2), 500, np.uint16)
    visible[0, 0, 0] = 1500
    visible[:, 1, 1] = 0
    assert dark_fraction(visible, np.full((1, 1), 4, np.uint8), 2, 1) == 2 / 3
    assert dark_fraction(np.zeros((3, 2, 2), np.uint16), np.full((1, 1), 4, np.uint8), 2, 1) == 0


def test_a_sample_is_compared_with_the_class_at_its_place():
    scl = np.full((5490, 5490), 9, np.uint8)
    scl[:, :2745] = 4
    grid = SceneGrid(10_980, 10_980, from_origin(*CORNER, 10, 10), "EPSG:32629", 256)
    step = sample_step(grid)
    visible = np.full((3, 687, 687), 2000, np.uint16)
    visible[:, :, 344:] = 500
    assert (step, -(-10_980 // step)) == (16, 687)
    assert dark_fraction(visible, scl, 2, step) == 0


def test_what_is_subtracted_from_stays_valid_and_nodata_stays_nodata():
    before = np.array([0, 1, 999, 1000, 1001, 1002, 10_000, 65_535], np.uint16)
    assert subtract(before).tolist() == [0, 1, 1, 1, 1, 2, 9000, 64_535]
    assert subtract(before).dtype == np.uint16


def test_the_offset_makes_no_valid_pixel_nodata(tmp_path):
    pixels = {b: plane(32 if b not in sentinel2.FINE_BANDS else 64, n, 1001, 1200) for n, b in enumerate(FILES)}
    for p in pixels.values():
        p[:2, : len(p) // 8] = 700  # would be below 0
    made = write_item(tmp_path, bands=pixels, properties=LATE)
    source = make(tmp_path, made, offset_max_dark_fraction=1.0)
    chips = cut(source)
    assert notes(source)[-1] == "offset_subtracted"
    assert all(np.array_equal(c.pixels, np.maximum(at(c, made.bands), 1001) - 1000) for c in chips)
    assert [c.nodata_fraction for c in chips] == [0] * 16


def test_the_evidence_is_read_from_overviews_where_there_are_any(tmp_path):
    dark = {b: np.where(np.indices((1024, 1024)).sum(axis=0) % 2, 1001, 900) for b in ("blue", "green", "red")}
    dark = {b: p.astype(np.uint16) for b, p in dark.items()}
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    made = write_item(tmp_path, side=1024, bands=dark, low=1001, properties=LATE, **tiles)
    assert notes(make(tmp_path, made, chip=256))[-1] == "offset_flag_contradicted"
    for name, value in (("B02", 1500), ("B03", 900), ("B04", 900)):
        path = made.folder / f"{name}.tif"
        with rasterio.open(path, "r+") as file:
            file.write(np.full((1, 1024, 1024), value, np.uint16))
            file.build_overviews([2], rasterio.enums.Resampling.average)
            file.write(dark["blue"], 1)
    assert notes(make(tmp_path, made, chip=256))[-1] == "offset_subtracted"


# ------------------------------------------------------------------------------------------------------- bad scenes


def test_a_missing_band_asset_fails_and_is_named(tmp_path):
    made = write_item(tmp_path)
    item = made.json()
    del item["assets"]["rededge1"], item["assets"]["scl"]
    made.write(item)
    reason = only_reason(make(tmp_path, made))
    assert reason.endswith("expected an asset for rededge1 (B05), scl (SCL), got none.")


@pytest.mark.parametrize("name", ["B04", "B11", "SCL"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in</html>"), "is not a readable raster"),
    ],
    ids=["missing", "zero bytes", "html"],
)
def test_a_file_that_is_no_raster_fails_the_item_and_is_named(tmp_path, name, damage, says):
    made = write_item(tmp_path)
    damage(made.folder / f"{name}.tif")
    reason = only_reason(make(tmp_path, made))
    assert f"{made.folder}/{name}.tif" in reason
    assert says in reason
    assert {"B04": "red", "B11": "swir16", "SCL": "scl"}[name] in reason


@pytest.mark.parametrize(
    ("name", "told", "says"),
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
        ("B04", {"transform": from_origin(*CORNER, 10, 11)}, "square and north-up"),
        ("B04", {"transform": rasterio.Affine.identity()}, "its place is unknown"),
    ],
)
def test_a_band_of_another_shape_place_or_kind_fails_the_item_and_is_named(tmp_path, name, told, says):
    made = write_item(tmp_path)
    coarse = name not in ("B02", "B04")
    given = {"pixels": plane(32 if coarse else 64, 1), "side": 64, "corner": CORNER, "epsg": 32629} | told
    if name == "SCL" and "pixels" not in told:
        given["pixels"] = mask()
    (made.folder / f"{name}.tif").unlink()
    write_raster(made.folder / f"{name}.tif", **given)
    assert says in only_reason(make(tmp_path, made))


def test_a_band_of_40_m_is_brought_to_10_m_too(tmp_path):
    made = write_item(tmp_path, bands={"rededge1": plane(16, 3), "swir22": plane(64, 4)})
    assert all(np.array_equal(c.pixels, at(c, made.bands)) for c in cut(make(tmp_path, made)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<html>", "a web page"),
        ("{}", "expected a STAC item"),
        ('{"type": "FeatureCollection"}', "not a Feature (FeatureCollection)"),
        ("", "not JSON"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_item_fails_with_an_estimate_of_its_chips(tmp_path, text, says):
    made = write_item(tmp_path)
    path = made.folder / f"{made.entry['id']}.json"
    path.unlink() if text is None else path.write_text(text)
    source = make(tmp_path, made, chip=256)
    assert says in only_reason(source)
    (unit,) = source.units()
    assert (unit.expected, unit.expected_known, unit.source) == (42 * 42, False, str(path))


def test_an_item_of_another_name_than_the_plans_fails(tmp_path):
    made = write_item(tmp_path)
    made.write(made.json() | {"id": "S2A_29RKH_20200219_1_L2A"})
    assert "of the plan, got S2A_29RKH_20200219_1_L2A" in only_reason(make(tmp_path, made))


def test_a_projection_is_taken_from_the_item_only_if_the_file_has_none(tmp_path):
    made = write_item(tmp_path, crs=None)
    assert {c.crs for c in cut(make(tmp_path, made))} == {"EPSG:32629"}
    made.change(**{"proj:epsg": 32630})
    assert {c.crs for c in cut(make(tmp_path, made))} == {"EPSG:32630"}
    made.change(**{"proj:epsg": None})
    assert "expected a projection in the file or its item" in only_reason(make(tmp_path, made))
    made = write_item(tmp_path)
    made.change(**{"proj:epsg": None})
    assert {c.crs for c in cut(make(tmp_path, made))} == {"EPSG:32629"}
    made.change(**{"proj:epsg": 32660})
    assert {c.crs for c in cut(make(tmp_path, made))} == {"EPSG:32629"}


def test_half_of_a_file_loses_the_chips_of_what_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    made = write_item(tmp_path, blockysize=16)
    path = made.folder / "B08.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = events(make(tmp_path, made))
    assert [c.row for c in found if isinstance(c, Chip)] == [0] * 4 + [1] * 4
    lost = [e for e in found if isinstance(e, Dropped)]
    assert {(e.kind, e.count) for e in lost} == {("failed", 1)}
    assert len(lost) == 8
    assert all(f"{path}: nir is unreadable" in e.reason for e in lost)


def test_a_bad_item_does_not_touch_its_neighbours(tmp_path):
    names = [f"S2A_29RKH_2020021{n}_0_L2A" for n in range(4)]
    made = [write_item(tmp_path, n, seed=i, side=16) for i, n in enumerate(names)]
    (made[1].folder / "B8A.tif").write_bytes(b"no TIFF")
    (made[2].folder / f"{names[2]}.json").unlink()
    kinds = [(type(e).__name__, names.index(e.unit_id[10:])) for e in events(make(tmp_path, *made))]
    assert kinds == [("Opened", 0), ("Chip", 0), ("Dropped", 1), ("Dropped", 2), ("Opened", 3), ("Chip", 3)]


@pytest.mark.parametrize("items", [None, {}, {"other": "x"}, ["a"]])
def test_a_plan_without_the_addresses_of_its_items_is_refused(items):
    shard = ShardPlan("sentinel2", "p", "s", ("a",), 16, 0, 0, "", {} if items is None else {"items": items})
    with pytest.raises(ConfigError, match=r"shard s: expected the addresses of its items.*Make the plan again"):
        sentinel2.open_source(shard, Config())


def test_an_item_twice_in_a_shard_is_a_wrong_plan():
    with pytest.raises(ConfigError, match="got one twice"):
        make("/nowhere", *[{"id": "a", "href": "b"}] * 2)


@pytest.mark.parametrize("wrong", [{"chip": 255}, {"chip": 0}, {"offset_max_dark_fraction": 1.1}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"chip_size|offset_max_dark_fraction"):
        make("/nowhere", **wrong)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_coarse_pixels_are_repeated_and_fine_ones_counted(ratio):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 9000, (12, 20)).astype(np.uint16)
    fine = np.empty((12 * ratio, 20 * ratio), np.uint16)
    repeat_pixels(coarse, ratio, fine)
    assert np.array_equal(fine, coarse.repeat(ratio, 0).repeat(ratio, 1))
    mask = rng.random(fine.shape) < 0.3
    want = mask.reshape(12, ratio, 20, ratio).sum(axis=(1, 3))
    assert np.array_equal(count_in_blocks(mask, ratio), want)


# ------------------------------------------------------------------------------------------------------ remote files


@pytest.fixture
def remote(tmp_path, serve, monkeypatch):
    """Two items on a web server, and on disk; GDAL gives up early and forgets what other tests asked for."""
    quick = {"GDAL_HTTP_MAX_RETRY": "0", "GDAL_HTTP_LOW_SPEED_TIME": "1", "GDAL_HTTP_TIMEOUT": "2"}
    monkeypatch.setattr(assets, "REQUEST_THREADS", 3)  # the server takes few connections at a time
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | quick | {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127"})
    made = [write_item(tmp_path, seed=1), write_item(tmp_path, OTHER, seed=2)]
    files = {f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    server = serve(files)
    server.made = made
    return server


def far(server, *made, **more):
    return make("", *(made or server.made), rewrite=[(BUCKET, server.url)], **more)


def facts(chip):
    """All of a chip but where its scene lies."""
    names = [n for n in Chip.__dataclass_fields__ if n not in ("pixels", "source", "sources")]
    return [getattr(chip, n) for n in names] + [chip.pixels.tobytes()]


def key(server, made, name):
    return next(k for k in server.files if made.entry["id"] in k and k.endswith(name))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_items_over_http_give_the_chips_of_local_ones(tmp_path, remote, ranges):
    remote.ranges = ranges
    source = far(remote)
    theirs = cut(source)
    assert [facts(c) for c in theirs] == [facts(c) for c in cut(make(tmp_path, *remote.made))]
    assert len(theirs) == 32
    assert all(s.startswith(remote.url) for c in theirs for s in (c.source, *c.sources))
    assert {v["etag"] for v in source.provenance().values()} == {"one"}
    assert len(source.provenance()) == 22


def test_items_in_a_bucket_give_the_chips_of_local_ones(tmp_path, bucket):
    made = write_item(tmp_path)
    for path in made.folder.iterdir():
        boto3.client("s3").upload_file(str(path), bucket[5:], str(path.relative_to(tmp_path)))
    theirs = cut(make("", made, rewrite=[("https://other", "x"), (BUCKET, bucket)]))
    assert [facts(c) for c in theirs] == [facts(c) for c in cut(make(tmp_path, made))]
    assert all(s.startswith(bucket) for c in theirs for s in c.sources)


def test_the_first_rule_that_fits_rewrites_items_and_assets(tmp_path):
    made = write_item(tmp_path)
    rules = [("s3://sentinel-cogs", "/x"), (BUCKET, str(tmp_path)), ("https://", "/y")]
    assert len(cut(make("", made, rewrite=rules))) == 16
    entry = made.entry | {"href": made.entry["href"].replace(BUCKET, "s3://sentinel-cogs")}
    assert len(cut(make("", entry, rewrite=[("s3://sentinel-cogs", str(tmp_path)), *rules]))) == 16


def test_of_a_scene_that_cannot_pass_no_pixel_of_a_band_is_asked_for(tmp_path, serve, monkeypatch):
    made = write_item(tmp_path, side=512, scl=mask(256, 8), compress=None)
    server = serve({f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in made.folder.iterdir()})
    source = far(server, made)
    assert [(k, n) for k, n, _ in dropped(source)] == [("cloud", 1024)]
    got = Counter()
    for method, path, asked in server.requests:
        if method == "GET":
            first, last = (asked or "bytes=0-10000000").removeprefix("bytes=").split("-")
            got[path.rpartition("/")[2]] += min(int(last), len(server.files[path]) - 1) - int(first) + 1
    assert {n for n in got if n.endswith(".tif")} == {"SCL.tif", "B04.tif"}
    assert got["B04.tif"] < len(server.files[key(server, made, "B04.tif")]) / 10


def test_no_byte_of_a_band_is_asked_for_twice(tmp_path, serve):
    tiles = {"driver": "COG", "blocksize": 128, "compress": "deflate"}
    made = write_item(tmp_path, side=512, **tiles)
    server = serve({f"/{p.relative_to(tmp_path)}": p.read_bytes() for p in made.folder.iterdir()})
    chips = cut(far(server, made, chip=64))
    assert len(chips) == 64
    asked, total = 0, 0
    for path, data in server.files.items():
        if path.endswith(".tif"):
            total += len(data)
            for method, where, span in server.requests:
                if method == "GET" and where == path:
                    first, last = span.removeprefix("bytes=").split("-")
                    asked += min(int(last), len(data) - 1) - int(first) + 1
    assert total * 0.8 < asked < total * 1.1  # headers twice, overviews never


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_store_that_fails_ends_the_job_so_that_it_is_tried_again(remote, status):
    remote.status = status
    with pytest.raises(TransientError, match=str(status)):
        events(far(remote))
    source = far(remote)
    remote.status = 0
    source.check()
    remote.status = status
    with pytest.raises(TransientError):
        list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


def test_a_connection_that_breaks_ends_the_job_so_that_it_is_tried_again(remote):
    source = far(remote)
    source.check()
    remote.break_at = len(remote.files[key(remote, remote.made[0], "B08.tif")]) // 2
    with pytest.raises(TransientError):
        list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


def test_a_host_that_vanished_ends_the_job_so_that_it_is_tried_again(remote):
    source = far(remote)
    remote.stop()
    with pytest.raises(TransientError, match="connection"):
        source.check()


@pytest.mark.parametrize("when", ["check", "read"])
def test_a_store_that_hangs_ends_the_job_so_that_it_is_tried_again(remote, monkeypatch, when):
    monkeypatch.setattr(storage.http, "TIMEOUT_S", (0.5, 0.5))
    source = far(remote)
    if when == "read":
        source.check()
    remote.hang = 4
    with pytest.raises(TransientError):
        source.check() if when == "check" else list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))


@pytest.mark.parametrize("status", [403, 401])
def test_a_store_that_refuses_everything_ends_the_job_before_the_weights_load(remote, status):
    remote.status = status
    with pytest.raises(ConfigError, match=f"{status}.*set credentials, or read from a mirror"):
        far(remote).check()


def test_a_range_that_is_not_satisfied_is_a_failed_row(remote):
    remote.status = 416
    reasons = [r for _, _, r in dropped(far(remote))]
    assert len(reasons) == 2
    assert all("416" in r for r in reasons)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, k: s.files.pop(k), "does not exist"),
        (lambda s, k: s.files.update({k: b"<html>Sign in to the proxy</html>"}), "not a readable raster"),
        (lambda s, k: s.files.update({k: s.files[k][: len(s.files[k]) // 2]}), "B11.tif: swir16 is"),
        (lambda s, k: s.files.update({k: b""}), "empty, 0 bytes"),
    ],
    ids=["404", "html", "half", "empty"],
)
def test_an_asset_that_is_bad_on_the_server_fails_its_item_alone(remote, change, says):
    change(remote, key(remote, remote.made[0], "B11.tif"))
    found = events(far(remote))
    assert len([e for e in found if isinstance(e, Chip)]) == 16
    assert {e.unit_id for e in found if isinstance(e, Chip)} == {remote.made[1].unit_id}
    (reason,) = {e.reason for e in found if isinstance(e, Dropped) and e.kind == "failed"}
    assert says in reason
    assert "B11.tif" in reason


@pytest.mark.parametrize(("change", "says"), [("etag", "was replaced while"), ("gone", "was removed while")])
def test_an_asset_that_changes_after_the_check_fails_its_item(remote, change, says):
    source = far(remote)
    source.check()
    for name in [k for k in remote.files if k.endswith("B08.tif")]:
        remote.files[name] = b"another file"
        if change == "gone":
            del remote.files[name]
    found = list(source.chips(read_ahead(source.reads(), 2, 1 << 30)))
    assert all(says in e.reason for e in found if isinstance(e, Dropped))
    assert not [e for e in found if isinstance(e, Chip)]


# ------------------------------------------------------------------------------------------------- for the ledger


def test_a_units_version_follows_its_item_and_files(tmp_path):
    def version(**more):
        source = make(tmp_path, made, **more)
        source.check()
        return source.units()[0].version

    made = write_item(tmp_path)
    first = version()
    assert first
    assert version() == first
    made.change(**{"s2:processing_baseline": "03.01"})
    second = version()
    write_raster(made.folder / "B12.tif", plane(32, 9), 64, CORNER, 32629, compress="deflate")
    assert len({first, second, version()}) == 3
    (made.folder / "B12.tif").unlink()
    assert version() == ""


def test_every_read_says_which_unit_it_is_for_and_how_much_it_holds(tmp_path):
    made = [write_item(tmp_path), write_item(tmp_path, OTHER)]
    (made[1].folder / "B02.tif").unlink()
    source = make(tmp_path, *made)
    source.check()
    reads = list(source.reads())
    assert [r.unit_id for r in reads] == [made[0].unit_id] * 11 + [made[1].unit_id]
    for read in reads[:-1]:
        value = read.load()
        assert read.nbytes == (value.scl if isinstance(value, sentinel2.PreparedScene) else value.pixels).nbytes
    with pytest.raises(SourceError, match="does not exist"):
        reads[-1].load()
