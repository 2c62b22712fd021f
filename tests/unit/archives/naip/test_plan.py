"""NAIP's plan: every line of the manifest accounted for, every filter, every container, and shards that stay."""

import gzip
import io
import itertools
import random
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives.naip import plan
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.plan import SceneFilter, read_scenes, shard_plans
from kiln.errors import ConfigError, TransientError
from kiln.formats.bounding_box import BoundingBox
from kiln.formats.stable_shards import stable_shards
from kiln.io import storage
from tests.support import plans

QUARTERS = ("ne", "nw", "se", "sw")  # as the alphabet has them
STEM = "nd/2018/60cm/rgbir_cog/48097/m_4809732_nw_14_060_20180901"


def scene(n, state="nd", year=2014, cm=100):
    """The n-th key of a state and year, degree by degree."""
    degree, rest = divmod(n, 256)
    lat, lon, quad = 46 - degree // 10, 100 + degree % 10, f"{rest // 4 + 1:02d}"
    res = {100: "1", 60: "060"}[cm]
    block = f"{lat}{lon}"
    return f"{state}/{year}/{cm}cm/rgbir_cog/{block}/m_{block}{quad}_{QUARTERS[rest % 4]}_14_{res}_{year}0720.tif"


def scenes(count, **options):
    return [scene(n, **options) for n in range(count)]


def text(lines):
    return "".join(f"{line}\n" for line in lines).encode()


def zipped(data, name="manifest.txt"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    return out.getvalue()


def put(tmp_path, data, name="manifest.txt"):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def planned(manifest, output, **settings):
    """The bytes of a plan."""
    return plans.write("naip", output, manifest=str(manifest), **settings)


def names_of(shards):
    return {(s.partition, s.name) for s in shards}


def refused(manifest, tmp_path, error=ConfigError, **settings):
    """The message of an error that leaves no plan."""
    with pytest.raises(error) as e:
        planned(manifest, tmp_path / "out" / "plan.gz", **settings)
    assert not list(tmp_path.glob("out/*"))
    return str(e.value)


def balanced(counts):
    assert counts.lines == counts.scenes + sum(counts.others.values()) + len(counts.unreadable)
    assert counts.scenes == counts.selected + counts.filtered + counts.superseded + counts.duplicates
    return counts


def kept_of(lines, keep=None):
    """The keys to do, in order of the alphabet, and the counts, which adds up."""
    partitions, counts = read_scenes(lines, keep or SceneFilter(), 256)
    keys = sorted(key for found in partitions.values() for key, _, _ in found)
    assert counts.selected == len(keys)
    return keys, balanced(counts)


# ------------------------------------------------------------------------------------------- the counts


def test_lines_that_are_no_scenes_are_counted_by_kind():
    lines = [
        *("manifest.txt", "readme.html"),
        "al/2017/100cm/fgdc/30085/m_3008501_ne_16_1_20171018.txt",
        "al/2017/100cm/rgbir/30085/m_3008501_ne_16_1_20171018.mrf",
        "al/2017/100cm/rgbir/30085/m_3008501_ne_16_1_20171018.tif",
        "al/2017/100cm/rgbir_cog/30085/m_3008501_ne_16_1_20171018.tif.msk",
        "al/2017/100cm/index/naip_3_17",
        "",
        scene(0),
        "x" * 1025,
    ]
    keys, counts = kept_of(lines)
    assert keys == [scene(0)]
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


def test_what_looks_like_a_scene_and_cannot_be_read_is_listed_with_its_whole_key():
    bad = [
        STEM + "_20191131.tif",
        STEM.replace("4809732", "4809700") + ".tif",
        STEM + "_20190211_20190212.tif",
        f"s3://naip-analytic/{STEM}.tif",
        "nd/2018/60cm/rgbir_cog/48097/mosaic.tif",
    ]
    keys, counts = kept_of([*bad, scene(0)])
    assert keys == [scene(0)]
    assert counts.unreadable == bad
    assert all(key in plan.report(counts) for key in bad)


def test_the_report_tells_every_figure_of_the_account(caplog, tmp_path):
    lines = [scene(0), scene(0), scene(1), scene(2, "sd"), f"{STEM}.tif", f"{STEM}_20190211.tif", "readme.html"]
    lines += ["nd/2014/100cm/rgbir_cog/46100/m_4610064_se_14_1.tif", "nd/2014/100cm/rgbir_cog/46100/x.tif"]
    lines += ["nd/2014/100cm/rgbir_cog/46100/m_4610064_sw_14_1_20150102.tif"]
    caplog.set_level("INFO")
    planned(put(tmp_path, text(lines)), tmp_path / "plan.gz", states=["nd"], scenes_per_shard=3)
    said = " ".join(caplog.messages)
    assert "10 lines: 8 scenes, 5 selected, 1 filtered out, 1 older releases, 1 duplicates" in said
    assert "of the selected, 1 have no date, 1 a date of the year after the path's" in said
    assert "1 x no key of the archive" in said
    assert "not a scene: nd/2014/100cm/rgbir_cog/46100/x.tif" in said


MANIFEST = st.lists(
    st.integers(0, 30).map(scene)
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
def test_the_account_of_any_manifest_adds_up_and_every_scene_is_kept_once(lines, keep):
    keys, counts = kept_of(lines, keep)
    assert counts.lines == len(lines)
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(lines)
    assert {parse_key(k).scene for k in keys} == {s.scene for s in map(parse_key, lines) if s and keep.matches(s)}


def test_keys_said_twice_are_counted_and_kept_once():
    keys, counts = kept_of([scene(0), scene(1), scene(0), scene(0)])
    assert keys == [scene(0), scene(1)]
    assert (counts.duplicates, counts.superseded) == (2, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(["", "_20190211", "_20200101"])))
def test_the_newest_release_of_a_scene_wins_whatever_the_order(order):
    keys, counts = kept_of([f"{STEM}{released}.tif" for released in order])
    assert keys == [f"{STEM}_20200101.tif"]
    assert (counts.superseded, counts.duplicates) == (2, 0)


def test_the_same_name_in_two_states_or_two_years_is_kept_in_both():
    name = "100cm/rgbir_cog/39075/m_3907513_sw_18_1_20170730.tif"
    keys = [f"de/2017/{name}", f"nj/2017/{name}", f"nj/2018/{name}"]
    assert kept_of(keys)[0] == keys


def test_the_same_name_twice_in_one_state_and_year_is_one_unit():
    """Two blocks of il/2012 hold one scene; chips of both would have the same ids."""
    name = "m_3808945_sw_16_1_20120606.tif"
    keys = [f"il/2012/100cm/rgbir_cog/{block}/{name}" for block in ("38089", "39089")]
    for order in (keys, keys[::-1]):
        assert kept_of(order)[0] == keys[:1], "the block that the quadrangle's number begins with"


def test_scenes_without_a_date_and_with_one_of_the_next_year_are_kept_and_counted():
    undated = ["id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"]
    undated += ["id/2015/100cm/rgbir_cog/44112/4411233_nw_12_1.tif"]
    later = "tx/2016/100cm/rgbir_cog/26098/m_2609819_nw_14_1_20170104.tif"
    keys, counts = kept_of([*undated, later, scene(0)])
    assert keys == sorted([*undated, later, scene(0)])
    assert (counts.undated, counts.next_year) == (2, 1)


# --------------------------------------------------------------------------------------------- the filters


MIXED = [
    scene(n, state, year, cm)
    for state, year, cm in (("nd", 2014, 100), ("nd", 2018, 60), ("sd", 2014, 100), ("sd", 2016, 60))
    for n in range(40)
]


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
    data = planned(put(tmp_path, text(MIXED)), tmp_path / "plan.gz", **settings)
    assert sorted(plans.units(data)) == sorted(k for k in MIXED if matches(k))


def distances(key, box):
    """Metres that a bounding box is away from a key's quarter quadrangle, west to east and south to north."""
    quad, quarter = key.rpartition("/m_")[2].split("_")[:2]
    row, col = divmod(int(quad[5:]) - 1, 8)
    north = int(quad[:2]) + 1 - (2 * row + (quarter[0] == "s")) / 16
    west = -int(quad[2:5]) - 1 + (2 * col + (quarter[1] == "e")) / 16
    across = max(box[0] - west - 1 / 16, west - box[2]) * 111_195 * np.cos(np.radians(north))
    return across, max(box[1] - north, north - 1 / 16 - box[3]) * 111_195


@settings(deadline=None, max_examples=60)
@given(st.floats(-104, -98), st.floats(44, 48), st.floats(1e-6, 2), st.floats(1e-6, 2))
def test_a_bounding_box_takes_the_scenes_whose_quarter_quadrangle_it_meets_or_passes_within_300_m(w, s, wide, high):
    box = (w, s, w + wide, s + high)
    keys = set(kept_of(DEGREES, SceneFilter(bbox=box))[0])
    for key in DEGREES:
        away = max(distances(key, box))
        if not 299 < away < 301:
            assert (key in keys) == (away < 300)


DEGREES = [scene(n) for n in range(0, 256 * 20, 3)]


@pytest.mark.parametrize(("metres", "taken"), [(-100, True), (200, True), (290, True), (310, False), (1000, False)])
def test_a_box_beside_a_scene_takes_it_up_to_300_metres_away_on_every_side(metres, taken):
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
    manifest = put(tmp_path, text(MIXED))
    data = planned(manifest, tmp_path / "plan.gz", bbox=[-100.99, 46.99, -100.98, 46.995])
    assert plans.units(data) == sorted(k for k in MIXED if "01_nw" in k)


@pytest.mark.parametrize("box", [(3, 2, 1, 4), (1, 4, 3, 2), (1, 2, 1, 4), (float("nan"), 1, 2, 3), (0, 0, 200, 1)])
def test_a_bounding_box_that_is_none_is_refused(tmp_path, box):
    assert "bbox: expected [west, south, east, north]" in refused("x", tmp_path, bbox=list(box))


# ------------------------------------------------------------------------------------------------ the plan


def test_a_shard_says_what_its_job_needs(tmp_path):
    keys = scenes(3)
    settings = {"archive": "/data/naip", "chip_size": 512}
    (shard,) = plans.lines(planned(put(tmp_path, text(keys)), tmp_path / "plan.gz", **settings))
    assert shard.pop("name").startswith("0.0-003-")
    estimates = [parse_key(k).estimate(512) for k in keys]
    assert shard == {
        "dataset": "naip",
        "partition": "nd-2014",
        "archive": "/data/naip",
        "units": sorted(keys),
        "chip_size": 512,
        "expected": sum(chips for chips, _ in estimates),
        "read_bytes": sum(size for _, size in estimates),
        "details": {},
    }


def test_the_archive_is_the_bucket_if_no_other_is_given(tmp_path):
    (shard,) = plans.lines(planned(put(tmp_path, text([scene(0)])), tmp_path / "plan.gz"))
    assert shard["archive"] == "s3://naip-analytic"


def test_every_shard_holds_scenes_of_one_state_and_year_and_no_more_than_twice_what_was_asked(tmp_path):
    keys = [*scenes(300), *scenes(250, year=2016), *scenes(300, state="sd")]
    shards = plans.lines(planned(put(tmp_path, text(keys)), tmp_path / "plan.gz", scenes_per_shard=20))
    assert sorted(u for s in shards for u in s["units"]) == sorted(keys)
    for shard in shards:
        assert {"-".join(u.split("/")[:2]) for u in shard["units"]} == {shard["partition"]}
        assert 1 <= len(shard["units"]) <= 40
    assert len({(s["partition"], s["name"]) for s in shards}) == len(shards)
    assert 14 < len(keys) / len(shards) < 28


def test_the_plan_is_the_same_bytes_from_plain_gzip_zip_http_and_s3_and_twice(tmp_path, serve, bucket):
    data = text(MIXED)
    plain = planned(put(tmp_path, data), tmp_path / "one.gz", scenes_per_shard=10)
    assert len(plans.units(plain)) == len(MIXED)
    assert plain[3:8] == bytes(5), "gzip's header has neither a name nor a time"
    web = serve({"/m/manifest.txt.zip": zipped(data), "/manifest.txt": data})
    storage.write_bytes(f"{bucket}/in/manifest.txt.gz", gzip.compress(data))
    sources = [
        str(tmp_path / "manifest.txt"),
        put(tmp_path, gzip.compress(data), "manifest.gz"),
        put(tmp_path, gzip.compress(data[:999]) + gzip.compress(data[999:]), "two members"),
        put(tmp_path, zipped(data), "manifest.zip"),
        put(tmp_path, zipped(data), "a zip of another name"),
        f"{web.url}/m/manifest.txt.zip",
        f"{web.url}/manifest.txt",
        f"{bucket}/in/manifest.txt.gz",
    ]
    for n, source in enumerate(sources):
        assert planned(source, tmp_path / f"again{n}.gz", scenes_per_shard=10) == plain, source
    assert planned(sources[-1], f"{bucket}/out/plan.gz", scenes_per_shard=10) == plain


def test_the_plan_is_the_same_bytes_from_lines_in_another_order_or_said_twice_or_with_crlf(tmp_path):
    plain = planned(put(tmp_path, text(MIXED)), tmp_path / "plan.gz", scenes_per_shard=10)
    shuffled = random.Random(1).sample(MIXED, len(MIXED))
    for data in (
        text(shuffled),
        text(shuffled + MIXED[:50]),
        text(MIXED).replace(b"\n", b"\r\n"),
        text(MIXED).rstrip(b"\n"),
    ):
        assert planned(put(tmp_path, data), tmp_path / "other.gz", scenes_per_shard=10) == plain


def test_a_byte_order_mark_before_the_first_key_loses_no_scene(tmp_path):
    data = b"\xef\xbb\xbf" + text(MIXED)
    assert sorted(plans.units(planned(put(tmp_path, data), tmp_path / "plan.gz"))) == sorted(MIXED)


def test_a_plan_is_replaced_by_the_next_one_and_left_alone_by_one_that_fails(tmp_path):
    out = tmp_path / "plan.gz"
    first = planned(put(tmp_path, text(MIXED)), out)
    assert planned(put(tmp_path, text(MIXED[:9])), out) != first
    before = out.read_bytes()
    with pytest.raises(ConfigError):
        planned(put(tmp_path, gzip.compress(text(MIXED))[:-50]), out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.txt", "plan.gz"]


# ---------------------------------------------------------------------------------------------- bad input


def test_an_empty_manifest_is_said_to_hold_no_scene(tmp_path):
    assert "got none in 0 lines" in refused(put(tmp_path, b""), tmp_path)
    assert "got none in 0 lines" in refused(put(tmp_path, gzip.compress(b"")), tmp_path)


def test_a_manifest_of_many_lines_without_a_scene_is_told_with_how_many(tmp_path):
    lines = [k.replace("rgbir_cog", "rgb") for k in scenes(3000)]
    said = refused(put(tmp_path, text(lines)), tmp_path)
    assert "manifest.txt: expected keys of NAIP scenes, got none in 3,000 lines. Check the file." in said


@pytest.mark.parametrize("page", [b"<html>\n<body>Sign in</body>\n</html>\n", b"{}", b"\n" * 50])
def test_a_page_of_a_proxy_in_place_of_the_manifest_is_said_to_hold_no_scene(tmp_path, page):
    assert "expected keys of NAIP scenes, got none" in refused(put(tmp_path, page), tmp_path)


def test_random_bytes_are_said_to_hold_no_scene_without_being_poured_onto_the_terminal(tmp_path, caplog):
    caplog.set_level("INFO")
    manifest = put(tmp_path, b"\x00" + np.random.default_rng(0).bytes(1 << 20))
    assert "expected keys of NAIP scenes, got none" in refused(manifest, tmp_path)
    assert len(caplog.text) < 10_000


@pytest.mark.parametrize("left", [5, 200, -9, -4, -1])
def test_a_truncated_gzip_is_said_to_be_truncated(tmp_path, left):
    manifest = put(tmp_path, gzip.compress(text(MIXED))[:left], "m.gz")
    assert "m.gz: truncated or damaged" in refused(manifest, tmp_path)


def test_a_gzip_with_a_flipped_bit_or_rubbish_behind_it_is_said_to_be_damaged(tmp_path):
    data = bytearray(gzip.compress(text(MIXED)))
    rubbish = put(tmp_path, bytes(data) + b"rubbish", "m.gz")
    assert "m.gz: truncated or damaged" in refused(rubbish, tmp_path)
    data[len(data) // 2] ^= 0x10
    assert "m.gz: truncated or damaged" in refused(put(tmp_path, bytes(data), "m.gz"), tmp_path)


def test_a_truncated_or_damaged_zip_is_said_to_be_so(tmp_path):
    data = bytearray(zipped(text(MIXED)))
    assert "m.zip: truncated or damaged" in refused(put(tmp_path, bytes(data[:-60]), "m.zip"), tmp_path)
    data[200] ^= 0x10
    assert "m.zip: truncated or damaged" in refused(put(tmp_path, bytes(data), "m.zip"), tmp_path)


def test_a_zip_that_needs_a_password_or_an_unknown_method_is_refused_in_words(tmp_path):
    data = zipped(text(MIXED))
    central = data.index(b"PK\x01\x02")
    secret, method = bytearray(data), bytearray(data)
    secret[6] |= 1
    secret[central + 8] |= 1
    method[8] = method[central + 10] = 99
    for bad in (secret, method):
        assert "m.zip" in refused(put(tmp_path, bytes(bad), "m.zip"), tmp_path)


def test_a_zip_of_nothing_is_said_to_hold_no_scene(tmp_path):
    out = io.BytesIO()
    zipfile.ZipFile(out, "w").close()
    assert "m.zip" in refused(put(tmp_path, out.getvalue(), "m.zip"), tmp_path)


def test_the_manifest_is_found_in_a_zip_that_begins_with_its_folder(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("naip/", "")
        z.writestr("naip/manifest.txt", text(MIXED))
    assert sorted(plans.units(planned(put(tmp_path, out.getvalue(), "m.zip"), tmp_path / "plan.gz"))) == sorted(MIXED)


def test_a_line_of_10_mb_and_bytes_that_are_no_text_lose_no_scene(tmp_path):
    keys = scenes(20)
    rubbish = b"nd/2014/" + b"a" * 10_000_000 + b".tif\n"
    data = text(keys[:9]) + rubbish + b"\xff\xfe\x00\x80\n" + text(keys[9:])
    assert plans.units(planned(put(tmp_path, data), tmp_path / "plan.gz")) == sorted(keys)


def test_filters_that_leave_nothing_are_said_to(tmp_path):
    manifest = put(tmp_path, text(MIXED))
    for keys in ({"states": ["tx"]}, {"years": [2001]}, {"resolutions": [30]}, {"bbox": [0, 0, 1, 1]}):
        assert "the filters leave none of 160 scenes" in refused(manifest, tmp_path, **keys)


def test_a_missing_manifest_is_said_to_be_missing(tmp_path, serve, bucket):
    web = serve({})
    for manifest in (str(tmp_path / "none.txt"), f"{web.url}/none.txt", f"{bucket}/none.txt"):
        assert f"{manifest}: does not exist" in refused(manifest, tmp_path)


def test_a_store_of_another_kind_is_refused_in_words(tmp_path):
    refused("gs://somewhere/manifest.txt", tmp_path)


def test_a_server_that_refuses_is_a_wrong_setting_and_one_that_is_busy_or_breaks_off_is_not(tmp_path, serve):
    files = {"/manifest.txt": text(MIXED)}
    refusing, busy, breaking = serve(files, status=403), serve(files, status=503), serve(files, break_at=300)
    assert "403" in refused(f"{refusing.url}/manifest.txt", tmp_path)
    assert "503" in refused(f"{busy.url}/manifest.txt", tmp_path, TransientError)
    refused(f"{breaking.url}/manifest.txt", tmp_path, TransientError)


# ------------------------------------------------------------------------------------------- real manifests


def test_the_manifest_of_the_real_scenes_is_accounted_for(shared, tmp_path):
    if shared is None:
        pytest.skip("needs the folder of real pixels")
    manifest = shared / "archive" / "naip-analytic" / "manifest.txt"
    lines = manifest.read_text().split()
    keys, counts = kept_of(lines)
    assert (counts.lines, counts.scenes, counts.selected) == (69, 64, 64)
    assert counts.others == {"fgdc .txt": 2, "rgbir .mrf": 1, "no key of the archive": 2}
    assert counts.unreadable == []
    assert (counts.undated, counts.next_year) == (1, 0)
    assert keys == sorted(k for k in lines if "/rgbir_cog/" in k)
    shards = plans.lines(planned(manifest, tmp_path / "plan.gz"))
    assert sorted(u for s in shards for u in s["units"]) == keys
    assert len(shards) == len({"/".join(k.split("/")[:2]) for k in keys}) == 62


@pytest.fixture(scope="module")
def real_keys(shared):
    """The 740 327 real keys, as the analytic bucket spells them."""
    if shared is None:
        pytest.skip("needs the folder of real keys")
    data = gzip.decompress((shared / "archive" / "naip_keys_2011-2018.txt.gz").read_bytes())
    return data.replace(b"/rgb/", b"/rgbir_cog/").decode().splitlines()


@pytest.fixture(scope="module")
def real(real_keys):
    """Partitions, counts and shards of all of them."""
    partitions, counts = read_scenes(real_keys, SceneFilter(), 256)
    return partitions, counts, list(shard_plans(partitions, "s3://naip-analytic", 100, 256))


def test_every_one_of_the_740_327_real_keys_is_a_scene_and_accounted_for(real):
    partitions, counts, _ = real
    balanced(counts)
    assert (counts.lines, counts.scenes, counts.filtered, counts.unreadable) == (740_327, 740_327, 0, [])
    assert counts.selected >= 740_326, "il/2012 holds one scene in two blocks"
    assert (counts.undated, counts.next_year) == (19_664, 2_876)
    assert len(partitions) == 168


def test_every_real_key_is_in_one_shard_of_its_state_and_year(real, real_keys):
    _, counts, shards = real
    units = [u for s in shards for u in s.units]
    assert len(units) == len(set(units)) == counts.selected
    assert set(units) <= set(real_keys)
    for s in shards:
        state, year = s.partition.split("-")
        assert all(u.startswith(f"{state}/{year}/") for u in s.units)


def test_no_two_real_scenes_of_the_plan_have_the_same_id(real):
    ids = Counter(parse_key(key).unit_id for found in real[0].values() for key, _, _ in found)
    assert [i for i, n in ids.most_common(5) if n > 1] == []


def test_real_shards_have_about_100_scenes_never_more_than_200_and_unique_names(real):
    shards = real[2]
    sizes = [len(s.units) for s in shards]
    assert max(sizes) <= 200
    assert 90 < sum(sizes) / len(sizes) < 110
    assert len(names_of(shards)) == len(shards)
    by_partition = defaultdict(list)
    for s in shards:
        by_partition[s.partition].append(len(s.units))
    assert all(50 < sum(n) / len(n) < 150 for n in by_partition.values() if len(n) > 1)


def test_estimates_of_real_shards_are_some_hundred_chips_and_megabytes_a_scene(real):
    for s in real[2]:
        assert 400 < s.expected / len(s.units) < 4000
        assert 100e6 < s.read_bytes / len(s.units) < 1e9


def test_a_thousand_keys_of_a_new_state_and_year_change_no_real_shard(real_keys, real):
    few = [k for k in real_keys if k.startswith(("ct/", "vt/", "ri/"))]
    before = [s for s in real[2] if s.partition[:2] in ("ct", "vt", "ri")]
    new = scenes(1000, state="ri", year=2031)
    after = list(shard_plans(read_scenes(few + new, SceneFilter(), 256)[0], "s3://naip-analytic", 100, 256))
    assert [s for s in after if s.partition != "ri-2031"] == before
    assert sum(len(s.units) for s in after if s.partition == "ri-2031") == 1000


@pytest.mark.parametrize("nominal", [7, 100])
def test_one_real_key_added_or_removed_changes_at_most_two_shards(real, nominal):
    keys = [key for p in ("vt-2016", "ct-2012") if p in real[0] for key, _, _ in real[0][p]]
    whole = {name for name, _ in stable_shards(keys, nominal)}
    assert len(whole) > 4
    for key in random.Random(nominal).sample(keys, 150):
        fewer = {name for name, _ in stable_shards((k for k in keys if k != key), nominal)}
        assert 1 <= len(whole - fewer) <= 2
        assert len(fewer - whole) <= 2


def test_a_newer_release_of_one_real_scene_changes_the_shards_of_that_state_and_year_alone(real_keys, real):
    dated = [k for k in real_keys if k.startswith(("vt/2016", "ri/"))]
    before = {(s.partition, s.name) for s in real[2] if s.partition.startswith(("vt-2016", "ri-"))}
    key = next(k for k in dated if k.startswith("vt/2016") and not parse_key(k).released)
    newer = key.replace(".tif", "_20300101.tif")
    partitions, counts = read_scenes([*dated, newer], SceneFilter(), 256)
    after = list(shard_plans(partitions, "s3://naip-analytic", 100, 256))
    assert counts.superseded == 1
    assert newer in {u for s in after for u in s.units}
    changed = before ^ names_of(after)
    assert {p for p, _ in changed} == {"vt-2016"}
    assert 2 <= len(before - names_of(after)) + len(names_of(after) - before) <= 8
