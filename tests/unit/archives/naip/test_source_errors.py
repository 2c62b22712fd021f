"""NAIP scenes that are damaged, cut off or of another kind: each fails with a reason, its neighbours are read."""

import pytest
from affine import Affine
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.naip.keys import parse_key
from kiln.errors import ConfigError
from tests.support.naip_scenes import (
    KEY,
    OTHER_KEY,
    TRANSFORM,
    UNDATED,
    make_source,
    only_reason,
    read_chips,
    read_dropped,
    read_events,
    scene_pixels,
    write_scene,
)


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
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in to the proxy</html>"), "not a readable GeoTIFF"),
    ],
    ids=["missing", "zero bytes", "html"],
)
def test_a_file_that_is_not_a_scene_fails_with_a_reason(tmp_path, damage, message):
    path = write_scene(tmp_path, KEY, scene_pixels())
    damage(path)
    reason = only_reason(make_source(tmp_path))
    assert reason.startswith(f"{path}: ")
    assert message in reason


@pytest.mark.parametrize("damage", [damage_truncated, damage_offsets], ids=["truncated", "lying offsets"])
def test_a_scene_whose_pixels_cannot_be_read_fails_with_a_reason(tmp_path, damage):
    path = write_scene(tmp_path, KEY, scene_pixels(), compress=None, blockysize=40)
    damage(path)
    opened, *rest = read_events(make_source(tmp_path))
    assert (opened.expected, sum(e.count for e in rest), {e.kind for e in rest}) == (6, 6, {"failed"})
    assert all(e.reason.startswith(f"{path}: not a readable GeoTIFF") for e in rest)


def test_only_the_missing_rows_of_a_truncated_scene_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 1)
    path = write_scene(tmp_path, KEY, scene_pixels(64, 48), compress=None, blockysize=8)
    path.write_bytes(
        path.read_bytes()[: -10 * 48 * 4]
    )  # without the last 10 rows: the last block and 2 rows of the one before
    chips = read_chips(make_source(tmp_path))
    assert {c.row for c in chips} == {0, 1, 2}
    assert [(kind, count) for _, kind, count, _ in read_dropped(make_source(tmp_path))] == [("failed", 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 3}, "expected the 4 bands R G B NIR, got 3 bands"),
        ({"bands": 5}, "got 5 bands"),
        ({"dtype": "uint16"}, "expected pixels of uint8, got uint16"),
        ({"crs": None}, "expected a CRS in the file or its .aux.xml, got none."),
        ({"transform": Affine.identity()}, "expected a transform in the file"),
        ({"transform": TRANSFORM * Affine.rotation(10)}, "square and north-up"),
        ({"transform": TRANSFORM * Affine.rotation(90)}, "square and north-up"),
        ({"transform": TRANSFORM * Affine.rotation(180)}, "square and north-up"),
        ({"transform": TRANSFORM * Affine.scale(1, -1)}, "square and north-up"),
        ({"transform": TRANSFORM * Affine.scale(1, 1.1)}, "square and north-up"),
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
def test_a_raster_that_is_not_a_naip_scene_fails_with_a_reason(tmp_path, options, message):
    pixels = scene_pixels(bands=options.pop("bands", 4), dtype=options.pop("dtype", "uint8"))
    write_scene(tmp_path, KEY, pixels, **options)
    assert message in only_reason(make_source(tmp_path))


UTM_IN_FEET = "+proj=utm +zone=14 +datum=NAD83 +units={} +type=crs"
FOOT, SURVEY_FOOT = 0.3048, 1200 / 3937  # metres
RESAMPLE = "Set naip.lattice to utm, which resamples the scene."


@pytest.mark.parametrize(("height", "percent"), [(0.6012, "0.20%"), (0.606, "1.00%"), (0.594, "1.00%")])
def test_pixels_that_are_nearly_square_are_refused_with_their_sizes_on_the_scenes_lattice(tmp_path, height, percent):
    path = write_scene(tmp_path, KEY, scene_pixels(), transform=from_origin(500_000, 5_209_000, 0.6, height))
    reason = only_reason(make_source(tmp_path))
    assert reason == (
        f"{path}: expected square pixels, got pixels of 0.6 x {height:g} metre, {percent} off square. {RESAMPLE}"
    )


@pytest.mark.parametrize("lattice", ["scene", "utm"])
@pytest.mark.parametrize("height", [0.6067, 0.593, 1.2])
def test_pixels_more_than_a_hundredth_off_square_are_refused_on_both_lattices(tmp_path, lattice, height):
    write_scene(tmp_path, KEY, scene_pixels(), transform=from_origin(500_000, 5_209_000, 0.6, height))
    ((_, kind, _, reason),) = read_dropped(make_source(tmp_path, lattice=lattice))
    assert kind == "failed"
    assert f"expected pixels that are square and north-up, got pixels of 0.6 x {height:g}, " in reason


@pytest.mark.parametrize(
    ("crs", "size", "unit", "metres"),
    [
        (UTM_IN_FEET.format("us-ft"), 1 / SURVEY_FOOT, "US survey foot", "1 m"),
        (UTM_IN_FEET.format("ft"), 1 / FOOT, "foot", "1 m"),
        (UTM_IN_FEET.format("km"), 0.001, "kilometre", "1 m"),
        ("EPSG:2267", 2, "US survey foot", "0.609601 m"),
    ],
)
def test_a_scene_in_feet_is_never_taken_for_one_in_metres(tmp_path, crs, size, unit, metres):
    transform = from_origin(500_000 * size, 5_209_000 * size, size, size)
    if crs == "EPSG:2267":  # Oklahoma
        transform = from_origin(2_000_000, 400_000, size, size)
    path = write_scene(tmp_path, KEY, scene_pixels(), crs=crs, transform=transform)
    problem = f"pixels of {size:.6g} x {size:.6g} {unit}, which are {metres}"
    assert only_reason(make_source(tmp_path)) == f"{path}: expected a CRS in metres, got {problem}. {RESAMPLE}"


@pytest.mark.parametrize("lattice", ["scene", "utm"])
def test_a_scene_in_degrees_is_refused_on_both_lattices(tmp_path, lattice):
    write_scene(tmp_path, KEY, scene_pixels(), crs="EPSG:4269", transform=from_origin(-99, 47, 1e-5, 1e-5))
    ((_, kind, _, reason),) = read_dropped(make_source(tmp_path, lattice=lattice))
    assert (kind, "expected a projected CRS in metres, got EPSG:4269 in degrees" in reason) == ("failed", True)


def test_a_local_crs_fails_with_a_reason(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(), crs='LOCAL_CS["drawing board",UNIT["metre",1]]')
    assert "CRS" in only_reason(make_source(tmp_path))


def test_a_broken_scene_does_not_affect_its_neighbours(tmp_path):
    write_scene(tmp_path, KEY, scene_pixels(16, 16, 1))
    write_scene(tmp_path, OTHER_KEY, scene_pixels(16, 16, 2)).write_bytes(b"no TIFF")
    write_scene(tmp_path, UNDATED, scene_pixels(16, 16, 3))
    kinds = [(type(e).__name__, e.unit_id) for e in read_events(make_source(tmp_path, KEY, OTHER_KEY, UNDATED))]
    first, second, third = (parse_key(k).unit_id for k in (KEY, OTHER_KEY, UNDATED))
    assert kinds == [("Opened", first), ("Chip", first), ("Dropped", second), ("Opened", third), ("Chip", third)]


def test_a_key_that_is_not_a_scene_is_a_config_error():
    with pytest.raises(ConfigError, match="expected keys of NAIP scenes"):
        make_source("/nowhere", "nd/2019/readme.txt")


@pytest.mark.parametrize("chip", [255, 4])
def test_a_chip_size_that_is_not_a_multiple_of_the_patch_is_a_config_error(chip):
    with pytest.raises(ConfigError, match="multiple of the model's patch"):
        make_source("/nowhere", chip=chip)
