"""Fixtures of the engine's tests."""

import pytest

from kiln.model.embedder import Embedder


@pytest.fixture
def encoded(monkeypatch):
    """The ids of the chips that this process encodes."""
    ids: list[str] = []
    start = Embedder.start
    monkeypatch.setattr(
        Embedder, "start", lambda self, chips: ids.extend(c.chip_id for c in chips) or start(self, chips)
    )
    return ids
