"""A digest inside a JSON object, of its other values: `kiln verify` compares it."""

import json
from collections.abc import Mapping
from typing import Any

from kiln.formats.fingerprint import digest

KEY = "content_sha256"


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of its values."""
    return {**values, KEY: _digest(values)}


def read_with_digest(data: bytes) -> dict[str, Any]:
    """Return the values of a JSON object without their digest.

    An object without a digest, as of an older Kiln, is not checked.

    Raises:
        ValueError: The data are no JSON object, or do not have the digest that they hold.
    """
    try:
        values = json.loads(data)
    except RecursionError as e:
        raise ValueError(str(e)) from e
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    present = _digest(values)
    if values.pop(KEY, present) != present:
        raise ValueError("it has another digest")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in values.items() if name != KEY})
