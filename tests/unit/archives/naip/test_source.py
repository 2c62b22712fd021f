"""NAIP's scenes: where chips are cut and lie, what counts as nodata, and how broken or remote files are read."""

import itertools
import weakref
from collections import Counter
from contextlib import closing

import boto3
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from kiln.archives import raster_reading
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.source import NaipSource
from kiln.engine.read_ahead import read_ahead
from kiln.errors import ConfigError, TransientError
from kiln.formats.records import Chip, Dropped, Opened
from kiln.io import storage
from kiln.sample.files import write_cog

CHIP = 16
KEY = "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif"
OTHER = "va/2016/100cm/rgbir_cog/37078/m_3707801_ne_17_1_20160620.tif"
UNDATED = "id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"
PLACE = from_origin(500_000, 5_209_000, 1, 1)
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def scene_pixels(height=40, width=56, seed=1, bands=4, dtype="uint8"):
    """[bands, height, width] above 0."""
    return np.random.default_rng(seed).integers(1, 255, (bands, height, width)).astype(dtype)


def write_scene(root, key, pixels, colours=None, **profile):
    """A scene in its place; `profile` overrides what rasterio is told."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    told = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    told |= {"crs": "EPSG:26914", "transform": PLACE, "compress": "deflate", **profile}
    if colours:
        told |= {"photometric": "RGB", "alpha": "unspecified" if ColorInterp.alpha in colours else "no"}
    with rasterio.open(path, "w", **told) as file:
        if colours:
            file.colorinterp = colours
        file.write(pixels)
    return path


def make(root, *keys, chip=CHIP, max_nodata=0.05, **more):
    return NaipSource(keys or [KEY], archive=str(root), chip=chip, max_nodata=max_nodata, **more)


def events(source):
    """All that a source gives, after its check."""
    source.check()
    return read(source, 2)


def read(source, threads=1, ahead=1 << 30):
    """All that a source gives that was checked."""
    with closing(read_ahead(source.reads(), threads, ahead)) as loaded:
        return list(source.chips(loaded))


def cut(source):
    return [e for e in events(source) if isinstance(e, Chip)]


def dropped(source):
    return [(e.unit_id, e.kind, e.count, e.reason) for e in events(source) if isinstance(e, Dropped)]


def only_reason(source):
    """Why the only scene failed before it was opened; that nothing else came of it."""
    (event,) = events(source)
    assert isinstance(event, Dropped)
    assert (event.kind, event.count) == ("failed", parse_key(KEY).estimate(CHIP)[0])
    return event.reason


def bytes_asked(server, path):
    """Numbers of the bytes of a file that GETs asked for, as often as they did."""
    size = len(server.files[path])
    spans = [r.removeprefix("bytes=").split("-") for m, p, r in server.requests if (m, p) == ("GET", path)]
    return Counter(b for a, z in spans for b in range(int(a), min(int(z) + 1, size)))


# ------------------------------------------------------------------------------------------------ where chips are


@pytest.mark.parametrize(
    ("edge", "height", "width", "rows", "cols"),
    [
        ("drop", 40, 56, [0, 16], [0, 16, 32]),
        ("align", 40, 56, [0, 16, 24], [0, 16, 32, 40]),
        ("align", 32, 48, [0, 16], [0, 16, 32]),
        ("align", 33, 47, [0, 16, 17], [0, 16, 31]),
        ("drop", 16, 31, [0], [0]),
        ("align", 16, 17, [0], [0, 1]),
    ],
)
def test_chips_from_the_top_left_equal_a_windowed_read_of_the_file(tmp_path, edge, height, width, rows, cols):
    path = write_scene(tmp_path, KEY, scene_pixels(height, width))
    chips = cut(make(tmp_path, edge=edge))
    unit = "naip:nd:2019:m_4709963_se_14_1_20190904"
    places = [(y, x, r, c) for r, y in enumerate(rows) for c, x in enumerate(cols)]
    assert [c.chip_id for c in chips] == [f"{unit}:{c}:{r}" for _, _, r, c in places]
    with rasterio.open(path) as file:
        for chip, (y, x, row, col) in zip(chips, places, strict=True):
            assert np.array_equal(chip.pixels, file.read(window=Window(x, y, CHIP, CHIP)))
            assert (chip.col, chip.row) == (col, row)
            assert (chip.x0, chip.y0) == file.xy(y, x, offset="ul")


@pytest.mark.parametrize("gsd", [0.5, 0.6, 1.0, 5.0])
@pytest.mark.parametrize("epsg", [26910, 26914, 26919])
def test_footprints_and_centres_follow_the_files_own_transform_and_crs(tmp_path, gsd, epsg):
    transform = from_origin(612_345.25, 4_207_739.5, gsd, gsd)
    path = write_scene(tmp_path, KEY, scene_pixels(), crs=f"EPSG:{epsg}", transform=transform)
    chips = cut(make(tmp_path, edge="align"))
    assert len(chips) == 12
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    with rasterio.open(path) as file:
        for chip in chips:
            row, col = file.index(chip.x0 + gsd / 2, chip.y0 - gsd / 2)
            corners = [(row, col), (row + CHIP, col), (row + CHIP, col + CHIP), (row, col + CHIP)]
            ring = [to_degrees(*file.xy(r, c, offset="ul")) for r, c in corners]
            np.testing.assert_allclose(shapely.get_coordinates(chip.footprint)[:4], ring, rtol=0, atol=1e-10)
            assert chip.footprint.exterior.is_ccw
            middle = to_degrees(*file.xy(row + CHIP / 2, col + CHIP / 2, offset="ul"))
            assert chip.center == pytest.approx(middle, abs=1e-10)
            assert (chip.crs, chip.pixel_size) == (f"EPSG:{epsg}", pytest.approx(gsd))


def test_a_row_tells_its_scene_state_year_and_day(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(16, 16))
    (chip,) = cut(make(tmp_path))
    assert (chip.unit_id, chip.item_id) == (
        "naip:nd:2019:m_4709963_se_14_1_20190904",
        "m_4709963_se_14_1_20190904",
    )
    assert chip.extra == {"state": "nd", "year": 2019}
    assert chip.datetime.isoformat() == "2019-09-04T00:00:00+00:00"
    assert (chip.source, chip.sources) == (f"{tmp_path}/{KEY}", (f"{tmp_path}/{KEY}",))
    assert (chip.nodata_fraction, chip.cloud_fraction) == (0, None)


def test_a_stem_that_occurs_in_two_states_gives_ids_that_differ(tmp_path):
    twice = [KEY, KEY.replace("nd/", "mn/"), KEY.replace("2019/", "2020/")]
    for key in twice:
        write_scene(tmp_path, key, scene_pixels())
    ids = [c.chip_id for c in cut(make(tmp_path, *twice, edge="align"))]
    assert len(ids) == len(set(ids)) == 36


@pytest.mark.parametrize(("gsd", "noted"), [(1.0, False), (1.19, False), (0.81, False), (1.25, True), (0.6, True)])
def test_a_file_wins_over_its_key_and_a_large_disagreement_is_noted(tmp_path, gsd, noted):
    write_scene(tmp_path, KEY, scene_pixels(16, 16), transform=from_origin(0, 5e6, gsd, gsd), crs="EPSG:26914")
    opened, chip = events(make(tmp_path))
    assert chip.pixel_size == pytest.approx(gsd)
    assert opened.notes == ((f"pixels of {gsd:g} m, where the key says 1 m",) if noted else ())


def test_an_opened_scene_says_how_many_chips_it_has(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(40, 56))
    source = make(tmp_path)
    opened = events(source)[0]
    (unit,) = source.units()
    assert (unit.expected, unit.expected_known) == (parse_key(KEY).estimate(CHIP)[0], False)
    assert opened == Opened(unit.unit_id, 6, "", ())


def test_a_scene_without_a_date_has_no_datetime_and_says_so(tmp_path):
    write_scene(tmp_path, UNDATED, scene_pixels(16, 16))
    opened, chip = events(make(tmp_path, UNDATED))
    assert chip.datetime is None
    assert opened.notes == ("no date in the name",)


def test_a_scene_smaller_than_a_chip_expects_none_and_says_why(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(15, 40))
    opened, *rest = events(make(tmp_path, edge="align"))
    assert opened.expected == 0
    assert [(d.kind, d.count) for d in rest] == [("nodata", 0)]
    assert "smaller than a chip" in rest[0].reason


# ---------------------------------------------------------------------------------------------------------- nodata


def test_nodata_is_where_all_four_bands_are_zero(tmp_path):
    pixels = scene_pixels(16, 64)
    pixels[:, :, :2] = 0  # an eighth of the first chip
    pixels[:, 0, 16:28] = 0  # 12 of 256 pixels of the second: just within the limit
    pixels[:, 0, 32:45] = 0  # 13 of the third: just beyond
    pixels[:3, :, 48:] = 0  # three bands of the fourth are dark water
    write_scene(tmp_path, KEY, pixels, nodata=0)
    assert [(c.col, c.nodata_fraction) for c in cut(make(tmp_path))] == [(1, 12 / 256), (3, 0)]
    assert dropped(make(tmp_path)) == [(parse_key(KEY).unit_id, "nodata", 1, "more nodata than max_nodata")] * 2


def test_an_empty_chip_is_dropped_whatever_the_limit(tmp_path):
    pixels = scene_pixels(16, 32)
    pixels[:, :, :16] = 0
    pixels[:, 1:, 16:] = 0
    write_scene(tmp_path, KEY, pixels)
    assert [c.col for c in cut(make(tmp_path, max_nodata=1.0))] == [1]


def test_zeros_in_a_band_tagged_alpha_take_no_chip_away(tmp_path):
    pixels = scene_pixels(32, 32)
    pixels[3] = 0
    path = write_scene(tmp_path, KEY, pixels, (*COLOURS, ColorInterp.alpha))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
        assert not file.dataset_mask().any()  # what a reader who trusts the mask would lose
    chips = cut(make(tmp_path))
    assert [c.nodata_fraction for c in chips] == [0] * 4
    assert np.array_equal(chips[3].pixels, pixels[:, 16:, 16:])


def test_the_real_scene_whose_band_4_is_tagged_alpha_gives_all_its_chips(shared):
    if not shared:
        pytest.skip("no real scenes here")
    path = shared / "archive" / "naip-analytic" / OTHER
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
        whole = file.read()
    chips = cut(make(shared / "archive" / "naip-analytic", OTHER, chip=64))
    assert len(chips) == (510 // 64) * (597 // 64)
    for chip in chips:
        assert np.array_equal(chip.pixels, whole[:, chip.row * 64 :, chip.col * 64 :][:, :64, :64])


# ---------------------------------------------------------------------------------------------------------- strips


@pytest.mark.parametrize("how", [{}, {"edge": "align"}, {"lattice": "utm"}, {"lattice": "utm", "lattice_gsd": 1.5}])
@pytest.mark.parametrize("blocks", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}, {"interleave": "band"}])
def test_strips_are_whole_blocks_each_read_once_and_give_the_chips_of_the_whole(tmp_path, monkeypatch, how, blocks):
    path = write_scene(tmp_path, KEY, scene_pixels(217, 80), transform=from_origin(*SPACE, 1, 1), **blocks)
    source = make(tmp_path, **how)
    whole = [facts(c) for c in cut(source)]
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    strips = []
    load = NaipSource._load
    monkeypatch.setattr(NaipSource, "_load", lambda s, k, strip: strips.append(strip) or load(s, k, strip))
    assert [facts(c) for c in cut(source)] == whole
    assert len(whole) >= 18
    with rasterio.open(path) as file:
        block, height = file.block_shapes[0][0], file.height
    strips.sort()
    assert len(strips) >= 3
    assert [s.first for s in strips] == list(range(0, len(strips) * block, block))
    assert all(s.last == n.first for s, n in itertools.pairwise(strips))
    assert strips[-1].last == (208 if how == {} else height)


@pytest.mark.parametrize("how", [{}, {"lattice": "utm", "lattice_gsd": 2.0}])
def test_no_more_of_a_scene_is_held_than_the_budget_and_what_rows_at_hand_need(tmp_path, monkeypatch, how):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    write_scene(tmp_path, KEY, scene_pixels(1600, 64), transform=from_origin(*SPACE, 1, 1), blockysize=16)
    source = make(tmp_path, **how)
    source.check()
    strips, load = [], NaipSource._load

    def loaded(*told):
        pixels = load(*told)
        strips.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(NaipSource, "_load", loaded)
    most = 0
    for event in source.chips(read_ahead(source.reads(), 2, 5 * 16 * 64 * 4)):
        del event
        most = max(most, sum(s() is not None for s in strips))
    assert len(strips) == 100
    assert most <= 5 + 3 * (3 if how else 1)  # of the budget; under rows, of which on a lattice two are ahead


# ---------------------------------------------------------------------------------------------- the common lattice

NEXT_YEAR = KEY.replace("2019", "2021")
SPACE = (31_250 * CHIP, 325_500 * CHIP)  # a corner of four cells of 16 m in zone 14


def on_lattice(root, *keys, max_nodata=0.0, **more):
    return make(root, *keys, max_nodata=max_nodata, lattice="utm", **more)


def where(chip):
    return chip.col, chip.row, chip.x0, chip.y0, chip.pixel_size, chip.crs, chip.center, chip.footprint.wkb


def test_the_same_ground_is_the_same_chip_in_every_year_resolution_and_neighbouring_scene(tmp_path):
    west, north = SPACE
    for key, place, size in (
        (KEY, from_origin(west - 7, north + 9, 1, 1), (70, 80)),
        (NEXT_YEAR, from_origin(west - 20.3, north + 12.1, 0.6, 0.6), (120, 140)),
        (KEY.replace("63_se", "63_sw"), from_origin(west - 4, north + 30, 1, 1), (66, 90)),
    ):
        write_scene(tmp_path, key, scene_pixels(*size), transform=place)
    scenes = {}
    for chip in cut(on_lattice(tmp_path, KEY, NEXT_YEAR, KEY.replace("63_se", "63_sw"))):
        scenes.setdefault(chip.unit_id, {})[chip.col, chip.row] = chip
    first, *others = scenes.values()
    both = set(first).intersection(*others)
    assert len(both) >= 6
    for place in both:
        assert {where(s[place]) for s in others} == {where(first[place])}
        assert len({s[place].chip_id for s in scenes.values()}) == 3
    chip = first[31_250, 325_499]
    assert (chip.x0, chip.y0, chip.pixel_size, chip.crs) == (west, north, 1.0, "EPSG:26914")
    assert chip.chip_id == "naip:utm14:1.0:31250:325499:nd:2019:m_4709963_se_14_1_20190904"
    assert chip.unit_id == "naip:nd:2019:m_4709963_se_14_1_20190904"


def test_chips_on_the_grid_equal_a_windowed_read_of_the_file(tmp_path):
    west, north = SPACE
    path = write_scene(tmp_path, KEY, scene_pixels(70, 80), transform=from_origin(west - 7, north + 9, 1, 1))
    chips = cut(on_lattice(tmp_path))
    assert {(c.col - 31_250, c.row - 325_500) for c in chips} == {(c, -r) for c in range(4) for r in (1, 2, 3)}
    with rasterio.open(path) as file:
        for chip in chips:
            window = rasterio.windows.from_bounds(
                chip.x0, chip.y0 - CHIP, chip.x0 + CHIP, chip.y0, file.transform
            ).round()
            assert np.array_equal(chip.pixels, file.read(window=window))
            to_degrees = pyproj.Transformer.from_crs(26914, 4326, always_xy=True).transform
            assert chip.center == pytest.approx(to_degrees(chip.x0 + 8, chip.y0 - 8), abs=1e-9)


def test_cells_that_a_scene_only_grazes_are_expected_and_skipped_by_their_nodata(tmp_path):
    west, north = SPACE
    write_scene(tmp_path, KEY, scene_pixels(20, 36), transform=from_origin(west - 4, north, 1, 1))
    opened, *rest = events(on_lattice(tmp_path))
    assert (opened.expected, opened.notes) == (6, ())
    assert sum(isinstance(e, Chip) for e in rest) == 2
    assert dropped(on_lattice(tmp_path)) == [(opened.unit_id, "nodata", 1, "more nodata than max_nodata")] * 4
    graze = {c.col - 31_250: c.nodata_fraction for c in cut(on_lattice(tmp_path, max_nodata=0.75))}
    assert graze == {-1: 0.75, 0: 0.75, 1: 0.75}
    (unit,) = on_lattice(tmp_path).units()
    assert (unit.expected, unit.expected_known) == (parse_key(KEY).estimate(CHIP)[0], False)


@pytest.mark.parametrize(
    ("told", "notes"),
    [
        ({}, ()),
        ({"crs": "EPSG:32614"}, ("resampled from 1 m in EPSG:32614 (bilinear)",)),
        ({"transform": from_origin(5e5, 5.2e6, 0.6, 0.6)}, NOTED := ("pixels of 0.6 m, where the key says 1 m",)),
        ({"crs": "EPSG:26913"}, ("in UTM zone 13, where the key says 14",)),
    ],
)
def test_the_ledger_is_told_of_resampling_and_of_a_zone_that_is_not_the_keys(tmp_path, told, notes):
    write_scene(tmp_path, KEY, scene_pixels(), **told)
    more = ("resampled from 0.6 m (average)",) if notes is NOTED else ()
    assert events(on_lattice(tmp_path))[0].notes == (*notes, *more)


def test_a_file_in_another_zone_than_its_keys_lies_on_the_grid_of_its_own(tmp_path):
    path = write_scene(tmp_path, KEY, scene_pixels(64, 64), crs="EPSG:26913")
    chips = cut(on_lattice(tmp_path))
    assert {c.crs for c in chips} == {"EPSG:26913"}
    assert {c.chip_id[:15] for c in chips} == {"naip:utm13:1.0:"}
    assert all(c.x0 == c.col * CHIP and c.y0 == (c.row + 1) * CHIP for c in chips)
    with rasterio.open(path) as file:
        extent = shapely.box(*rasterio.warp.transform_bounds(file.crs, 4326, *file.bounds)).buffer(1e-5)
    assert all(extent.contains(c.footprint) for c in chips)


def test_a_file_that_is_not_in_utm_lies_on_the_grid_of_its_keys_zone(tmp_path):
    place = pyproj.Transformer.from_crs(26914, 5070, always_xy=True).transform(*SPACE)
    write_scene(tmp_path, KEY, scene_pixels(128, 128), crs="EPSG:5070", transform=from_origin(*place, 1, 1))
    opened, *rest = events(on_lattice(tmp_path))
    chips = [e for e in rest if isinstance(e, Chip)]
    assert opened.notes == ("resampled from 1 m in EPSG:5070 (bilinear)",)
    assert {c.crs for c in chips} == {"EPSG:26914"}
    assert len(chips) > 30
    assert len(chips) + sum(e.count for e in rest if isinstance(e, Dropped)) == opened.expected


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"crs": "EPSG:32655"}, "NAD83, 1 to 23, got zone 55"),
        ({"crs": "EPSG:3857"}, "expected a scene near UTM zone 14"),
    ],
)
def test_a_file_that_no_grid_holds_has_failed(tmp_path, told, says):
    write_scene(tmp_path, KEY, scene_pixels(), **told)
    (event,) = events(on_lattice(tmp_path))
    assert event.kind == "failed"
    assert event.reason.startswith(f"{tmp_path}/{KEY}: ")
    assert says in event.reason


def test_zeros_in_a_band_tagged_alpha_take_no_chip_away_when_resampled(tmp_path):
    pixels = scene_pixels(80, 80)
    pixels[3] = 0
    place = from_origin(*SPACE, 0.6, 0.6)
    path = write_scene(tmp_path, KEY, pixels, (*COLOURS, ColorInterp.alpha), transform=place)
    with rasterio.open(path) as file:
        assert not file.dataset_mask().any()
    chips = cut(on_lattice(tmp_path))
    assert len(chips) == 9
    assert all(c.pixels[:3].all() and not c.pixels[3].any() for c in chips)


def test_scenes_over_http_give_the_lattice_chips_of_local_ones(tmp_path, remote):
    near = cut(on_lattice(tmp_path, KEY))
    assert near
    assert [facts(c) for c in cut(on_lattice(remote.url, KEY))] == [facts(c) for c in near]


def test_the_real_scenes_of_two_years_share_their_chips(shared):
    if not shared:
        pytest.skip("no real scenes here")
    keys = [KEY, "nd/2014/100cm/rgbir_cog/47099/m_4709963_se_14_1_20140720.tif"]
    source = make(shared / "archive" / "naip-analytic", *keys, chip=64, lattice="utm", lattice_gsd=5.0)
    years = {}
    for chip in cut(source):
        years.setdefault(chip.extra["year"], {})[chip.col, chip.row] = chip
    both = set(years[2019]) & set(years[2014])
    assert len(both) > 100
    for place in both:
        assert where(years[2019][place]) == where(years[2014][place])


@pytest.mark.parametrize("key", [OTHER, "nc/2016/100cm/rgbir_cog/36078/m_3607824_se_17_1_20160620.tif"])
def test_the_real_scenes_of_a_metre_give_chips_of_the_grid(shared, key):
    if not shared:
        pytest.skip("no real scenes here")
    root = shared / "archive" / "naip-analytic"
    with rasterio.open(root / key) as file:
        left, top = file.transform.c, file.transform.f
        whole = file.read()
    chips = cut(make(root, key, chip=64, lattice="utm"))
    assert len(chips) > 6
    for chip in chips:
        x, y = int(chip.x0 - left), int(top - chip.y0)
        assert np.array_equal(chip.pixels, whole[:, y : y + 64, x : x + 64])


def test_flush_edges_of_the_common_lattice_are_a_wrong_setting():
    with pytest.raises(ConfigError, match="edge: expected drop"):
        make("/nowhere", lattice="utm", edge="align")


# --------------------------------------------------------------------------------------------------- broken scenes


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_offsets(path):
    """Make the file's directory point its strips beyond its end."""
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    for i in range(int.from_bytes(data[start : start + 2], "little")):
        at = start + 2 + 12 * i
        if int.from_bytes(data[at : at + 2], "little") == 273:  # StripOffsets
            data[at + 8 : at + 12] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in to the proxy</html>"), "not a readable GeoTIFF"),
    ],
    ids=["missing", "zero bytes", "html"],
)
def test_a_file_that_is_no_scene_fails_with_a_reason(tmp_path, damage, says):
    path = write_scene(tmp_path, KEY, scene_pixels())
    damage(path)
    reason = only_reason(make(tmp_path))
    assert reason.startswith(f"{path}: ")
    assert says in reason


@pytest.mark.parametrize("damage", [damage_truncated, damage_offsets], ids=["truncated", "lying offsets"])
def test_a_scene_whose_pixels_cannot_be_read_fails_with_a_reason(tmp_path, damage):
    path = write_scene(tmp_path, KEY, scene_pixels(), compress=None, blockysize=40)
    damage(path)
    opened, *rest = events(make(tmp_path))
    assert (opened.expected, sum(e.count for e in rest), {e.kind for e in rest}) == (6, 6, {"failed"})
    assert all(e.reason.startswith(f"{path}: not a readable GeoTIFF") for e in rest)


def test_of_a_scene_that_is_cut_off_only_the_rows_that_are_missing_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    path = write_scene(tmp_path, KEY, scene_pixels(64, 48), compress=None, blockysize=8)
    path.write_bytes(path.read_bytes()[: -10 * 48 * 4])  # the last 10 rows, of which 2 are of the block before the last
    chips = cut(make(tmp_path))
    assert {c.row for c in chips} == {0, 1, 2}
    assert [(kind, count) for _, kind, count, _ in dropped(make(tmp_path))] == [("failed", 3)]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"bands": 3}, "expected the 4 bands R G B NIR, got 3 bands"),
        ({"bands": 5}, "got 5 bands"),
        ({"dtype": "uint16"}, "expected pixels of uint8, got uint16"),
        ({"crs": None}, "no CRS or no transform"),
        ({"transform": Affine.identity()}, "no CRS or no transform"),
        ({"transform": PLACE * Affine.rotation(10)}, "square and north-up"),
        ({"transform": PLACE * Affine.rotation(90)}, "square and north-up"),
        ({"transform": PLACE * Affine.rotation(180)}, "square and north-up"),
        ({"transform": PLACE * Affine.scale(1, -1)}, "square and north-up"),
        ({"transform": PLACE * Affine.scale(1, 1.1)}, "square and north-up"),
    ],
    ids=[
        "3 bands",
        "5 bands",
        "uint16",
        "no crs",
        "no place",
        "rotated",
        "quarter turn",
        "half turn",
        "flip",
        "oblong",
    ],
)
def test_a_raster_that_is_no_naip_scene_fails_with_a_reason(tmp_path, told, says):
    pixels = scene_pixels(bands=told.pop("bands", 4), dtype=told.pop("dtype", "uint8"))
    write_scene(tmp_path, KEY, pixels, **told)
    assert says in only_reason(make(tmp_path))


def test_a_crs_that_leads_nowhere_on_earth_fails_with_a_reason(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(), crs='LOCAL_CS["drawing board",UNIT["metre",1]]')
    assert "CRS" in only_reason(make(tmp_path))


def test_a_broken_scene_does_not_touch_its_neighbours(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(16, 16, 1))
    write_scene(tmp_path, OTHER, scene_pixels(16, 16, 2)).write_bytes(b"no TIFF")
    write_scene(tmp_path, UNDATED, scene_pixels(16, 16, 3))
    told = [(type(e).__name__, e.unit_id) for e in events(make(tmp_path, KEY, OTHER, UNDATED))]
    first, second, third = (parse_key(k).unit_id for k in (KEY, OTHER, UNDATED))
    assert told == [("Opened", first), ("Chip", first), ("Dropped", second), ("Opened", third), ("Chip", third)]


def test_a_key_that_is_no_scene_is_a_wrong_plan():
    with pytest.raises(ConfigError, match="expected keys of NAIP scenes"):
        make("/nowhere", "nd/2019/readme.txt")


@pytest.mark.parametrize("chip", [255, 4])
def test_a_chip_size_off_the_models_patch_is_a_wrong_setting(chip):
    with pytest.raises(ConfigError, match="multiple of the model's patch"):
        make("/nowhere", chip=chip)


# --------------------------------------------------------------------------------------------------- remote scenes


@pytest.fixture
def remote(tmp_path, serve, monkeypatch, impatient):
    """Two scenes of several strips on a web server and the same on disk."""
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    pixels = [scene_pixels(seed=n) for n in range(2)]
    files = {
        f"/{k}": write_scene(tmp_path, k, p, tiled=True, blockxsize=16, blockysize=16).read_bytes()
        for k, p in zip((KEY, OTHER), pixels, strict=True)
    }
    return serve(files)


def facts(chip):
    """All of a chip but where its scene lies."""
    names = [n for n in Chip.__dataclass_fields__ if n not in ("pixels", "source", "sources")]
    return [getattr(chip, n) for n in names] + [chip.pixels.tobytes()]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_scenes_over_http_give_the_chips_of_local_ones(tmp_path, remote, ranges):
    remote.ranges = ranges
    far = cut(make(remote.url, KEY, OTHER))
    assert len(far) == 12
    assert [facts(c) for c in far] == [facts(c) for c in cut(make(tmp_path, KEY, OTHER))]
    assert {c.source for c in far} == {f"{remote.url}/{k}" for k in (KEY, OTHER)}


def test_pixels_are_asked_for_once_and_overviews_never(tmp_path, serve):
    path = write_cog(tmp_path / KEY, scene_pixels(1024, 512), "EPSG:26914", 500_000, 5_209_000, 1)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4]
        places = [
            [int(file.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for (y, x), _ in file.block_windows(1)
        ]
    server = serve({f"/{KEY}": path.read_bytes()})
    source = make(server.url, chip=256)
    source.check()
    assert len(read(source)) == 9  # by one thread: between two, GDAL reads ahead what the other one asks for
    asked = bytes_asked(server, f"/{KEY}")
    pixels = [b for at, size in places for b in range(at, at + size)]
    assert len(pixels) > 1.5e6
    assert min(asked[b] for b in pixels) == 1
    assert sum(asked.values()) < 1.05 * len(pixels)  # GDAL asks for 16 kB at least, also where strips meet


def test_a_scene_gone_from_the_server_before_the_check_has_failed(remote):
    del remote.files[f"/{KEY}"]
    assert "does not exist" in only_reason(make(remote.url))


def test_a_scene_gone_from_the_server_after_the_check_has_failed(remote):
    source = make(remote.url)
    source.check()
    del remote.files[f"/{KEY}"]
    (event,) = read(source)
    assert (event.kind, event.reason) == ("failed", f"{remote.url}/{KEY}: was removed while it was read")


@pytest.mark.parametrize("when", ["before it is opened", "before its last row"])
def test_a_scene_that_changes_on_the_server_ends_the_job_so_that_it_is_read_as_one(remote, when):
    source = make(remote.url)
    source.check()
    if when == "before it is opened":
        remote.etag = "two"
    seen = []

    def change():
        with closing(read_ahead(source.reads(), 1, 1)) as loaded:
            for event in source.chips(loaded):
                seen.append(event)
                remote.etag = "two"

    with pytest.raises(TransientError, match="was replaced while it was read"):
        change()
    assert {e.row for e in seen if isinstance(e, Chip)} <= {0}  # of two


def test_a_throttling_server_is_a_passing_trouble(remote):
    source = make(remote.url)
    source.check()
    remote.status = 503
    with pytest.raises(TransientError, match="503"):
        read(source)
    with pytest.raises(TransientError, match=r"503\. Try again later"):
        source.check()


def test_a_connection_that_breaks_is_a_passing_trouble(remote):
    source = make(remote.url)
    source.check()
    remote.break_at = 2500
    with pytest.raises(TransientError):
        read(source)


def test_a_server_that_refuses_is_a_wrong_setting_and_the_message_says_who_pays(remote):
    remote.status = 403
    with pytest.raises(ConfigError, match=r"403.*requester-pays"):
        make(remote.url).check()


def test_a_server_that_tells_no_size_is_read_nonetheless_or_fails_with_a_reason(remote, monkeypatch):
    stat = storage.stat
    monkeypatch.setattr(storage, "stat", lambda uri: storage.Stat(-1, stat(uri).etag))
    for event in events(make(remote.url)):
        assert isinstance(event, Opened | Chip) or event.kind == "failed"


@pytest.fixture
def paid(tmp_path, bucket, forgetful):
    """The bucket that readers pay for, with two scenes."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="naip-analytic")
    for n, key in enumerate((KEY, OTHER)):
        client.upload_file(str(write_scene(tmp_path, key, scene_pixels(seed=n))), "naip-analytic", key)
    yield
    for key in (KEY, OTHER):
        client.delete_object(Bucket="naip-analytic", Key=key)
    client.delete_bucket(Bucket="naip-analytic")


@pytest.mark.usefixtures("paid")
def test_scenes_in_the_paid_bucket_give_the_chips_of_local_ones(tmp_path):
    source = make("s3://naip-analytic", KEY, OTHER)
    far = cut(source)
    assert len(far) == 12
    assert [facts(c) for c in far] == [facts(c) for c in cut(make(tmp_path, KEY, OTHER))]
    told = {f"s3://naip-analytic/{k}": storage.stat(f"s3://naip-analytic/{k}") for k in (KEY, OTHER)}
    assert source.provenance() == {uri: {"size": s.size, "etag": s.etag} for uri, s in told.items()}
    assert {u.source: u.etag for u in source.units()} == {uri: s.etag for uri, s in told.items()}


@pytest.mark.parametrize(("name", "payer"), [("naip-analytic", "requester"), ("another", None)])
def test_every_request_to_the_paid_bucket_says_who_pays_and_none_to_another(remote, aws, name, payer):
    remote.files |= {f"/{name}/{key}": remote.files[f"/{key}"] for key in (KEY, OTHER)}
    aws(remote.url)
    assert len(cut(make(f"s3://{name}", KEY, OTHER))) == 12
    assert {m for m, _, _ in remote.requests} == {"HEAD", "GET"}
    assert set(remote.payers) == {payer}


@pytest.mark.usefixtures("paid")
def test_a_scene_that_changes_in_the_bucket_ends_the_job_so_that_it_is_read_as_one(tmp_path):
    source = make("s3://naip-analytic")
    source.check()
    boto3.client("s3").put_object(Bucket="naip-analytic", Key=KEY, Body=b"x" * (tmp_path / KEY).stat().st_size)
    with pytest.raises(TransientError, match="was replaced"):
        read(source)


@pytest.mark.usefixtures("paid")
def test_a_scene_gone_from_the_bucket_after_the_check_has_failed():
    source = make("s3://naip-analytic")
    source.check()
    boto3.client("s3").delete_object(Bucket="naip-analytic", Key=KEY)
    (event,) = read(source)
    assert (event.kind, event.reason) == ("failed", f"s3://naip-analytic/{KEY}: was removed while it was read")


def test_a_bucket_that_refuses_is_a_wrong_setting_and_the_message_says_who_pays(serve, aws):
    aws(serve(status=403).url)
    with pytest.raises(ConfigError, match=r"access denied.*Set AWS credentials: readers of a requester-pays"):
        make("s3://naip-analytic").check()
