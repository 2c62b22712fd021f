"""The ledger of a shard: every expected chip is embedded, skipped or failed."""

import collections
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.errors import TooManyFailuresError
from kiln.formats.records import Chip, Dropped
from tests.support.chips import ListSource, make_chip
from tests.support.engine import Echo, embed

EVENT = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["chip", "chip", "nan", "nodata", "cloud", "failed"]), st.integers(1, 3)
)


@settings(max_examples=60)
@given(st.lists(EVENT, max_size=40), st.integers(1, 9))
def test_every_expected_chip_is_embedded_skipped_or_failed(tmp_path_factory, drawn, batch):
    path = tmp_path_factory.mktemp("account") / "o.parquet"
    events: list[Chip | Dropped] = []
    tally = {u: collections.Counter() for u in "abc"}
    for n, (unit, kind, count) in enumerate(drawn):
        if kind in ("chip", "nan"):
            events.append(make_chip(n + 1 if kind == "chip" else 0, unit, chip_id=f"{unit}:{n}"))
            tally[unit]["embedded" if kind == "chip" else "failed"] += 1
        else:
            events.append(Dropped(unit, kind, count, f"why {kind}"))
            tally[unit][kind if kind == "failed" else f"skipped_{kind}"] += count
    expected = {u: c.total() for u, c in tally.items()}
    outcome = embed(ListSource(events, expected), Echo({0: float("nan")}), path, batch=batch)
    rows = pq.read_table(path).to_pylist()
    ledger = outcome.ledger.to_pylist()
    assert [e["unit_id"] for e in ledger] == ["a", "b", "c"]
    for entry in ledger:
        counts = {k: entry[k] for k in ("embedded", "skipped_nodata", "skipped_cloud", "failed")}
        assert counts == {k: tally[entry["unit_id"]][k] for k in counts}
        assert entry["expected"] == sum(counts.values())
        assert entry["embedded"] == sum(r["chip_id"].startswith(entry["unit_id"]) for r in rows)
        assert entry["status"] == ("failed" if counts["failed"] else "embedded" if counts["embedded"] else "empty")
        assert bool(entry["reason"]) == (
            entry["status"] == "failed"
            or (bool(counts["skipped_nodata"] + counts["skipped_cloud"]) and entry["status"] == "empty")
        )
    order = [e.chip_id for e, (_, kind, _) in zip(events, drawn, strict=True) if kind == "chip"]
    assert [r["chip_id"] for r in rows] == order
    assert outcome.rows == len(rows)


def test_a_chip_missing_from_the_source_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="u: 2 of 3 chips accounted for"):
        embed(ListSource([make_chip(1), make_chip(2)], {"u": 3}), Echo(), tmp_path / "o")


@pytest.mark.parametrize(
    ("vector_dtype", "value", "written"),
    [
        ("float32", float("nan"), False),
        ("float32", float("inf"), False),
        ("float32", -float("inf"), False),
        ("float32", 1e6, True),
        ("float16", 1e6, False),
        ("float16", 65504.0, True),
        ("float16", 65520.0, False),
        ("float16", float("nan"), False),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_vector_that_is_not_finite_as_stored_is_counted_and_never_written(tmp_path, vector_dtype, value, written):
    chips = [make_chip(n) for n in range(1, 8)]
    outcome = embed(ListSource(chips, {"u": 7}), Echo({3: value}), tmp_path / "o", vector_dtype=vector_dtype)
    (entry,) = outcome.ledger.to_pylist()
    assert (entry["embedded"], entry["failed"]) == ((7, 0) if written else (6, 1))
    assert entry["reason"] == ("" if written else f"vector not finite in {vector_dtype}")
    rows = pq.read_table(tmp_path / "o")
    assert ("u:3" in rows["chip_id"].to_pylist()) == written
    vectors = np.stack(rows["embeddings"].to_numpy())
    assert vectors.dtype == vector_dtype
    assert np.isfinite(vectors).all()


def test_one_bad_channel_is_enough_to_fail_a_vector(tmp_path):
    class OneNaN(Echo):
        def __call__(self, pixels, **kwargs):
            tokens = super().__call__(pixels).clone()
            tokens[1, 0, 2] = float("nan")
            return tokens

    outcome = embed(ListSource([make_chip(n) for n in range(4)], {"u": 4}), OneNaN(), tmp_path / "o")
    assert outcome.rows == 3
    assert pq.read_table(tmp_path / "o")["chip_id"].to_pylist() == ["u:0", "u:2", "u:3"]


def test_more_failures_than_allowed_raise_with_the_ledger_in_the_log(tmp_path, caplog):
    def source() -> ListSource:  # half of the chips of one of three units fail
        bad = Dropped("b", "failed", 1, "b.tif: unreadable")
        return ListSource([make_chip(1, "a"), bad, make_chip(3, "b"), make_chip(2, "c")], {"a": 1, "b": 2, "c": 1})

    assert embed(source(), Echo(), tmp_path / "o", allowed=1 / 6).rows == 3
    caplog.clear()
    with pytest.raises(TooManyFailuresError, match=r"at most 16%.*got 17%; the first reason: b\.tif: unreadable"):
        embed(source(), Echo(), tmp_path / "o", allowed=0.16)
    logged = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    for text in ("unit_id", "b.tif: unreadable", "embedded", "failed"):
        assert text in logged
    assert len(logged.splitlines()) == 5  # a title, the columns' names, three units


def test_a_unit_of_unknown_size_counts_as_entirely_failed(tmp_path):
    def source() -> ListSource:
        return ListSource([Dropped("a", "failed", 0, "a.tif: unreadable"), make_chip(1, "b")], {"a": 0, "b": 1})

    with pytest.raises(TooManyFailuresError, match="got 50%"):
        embed(source(), Echo(), tmp_path / "o", allowed=0.4)
    entry = embed(source(), Echo(), tmp_path / "o", allowed=0.5).ledger.to_pylist()[0]
    assert (entry["status"], entry["expected"], entry["expected_known"]) == ("failed", 0, False)
