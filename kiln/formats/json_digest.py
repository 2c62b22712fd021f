"""A digest inside a JSON object, of its other values: `kiln verify` compares it."""

from collections.abc import Mapping
from typing import Any

from kiln.formats.fingerprint import digest

KEY = "content_sha256"


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of its values."""
    return {**values, KEY: _digest(values)}


def fits_digest(values: Any) -> bool:
    """Return whether a JSON value is an object with the digest of its values, or without one, as of an older Kiln."""
    return isinstance(values, dict) and (KEY not in values or values[KEY] == _digest(values))


def _digest(values: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in values.items() if name != KEY})
