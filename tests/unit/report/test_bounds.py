"""Numbers that are known in part, and the extrapolation from finished shards to others."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.report.bounds import MAX_ERROR, Bounded, extrapolate

COUNTS = st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1)), max_size=30)


def test_a_sum_is_as_certain_as_its_least_certain_part() -> None:
    words = [(Bounded(1) + Bounded(2, "about")).word, (Bounded(1, "about") + Bounded(2, "at most")).word]
    assert words == ["about", "at most"]
    assert Bounded(1) + Bounded(2) == Bounded(3)
    assert Bounded(2, "about", 5) * 3 == Bounded(6, "about", 15)


def test_an_estimate_counts_with_its_bound_where_another_number_is_a_bound() -> None:
    assert Bounded(100, "about", 150) + Bounded(1, "at most") == Bounded(151, "at most")
    assert Bounded(100, "about", 150) + Bounded(1) == Bounded(101, "about", 151)
    assert Bounded(100, "about", 150) + Bounded(1, "about", 2) == Bounded(101, "about", 152)


def test_the_word_stands_before_the_number() -> None:
    assert Bounded(1234.4, "at most").text("{:,.0f}".format) == "at most 1,234"
    assert Bounded(3).text(str) == "3"
    assert Bounded(0, "at most").text(str) == "0", "at most nothing is nothing"


def test_without_finished_shards_the_plan_says_the_most() -> None:
    assert extrapolate([], [10, 20]) == Bounded(30, "at most")
    assert extrapolate([(10, 5)] * 4, [10, 20]) == Bounded(30, "at most"), "four are too few"
    assert extrapolate([(10, 5)] * 9, []) == Bounded(0)


def test_equal_outcomes_are_extrapolated() -> None:
    assert extrapolate([(10, 5)] * 5, [10, 30]) == Bounded(20, "about", 40)
    assert extrapolate([(10, 70)] * 5, [10, 30], 1000) == Bounded(280, "about", 1000), "seconds for chips"


def test_the_error_counts_against_what_is_left_and_not_against_the_whole() -> None:
    draw = random.Random(1)
    finished = [(100, draw.gauss(60, 20)) for _ in range(300)]
    assert extrapolate(finished, [100, 100]).word == "at most"
    assert extrapolate(finished, [100] * 1000).word == "about"


def test_outcomes_that_differ_are_not_called_an_estimate() -> None:
    assert extrapolate([(10, 0), (10, 10)] * 4, [10] * 8) == Bounded(80, "at most")


def test_no_more_is_estimated_than_there_can_be() -> None:
    assert extrapolate([(10, 12)] * 5, [10]) == Bounded(10, "about", 10)


@given(COUNTS, st.lists(st.integers(0, 100), max_size=20))
def test_the_estimate_is_within_the_bound(finished: list[tuple[int, float]], left: list[int]) -> None:
    result = extrapolate([(planned, planned * fraction) for planned, fraction in finished], left)
    assert 0 <= result.value <= sum(left)
    assert result.word in ("about", "at most") if sum(left) else result == Bounded(0)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
def test_what_is_called_about_is_mostly_that_close(spread: float) -> None:
    """Of drawn runs, at most one in twenty that give an estimate is farther off than MAX_ERROR."""
    draw = random.Random(7)
    called = wrong = 0
    for _ in range(400):
        shards = [(100, 100 * min(1, max(0, draw.gauss(0.6, spread)))) for _ in range(60)]
        finished, left = shards[:20], shards[20:]
        estimate = extrapolate(finished, [planned for planned, _ in left])
        real = sum(chips for _, chips in left)
        assert estimate.word == "about" or estimate.value >= real
        called += estimate.word == "about"
        wrong += estimate.word == "about" and abs(estimate.value - real) > MAX_ERROR * estimate.value
    assert wrong <= called / 20
    assert called > 300 or spread > 0.1
