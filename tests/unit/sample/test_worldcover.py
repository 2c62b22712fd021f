"""The synthetic WorldCover archive: layout, pixels, borders between tiles."""

import hashlib

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from kiln.sample.worldcover import DEFAULT_TILES, draw_tile, draw_tile_years, make_worldcover, tile_corner
from tests.support.digests import digests

PPD = 240
NAME = "rgbnir/{year}/{row}/ESA_WorldCover_10m_{year}_{version}_{tile}_S2RGBNIR.tif"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample")
    return out, make_worldcover(out, tiles=DEFAULT_TILES, years=(2020, 2021), ppd=PPD, seed=7)


def test_layout_and_the_missing_tile(archive):
    out, written = archive
    expected = {
        out / NAME.format(year=year, version=version, row=tile[:3], tile=tile)
        for year, version in ((2020, "v100"), (2021, "v200"))
        for tile in ("N43W097", "N43W096", "N44W096")
    }
    assert len(written) == 6
    assert set(written) == expected
    assert {path for path in out.rglob("*") if path.is_file()} == expected  # no temporary or side files


def test_georeferencing_and_format(archive):
    for path in archive[1]:
        lon, lat = tile_corner(path.name.split("_")[5])
        with rasterio.open(path) as source:
            assert source.transform == from_origin(lon, lat + 1, 1 / PPD, 1 / PPD)
            assert source.crs == "EPSG:4326"
            assert (source.count, source.height, source.width) == (4, PPD, PPD)
            assert set(source.dtypes) == {"uint16"}
            assert source.nodata == 0
            assert rasterio.enums.ColorInterp.alpha not in source.colorinterp
            structure = source.tags(ns="IMAGE_STRUCTURE")
            assert structure["COMPRESSION"] == "DEFLATE"
            assert structure["PREDICTOR"] == "2"
            # the file holds what the function draws
            assert np.array_equal(source.read(), draw_tile(lon, lat, PPD, int(path.parts[-3]), 7))


def test_blocks_and_overviews(tmp_path):
    (path,) = make_worldcover(tmp_path, tiles=["N43W001"], years=[2020], ppd=600, seed=7)
    with rasterio.open(path) as source:
        assert set(source.block_shapes) == {(256, 256)}
        assert source.overviews(1) == [2, 4]


def test_two_runs_are_byte_equal(archive, tmp_path):
    out, _ = archive
    make_worldcover(tmp_path, tiles=DEFAULT_TILES, years=(2020, 2021), ppd=PPD, seed=7)
    assert digests(tmp_path) == digests(out)
    make_worldcover(tmp_path, tiles=DEFAULT_TILES[:1], years=[2020], ppd=PPD, seed=7)  # over existing files
    assert digests(tmp_path) == digests(out)


def test_the_broad_shape_repeats_without_a_seam():
    image = draw_tile(-95, 42, PPD, 2020, 7).astype(np.int64)  # its middle, 42.5° N 94.5° W, is where four meet
    for axis in (1, 2):
        steps = np.abs(np.diff(image, axis=axis)).mean(axis=(0, 3 - axis))
        middle = PPD // 2 - 1
        assert steps[middle] <= 1.25 * np.percentile(steps[middle - 40 : middle + 40], 90)


@pytest.mark.parametrize(
    ("first", "second", "axis"),
    [
        ((-97, 43), (-96, 43), 2),
        ((-96, 44), (-96, 43), 1),
        ((-97, 44), (-97, 43), 1),  # the missing tile against its southern neighbour
        ((-97, 44), (-96, 44), 2),
        ((-97, 43), (-97, 42), 1),
        ((-1, 43), (0, 43), 2),
    ],
)
def test_neighbouring_tiles_join_without_a_seam(first, second, axis):
    """The step over a border is like those near it: no seam, and no jump to a missing tile."""
    both = np.concatenate([draw_tile(*corner, PPD, 2020, 7) for corner in (first, second)], axis=axis)
    steps = np.abs(np.diff(both.astype(np.int64), axis=axis))
    steps = steps.mean(axis=tuple(n for n in range(3) if n != axis))
    assert steps[PPD - 1] <= 1.25 * np.percentile(steps[PPD - 40 : PPD + 40], 90) + 1


def test_every_seed_leaves_the_missing_tile_empty():
    for seed in range(4):
        assert not draw_tile(-97, 44, 64, 2020, seed).any()


def test_nodata_and_ranges(archive):
    tiles = [draw_tile(*tile_corner(name), PPD, 2020, 7) for name in DEFAULT_TILES]
    mosaic = np.concatenate([tile.reshape(4, -1) for tile in tiles], axis=1)
    valid = (mosaic > 0).any(axis=0)
    assert 0.55 < valid.mean() < 0.75
    assert (mosaic[:, valid] > 0).all()
    red, green, blue, nir = mosaic[:, valid]
    assert mosaic.max() < 11_000
    assert (red > 7000).mean() > 0.002, "snow"
    ndvi = (nir.astype(float) - red) / (nir.astype(float) + red)
    assert (ndvi > 0.4).mean() > 0.4, "forest and fields"
    assert (ndvi < -0.1).mean() > 0.03, "water"
    assert np.median(green) > np.median(blue)
    # both sides of the shore are in the tiles next to the missing one
    for tile in (tiles[0], tiles[3]):
        assert 0.1 < (tile[0] == 0).mean() < 0.5


def test_years_and_seeds_differ():
    first, second = (draw_tile(-1, 43, PPD, year, 7).astype(float) for year in (2020, 2021))
    change = np.abs(second - first).mean() / first.mean()
    assert 0.02 < change < 0.25
    assert np.array_equal(first > 0, second > 0)
    assert not np.array_equal(first, draw_tile(-1, 43, PPD, 2020, 8))


@pytest.mark.parametrize(("name", "corner"), [("N37W122", (-122, 37)), ("S05E006", (6, -5)), ("N00E000", (0, 0))])
def test_tile_corner(name, corner):
    assert tile_corner(name) == corner


@pytest.mark.parametrize("name", ["", "N7W122", "N37W1222", "n37w122", "N90E000", "N10E180", "S00E001", "N1OE001"])
def test_malformed_tile_names(name, tmp_path):
    with pytest.raises(ValueError, match=r"such as N43W002"):
        make_worldcover(tmp_path, tiles=["N43W001", name], years=[2020], ppd=16, seed=7)
    assert not any(tmp_path.iterdir())


def test_unknown_year_and_tiny_tiles(tmp_path):
    with pytest.raises(ValueError, match=r"2020 or 2021, got 2022"):
        make_worldcover(tmp_path, tiles=["N43W001"], years=[2020, 2022], ppd=16, seed=7)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="2019"):
        draw_tile(-1, 43, 16, 2019, 7)
    with pytest.raises(ValueError, match="too few"):
        draw_tile(-1, 43, 0, 2020, 7)


def test_the_pixels_of_a_tile_never_change():
    """The digest pins what the function has always drawn, so that chips of old runs stay valid."""
    drawn = hashlib.sha256(draw_tile(-1, 43, 48, 2021, 7).tobytes()).hexdigest()
    assert np.array_equal(draw_tile_years(-1, 43, 48, [2020, 2021], 7)[1], draw_tile(-1, 43, 48, 2021, 7))
    assert drawn.startswith("588fa9d13f368a1b")
