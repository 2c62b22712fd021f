"""Fixtures of the engine's tests."""

import pytest

from tests.support.encoded_chips import record_encoded_chips


@pytest.fixture
def encoded(monkeypatch):
    """The ids of the chips that this process encodes."""
    return record_encoded_chips(monkeypatch)
