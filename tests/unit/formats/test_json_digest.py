"""A digest inside a JSON object."""

import json

import pytest

from kiln.formats.json_digest import KEY, read_with_digest, with_digest

VALUES = {"rows": 3, "names": ["a", "b"], "none": None}


def test_values_are_read_again_without_their_digest():
    written = with_digest(VALUES)
    assert set(written) == {*VALUES, KEY}
    assert read_with_digest(json.dumps(written).encode()) == VALUES


def test_an_object_without_a_digest_is_read_as_it_is():
    assert read_with_digest(json.dumps(VALUES).encode()) == VALUES


@pytest.mark.parametrize("change", [{"rows": 4}, {"more": 1}, {KEY: "0" * 64}, {KEY: None}])
def test_changed_values_are_refused(change):
    with pytest.raises(ValueError, match="another digest"):
        read_with_digest(json.dumps(with_digest(VALUES) | change).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011 (json's message, or that of an object)
        read_with_digest(data)
