"""Batches: full across units, one pixel size each if the encoder needs it, and progress reports."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.engine import batches, pipeline
from kiln.engine.batches import make_batches
from kiln.formats.records import Chip, Dropped
from kiln.io.progress import Progress
from tests.support.chips import ListSource, make_chip
from tests.support.engine import Echo, embed


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.6, 1.0, 1.0 + 2**-52, "dropped"]), max_size=30), st.integers(1, 5), st.booleans())
def test_a_batch_has_one_pixel_size_where_the_encoder_receives_that_of_each_chip(gsds, size, one_gsd):
    events = [
        Dropped("u", "nodata", 1, str(n)) if gsd == "dropped" else make_chip(n, pixel_size=gsd)
        for n, gsd in enumerate(gsds)
    ]
    made_batches = list(make_batches((e for e in events), size, one_gsd=one_gsd))
    assert [c for b in made_batches for c in b.chips] == [e for e in events if isinstance(e, Chip)]
    assert [d for b in made_batches for d in b.reports] == [e for e in events if isinstance(e, Dropped)]
    sizes = [[c.pixel_size for c in b.chips] for b in made_batches]
    assert all(len(s) <= size and (not one_gsd or len(set(s)) <= 1) for s in sizes)
    for some, after in itertools.pairwise(
        [s for s in sizes if s]
    ):  # only the last batch, or one before another pixel size, is not full
        assert len(some) == size or (one_gsd and some[-1] != after[0])


def test_long_stretches_without_a_chip_are_reported_during_the_stretch(tmp_path, monkeypatch):
    reported, unreported = [0], []
    advance = Progress.advance
    monkeypatch.setattr(
        Progress, "advance", lambda self, n, **k: (reported.__setitem__(0, reported[0] + n), advance(self, n, **k))
    )

    class Sea(ListSource):
        def chips(self, loaded):
            yield from super().chips(loaded)
            for n in range(8 * batches.MAX_UNREPORTED):
                yield Dropped("u", "nodata")
                unreported.append(n - reported[0])

    embed(Sea([make_chip(1)], {"u": 8 * batches.MAX_UNREPORTED + 1}), Echo(), tmp_path / "o")
    assert reported[0] == 8 * batches.MAX_UNREPORTED + 1
    assert max(unreported) <= (pipeline.MAX_WAITING_BATCHES + 3) * batches.MAX_UNREPORTED
