"""Stable shards: one added or removed unit changes few shards, and the order of units does not matter."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives import stable_shards as shards
from kiln.archives.stable_shards import BITS, position, stable_shards

UNITS = st.sets(st.integers(0, 10**6).map("unit {}".format), max_size=260)
NOMINAL = st.integers(1, 40)


def names(units, nominal):
    return {name for name, _ in stable_shards(units, nominal)}


def test_the_position_of_a_unit_is_the_first_64_bits_of_its_sha256():
    assert position("abc") == 0xBA7816BF8F01CFEA  # FIPS 180-2, appendix B.1
    assert position("") == 0xE3B0C44298FC1C14


@given(UNITS, NOMINAL)
def test_every_unit_is_in_one_shard_none_is_empty_and_none_is_above_twice_the_nominal_size(units, nominal):
    named_shards = list(stable_shards(units, nominal))
    assert sorted(u for _, members in named_shards for u in members) == sorted(units)
    assert all(members == sorted(members) for _, members in named_shards)
    assert all(1 <= len(members) <= 2 * nominal for _, members in named_shards)
    assert len({name for name, _ in named_shards}) == len(named_shards)


@given(UNITS, NOMINAL)
def test_neighbours_that_would_fit_into_one_shard_are_one(units, nominal):
    """No two sibling shards together are as small as the nominal size, so a partition never has many tiny shards."""
    size = {name.split("-")[0]: len(members) for name, members in stable_shards(units, nominal)}
    for place, members in size.items():
        prefix, depth = place.split(".")
        if depth != "0":
            width = max(1, math.ceil(int(depth) / 4))
            sibling = f"{int(prefix, 16) ^ 1:0{width}x}.{depth}"
            assert members + size.get(sibling, 2 * nominal) > nominal


@settings(max_examples=200)
@given(UNITS, st.integers(0, 10**6).map("other {}".format), NOMINAL)
def test_one_added_or_removed_unit_replaces_at_most_two_shards(units, unit, nominal):
    fewer, more = names(units, nominal), names({*units, unit}, nominal)
    assert 1 <= len(more - fewer) <= 2
    assert len(fewer - more) <= 1
    assert len(more) - len(fewer) in (0, 1), "one shard gets the unit, or is split by it, or is new"


def test_a_shard_above_its_maximum_is_split_in_two_and_joined_again():
    units = [f"u{n}" for n in range(400)]
    sizes = set()
    for count in range(1, 400):
        fewer, more = names(units[:count], 30), names(units[: count + 1], 30)
        sizes.add((len(fewer - more), len(more - fewer)))
    assert sizes == {(1, 1), (1, 2)}


@given(st.data(), UNITS, NOMINAL)
def test_neither_order_nor_repetition_of_the_units_matters(data, units, nominal):
    shuffled = data.draw(st.permutations(sorted(units)))
    with_duplicates = shuffled + shuffled[: len(shuffled) // 2]
    assert list(stable_shards(iter(with_duplicates), nominal)) == list(stable_shards(sorted(units), nominal))


def test_a_thousand_units_anywhere_change_at_most_two_thousand_shards():
    rng = random.Random(4)
    units = [f"u{n}" for n in range(20_000)]
    added = [f"v{n}" for n in range(1000)]
    before = names(units, 3)
    after = names(units + added, 3)
    assert 200 < len(before - after) <= 1000
    assert len(after - before) <= 2000
    gone = names(rng.sample(units, 19_000), 3)
    assert 200 < len(before - gone) <= 2000
    assert len(gone - before) <= 2000


def test_most_shards_stay_when_a_hundredth_of_the_units_comes():
    before = names([f"u{n}" for n in range(30_000)], 10)
    after = names([f"u{n}" for n in range(30_300)], 10)
    assert len(before & after) > 0.85 * len(before)


@pytest.mark.parametrize("nominal", [10, 100])
def test_shards_are_about_the_nominal_size_on_average_over_many_partitions(nominal):
    rng = random.Random(nominal)
    units = shards_ = 0
    for partition in range(30):
        count = int(nominal * 10 ** rng.uniform(0.7, 1.7))
        named_shards = list(stable_shards((f"{partition} {n}" for n in range(count)), nominal))
        assert 0.5 * nominal < count / len(named_shards) < 1.5 * nominal
        units, shards_ = units + count, shards_ + len(named_shards)
    assert 0.85 * nominal < units / shards_ < 1.15 * nominal


def test_few_units_are_one_shard_and_no_units_are_no_shard():
    assert [members for _, members in stable_shards(["b", "a"], 100)] == [["a", "b"]]
    assert list(stable_shards([], 100)) == []


def test_a_name_has_position_and_count_and_differs_for_other_units():
    ((name, _),) = stable_shards(["a", "b"], 100)
    place, count, digest = name.split("-")
    assert (place, count, len(digest)) == ("0.0", "002", 8)
    assert not set(digest) - set("0123456789abcdef")
    others = [["a", "c"], ["a"], ["ab"], ["a", "b", "c"]]
    assert len({name, *(n for units in others for n, _ in stable_shards(units, 100))}) == 5


def test_names_are_in_the_order_of_positions_and_never_change():
    """If a name changes, every finished shard is embedded again: change this test only on purpose."""
    assert [n for n, _ in stable_shards("abcdefgh", 2)] == [
        "0.3-001-65b1c6ea",
        "2.4-002-f64947e2",
        "3.4-002-d9991efb",
        "2.2-001-b4fc9b40",
        "3.2-002-9c73b584",
    ]


def test_units_with_the_same_digest_share_a_shard_and_the_names_stay_unique(monkeypatch):
    monkeypatch.setattr(shards, "position", lambda unit: 7 if unit < "e" else 6)
    named_shards = list(stable_shards("abcdefgh", 1))
    assert sorted(members for _, members in named_shards) == [list("abcd"), list("efgh")]
    assert len({name for name, _ in named_shards}) == 2


def test_units_that_differ_only_in_the_last_bit_get_different_shards(monkeypatch):
    where = {"a": 0, "b": 1, "c": 1 << (BITS - 1)}
    monkeypatch.setattr(shards, "position", where.__getitem__)
    named_shards = list(stable_shards("abc", 1))
    assert [members for _, members in named_shards] == [["a"], ["b"], ["c"]]
    assert [name.split("-")[0].split(".")[1] for name, _ in named_shards] == [str(BITS), str(BITS), "1"]
