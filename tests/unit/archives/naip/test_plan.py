"""NAIP's plan: counts of the manifest's lines, filters, containers of the manifest, and shards."""

import gzip
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives.naip import plan
from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.plan import SceneFilter
from kiln.errors import ConfigError
from kiln.formats.bounding_box import BoundingBox
from kiln.io import storage
from tests.support import plans
from tests.support.naip_plans import (
    MIXED,
    STEM,
    manifest_text,
    plan_bytes,
    refusal,
    scene_key,
    scene_keys,
    selected_keys,
    write_file,
    zipped,
)

# --------------------------------------------------------------------------------------------------------------- counts


def test_lines_that_are_not_scenes_are_counted_by_kind():
    lines = [
        *("manifest.txt", "readme.html"),
        "al/2017/100cm/fgdc/30085/m_3008501_ne_16_1_20171018.txt",
        "al/2017/100cm/rgbir/30085/m_3008501_ne_16_1_20171018.mrf",
        "al/2017/100cm/rgbir/30085/m_3008501_ne_16_1_20171018.tif",
        "al/2017/100cm/rgbir_cog/30085/m_3008501_ne_16_1_20171018.tif.msk",
        "al/2017/100cm/index/naip_3_17",
        "",
        scene_key(0),
        "x" * 1025,
    ]
    keys, counts = selected_keys(lines)
    assert keys == [scene_key(0)]
    assert counts.others == {
        "no key of the archive": 2,
        "fgdc .txt": 1,
        "rgbir .mrf": 1,
        "rgbir .tif": 1,
        "rgbir_cog .msk": 1,
        "index without extension": 1,
        "empty line": 1,
        "overlong line": 1,
    }


def test_keys_that_look_like_scenes_but_cannot_be_parsed_are_listed_in_full():
    bad = [
        STEM + "_20191131.tif",
        STEM.replace("4809732", "4809700") + ".tif",
        STEM + "_20190211_20190212.tif",
        f"s3://naip-analytic/{STEM}.tif",
        "nd/2018/60cm/rgbir_cog/48097/mosaic.tif",
    ]
    keys, counts = selected_keys([*bad, scene_key(0)])
    assert keys == [scene_key(0)]
    assert counts.unreadable == bad
    assert all(key in plan.report(counts) for key in bad)


def test_the_report_contains_every_count(caplog, tmp_path):
    lines = [
        scene_key(0),
        scene_key(0),
        scene_key(1),
        scene_key(2, "sd"),
        f"{STEM}.tif",
        f"{STEM}_20190211.tif",
        "readme.html",
    ]
    lines += ["nd/2014/100cm/rgbir_cog/46100/m_4610064_se_14_1.tif", "nd/2014/100cm/rgbir_cog/46100/x.tif"]
    lines += ["nd/2014/100cm/rgbir_cog/46100/m_4610064_sw_14_1_20150102.tif"]
    caplog.set_level("INFO")
    plan_bytes(write_file(tmp_path, manifest_text(lines)), tmp_path / "plan.gz", states=["nd"], scenes_per_shard=3)
    log = " ".join(caplog.messages)
    assert "10 lines: 8 scenes, 5 selected, 1 filtered out, 1 older releases, 1 duplicates" in log
    assert "of the selected, 1 have no date, 1 a date of the year after the path's" in log
    assert "1 x no key of the archive" in log
    assert "not a scene: nd/2014/100cm/rgbir_cog/46100/x.tif" in log


MANIFEST = st.lists(
    st.integers(0, 30).map(scene_key)
    | st.sampled_from([f"{STEM}.tif", f"{STEM}_20190211.tif", f"{STEM}_20200101.tif", f"{STEM}_20201301.tif"])
    | st.sampled_from(["", "readme.html", "nd/2014/100cm/fgdc/a.txt", "nd/2014/100cm/rgbir_cog/1/a.tif", "é" * 2000])
    | st.text(max_size=20),
    max_size=60,
)


@settings(deadline=None)
@given(
    MANIFEST,
    st.sampled_from(
        [SceneFilter(), SceneFilter(years=frozenset({2018})), SceneFilter(bbox=BoundingBox(-100.2, 46.5, -100.0, 46.8))]
    ),
)
def test_the_counts_of_any_manifest_add_up_and_every_scene_is_selected_once(lines, keep):
    keys, counts = selected_keys(lines, keep)
    assert counts.lines == len(lines)
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(lines)
    assert {parse_key(k).scene for k in keys} == {s.scene for s in map(parse_key, lines) if s and keep.matches(s)}


def test_repeated_keys_are_counted_and_selected_once():
    keys, counts = selected_keys([scene_key(0), scene_key(1), scene_key(0), scene_key(0)])
    assert keys == [scene_key(0), scene_key(1)]
    assert (counts.duplicates, counts.superseded) == (2, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(["", "_20190211", "_20200101"])))
def test_the_newest_release_of_a_scene_is_selected_regardless_of_the_order(order):
    keys, counts = selected_keys([f"{STEM}{released}.tif" for released in order])
    assert keys == [f"{STEM}_20200101.tif"]
    assert (counts.superseded, counts.duplicates) == (2, 0)


def test_the_same_name_in_two_states_or_two_years_is_selected_in_both():
    name = "100cm/rgbir_cog/39075/m_3907513_sw_18_1_20170730.tif"
    keys = [f"de/2017/{name}", f"nj/2017/{name}", f"nj/2018/{name}"]
    assert selected_keys(keys)[0] == keys


def test_the_same_name_twice_in_one_state_and_year_is_one_unit():
    """Two blocks of il/2012 hold one scene; chips of both would have the same ids."""
    name = "m_3808945_sw_16_1_20120606.tif"
    keys = [f"il/2012/100cm/rgbir_cog/{block}/{name}" for block in ("38089", "39089")]
    for order in (keys, keys[::-1]):
        assert selected_keys(order)[0] == keys[:1], "the block that the quadrangle's number begins with"


def test_scenes_without_a_date_or_with_one_of_the_next_year_are_selected_and_counted():
    undated = ["id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"]
    undated += ["id/2015/100cm/rgbir_cog/44112/4411233_nw_12_1.tif"]
    later = "tx/2016/100cm/rgbir_cog/26098/m_2609819_nw_14_1_20170104.tif"
    keys, counts = selected_keys([*undated, later, scene_key(0)])
    assert keys == sorted([*undated, later, scene_key(0)])
    assert (counts.undated, counts.next_year) == (2, 1)


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("settings", "matches"),
    [
        ({"states": ["sd"]}, lambda k: k.startswith("sd/")),
        ({"states": ["sd", "nd"]}, lambda k: True),
        ({"years": [2014]}, lambda k: "/2014/" in k),
        ({"years": [2016, 2018]}, lambda k: "/2014/" not in k),
        ({"resolutions": [60]}, lambda k: "/60cm/" in k),
        ({"states": ["nd"], "years": [2014, 2016]}, lambda k: k.startswith("nd/2014/")),
        ({"states": ["sd"], "resolutions": [100]}, lambda k: k.startswith("sd/2014/")),
    ],
)
def test_states_years_and_resolutions_select_the_scenes_that_match_all_of_them(tmp_path, settings, matches):
    data = plan_bytes(write_file(tmp_path, manifest_text(MIXED)), tmp_path / "plan.gz", **settings)
    assert sorted(plans.units(data)) == sorted(k for k in MIXED if matches(k))


def distances(key, box):
    """Return the distances in metres of a bounding box from a key's quarter quadrangle, in x and y."""
    quad, quarter = key.rpartition("/m_")[2].split("_")[:2]
    row, col = divmod(int(quad[5:]) - 1, 8)
    north = int(quad[:2]) + 1 - (2 * row + (quarter[0] == "s")) / 16
    west = -int(quad[2:5]) - 1 + (2 * col + (quarter[1] == "e")) / 16
    across = max(box[0] - west - 1 / 16, west - box[2]) * 111_195 * np.cos(np.radians(north))
    return across, max(box[1] - north, north - 1 / 16 - box[3]) * 111_195


@settings(deadline=None, max_examples=60)
@given(st.floats(-104, -98), st.floats(44, 48), st.floats(1e-6, 2), st.floats(1e-6, 2))
def test_a_bounding_box_selects_the_scenes_whose_quarter_quadrangle_is_within_300_m(w, s, wide, high):
    box = (w, s, w + wide, s + high)
    keys = set(selected_keys(DEGREES, SceneFilter(bbox=box))[0])
    for key in DEGREES:
        away = max(distances(key, box))
        if not 299 < away < 301:
            assert (key in keys) == (away < 300)


DEGREES = [scene_key(n) for n in range(0, 256 * 20, 3)]


@pytest.mark.parametrize(("metres", "taken"), [(-100, True), (200, True), (290, True), (310, False), (1000, False)])
def test_a_bounding_box_selects_a_scene_up_to_300_metres_away_on_every_side(metres, taken):
    key = "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif"
    west, south, east, north = -99.1875, 47.0, -99.125, 47.0625
    up, side = metres / 111_195, metres / 111_195 / 0.6812
    for box in (
        (west - 1, south, west - side, north),
        (east + side, south, east + 1, north),
        (west, south - 1, east, south - up),
        (west, north + up, east, north + 1),
    ):
        assert SceneFilter(bbox=box).matches(parse_key(key)) is taken


def test_a_bounding_box_selects_scenes(tmp_path):
    manifest = write_file(tmp_path, manifest_text(MIXED))
    data = plan_bytes(manifest, tmp_path / "plan.gz", bbox=[-100.99, 46.99, -100.98, 46.995])
    assert plans.units(data) == sorted(k for k in MIXED if "01_nw" in k)


@pytest.mark.parametrize("box", [(3, 2, 1, 4), (1, 4, 3, 2), (1, 2, 1, 4), (float("nan"), 1, 2, 3), (0, 0, 200, 1)])
def test_an_impossible_bounding_box_is_refused(tmp_path, box):
    assert "bbox: expected [west, south, east, north]" in refusal("x", tmp_path, bbox=list(box))


# ------------------------------------------------------------------------------------------------------------- the plan


def test_a_shard_contains_what_its_job_needs(tmp_path):
    keys = scene_keys(3)
    settings = {"archive": "/data/naip", "chip_size": 512}
    (shard,) = plans.lines(plan_bytes(write_file(tmp_path, manifest_text(keys)), tmp_path / "plan.gz", **settings))
    assert shard.pop("name").startswith("0.0-003-")
    scenes = [parse_key(k) for k in keys]
    assert shard == {
        "dataset": "naip",
        "partition": "nd-2014",
        "archive": "/data/naip",
        "units": sorted(keys),
        "chip_size": 512,
        "expected": sum(map(ChipCounts(512).at_most, scenes)),
        "read_bytes": sum(scene.pixel_bytes for scene in scenes),
        "details": {},
    }


def test_the_archive_is_the_bucket_if_no_other_is_given(tmp_path):
    (shard,) = plans.lines(plan_bytes(write_file(tmp_path, manifest_text([scene_key(0)])), tmp_path / "plan.gz"))
    assert shard["archive"] == "s3://naip-analytic"


def test_every_shard_holds_scenes_of_one_state_and_year_and_at_most_twice_the_requested_number(tmp_path):
    keys = [*scene_keys(300), *scene_keys(250, year=2016), *scene_keys(300, state="sd")]
    shards = plans.lines(
        plan_bytes(write_file(tmp_path, manifest_text(keys)), tmp_path / "plan.gz", scenes_per_shard=20)
    )
    assert sorted(u for s in shards for u in s["units"]) == sorted(keys)
    for shard in shards:
        assert {"-".join(u.split("/")[:2]) for u in shard["units"]} == {shard["partition"]}
        assert 1 <= len(shard["units"]) <= 40
    assert len({(s["partition"], s["name"]) for s in shards}) == len(shards)
    assert 14 < len(keys) / len(shards) < 28


def test_the_plan_is_the_same_bytes_from_plain_gzip_zip_http_and_s3(tmp_path, serve, bucket):
    data = manifest_text(MIXED)
    plain = plan_bytes(write_file(tmp_path, data), tmp_path / "one.gz", scenes_per_shard=10)
    assert len(plans.units(plain)) == len(MIXED)
    assert plain[3:8] == bytes(5), "gzip's header has neither a name nor a time"
    web = serve({"/m/manifest.txt.zip": zipped(data), "/manifest.txt": data})
    storage.write_bytes(f"{bucket}/in/manifest.txt.gz", gzip.compress(data))
    sources = [
        str(tmp_path / "manifest.txt"),
        write_file(tmp_path, gzip.compress(data), "manifest.gz"),
        write_file(tmp_path, gzip.compress(data[:999]) + gzip.compress(data[999:]), "two members"),
        write_file(tmp_path, zipped(data), "manifest.zip"),
        write_file(tmp_path, zipped(data), "a zip of another name"),
        f"{web.url}/m/manifest.txt.zip",
        f"{web.url}/manifest.txt",
        f"{bucket}/in/manifest.txt.gz",
    ]
    for n, source in enumerate(sources):
        assert plan_bytes(source, tmp_path / f"again{n}.gz", scenes_per_shard=10) == plain, source
    assert plan_bytes(sources[-1], f"{bucket}/out/plan.gz", scenes_per_shard=10) == plain


def test_the_plan_is_the_same_bytes_from_shuffled_repeated_or_crlf_lines(tmp_path):
    plain = plan_bytes(write_file(tmp_path, manifest_text(MIXED)), tmp_path / "plan.gz", scenes_per_shard=10)
    shuffled = random.Random(1).sample(MIXED, len(MIXED))
    for data in (
        manifest_text(shuffled),
        manifest_text(shuffled + MIXED[:50]),
        manifest_text(MIXED).replace(b"\n", b"\r\n"),
        manifest_text(MIXED).rstrip(b"\n"),
    ):
        assert plan_bytes(write_file(tmp_path, data), tmp_path / "other.gz", scenes_per_shard=10) == plain


def test_a_byte_order_mark_loses_no_scene(tmp_path):
    data = b"\xef\xbb\xbf" + manifest_text(MIXED)
    assert sorted(plans.units(plan_bytes(write_file(tmp_path, data), tmp_path / "plan.gz"))) == sorted(MIXED)


def test_a_plan_is_replaced_by_the_next_one_but_not_by_a_failed_one(tmp_path):
    out = tmp_path / "plan.gz"
    first = plan_bytes(write_file(tmp_path, manifest_text(MIXED)), out)
    assert plan_bytes(write_file(tmp_path, manifest_text(MIXED[:9])), out) != first
    before = out.read_bytes()
    with pytest.raises(ConfigError):
        plan_bytes(write_file(tmp_path, gzip.compress(manifest_text(MIXED))[:-50]), out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.txt", "plan.gz"]
