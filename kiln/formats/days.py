"""Days: parsed from text, and their bounds in UTC."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from kiln.errors import ConfigError
from kiln.io.text_table import shorten


def parse_day(value: Any, name: str) -> date:
    """Parse an ISO 8601 day, or the day of a time.

    Args:
        value: Text such as 2021-06-30 or 2021-06-30T12:00:00Z.
        name: Name of the filter, for the error.

    Raises:
        ConfigError: If the value is no day.
    """
    try:
        return date.fromisoformat(value[:10] if isinstance(value, str) and value[10:11] in ("", "T") else "")
    except ValueError:
        raise ConfigError(
            f"filters: expected {name} as a day such as 2021-06-30, got {shorten(value)}. Correct it."
        ) from None


def day_bounds(first: date | None, last: date | None) -> tuple[datetime | None, datetime | None]:
    """Return the first moment of a range of days in UTC, and the first moment after it; None is no bound."""
    midnight, day_after = (None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)
                           for day in (first, last))  # fmt: skip
    return midnight, day_after + timedelta(days=1) if day_after else None
