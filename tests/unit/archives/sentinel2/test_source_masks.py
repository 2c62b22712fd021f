"""Chips of Sentinel-2 that SCL removes as nodata or cloud, and the reads that this saves."""

import itertools

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from kiln.archives import raster_reading
from kiln.archives.sentinel2.assets import BandFiles
from tests.support.items import FILES, write_item
from tests.support.sentinel2_scenes import (
    chip_area,
    make_source,
    read_chips,
    read_dropped,
    read_events,
    read_notes,
    scl_mask,
)


def test_nodata_and_cloud_are_counted_separately_by_their_own_limits(tmp_path):
    scl = scl_mask()
    scl[:8, :8] = 0  # all of chip 0, 0
    scl[0, 8:11] = 0  # 3 of 64 pixels of chip 1, 0: just within the limit
    scl[0, 16:20] = 0  # 4 of chip 2, 0: just beyond
    scl[8:12, :8] = [1, 3, 8, 9, 10, 8, 8, 8]  # half of chip 0, 1: just within
    scl[8:12, 8:16], scl[12, 8] = 9, 9  # one more of chip 1, 1: just beyond
    scl[8:10, 16:24] = 11  # snow is no cloud
    written = write_item(tmp_path, scl=scl)
    source = make_source(tmp_path, written)
    chips = {(c.col, c.row): c for c in read_chips(source)}
    assert len(chips) == 13
    assert set(itertools.product(range(4), range(4))) - set(chips) == {(0, 0), (2, 0), (1, 1)}
    assert read_dropped(source) == [
        ("nodata", 2, "more nodata than max_nodata"),
        ("cloud", 1, "more cloud than max_cloud"),
    ]
    assert (chips[1, 0].nodata_fraction, chips[0, 1].cloud_fraction) == (3 / 64, 0.5)
    assert chips[2, 1].cloud_fraction == 0


def test_cloud_is_a_fraction_of_the_valid_pixels(tmp_path):
    scl = scl_mask(8)
    scl[:2], scl[2:5] = 0, 9
    written = write_item(tmp_path, side=16, scl=scl)
    (chip,) = read_chips(make_source(tmp_path, written, max_nodata=0.3))
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0.25, 0.5)
    assert read_dropped(make_source(tmp_path, written, max_nodata=0.3, max_cloud=0.49)) == [
        ("cloud", 1, "more cloud than max_cloud")
    ]
    assert [k for k, _, _ in read_dropped(make_source(tmp_path, written, max_cloud=0.1))] == ["nodata"]


def test_zeros_in_all_bands_are_nodata_and_zeros_in_some_are_not(tmp_path):
    written = write_item(tmp_path, side=32)
    zeros = {b: np.where(np.arange(len(p)) < len(p) // 2, 0, p) for b, p in bands_of(written).items()}
    written = write_item(tmp_path, side=32, bands=zeros)
    assert [(c.col, c.nodata_fraction) for c in read_chips(make_source(tmp_path, written))] == [(1, 0), (1, 0)]
    assert read_dropped(make_source(tmp_path, written)) == [("nodata", 1, "more nodata than max_nodata")] * 2
    written = write_item(tmp_path, side=32, bands={b: p for b, p in zeros.items() if b != "swir22"})
    assert [c.nodata_fraction for c in read_chips(make_source(tmp_path, written))] == [0] * 4


def bands_of(written):
    """Return the bands of the files."""
    bands = {}
    for band, name in FILES.items():
        with rasterio.open(written.folder / f"{name}.tif") as file:
            bands[band] = file.read(1)
    return bands


def test_an_empty_chip_is_dropped_regardless_of_the_limit(tmp_path):
    scl = scl_mask(16)
    scl[:8] = 0
    scl[8:, 1:8] = 0
    written = write_item(tmp_path, side=32, scl=scl)
    assert [(c.col, c.row) for c in read_chips(make_source(tmp_path, written, max_nodata=1.0))] == [(0, 1), (1, 1)]


def test_impossible_classes_are_noted_and_count_as_valid_and_clear(tmp_path):
    scl = scl_mask()
    scl[0, :5] = [12, 12, 13, 255, 12]
    source = make_source(tmp_path, write_item(tmp_path, scl=scl))
    assert read_notes(source) == ("no_offset", "scl_impossible (5 px)")
    assert [(c.nodata_fraction, c.cloud_fraction) for c in read_chips(source)] == [(0, 0)] * 16


@pytest.mark.parametrize(("fill", "kind"), [(9, "cloud"), (0, "nodata")])
def test_a_scene_without_a_valid_chip_is_empty_and_no_band_is_read(tmp_path, monkeypatch, fill, kind):
    written = write_item(tmp_path, scl=scl_mask(fill=fill))
    for name in set(FILES.values()) - {"B04"}:
        path = written.folder / f"{name}.tif"
        path.write_bytes(bytes(path.stat().st_size))  # would fail if it were opened
    assert [(k, n) for k, n, _ in read_dropped(make_source(tmp_path, written))] == [(kind, 16)]
    assert read_notes(make_source(tmp_path, written)) == ("bands_not_read",)


def test_only_rows_and_columns_of_valid_chips_are_read_at_a_swath_edge(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    scl = scl_mask(fill=0)
    scl[8:24, 16:24] = 4
    scl[16:24, 24:] = 4
    written = write_item(tmp_path, scl=scl, blockysize=16)
    windows_read, read = [], BandFiles.read

    def recorded(self, band, **how):
        windows_read.append((band, how.get("window")))
        return read(self, band, **how)

    monkeypatch.setattr(BandFiles, "read", recorded)
    chips = read_chips(make_source(tmp_path, written))
    assert [(c.col, c.row) for c in chips] == [(2, 1), (2, 2), (3, 2)]
    assert all(np.array_equal(c.pixels, chip_area(c, written.bands)) for c in chips)
    blue = sorted((w for b, w in windows_read if b == "blue"), key=lambda w: w.row_off)  # threads read in any order
    assert blue == [Window(32, 16, 16, 16), Window(32, 32, 32, 16)]


def test_a_scene_smaller_than_a_chip_expects_none_and_has_a_reason(tmp_path):
    opened, nothing = read_events(make_source(tmp_path, write_item(tmp_path, side=8)))
    assert (opened.expected, nothing.kind, nothing.count) == (0, "nodata", 0)
    assert "smaller than a chip" in nothing.reason
