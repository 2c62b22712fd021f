"""Sentinel-2 scenes: places, pixels and columns of chips, and the reads and versions of units."""

import itertools
from collections import Counter

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.sentinel2 import source as sentinel2
from kiln.archives.sentinel2.assets import BandFiles
from kiln.archives.sentinel2.scene import (
    OFFSET,
)
from kiln.errors import SourceError
from kiln.formats.records import Chip
from tests.support.items import CORNER, FILES, plane, write_item, write_raster
from tests.support.sentinel2_scenes import (
    BASELINE_04,
    CHIP_SIZE,
    OTHER_NAME,
    chip_area,
    make_source,
    read_chips,
    read_events,
)

# ----------------------------------------------------------------------------------------------- chips and their places


def test_chips_are_ten_bands_at_10_m_from_the_top_left_with_coarse_bands_repeated(tmp_path):
    written = write_item(tmp_path, side=72)
    chips = read_chips(make_source(tmp_path, written))
    places = [
        (r, c) for r in range(4) for c in range(4)
    ]  # the last 8 px to the right and below are not a complete chip
    assert [c.chip_id for c in chips] == [f"{written.unit_id}:{c}:{r}" for r, c in places]
    assert [(c.row, c.col) for c in chips] == places
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands)) for c in chips)
    assert chips[0].pixels.dtype == np.uint16


@pytest.mark.parametrize("block", [None, 16, 32, 64])
@pytest.mark.parametrize("strip", [1, 40, 256])
def test_strips_give_the_chips_of_a_whole_read_and_no_block_is_read_twice(tmp_path, monkeypatch, block, strip):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", strip)
    tiles = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {"blockysize": 15}
    written = write_item(tmp_path, side=176, **tiles)
    windows_read, read = [], BandFiles.read

    def recorded(self, band, **how):
        windows_read.append((band, how.get("window")))
        return read(self, band, **how)

    monkeypatch.setattr(BandFiles, "read", recorded)
    chips = read_chips(make_source(tmp_path, written))
    assert len(chips) == 121
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands)) for c in chips)
    assert Counter(band for band, _ in windows_read)["scl"] == 1
    for band in FILES:
        windows = sorted((w.row_off, w.row_off + w.height) for b, w in windows_read if b == band)
        rows = len(written.bands[0]) // (1 if band in sentinel2.FINE_BANDS else 2)
        assert (windows[0][0], windows[-1][1]) == (0, rows)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
        if block:
            assert all(start % block == 0 for start, _ in windows)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_reading_threads_changes_nothing(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    written = [write_item(tmp_path, seed=1, blockysize=16), write_item(tmp_path, OTHER_NAME, seed=2, blockysize=8)]
    found = [e for e in read_events(make_source(tmp_path, *written), threads) if isinstance(e, Chip)]
    assert len({c.chip_id for c in found}) == len(found) == 32
    assert all(np.array_equal(c.pixels, chip_area(c, written[i // 16].bands)) for i, c in enumerate(found))


@pytest.mark.parametrize("epsg", [32629, 32733, 32601])
@pytest.mark.parametrize("size", [64, 640])
def test_footprints_and_centres_follow_the_red_bands_own_transform(tmp_path, epsg, size):
    corner = (399_960.0, 5_300_040.0)
    written = write_item(tmp_path, corner=corner, epsg=epsg)
    for band, name in (FILES | {"scl": "SCL"}).items():
        side = 32 if band == "scl" or band not in sentinel2.FINE_BANDS else 64
        pixels = np.full((side, side), 5, np.uint8) if band == "scl" else plane(side, 1)
        write_raster(written.folder / f"{name}.tif", pixels, size, corner, epsg)
    chips = read_chips(make_source(tmp_path, written))
    assert len(chips) == 16
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    with rasterio.open(written.folder / "B04.tif") as file:
        for chip in chips:
            row, col = chip.row * CHIP_SIZE, chip.col * CHIP_SIZE
            corners = [(row, col), (row + CHIP_SIZE, col), (row + CHIP_SIZE, col + CHIP_SIZE), (row, col + CHIP_SIZE)]
            ring = [to_degrees(*file.xy(r, c, offset="ul")) for r, c in corners]
            np.testing.assert_allclose(shapely.get_coordinates(chip.footprint)[:4], ring, rtol=0, atol=1e-10)
            assert chip.footprint.is_valid
            assert chip.footprint.exterior.is_ccw
            assert chip.center == pytest.approx(
                to_degrees(*file.xy(row + CHIP_SIZE / 2, col + CHIP_SIZE / 2, offset="ul")), abs=1e-10
            )
            assert (chip.x0, chip.y0) == file.xy(row, col, offset="ul")
            assert (chip.crs, chip.pixel_size) == (f"EPSG:{epsg}", pytest.approx(size / 64 * 10))


def test_a_full_tile_of_nodata_is_opened_as_1764_chips(tmp_path):
    written = write_item(tmp_path)
    for band, name in (FILES | {"scl": "SCL"}).items():
        side = 10_980 if band in sentinel2.FINE_BANDS else 5490
        profile = {"width": side, "height": side, "dtype": "uint8" if band == "scl" else "uint16", "sparse_ok": True}
        profile |= {"driver": "GTiff", "count": 1, "crs": "EPSG:32629", "compress": "deflate", "tiled": True}
        size = 109_800 / side
        rasterio.open(
            written.folder / f"{name}.tif", "w", transform=from_origin(*CORNER, size, size), **profile
        ).close()
    source = make_source(tmp_path, written, chip=256)
    opened, nothing = read_events(source)
    assert (opened.expected, nothing.kind, nothing.count) == (1764, "nodata", 1764)
    assert opened.notes == ("bands_not_read",)
    assert source.units()[0].expected_known


def test_a_chip_has_platform_tile_baseline_and_sun(tmp_path):
    written = write_item(tmp_path, side=16)
    (chip,) = read_chips(make_source(tmp_path, written))
    assert (chip.unit_id, chip.item_id) == (written.unit_id, written.entry["id"])
    assert chip.datetime.isoformat() == "2020-02-19T11:34:25.405000+00:00"
    assert chip.extra == {
        "platform": "sentinel-2a",
        "mgrs_tile": "29RKH",
        "processing_baseline": "02.14",
        "offset_applied": False,
        "sun_elevation": 48.25,
    }
    assert chip.source == str(written.folder / "B04.tif")
    assert chip.sources == tuple(str(written.folder / f"{f}.tif") for f in FILES.values())
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0, 0)


@pytest.mark.parametrize("style", ["v0", "v1", "c1"])
def test_items_of_every_spelling_give_the_same_chips(tmp_path, style):
    written = write_item(tmp_path, style=style, properties={"s2:processing_baseline": "02.14"})
    chips = read_chips(make_source(tmp_path, written))
    assert len(chips) == 16
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands)) for c in chips)


def test_jpeg_2000_gives_the_same_chips_as_tiff(tmp_path):
    written = write_item(tmp_path, suffix="jp2", side=128, blockxsize=64, blockysize=64)
    with rasterio.open(written.folder / "B04.jp2") as file:
        assert file.driver == "JP2OpenJPEG"
    chips = read_chips(make_source(tmp_path, written))
    assert len(chips) == 64
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands)) for c in chips)


def test_the_offset_is_subtracted_from_jpeg_2000(tmp_path):
    written = write_item(tmp_path, suffix="jp2", properties=BASELINE_04, low=1500)
    source = make_source(tmp_path, written)
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands) - OFFSET) for c in read_chips(source))


# ----------------------------------------------------------------------------------------------- antimeridian and poles


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
    written = write_item(tmp_path, epsg=epsg, corner=(float(east), float(north)), side=1024)
    chips = read_chips(make_source(tmp_path, written, chip=64))
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


@pytest.mark.parametrize(("epsg", "north"), [(32633, 9_300_040.0), (32721, 1_200_000.0)])
def test_footprints_of_polar_tiles_are_valid_and_small(tmp_path, epsg, north):
    written = write_item(tmp_path, epsg=epsg, corner=(399_960.0, north))
    chips = read_chips(make_source(tmp_path, written))
    assert len(chips) == 16
    for chip in chips:
        west, south, east, top = chip.footprint.bounds
        assert chip.footprint.is_valid
        assert abs(chip.center[1]) > 79
        assert (east - west) < 0.05
        assert (top - south) < 0.01


# --------------------------------------------------------------------------------------------------- reads and versions


def test_the_version_of_a_unit_depends_on_its_item_and_files(tmp_path):
    def version(**more):
        source = make_source(tmp_path, written, **more)
        source.check()
        return source.units()[0].version

    written = write_item(tmp_path)
    first = version()
    assert first
    assert version() == first
    written.change(**{"s2:processing_baseline": "03.01"})
    second = version()
    write_raster(written.folder / "B12.tif", plane(32, 9), 64, CORNER, 32629, compress="deflate")
    assert len({first, second, version()}) == 3
    (written.folder / "B12.tif").unlink()
    assert version() == ""


def test_every_read_has_its_unit_and_its_number_of_bytes(tmp_path):
    written = [write_item(tmp_path), write_item(tmp_path, OTHER_NAME)]
    (written[1].folder / "B02.tif").unlink()
    source = make_source(tmp_path, *written)
    source.check()
    reads = list(source.reads())
    assert [r.unit_id for r in reads] == [written[0].unit_id] * 11 + [written[1].unit_id]
    for read in reads[:-1]:
        value = read.load()
        assert read.nbytes == (value.scl if isinstance(value, sentinel2.PreparedScene) else value.pixels).nbytes
    with pytest.raises(SourceError, match="does not exist"):
        reads[-1].load()
