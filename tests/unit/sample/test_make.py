import hashlib
import json

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import shapely
from rasterio.transform import from_origin

from kiln.archives.naip.keys import parse_key
from kiln.archives.sensors import NAIP
from kiln.sample.make import DEFAULT_TILES, composites, landscape, main, make_archive, make_naip, make_sentinel2, tile_corner

PPD = 240
BUCKET = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"
NAME = "rgbnir/{year}/{row}/ESA_WorldCover_10m_{year}_{version}_{tile}_S2RGBNIR.tif"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample")
    return out, make_archive(out, tiles=DEFAULT_TILES, years=(2020, 2021), ppd=PPD, seed=7)


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


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
            assert np.array_equal(source.read(), landscape(lon, lat, PPD, int(path.parts[-3]), 7))


def test_blocks_and_overviews(tmp_path):
    (path,) = make_archive(tmp_path, tiles=["N43W001"], years=[2020], ppd=600, seed=7)
    with rasterio.open(path) as source:
        assert set(source.block_shapes) == {(256, 256)}
        assert source.overviews(1) == [2, 4]


def test_two_runs_are_byte_equal(archive, tmp_path):
    out, _ = archive
    make_archive(tmp_path, tiles=DEFAULT_TILES, years=(2020, 2021), ppd=PPD, seed=7)
    assert digests(tmp_path) == digests(out)
    make_archive(tmp_path, tiles=DEFAULT_TILES[:1], years=[2020], ppd=PPD, seed=7)  # over existing files
    assert digests(tmp_path) == digests(out)


def test_the_broad_shape_repeats_without_a_seam():
    image = landscape(-95, 42, PPD, 2020, 7).astype(np.int64)  # its middle, 42.5° N 94.5° W, is where four meet
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
def test_neighbours_fit(first, second, axis):
    """The step over a border is like those beside it: no seam, and no jump where a tile is missing."""
    both = np.concatenate([landscape(*corner, PPD, 2020, 7) for corner in (first, second)], axis=axis)
    steps = np.abs(np.diff(both.astype(np.int64), axis=axis))
    steps = steps.mean(axis=tuple(n for n in range(3) if n != axis))
    assert steps[PPD - 1] <= 1.25 * np.percentile(steps[PPD - 40 : PPD + 40], 90) + 1


def test_every_seed_leaves_the_missing_tile_empty():
    for seed in range(4):
        assert not landscape(-97, 44, 64, 2020, seed).any()


def test_nodata_and_ranges(archive):
    tiles = [landscape(*tile_corner(name), PPD, 2020, 7) for name in DEFAULT_TILES]
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
    first, second = (landscape(-1, 43, PPD, year, 7).astype(float) for year in (2020, 2021))
    change = np.abs(second - first).mean() / first.mean()
    assert 0.02 < change < 0.25
    assert np.array_equal(first > 0, second > 0)
    assert not np.array_equal(first, landscape(-1, 43, PPD, 2020, 8))


@pytest.mark.parametrize(("name", "corner"), [("N37W122", (-122, 37)), ("S05E006", (6, -5)), ("N00E000", (0, 0))])
def test_tile_corner(name, corner):
    assert tile_corner(name) == corner


@pytest.mark.parametrize("name", ["", "N7W122", "N37W1222", "n37w122", "N90E000", "N10E180", "S00E001", "N1OE001"])
def test_malformed_tile_names(name, tmp_path):
    with pytest.raises(ValueError, match=r"malformed.*such as N43W002"):
        make_archive(tmp_path, tiles=["N43W001", name], years=[2020], ppd=16, seed=7)
    assert not any(tmp_path.iterdir())


def test_unknown_year_and_tiny_tiles(tmp_path):
    with pytest.raises(ValueError, match=r"2022.*choose 2020 or 2021"):
        make_archive(tmp_path, tiles=["N43W001"], years=[2020, 2022], ppd=16, seed=7)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="2019"):
        landscape(-1, 43, 16, 2019, 7)
    with pytest.raises(ValueError, match="too few"):
        landscape(-1, 43, 0, 2020, 7)


def test_a_tile_keeps_its_pixels_whatever_is_drawn_beside_it():
    """Digits of what the function has always drawn: chips of old runs stay what they were."""
    drawn = hashlib.sha256(landscape(-1, 43, 48, 2021, 7).tobytes()).hexdigest()
    assert np.array_equal(composites(-1, 43, 48, [2020, 2021], 7)[1], landscape(-1, 43, 48, 2021, 7))
    assert drawn.startswith("588fa9d13f368a1b")


def test_command_line(tmp_path, capsys):
    chosen = ["--datasets", "worldcover", "--pixels-per-degree", "32", "--years", "2021", "--tiles", "N45E006"]
    main(["--out", str(tmp_path), *chosen])
    assert capsys.readouterr().out.startswith("worldcover: 1 file")
    name = NAME.format(year=2021, version="v200", row="N45", tile="N45E006")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "worldcover" / name]


@pytest.mark.parametrize(
    "wrong", [["--years", "1999"], ["--tiles", "Paris"], ["--pixels-per-degree", "3"], ["--datasets", "modis"]]
)
def test_command_line_errors(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path), "--datasets", "worldcover", *wrong])
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    quick = ["--datasets", "worldcover", "--pixels-per-degree", "16", "--tiles", "N43W001"]
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "out"), *quick])
    assert caught.value.code == 2
    assert str(tmp_path / "out") in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- NAIP


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    out = tmp_path_factory.mktemp("naip")
    return out, make_naip(out, seed=7)


def test_the_manifest_lists_every_scene_and_what_is_none(photographs):
    out, written = photographs
    lines = (out / "manifest.txt").read_text().splitlines()
    scenes = [line for line in lines if parse_key(line)]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.tif")) == scenes
    assert set(written) == {out / key for key in [*scenes, "manifest.txt"]}
    assert {parse_key(key).partition for key in scenes} == {"sd-2018", "sd-2021"}
    assert [parse_key(key).when for key in scenes].count(None) == 1
    assert any(line.endswith(".tif") for line in set(lines) - set(scenes)), "an rgb scene, which is not of the archive"
    assert any("/index/" in line for line in lines)
    assert sum(p.stat().st_size for p in written) < 20e6


def test_scenes_are_where_their_names_say(photographs):
    alphas = 0
    for path in photographs[1][:-1]:
        key = parse_key(str(path.relative_to(photographs[0])))
        with rasterio.open(path) as source:
            assert source.driver == "GTiff"
            assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert (source.count, set(source.dtypes), source.crs) == (4, {"uint8"}, f"EPSG:269{key.zone}")
            assert source.res == (key.cm / 100, key.cm / 100)
            assert source.transform.c % 1 == source.transform.f % 1 == 0
            frame = rasterio.warp.transform_bounds("EPSG:4326", source.crs, *key.bounds)
            assert source.bounds == pytest.approx(frame, abs=source.res[0])
            alphas += source.colorinterp[3] == rasterio.enums.ColorInterp.alpha
            pixels = source.read()
        nodata = (pixels == 0).all(axis=0)
        assert np.array_equal(nodata, (pixels == 0).any(axis=0)), "only the collar is 0"
        assert nodata.any() == (key.year == 2021)
        assert nodata.mean() < 0.1
        mean, std = (stat(pixels[:, ~nodata], axis=1) for stat in (np.mean, np.std))
        assert np.abs(mean - NAIP.mean).max() < 40
        assert np.abs(std / NAIP.std - 1).max() < 0.4
    assert alphas == 2


def test_overlapping_photographs_show_the_same_fields_and_other_years_other_ones(photographs):
    out, _ = photographs
    of = {(k.year, k.quad, k.quarter): out / k.key for p in out.rglob("*.tif") if (k := scene_key(out, p))}
    west, east = of[2018, "4309636", "nw"], of[2018, "4309636", "ne"]
    with rasterio.open(west) as a, rasterio.open(east) as b:
        window = rasterio.coords.BoundingBox(b.bounds.left, a.bounds.bottom, a.bounds.right, b.bounds.top)
        window = window._replace(bottom=max(a.bounds.bottom, b.bounds.bottom), top=min(a.bounds.top, b.bounds.top))
        both = [f.read(window=f.window(*window).round_offsets().round_lengths()).astype(int) for f in (a, b)]
    assert both[0].shape == both[1].shape
    assert min(both[0].shape[1:]) > 50
    assert np.abs(both[0] - both[1]).mean() < 1
    with rasterio.open(of[2021, "4309636", "nw"]) as later, rasterio.open(west) as first:
        new, old = (f.read().astype(int) for f in (later, first))
    changed = np.abs(new - old).max(axis=0)[new.any(axis=0)] > 40
    assert 0.1 < changed.mean() < 0.6


def scene_key(out, path):
    return parse_key(str(path.relative_to(out)))


# ----------------------------------------------------------------------------------------------------- Sentinel-2


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Items by id, with the pixels of their assets."""
    out = tmp_path_factory.mktemp("sentinel2")
    make_sentinel2(out, seed=7)
    found = {}
    for key in (out / "items.txt").read_text().splitlines():
        item = json.loads((out / key).read_text())
        pixels = {}
        for name, asset in item["assets"].items():
            with rasterio.open(out / asset["href"].removeprefix(f"{BUCKET}/")) as source:
                assert source.crs == "EPSG:32614"
                assert asset["proj:shape"] == list(source.shape)
                assert asset["proj:transform"] == list(source.transform)[:6]
                assert source.nodata == 0
                pixels[name] = source.read(1)
        found[item["id"]] = (key, item, pixels)
    return found


def test_items_lie_where_their_links_say(scenes):
    for name, (key, item, pixels) in scenes.items():
        year, month = int(name[10:14]), int(name[14:16])
        assert key == f"sentinel-s2-l2a-cogs/14/T/QP/{year}/{month}/{name}/{name}.json"
        (canonical,) = (link["href"] for link in item["links"] if link["rel"] == "canonical")
        assert canonical == f"s3://sentinel-cogs/{key}"
        assert item["properties"]["datetime"].startswith(f"{year}-{month:02d}-{name[16:18]}T")
        assert item["bbox"] == list(shapely.geometry.shape(item["geometry"]).bounds)
        assert {n for n, band in pixels.items() if band.shape == (1098, 1098)} == {"blue", "green", "red", "nir"}
        assert {band.shape for band in pixels.values()} == {(1098, 1098), (549, 549)}
        assert len(pixels) == 11


def test_the_offset_is_that_of_the_baseline_and_not_applied(scenes):
    old, new = scenes["S2A_14TQP_20200714_0_L2A"], scenes["S2B_14TQP_20220813_0_L2A"]
    for (_, item, pixels), baseline, offset in ((old, "02.14", 0), (new, "04.00", 1000)):
        assert item["properties"]["s2:processing_baseline"] == baseline
        assert item["properties"]["earthsearch:boa_offset_applied"] is False
        for name, band in pixels.items():
            if name != "scl":
                assert band[band > 0].min() > offset
                assert item["assets"][name]["raster:bands"][0]["offset"] == (-0.1 if offset else 0)
    clear = [pixels["scl"] == 4 for _, _, pixels in (old, new)]
    reds = [np.median(s[2]["rededge2"][c]) for s, c in zip((old, new), clear, strict=True)]
    assert reds[1] - reds[0] == pytest.approx(1000, abs=150)


def test_classes_tell_what_the_pixels_show(scenes):
    for _, item, pixels in scenes.values():
        offset = 1000 if item["properties"]["s2:processing_baseline"] >= "04.00" else 0
        scl = pixels["scl"]
        half = {n: b.reshape(549, 2, 549, 2).mean((1, 3)) if len(b) > 549 else b for n, b in pixels.items()}
        tone = {name: {n: np.median(half[name][scl == n]) - offset for n in np.unique(scl)} for name in half}
        assert {3, 4, 5, 6, 8, 9} <= set(np.unique(scl))
        assert tone["nir"][4] > 4 * tone["red"][4]
        assert tone["nir"][6] < tone["green"][6]
        assert tone["swir16"][5] > tone["swir16"][4] > tone["swir16"][6]
        assert min(tone[name][9] for name in half if name != "scl") > 4500
        assert tone["nir"][3] < tone["nir"][4]
        assert 0.02 < np.isin(scl, (8, 9)).sum() / (scl > 0).sum() < 0.2 or item["properties"]["eo:cloud_cover"] < 2


def test_one_swath_ends_within_the_tile(scenes):
    for name, (_, item, pixels) in scenes.items():
        outside = {n: band == 0 for n, band in pixels.items()}
        ends = name.startswith("S2B")
        assert outside["red"].mean() == pytest.approx(0.285 if ends else 0, abs=0.01)
        assert np.array_equal(outside["rededge1"], outside["swir22"])
        assert np.array_equal(outside["red"], outside["nir"])
        assert not (outside["scl"] ^ outside["rededge1"]).mean() > 0.01
        tile = shapely.box(699960, 4790220, 809760, 4900020)
        to_utm = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32614", always_xy=True)
        covered = shapely.transform(shapely.geometry.shape(item["geometry"]), to_utm.transform, interleaved=False)
        assert covered.area / tile.area == pytest.approx(1 - outside["red"].mean(), abs=0.01)


def test_two_runs_of_the_photographs_and_scenes_are_byte_equal(photographs, tmp_path):
    make_naip(tmp_path, seed=7)
    assert digests(tmp_path) == digests(photographs[0])
