"""Days: parsed from text, and their bounds in UTC."""

from datetime import UTC, date, datetime

import pytest

from kiln.errors import ConfigError
from kiln.formats.days import day_bounds, parse_day


def test_days_and_the_days_of_times_are_parsed():
    assert parse_day("2021-06-30", "from") == parse_day("2021-06-30T23:59:59Z", "from") == date(2021, 6, 30)


@pytest.mark.parametrize("value", ["", "soon", "2021-06", "2021-06-31", "2021-06-30 12:00", 20210630, None])
def test_other_values_are_refused_by_name(value):
    with pytest.raises(ConfigError, match="filters: expected to as a day such as 2021-06-30, got "):
        parse_day(value, "to")


def test_bounds_include_the_last_day():
    day = date(2021, 12, 31)
    assert day_bounds(day, day) == (datetime(2021, 12, 31, tzinfo=UTC), datetime(2022, 1, 1, tzinfo=UTC))
    assert day_bounds(None, None) == (None, None)
