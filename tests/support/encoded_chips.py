"""Recording of the chips that a process encodes."""

import pytest

from kiln.model.embedder import Embedder


def record_encoded_chips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the id of every chip that this process encodes from now on."""
    ids: list[str] = []
    start = Embedder.start

    def record(self, chips):
        ids.extend(chip.chip_id for chip in chips)
        return start(self, chips)

    monkeypatch.setattr(Embedder, "start", record)
    return ids
