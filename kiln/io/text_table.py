"""Tables for terminals and logs."""

from collections.abc import Collection, Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: bool = False) -> list[str]:
    """Rows of equally many cells as lines, two spaces apart: columns `left` to the left, all others to the right.

    `rule` draws a line below the first row.
    """
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]] if rule else lines


def format_bytes(size: float) -> str:
    """Return a number of bytes with the unit that a person would choose, as `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a time with the unit that a person would choose, as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def format_energy(joules: float) -> str:
    """Return an energy with the unit that a person would choose, as `250 J`, `12 Wh` or `3.4 kWh`."""
    if joules < 3600:
        return f"{joules:.0f} J"
    return f"{joules / 3600:.0f} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:,.1f} kWh"


def format_price(price: float) -> str:
    """Return a price in any currency with two decimals."""
    return "under 0.01" if 0 < price < 0.005 else f"{price:,.2f}"


def format_rate(per_second: float) -> str:
    """Return a rate with three digits, or all before the point, as `0.605`, `43.9` or `1,250`."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def shorten(value: Any) -> str:
    """Return the beginning of a value as printable text, for errors."""
    text = repr(value) if not isinstance(value, str) else value
    clean = "".join(c if c.isprintable() else " " for c in text[:80])
    return clean + ("..." if len(text) > 80 else "") or "nothing"
