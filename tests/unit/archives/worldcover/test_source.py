"""Chips stitched from WorldCover tiles, compared with an independent mosaic, and the reads of their blocks."""

import itertools
import tempfile
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.worldcover.lattice import Column, Lattice, region_columns
from kiln.archives.worldcover.tiles import (
    tile_corner,
)
from kiln.formats.records import Dropped
from tests.support.archives import edge, mosaic, random_pixels, tile_path, write_tile
from tests.support.worldcover_source import block_options, chips_of, make_source, read_events

# ------------------------------------------------------------------------------------------------------------ stitching


@dataclass(frozen=True)
class World:
    """A random archive around a region."""

    ppd: int
    chip: int
    region: tuple[float, float, float, float]
    block: tuple[int, int] | int  # (rows, cols) of tiles, or rows of strips
    missing: int  # a bit for each tile
    holes: int
    seed: int
    max_nodata: float
    encode: str
    strip: int
    budget: int
    threads: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    encode = draw(st.sampled_from(["whole", "quarters"]))
    ppd = draw(st.sampled_from([40, 48, 60, 80, 96]))
    west = draw(st.integers(-178, 176)) + draw(st.floats(0, 1))
    north = draw(st.integers(-56, 82)) + draw(st.floats(0, 1))
    return World(
        ppd=ppd,
        chip=draw(st.sampled_from([16, 32, 48] if encode == "quarters" else [8, 16, 24, 40, 56])),
        region=(west, north - draw(st.floats(0.05, 1.3)), west + draw(st.floats(0.05, 1.3)), north),
        block=draw(st.one_of(st.sampled_from([(16, 16), (32, 16), (16, 48)]), st.integers(1, ppd))),
        missing=draw(st.integers(0, 511)) & draw(st.integers(0, 511)),
        holes=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 999)),
        max_nodata=draw(st.sampled_from([0.0, 0.05, 0.3, 0.75, 1.0])),
        encode=encode,
        strip=draw(st.sampled_from([1, 16, 256])),
        budget=draw(st.sampled_from([1, 20_000, 1 << 20])),
        threads=draw(st.integers(1, 3)),
    )


def degrees_of(lattice: Lattice, columns: list[Column]) -> tuple[int, int, int, int]:
    """West, north, width and height in whole degrees of the tiles around columns."""
    ppd, chip = lattice.ppd, lattice.chip
    west = (Fraction(-125) + Fraction(columns[0].col * chip, ppd)).__floor__()
    east = (Fraction(-125) + Fraction((columns[-1].col + 1) * chip, ppd)).__ceil__()
    north = (Fraction(50) - Fraction(columns[0].row * chip, ppd)).__ceil__()
    south = (Fraction(50) - Fraction((columns[0].row + columns[0].rows) * chip, ppd)).__floor__()
    return west, north, east - west, north - south


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds())
def test_every_chip_equals_the_mosaic_of_the_tiles(w):
    lattice = Lattice(w.chip, w.ppd)
    columns = region_columns(lattice, w.region)
    west, north, width, height = degrees_of(lattice, columns)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster_reading, "MIN_STRIP_ROWS", w.strip)
        root = Path(folder)
        (root / "2021").mkdir()
        (root / "2021" / "readme.txt").write_text("not a tile")
        paths = {}
        for n, (down, right) in enumerate(itertools.product(range(height), range(width))):
            if not w.missing >> n & 1:
                pixels = random_pixels(w.ppd, w.seed + n, w.holes)
                at = (west + right, north - down - 1)
                paths[at] = write_tile(root, 2021, *at, pixels, **block_options(w.block))
        world = mosaic(root, 2021, west, north, width, height, w.ppd)
        source = make_source(root, lattice, columns, max_nodata=w.max_nodata, encode=w.encode)
        events = read_events(source, w.threads, w.budget)

        # The expected chips, row by row from the north, each from the west.
        quarters = w.encode == "quarters"
        side = w.chip // (2 if quarters else 1)
        expected_drops: Counter[str] = Counter()
        given_chips = iter(chips_of(events))
        for row, column in itertools.product(range(columns[0].row, columns[0].row + columns[0].rows), columns):
            for q, (dy, dx) in enumerate(itertools.product(range(0, w.chip, side), repeat=2)):
                x, y = column.col * w.chip + dx, row * w.chip + dy  # pixels from (-125, 50)
                left, top = x + (-125 - west) * w.ppd, y + (north - 50) * w.ppd
                pixels = world[:, top : top + side, left : left + side]
                valid = pixels.any(axis=0)
                nodata = Fraction(int((~valid).sum()), side**2)
                unit = (
                    f"worldcover:2021:{w.chip}:x{(660000 + column.col * w.chip * (12000 // w.ppd)):07d}"
                    f":y{(480000 + columns[0].row * w.chip * (12000 // w.ppd)):07d}:r{columns[0].rows}"
                )
                if nodata == 1 or nodata > Fraction(str(w.max_nodata)):
                    expected_drops[unit] += 1
                    continue
                chip = next(given_chips)
                assert np.array_equal(chip.pixels, pixels)
                assert chip.pixels.dtype == np.uint16
                assert chip.unit_id == unit
                assert chip.chip_id == (
                    f"worldcover:2021:{w.chip}:x{660000 + column.col * w.chip * (12000 // w.ppd):07d}"
                    f":y{480000 + row * w.chip * (12000 // w.ppd):07d}" + (f":q{q}" if quarters else "")
                )
                assert (chip.col, chip.row, chip.crs) == (column.col, row, "EPSG:4326")
                box = [
                    edge(-125, x, w.ppd),
                    edge(50, -y - side, w.ppd),
                    edge(-125, x + side, w.ppd),
                    edge(50, -y, w.ppd),
                ]
                assert list(chip.footprint.bounds) == box  # to the bit
                assert (chip.x0, chip.y0) == (box[0], box[3])
                assert chip.pixel_size == 1 / w.ppd
                assert chip.center == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
                assert chip.nodata_fraction == pytest.approx(float(nodata), abs=1e-12)
                valid_counts = []  # valid pixels of each tile, north-west first
                for at in sorted(paths, key=lambda t: (-t[1], t[0])):
                    inside = np.zeros_like(valid)
                    tile_left, tile_top = (at[0] - west) * w.ppd - left, (north - at[1] - 1) * w.ppd - top
                    rows, cols = (slice(max(0, t), max(0, t + w.ppd)) for t in (tile_top, tile_left))
                    inside[rows, cols] = True
                    if count := int((valid & inside).sum()):
                        valid_counts.append((count, str(paths[at])))
                assert list(chip.sources) == [uri for _, uri in valid_counts]
                highest = max(count for count, _ in valid_counts)
                assert chip.source == next(uri for count, uri in valid_counts if count == highest)
                assert chip.item_id == Path(chip.source).stem
        assert next(given_chips, None) is None
        drops: Counter[str] = Counter()
        for event in events:
            if isinstance(event, Dropped):
                assert event.kind == "nodata"
                assert event.reason
                drops[event.unit_id] += event.count
        assert drops == expected_drops
        assert sum(u.expected for u in source.units()) == len(chips_of(events)) + drops.total()


def test_a_chip_over_four_corners_is_stitched_and_ties_go_to_the_north_west(tmp_path):
    for west, south in itertools.product((-125, -124), (48, 49)):
        write_tile(tmp_path, 2021, west, south, random_pixels(40, south - west))
    lattice, columns = Lattice(16, 40), [Column(2, 2, 1)]  # its centre is the corner (-124, 49)
    chip = chips_of(read_events(make_source(tmp_path, lattice, columns)))[0]
    assert chip.center == (-124, 49)
    assert np.array_equal(chip.pixels, mosaic(tmp_path, 2021, -125, 50, 2, 2, 40)[:, 32:48, 32:48])
    names = [Path(s).stem.split("_")[5] for s in chip.sources]
    assert names == ["N49W125", "N49W124", "N48W125", "N48W124"]
    assert chip.source == chip.sources[0]

    pixels = random_pixels(40, 5)
    pixels[:, -1, -1] = 0  # the north-western tile gives one pixel less
    write_tile(tmp_path, 2021, -125, 49, pixels)
    chip = chips_of(read_events(make_source(tmp_path, lattice, columns)))[0]
    assert chip.item_id == "ESA_WorldCover_10m_2021_v200_N49W124_S2RGBNIR"
    assert chip.nodata_fraction == 1 / 256


def test_a_pixel_is_nodata_only_if_all_four_bands_are_zero(tmp_path):
    pixels = random_pixels(40, 1)
    pixels[:3, :8, :8] = 0
    pixels[:, 8:16, :8] = 0
    write_tile(tmp_path, 2021, -125, 49, pixels)
    chip = chips_of(read_events(make_source(tmp_path, Lattice(16, 40), [Column(0, 0, 1)])))[0]
    assert chip.nodata_fraction == 0.25


@pytest.mark.parametrize(("holes", "embedded"), [(320, True), (321, False)])
def test_a_chip_with_exactly_max_nodata_is_embedded(tmp_path, holes, embedded):
    pixels = random_pixels(80, 1)
    pixels.reshape(4, -1)[:, :holes] = 0  # of 80 x 80: 320 are 5 %
    write_tile(tmp_path, 2021, -125, 49, pixels)
    events = read_events(make_source(tmp_path, Lattice(80, 80), [Column(0, 0, 1)], max_nodata=0.05))
    assert bool(chips_of(events)) == embedded


def test_quarters_are_the_four_quarters_of_the_whole_chip(tmp_path):
    write_tile(tmp_path, 2021, -125, 49, random_pixels(96, 1))
    lattice, columns = Lattice(32, 96), [Column(1, 1, 2), Column(2, 1, 2)]
    whole = chips_of(read_events(make_source(tmp_path, lattice, columns)))
    quarters = chips_of(read_events(make_source(tmp_path, lattice, columns, encode="quarters")))
    assert len(quarters) == 4 * len(whole) == 16
    for n, chip in enumerate(whole):
        parts = quarters[4 * n : 4 * n + 4]
        assert [q.chip_id for q in parts] == [f"{chip.chip_id}:q{i}" for i in range(4)]
        top, bottom = (np.concatenate([a.pixels, b.pixels], axis=2) for a, b in (parts[:2], parts[2:]))
        assert np.array_equal(np.concatenate([top, bottom], axis=1), chip.pixels)
    assert make_source(tmp_path, lattice, columns, encode="quarters").units()[0].expected == 8


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("block", [(16, 16), (48, 32), 1, 7, 95], ids=str)
@pytest.mark.parametrize("strip", [1, 20, 256])
def test_every_block_is_read_once_and_no_pixel_twice(tmp_path, monkeypatch, block, strip):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", strip)
    for west, south in itertools.product((10, 11), (44, 45)):
        write_tile(tmp_path, 2021, west, south, random_pixels(96, west), **block_options(block))
    lattice = Lattice(40, 96)
    columns = region_columns(lattice, [10.2, 44.3, 11.6, 45.7])
    source = make_source(tmp_path, lattice, columns)
    pixels_read: dict[str, np.ndarray] = {}
    blocks_read: Counter[tuple[str, int, int]] = Counter()
    with rasterio.open(tile_path(tmp_path, 2021, 10, 44)) as src:
        height, width = src.block_shapes[0]
    for read in source.reads():
        value = read.load()
        assert value.nbytes == read.nbytes
        s = read.key
        west, north = s.tile.corner
        rows = range(s.y0 - (90 - north) * 96, s.y1 - (90 - north) * 96)
        cols = range(s.x0 - (west + 180) * 96, s.x1 - (west + 180) * 96)
        seen = pixels_read.setdefault(s.tile.name, np.zeros((96, 96), int))
        seen[rows.start : rows.stop, cols.start : cols.stop] += 1
        touched = itertools.product({r // height for r in rows}, {c // width for c in cols})
        blocks_read.update((s.tile.name, *b) for b in touched)
    assert set(blocks_read.values()) == {1}
    x0, x1 = lattice.x(columns[0].col), lattice.x(columns[-1].col + 1)
    y0, y1 = lattice.y(columns[0].row), lattice.y(columns[0].row + columns[0].rows)
    for name, seen in pixels_read.items():
        west, south = tile_corner(name)
        left, top = (west + 180) * 96, (89 - south) * 96
        wanted = np.zeros_like(seen)
        wanted[max(0, y0 - top) : max(0, y1 - top), max(0, x0 - left) : max(0, x1 - left)] = 1
        assert np.array_equal(seen, wanted), name
    assert set(pixels_read) == {"N44E010", "N44E011", "N45E010", "N45E011"}


def test_reads_come_in_the_order_in_which_chips_need_them(tmp_path):
    for west, south in itertools.product((10, 11), (44, 45)):
        write_tile(tmp_path, 2021, west, south, random_pixels(48, west), blockysize=4)
    lattice = Lattice(16, 48)
    keys = [r.key for r in make_source(tmp_path, lattice, region_columns(lattice, [10.2, 44.3, 11.6, 45.7])).reads()]
    assert [(k.y0, k.x0) for k in keys] == sorted((k.y0, k.x0) for k in keys)


# ---------------------------------------------------------------------------------------------------------- real pixels


def test_chips_of_a_real_clip_in_a_full_size_tile_equal_its_pixels(tmp_path, shared):
    if shared is None:
        pytest.skip("no shared test data")
    with rasterio.open(shared / "archive/esa-worldcover-s2/clips/wc-lattice_10m_N53E006_clip_RGBNIR.tif") as src:
        clip, bounds = src.read(), src.bounds
    left, top = round((bounds.left - 6) * 12000), round((54 - bounds.top) * 12000)
    path = tile_path(tmp_path, 2021, 6, 53)
    path.parent.mkdir(parents=True)
    profile = {"driver": "GTiff", "count": 4, "height": 12000, "width": 12000, "dtype": "uint16", "crs": "EPSG:4326"}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(
        path, "w", transform=from_origin(6, 54, 1 / 12000, 1 / 12000), nodata=0, **profile, **tiles
    ) as dst:
        dst.write(clip, window=((top, top + 223), (left, left + 371)))
    lattice = Lattice(64)
    columns = region_columns(lattice, bounds)
    assert len(columns) in (6, 7)
    seen = np.zeros_like(clip)
    for chip in chips_of(read_events(make_source(tmp_path, lattice, columns))):
        x, y = round((chip.x0 - 6) * 12000) - left, round((54 - chip.y0) * 12000) - top
        for dy, dx in itertools.product(range(64), range(64)):
            if 0 <= y + dy < 223 and 0 <= x + dx < 371:
                seen[:, y + dy, x + dx] = chip.pixels[:, dy, dx]
    assert np.array_equal(seen, clip)
    assert clip.any(axis=0).mean() > 0.9


def test_chips_of_a_real_tile_of_1200_px_equal_its_pixels(shared):
    if shared is None:
        pytest.skip("no shared test data")
    root = shared / "archive/esa-worldcover-s2/rgbnir_1200px"
    lattice = Lattice(256, 1200)
    columns = region_columns(lattice, [-11.9, 24.1, -11.1, 24.9])
    events = read_events(make_source(root, lattice, columns, year=2020, max_nodata=0.9))
    world = mosaic(root, 2020, -12, 25, 1, 1, 1200)
    chips = chips_of(events)
    assert len(chips) >= 6
    for chip in chips:
        x, y = round((chip.x0 + 12) * 1200), round((25 - chip.y0) * 1200)
        expected = np.zeros((4, 256, 256), np.uint16)
        have = world[:, max(y, 0) : y + 256, max(x, 0) : x + 256]
        top, left = max(-y, 0), max(-x, 0)
        expected[:, top : top + have.shape[1], left : left + have.shape[2]] = have
        assert np.array_equal(chip.pixels, expected)
        assert chip.nodata_fraction == pytest.approx(1 - expected.any(axis=0).mean())
    assert 0 < sum(e.count for e in events if isinstance(e, Dropped)) < 16
