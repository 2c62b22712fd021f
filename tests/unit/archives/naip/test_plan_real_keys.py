"""Plans of the real keys of NAIP: every key accounted for, stable shards, estimates."""

import gzip
import random
from collections import Counter, defaultdict

import pytest

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.plan import SceneFilter, read_scenes, shard_plans
from kiln.archives.stable_shards import stable_shards
from tests.support import plans
from tests.support.naip_plans import (
    check_counts,
    plan_bytes,
    scene_keys,
    selected_keys,
    shard_names,
)


def test_every_line_of_the_real_manifest_is_counted(shared, tmp_path):
    if shared is None:
        pytest.skip("needs the folder of real pixels")
    manifest = shared / "archive" / "naip-analytic" / "manifest.txt"
    lines = manifest.read_text().split()
    keys, counts = selected_keys(lines)
    assert (counts.lines, counts.scenes, counts.selected) == (69, 64, 64)
    assert counts.others == {"fgdc .txt": 2, "rgbir .mrf": 1, "no key of the archive": 2}
    assert counts.unreadable == []
    assert (counts.undated, counts.next_year) == (1, 0)
    assert keys == sorted(k for k in lines if "/rgbir_cog/" in k)
    shards = plans.lines(plan_bytes(manifest, tmp_path / "plan.gz"))
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
    """Partitions, counts and shards of all real keys."""
    partitions, counts = read_scenes(real_keys, SceneFilter(), ChipCounts(256))
    return partitions, counts, list(shard_plans(partitions, "s3://naip-analytic", 100, 256))


def test_all_740_327_real_keys_are_scenes_and_counted(real):
    partitions, counts, _ = real
    check_counts(counts)
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


def test_real_shards_have_about_100_scenes_at_most_200_and_unique_names(real):
    shards = real[2]
    sizes = [len(s.units) for s in shards]
    assert max(sizes) <= 200
    assert 90 < sum(sizes) / len(sizes) < 110
    assert len(shard_names(shards)) == len(shards)
    by_partition = defaultdict(list)
    for s in shards:
        by_partition[s.partition].append(len(s.units))
    assert all(50 < sum(n) / len(n) < 150 for n in by_partition.values() if len(n) > 1)


def test_estimates_of_real_shards_are_hundreds_of_chips_and_megabytes_per_scene(real):
    for s in real[2]:
        assert 400 < s.expected / len(s.units) < 4000
        assert 100e6 < s.read_bytes / len(s.units) < 1e9


def test_a_thousand_keys_of_a_new_state_and_year_change_no_real_shard(real_keys, real):
    few = [k for k in real_keys if k.startswith(("ct/", "vt/", "ri/"))]
    before = [s for s in real[2] if s.partition[:2] in ("ct", "vt", "ri")]
    new = scene_keys(1000, state="ri", year=2031)
    after = list(shard_plans(read_scenes(few + new, SceneFilter(), ChipCounts(256))[0], "s3://naip-analytic", 100, 256))
    assert [s for s in after if s.partition != "ri-2031"] == before
    assert sum(len(s.units) for s in after if s.partition == "ri-2031") == 1000


@pytest.mark.parametrize("nominal", [7, 100])
def test_one_real_key_added_or_removed_changes_at_most_two_shards(real, nominal):
    keys = [key for p in ("vt-2016", "ct-2012") if p in real[0] for key, _, _ in real[0][p]]
    all_names = {name for name, _ in stable_shards(keys, nominal)}
    assert len(all_names) > 4
    for key in random.Random(nominal).sample(keys, 150):
        other_names = {name for name, _ in stable_shards((k for k in keys if k != key), nominal)}
        assert 1 <= len(all_names - other_names) <= 2
        assert len(other_names - all_names) <= 2


def test_a_newer_release_of_one_real_scene_changes_only_shards_of_its_state_and_year(real_keys, real):
    dated = [k for k in real_keys if k.startswith(("vt/2016", "ri/"))]
    before = {(s.partition, s.name) for s in real[2] if s.partition.startswith(("vt-2016", "ri-"))}
    key = next(k for k in dated if k.startswith("vt/2016") and not parse_key(k).released)
    newer = key.replace(".tif", "_20300101.tif")
    partitions, counts = read_scenes([*dated, newer], SceneFilter(), ChipCounts(256))
    after = list(shard_plans(partitions, "s3://naip-analytic", 100, 256))
    assert counts.superseded == 1
    assert newer in {u for s in after for u in s.units}
    changed = before ^ shard_names(after)
    assert {p for p, _ in changed} == {"vt-2016"}
    assert 2 <= len(before - shard_names(after)) + len(shard_names(after) - before) <= 8
