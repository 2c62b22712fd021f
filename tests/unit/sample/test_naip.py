"""The synthetic NAIP archive: keys, frames, pixels."""

import numpy as np
import pytest
import rasterio
import rasterio.warp

from kiln.archives.naip.keys import parse_key
from kiln.archives.sensors import NAIP
from kiln.sample.naip import make_naip
from tests.support.digests import digests


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    out = tmp_path_factory.mktemp("naip")
    return out, make_naip(out, seed=7)


def test_the_manifest_lists_every_scene_and_other_files(photographs):
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


def test_scenes_are_located_where_their_names_place_them(photographs):
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


def test_two_runs_are_byte_equal(photographs, tmp_path):
    make_naip(tmp_path, seed=7)
    assert digests(tmp_path) == digests(photographs[0])
