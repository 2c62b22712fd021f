"""Stitching of tiles against an independent mosaic, and what becomes of tiles that are missing or bad."""

import itertools
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.worldcover.lattice import Column, Lattice, region_columns
from kiln.archives.worldcover.source import WorldCoverSource
from kiln.archives.worldcover.tiles import (
    find_tiles,
    tile_corner,
    tile_name,
    tile_uri,
    touched_tiles,
)
from kiln.engine import pipeline
from kiln.engine.read_ahead import read_ahead
from kiln.errors import ConfigError, TransientError
from kiln.formats.records import Chip, Dropped
from kiln.model import clay, embedder
from tests.support.archives import edge, mosaic, name_of, random_pixels, tile_path, write_tile
from tests.support.chips import make_info


def make_source(
    root: Path | str, lattice: Lattice, columns: list[Column], year: int = 2021, max_nodata: float = 1.0, **more: Any
) -> WorldCoverSource:
    """The source of a plan made now."""
    tiles = find_tiles(str(root), year, touched_tiles(lattice, columns))
    return WorldCoverSource(lattice, year, columns, tiles, root=str(root), max_nodata=max_nodata, **more)


def cut(source: WorldCoverSource, threads: int = 2, budget: int = 1 << 20) -> list[Chip | Dropped]:
    """Everything the source gives, in order."""
    return list(source.chips(read_ahead(source.reads(), threads, budget)))


def chips_of(events: list[Chip | Dropped]) -> list[Chip]:
    return [e for e in events if isinstance(e, Chip)]


# --------------------------------------------------------------------------------------------- stitching


@dataclass(frozen=True)
class World:
    """A random archive around a region."""

    ppd: int
    chip: int
    region: tuple[float, float, float, float]
    block: tuple[int, int] | int  # (rows, cols) of tiles, or rows of strips
    missing: int  # bits
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


def block_options(block: tuple[int, int] | int) -> dict[str, Any]:
    if isinstance(block, int):
        return {"tiled": False, "blockysize": block}
    return {"tiled": True, "blockysize": block[0], "blockxsize": block[1]}


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
        there = {}
        for n, (down, right) in enumerate(itertools.product(range(height), range(width))):
            if not w.missing >> n & 1:
                pixels = random_pixels(w.ppd, w.seed + n, w.holes)
                at = (west + right, north - down - 1)
                there[at] = write_tile(root, 2021, *at, pixels, **block_options(w.block))
        world = mosaic(root, 2021, west, north, width, height, w.ppd)
        source = make_source(root, lattice, columns, max_nodata=w.max_nodata, encode=w.encode)
        events = cut(source, w.threads, w.budget)

        # What ought to come out, chip by chip, southwards and then eastwards.
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
                shares = []  # of the tiles, north-west first
                for at in sorted(there, key=lambda t: (-t[1], t[0])):
                    inside = np.zeros_like(valid)
                    tile_left, tile_top = (at[0] - west) * w.ppd - left, (north - at[1] - 1) * w.ppd - top
                    rows, cols = (slice(max(0, t), max(0, t + w.ppd)) for t in (tile_top, tile_left))
                    inside[rows, cols] = True
                    if count := int((valid & inside).sum()):
                        shares.append((count, str(there[at])))
                assert list(chip.sources) == [uri for _, uri in shares]
                most = max(count for count, _ in shares)
                assert chip.source == next(uri for count, uri in shares if count == most)
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
    chip = chips_of(cut(make_source(tmp_path, lattice, columns)))[0]
    assert chip.center == (-124, 49)
    assert np.array_equal(chip.pixels, mosaic(tmp_path, 2021, -125, 50, 2, 2, 40)[:, 32:48, 32:48])
    names = [Path(s).stem.split("_")[5] for s in chip.sources]
    assert names == ["N49W125", "N49W124", "N48W125", "N48W124"]
    assert chip.source == chip.sources[0]

    pixels = random_pixels(40, 5)
    pixels[:, -1, -1] = 0  # the north-western tile gives one pixel less
    write_tile(tmp_path, 2021, -125, 49, pixels)
    chip = chips_of(cut(make_source(tmp_path, lattice, columns)))[0]
    assert chip.item_id == "ESA_WorldCover_10m_2021_v200_N49W124_S2RGBNIR"
    assert chip.nodata_fraction == 1 / 256


def test_a_pixel_is_nodata_only_if_all_four_bands_are_zero(tmp_path):
    pixels = random_pixels(40, 1)
    pixels[:3, :8, :8] = 0
    pixels[:, 8:16, :8] = 0
    write_tile(tmp_path, 2021, -125, 49, pixels)
    chip = chips_of(cut(make_source(tmp_path, Lattice(16, 40), [Column(0, 0, 1)])))[0]
    assert chip.nodata_fraction == 0.25


@pytest.mark.parametrize(("holes", "kept"), [(320, True), (321, False)])
def test_a_chip_with_exactly_max_nodata_is_kept(tmp_path, holes, kept):
    pixels = random_pixels(80, 1)
    pixels.reshape(4, -1)[:, :holes] = 0  # of 80 x 80: 320 are 5 %
    write_tile(tmp_path, 2021, -125, 49, pixels)
    events = cut(make_source(tmp_path, Lattice(80, 80), [Column(0, 0, 1)], max_nodata=0.05))
    assert bool(chips_of(events)) == kept


def test_quarters_are_the_four_quarters_of_the_whole_chip(tmp_path):
    write_tile(tmp_path, 2021, -125, 49, random_pixels(96, 1))
    lattice, columns = Lattice(32, 96), [Column(1, 1, 2), Column(2, 1, 2)]
    whole = chips_of(cut(make_source(tmp_path, lattice, columns)))
    quarters = chips_of(cut(make_source(tmp_path, lattice, columns, encode="quarters")))
    assert len(quarters) == 4 * len(whole) == 16
    for n, chip in enumerate(whole):
        parts = quarters[4 * n : 4 * n + 4]
        assert [q.chip_id for q in parts] == [f"{chip.chip_id}:q{i}" for i in range(4)]
        top, bottom = (np.concatenate([a.pixels, b.pixels], axis=2) for a, b in (parts[:2], parts[2:]))
        assert np.array_equal(np.concatenate([top, bottom], axis=1), chip.pixels)
    assert make_source(tmp_path, lattice, columns, encode="quarters").units()[0].expected == 8


# ----------------------------------------------------------------------------------------------- reading


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


# --------------------------------------------------------------------------------------------- real pixels


def test_a_real_clip_in_a_full_size_tile_comes_out_pixel_for_pixel(tmp_path, shared):
    if shared is None:
        pytest.skip("no shared test data")
    with rasterio.open(shared / "archive/esa-worldcover-s2/clips/wc-lattice_10m_N53E006_clip_RGBNIR.tif") as src:
        clip, bounds = src.read(), src.bounds
    left, top = round((bounds.left - 6) * 12000), round((54 - bounds.top) * 12000)
    path = tile_path(tmp_path, 2021, 6, 53)
    path.parent.mkdir(parents=True)
    told = {"driver": "GTiff", "count": 4, "height": 12000, "width": 12000, "dtype": "uint16", "crs": "EPSG:4326"}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(path, "w", transform=from_origin(6, 54, 1 / 12000, 1 / 12000), nodata=0, **told, **tiles) as dst:
        dst.write(clip, window=((top, top + 223), (left, left + 371)))
    lattice = Lattice(64)
    columns = region_columns(lattice, bounds)
    assert len(columns) in (6, 7)
    seen = np.zeros_like(clip)
    for chip in chips_of(cut(make_source(tmp_path, lattice, columns))):
        x, y = round((chip.x0 - 6) * 12000) - left, round((54 - chip.y0) * 12000) - top
        for dy, dx in itertools.product(range(64), range(64)):
            if 0 <= y + dy < 223 and 0 <= x + dx < 371:
                seen[:, y + dy, x + dx] = chip.pixels[:, dy, dx]
    assert np.array_equal(seen, clip)
    assert clip.any(axis=0).mean() > 0.9


def test_a_real_tile_of_1200_px_comes_out_pixel_for_pixel(shared):
    if shared is None:
        pytest.skip("no shared test data")
    root = shared / "archive/esa-worldcover-s2/rgbnir_1200px"
    lattice = Lattice(256, 1200)
    columns = region_columns(lattice, [-11.9, 24.1, -11.1, 24.9])
    events = cut(make_source(root, lattice, columns, year=2020, max_nodata=0.9))
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


# ----------------------------------------------------------------------------------- missing and bad tiles


def half_pixel(path: Path, east: float, south: float) -> None:
    write_like(path, transform=from_origin(path_west(path) + east / 48, 46 - south / 48, 1 / 48, 1 / 48))


def path_west(path: Path) -> int:
    return tile_corner(path.stem.split("_")[5])[0]


def write_like(path: Path, pixels: np.ndarray | None = None, **profile: Any) -> None:
    with rasterio.open(path) as src:
        told = src.profile | {"tiled": False} | profile
        pixels = src.read() if pixels is None else pixels
    for option in ("blockxsize", "blockysize"):
        told.pop(option, None)
    told |= {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", **told) as dst:
        dst.write(pixels)


def garble_last_strip(path: Path) -> None:
    with rasterio.open(path) as src:
        last = src.height // src.block_shapes[0][0] - 1
        at = int(src.get_tag_item(f"BLOCK_OFFSET_0_{last}", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[at : at + 100] = b"\xff" * 100  # no deflate stream begins like this
    path.write_bytes(data)


BAD = {
    "not a tiff": (lambda p: p.write_bytes(b"not a tiff " * 100), "not a readable GeoTIFF"),
    "a header alone": (lambda p: p.write_bytes(p.read_bytes()[:100]), "not a readable GeoTIFF|unreadable"),
    "no byte": (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
    "three bands": (
        lambda p: write_like(p, random_pixels(48, 1, bands=3)),
        "expected the 4 bands R G B NIR, got 3 bands",
    ),
    "bytes": (lambda p: write_like(p, random_pixels(48, 1).astype(np.uint8)), "expected pixels of uint16, got uint8"),
    "other CRS": (lambda p: write_like(p, crs="EPSG:3857"), "expected the CRS EPSG:4326, got EPSG:3857"),
    "no CRS": (lambda p: write_like(p, crs=None), "expected the CRS EPSG:4326, got None"),
    "half a pixel east": (
        lambda p: half_pixel(p, 0.5, 0),
        r"on the 1/48 degree lattice, got one that is off by up to 0\.50 px",
    ),
    "half a pixel south": (
        lambda p: half_pixel(p, 0, 0.5),
        r"on the 1/48 degree lattice, got one that is off by up to 0\.50 px",
    ),
    "coarser pixels": (
        lambda p: write_like(p, transform=from_origin(path_west(p), 46, 1 / 47, 1 / 48)),
        r"on the 1/48 degree lattice, got one that is off by up to 1\.02 px",
    ),
    "another place": (lambda p: write_like(p, transform=from_origin(0, 0, 1 / 48, 1 / 48)), "on the 1/48 degree"),
    "other size": (lambda p: write_like(p, random_pixels(24, 1)), "expected 48 x 48 px, got 24 x 24"),
}
LATER = {  # after the plan was made
    "emptied": (lambda p: p.write_bytes(b""), "changed since the archive was listed"),
    "replaced": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "changed since the archive was listed"),
    "deleted": (lambda p: p.unlink(), "removed since the archive was listed"),
}


def embed(source: WorldCoverSource, encoder: clay.ClayEncoder, path: Path) -> pipeline.EmbeddedShard:
    """Through the whole engine, as a job does."""
    source.info = make_info(sensor=source.info.sensor)
    source.check()
    return pipeline.embed(
        source,
        lambda: encoder,
        encoder.geometry.dim,
        path,
        {},
        policy=embedder.EmbedPolicy("zeros"),
        budget=pipeline.Budget(batch_size=16, read_threads=2),
        max_failed_fraction=1.0,
    )


@pytest.mark.parametrize("side", ["west", "east"])
@pytest.mark.parametrize("kind", [*BAD, *LATER])
def test_a_bad_tile_is_a_failed_part_of_the_ledger_and_the_rest_is_embedded(tmp_path, encoder, kind, side):
    paths = {w: write_tile(tmp_path, 2021, w, 45, random_pixels(48, w), compress="deflate") for w in (10, 11)}
    bad = paths[10 if side == "west" else 11]
    damage, says = (BAD | LATER)[kind]
    if kind in BAD:
        damage(bad)
    lattice = Lattice(16, 48)  # column 405 begins at longitude 10, column 408 at 11
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 12, 46]), max_nodata=0.9)
    if kind in LATER:
        damage(bad)
    outcome = embed(source, encoder, tmp_path / "out.parquet")

    ledger = outcome.ledger.to_pylist()
    assert len(ledger) == 6
    for entry in ledger:
        assert (
            entry["expected"] == sum(entry[k] for k in ("embedded", "skipped_nodata", "skipped_cloud", "failed")) == 3
        )
        assert entry["status"] in ("embedded", "failed")
    broken, whole = (ledger[:3], ledger[3:]) if side == "west" else (ledger[3:], ledger[:3])
    assert [e["failed"] for e in broken] == [3, 3, 3]
    for entry in broken:
        assert str(bad) in entry["reason"]
        assert re.search(says, entry["reason"]), entry["reason"]
    assert [(e["status"], e["embedded"], e["reason"]) for e in whole] == [("embedded", 3, "")] * 3
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == outcome.rows == 9


@pytest.mark.parametrize("how", ["truncated", "garbled"])
def test_a_tile_damaged_in_part_loses_only_the_chips_of_that_part(tmp_path, encoder, monkeypatch, how):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    options = {"compress": "deflate"} if how == "garbled" else {}
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1), blockysize=4, interleave="pixel", **options)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    else:
        garble_last_strip(path)
    lattice = Lattice(16, 48)
    outcome = embed(make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 11, 46])), encoder, tmp_path / "o")
    for entry in outcome.ledger.to_pylist():
        assert (entry["status"], entry["embedded"], entry["failed"]) == ("failed", 2, 1)
        assert f"{path}: unreadable" in entry["reason"]
    rows = pq.read_table(tmp_path / "o", columns=["row"])["row"].to_pylist()
    assert rows == [12, 12, 12, 13, 13, 13]  # of 12 to 14


def test_a_missing_neighbour_is_nodata(tmp_path, encoder):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45.2, 11.5, 45.6]), max_nodata=0.5)
    outcome = embed(source, encoder, tmp_path / "o")
    ledger = outcome.ledger.to_pylist()
    assert [e["status"] for e in ledger] == ["embedded"] * 3 + ["empty"] * (len(ledger) - 3)
    assert {e["reason"] for e in ledger[3:]} == {"no tile: open sea"}
    assert sum(e["failed"] for e in ledger) == 0


def test_a_column_over_open_sea_is_an_empty_file_and_a_ledger_row_without_loading_weights(tmp_path):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [20, 45, 20.3, 45.5]))

    def load() -> clay.ClayEncoder:
        raise AssertionError("weights were loaded")

    options = {"policy": embedder.EmbedPolicy("zeros"), "budget": pipeline.Budget(), "max_failed_fraction": 0.0}
    outcome = pipeline.embed(source, load, 32, tmp_path / "o.parquet", {}, **options)
    made = pq.read_table(tmp_path / "o.parquet")
    assert len(made) == outcome.rows == 0
    assert made.schema.field("embeddings").type.list_size == 32
    for entry in outcome.ledger.to_pylist():
        assert (entry["status"], entry["reason"], entry["failed"]) == ("empty", "no tile: open sea", 0)
        assert entry["expected"] == entry["skipped_nodata"] > 0
        assert entry["etag"] == ""


def test_a_tile_of_nothing_but_nodata_is_empty_not_failed(tmp_path, encoder):
    write_tile(tmp_path, 2021, 10, 45, np.zeros((4, 40, 40), np.uint16))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 11, 46]))
    outcome = embed(source, encoder, tmp_path / "o")
    assert outcome.rows == 0
    assert {(e["status"], e["reason"]) for e in outcome.ledger.to_pylist()} == {
        ("empty", "more nodata than max_nodata")
    }


def test_the_check_before_the_weights_load_tells_a_wrong_resolution_of_the_whole_archive(tmp_path):
    for west in (10, 11):
        write_tile(tmp_path, 2021, west, 45, random_pixels(24, west))
    lattice = Lattice(16, 48)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 12, 46]))
    with pytest.raises(ConfigError, match=r"expected 48 x 48 px, got 24 x 24\. Check pixels_per_degree, which is 48"):
        source.check()


@pytest.mark.parametrize(
    ("chip", "encode", "says"),
    [(20, "whole", "expected a multiple of 8"), (24, "quarters", "expected a multiple of 16")],
)
def test_chip_sizes_that_the_model_cannot_take_are_config_errors(chip, encode, says):
    with pytest.raises(ConfigError, match=says):
        WorldCoverSource(Lattice(chip, 240), 2021, [Column(0, 0, 1)], [], root="x", max_nodata=0.1, encode=encode)


# ------------------------------------------------------------------------------------------------ the archive


@given(st.integers(-180, 179), st.integers(-90, 89))
def test_tiles_are_named_after_their_south_west_corner(west, south):
    assert tile_name(west, south) == name_of(west, south)
    assert tile_corner(tile_name(west, south)) == (west, south)


def test_tiles_lie_where_the_archive_keeps_them():
    uri = "s3://esa-worldcover-s2/rgbnir/2021/N37/ESA_WorldCover_10m_2021_v200_N37W122_S2RGBNIR.tif"
    assert tile_uri("s3://esa-worldcover-s2/rgbnir", 2021, "N37W122") == uri
    assert tile_uri("s3://esa-worldcover-s2/rgbnir/", 2020, "S03E006").endswith(
        "/2020/S03/ESA_WorldCover_10m_2020_v100_S03E006_S2RGBNIR.tif"
    )


def test_a_year_that_the_archive_lacks_is_a_config_error(tmp_path):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    with pytest.raises(ConfigError, match="expected 2020 or 2021, got 2019"):
        find_tiles(str(tmp_path), 2019, ["N45E010"])
    with pytest.raises(ConfigError, match=r"expected tiles in .*2020, got none"):
        find_tiles(str(tmp_path), 2020, ["N45E010"])


def test_only_tiles_that_exist_and_were_asked_for_are_found(tmp_path):
    for west in (10, 11):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, 1))
    found = find_tiles(f"{tmp_path}/", 2021, ["N46E010", "N45E011", "N45E012"])
    assert [(t.name, t.uri, t.size) for t in found] == [("N45E011", str(path), path.stat().st_size)]


def test_an_archive_over_http_gives_the_same_chips(tmp_path, serve):
    files = {}
    for west in (10, 12):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, west))
        files[f"/wc/{path.relative_to(tmp_path)}"] = path.read_bytes()
    server = serve(files, etag="v1")
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 12.3, 45.9])
    local, remote = (make_source(root, lattice, columns) for root in (tmp_path, f"{server.url}/wc"))
    ours, theirs = chips_of(cut(remote)), chips_of(cut(local))
    assert len(ours) == len(theirs) > 6
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(ours, theirs, strict=True))
    assert {c.source.startswith(server.url) for c in ours} == {True}
    assert [p["etag"] for p in remote.provenance().values()] == ["v1", "v1"]
    assert remote.units()[0].etag != local.units()[0].etag


def test_a_throttled_tile_ends_the_job_but_a_vanished_one_only_fails(tmp_path, serve):
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    server = serve({f"/{path.relative_to(tmp_path)}": path.read_bytes()})
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 10.7, 45.7])
    for status, error in ((503, True), (429, True), (404, False), (403, False)):
        source = make_source(server.url, lattice, columns)
        server.status = status
        if error:
            with pytest.raises(TransientError, match=f"{status}. Try again later"):
                cut(source)
        else:
            assert {e.kind for e in cut(source) if isinstance(e, Dropped)} == {"failed"}
        server.status = 0
    source = make_source(server.url, lattice, columns)
    server.etag = "two"
    assert all("changed since the archive" in e.reason for e in cut(source))


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_breaks_ends_the_job_so_that_it_is_tried_again(tmp_path, serve):
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(400, 1))
    data = path.read_bytes()
    lattice = Lattice(16, 400)
    server = serve({f"/{path.relative_to(tmp_path)}": data})
    source = make_source(server.url, lattice, region_columns(lattice, [10.3, 45.3, 10.7, 45.7]))
    server.break_at = len(data) // 2
    with pytest.raises(TransientError):
        cut(source)


def test_an_archive_in_a_bucket_gives_the_same_chips(tmp_path, bucket):
    client = boto3.client("s3")
    for west in (10, 11):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, west))
        client.upload_file(str(path), bucket.removeprefix("s3://"), f"rgbnir/{path.relative_to(tmp_path)}")
    lattice = Lattice(16, 40)
    columns = region_columns(lattice, [10.3, 45.3, 11.3, 45.9])
    local, remote = (make_source(root, lattice, columns) for root in (tmp_path, f"{bucket}/rgbnir"))
    ours, theirs = chips_of(cut(remote)), chips_of(cut(local))
    assert len(ours) == len(theirs) > 3
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(ours, theirs, strict=True))
    assert all(p["etag"] for p in remote.provenance().values())
