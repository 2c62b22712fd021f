"""The synthetic Sentinel-2 archive: items, offset, classes, swath."""

import json

import numpy as np
import pyproj
import pytest
import rasterio
import shapely

from kiln.sample.sentinel2 import make_sentinel2

BUCKET = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Write the archive; return its items by id, with the pixels of their assets."""
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


def test_items_are_stored_at_their_canonical_links(scenes):
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


def test_classes_match_the_pixels(scenes):
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
