"""A job that died resumes from its checkpoints. The file and the ledger are those of a job that did not."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives.naip import columns as naip
from kiln.cli.command_line import Terminated
from kiln.engine.checkpoints import Checkpoints
from kiln.errors import TooManyFailuresError, TransientError
from kiln.formats import embeddings_file
from kiln.formats.ledger import LedgerEntry
from kiln.formats.records import Chip, Opened, Unit
from kiln.io import storage
from kiln.io.progress import Progress
from kiln.model.embedder import Embedder
from tests.support.checkpoints import (
    CHECKPOINTED,
    COLUMNS,
    ESTIMATE,
    METADATA,
    SHARD,
    Scenes,
    checkpoint_names,
    delete_checkpoints_except,
    embed_scenes,
    row_groups,
)
from tests.support.engine import Echo

# -------------------------------------------------------------------------- which units have checkpoints, and their use


def test_complete_scenes_have_a_checkpoint_and_failed_ones_have_none(tmp_path):
    expected = embed_scenes(Scenes(SHARD), tmp_path / "without")
    assert embed_scenes(Scenes(SHARD), tmp_path / "with", tmp_path / "checkpoints") == expected
    assert list(checkpoint_names(tmp_path / "checkpoints")) == CHECKPOINTED
    assert [e["unit_id"] for e in expected[1] if e["status"] != "failed"] == CHECKPOINTED


@settings(max_examples=25)
@given(
    st.sets(st.sampled_from(CHECKPOINTED)),
    st.sampled_from([2, 3, 100]),
    st.integers(1, 7),
    st.permutations(list(SHARD)),
)
def test_file_and_ledger_do_not_depend_on_which_scenes_have_checkpoints(
    tmp_path_factory, finished, row_group, batch, order
):
    folder = tmp_path_factory.mktemp("any")
    shard = {u: SHARD[u] for u in order}
    with row_groups(row_group):
        expected = embed_scenes(Scenes(shard), folder / "without", batch=batch)
        embed_scenes(Scenes(shard), folder / "first", folder / "checkpoints", batch=batch)
        delete_checkpoints_except(folder / "checkpoints", finished)
        retry = Scenes(shard)
        assert embed_scenes(retry, folder / "with", folder / "checkpoints", batch=batch) == expected
        assert sorted(retry.read) == sorted(set(shard) - finished)
        assert list(checkpoint_names(folder / "checkpoints")) == CHECKPOINTED
    rows = [pq.ParquetFile(folder / "with").metadata.row_group(n).num_rows for n in range(-(-14 // row_group))]
    assert rows[:-1] == [row_group] * (len(rows) - 1)
    assert sum(rows) == 14


@pytest.mark.parametrize(
    "finished",
    [["s:a"], ["s:h"], ["s:c", "s:e"], ["s:b", "s:f"], CHECKPOINTED, []],
    ids=lambda u: " ".join(u) or "none",
)
@pytest.mark.parametrize("gsd", [10.0, None])
def test_vectors_of_a_real_encoder_are_bit_equal_with_any_checkpoints(tmp_path, encoder, encoded, finished, gsd):
    class Noisy(Scenes):
        def chip(self, u, n, value):
            chip = super().chip(u, n, value)
            if isinstance(chip, Chip):
                chip.pixels = np.random.default_rng(value).normal(size=(2, 16, 16)).astype(np.float32)
                chip.pixels[0, 0, 0] = np.nan if value == 0 else 1
                chip.pixel_size = 0.6 if u in "s:a s:c s:h" else 1.0
            return chip

    options = {"encoder": encoder, "dim": 32, "batch": 3, "gsd": gsd}
    expected = embed_scenes(Noisy(SHARD), tmp_path / "without", **options)
    embed_scenes(Noisy(SHARD), tmp_path / "first", tmp_path / "checkpoints", **options)
    delete_checkpoints_except(tmp_path / "checkpoints", finished)
    encoded.clear()
    assert embed_scenes(Noisy(SHARD), tmp_path / "with", tmp_path / "checkpoints", **options) == expected
    vectors = pq.read_table(tmp_path / "with")["embeddings"].to_pylist()
    assert len({tuple(v) for v in vectors}) == len(vectors) == 14
    all_chips = {
        f"{u}:{n}" for u, v in SHARD.items() if isinstance(v, list) for n, x in enumerate(v) if isinstance(x, int)
    }
    assert sorted(encoded) == sorted(i for i in all_chips if i.rpartition(":")[0] not in finished)


def test_a_shard_with_all_checkpoints_loads_no_weights(tmp_path):
    shard = {u: SHARD[u] for u in CHECKPOINTED}
    expected = embed_scenes(Scenes(shard), tmp_path / "without", tmp_path / "checkpoints")
    with row_groups(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "__init__", lambda *a: pytest.fail("weights were loaded"))
        retry = Scenes(shard)
        assert embed_scenes(retry, tmp_path / "with", tmp_path / "checkpoints")[1] == expected[1]
    assert retry.read == []


# -------------------------------------------------------------------------------------------------------- jobs that die


def test_a_transient_error_loses_no_finished_scene(tmp_path, encoded):
    shard = {"s:a": [1, 2], "s:b": ["n"], "s:c": [3, 4], "s:d": [5, 6], "s:e": [7]}
    expected = embed_scenes(Scenes(shard), tmp_path / "without")
    with pytest.raises(TransientError, match="busy"):
        embed_scenes(Scenes(shard | {"s:d": TransientError("busy")}), tmp_path / "o", tmp_path / "checkpoints", batch=1)
    finished = list(checkpoint_names(tmp_path / "checkpoints"))
    assert set(finished) <= {"s:a", "s:b", "s:c"}
    encoded.clear()
    retry = Scenes(shard)
    assert embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints", batch=1) == expected
    assert set(retry.read) == set(shard) - set(finished)
    assert {i.rpartition(":")[0] for i in encoded} == {"s:a", "s:c", "s:d", "s:e"} - set(finished)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Terminated(), KeyboardInterrupt()], ids=repr)
def test_checkpoints_being_written_are_completed_when_the_encoder_fails(tmp_path, monkeypatch, error):
    class Breaks(Echo):
        def __call__(self, pixels, **kwargs):
            if len(self.sizes) == 2:
                raise error
            return super().__call__(pixels, **kwargs)

    atomic = storage.atomic

    @contextmanager
    def slow(uri):
        with atomic(uri) as path:
            time.sleep(0.2)
            yield path

    monkeypatch.setattr(storage, "atomic", slow)
    shard = {f"s:{n}": [n + 1] for n in range(4)}
    with pytest.raises(type(error)):
        embed_scenes(Scenes(shard), tmp_path / "o", tmp_path / "checkpoints", encoder=Breaks(), batch=1)
    assert list(checkpoint_names(tmp_path / "checkpoints")) == ["s:0", "s:1"]
    assert [t.name for t in threading.enumerate() if t.name.startswith("checkpoints")] == []
    retry = Scenes(shard)
    embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints", batch=1)
    assert sorted(retry.read) == ["s:2", "s:3"]


def test_a_shard_with_too_many_failures_keeps_its_checkpoints_for_the_retry(tmp_path, encoded):
    repaired = SHARD | {"s:d": [20, 21], "s:g": [22, 23, 24]}
    expected = embed_scenes(Scenes(repaired), tmp_path / "without")
    with pytest.raises(TooManyFailuresError):
        embed_scenes(Scenes(SHARD), tmp_path / "o", tmp_path / "checkpoints", allowed=0.1)
    assert list(checkpoint_names(tmp_path / "checkpoints")) == CHECKPOINTED
    encoded.clear()
    retry = Scenes(repaired)
    assert embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints", allowed=0.1) == expected
    assert sorted(retry.read) == ["s:d", "s:g"]
    assert encoded == ["s:d:0", "s:d:1", "s:g:0", "s:g:1", "s:g:2"]


# ------------------------------------------------------------------------------------------------- entries and progress


def test_a_ledger_entry_and_its_rows_survive_a_checkpoint(tmp_path):
    unit = Unit("s:ä/ü:1", 7, "s3://b/x y.tif", 'W/"1"', True, "12 e")
    entry = LedgerEntry(unit, 2, 3, 2, 0, [], ["sea; open", 'clouds\n"thick"'], ["né", "b; c"])
    rows = embeddings_file.chip_table(
        [Scenes({}).chip("s:a", n, n + 3) for n in range(2)], {"embeddings": np.eye(2, 4, dtype=np.float32)}, COLUMNS
    )
    with Checkpoints.for_metadata(str(tmp_path), METADATA) as checkpoints:
        checkpoints.write(rows, entry)
    checkpoints = Checkpoints.for_metadata(str(tmp_path), METADATA)
    ((unit_id, (stored_rows, stored_entry)),) = checkpoints.read_finished(
        [replace(unit, expected=99, etag="")], COLUMNS
    ).items()
    assert (unit_id, stored_entry, stored_entry.as_row()) == ("s:ä/ü:1", entry, entry.as_row())
    assert stored_rows.equals(rows)
    assert stored_rows.schema.equals(rows.schema)
    other = embeddings_file.schema(4, "float32", naip.COLUMNS, {"sources": "others"})
    assert checkpoints.read_finished([unit], other)[unit_id][0].cast(other).equals(rows.cast(other))


def test_the_progress_of_a_resumed_job_ends_at_its_total_with_the_rate_of_this_try(tmp_path, monkeypatch):
    closed: list[Progress] = []
    close = Progress.close
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(self) or close(self))
    shard = {u: v for u, v in SHARD.items() if u != "s:g"}
    for _ in range(2):
        embed_scenes(Scenes(shard), tmp_path / "o", tmp_path / "checkpoints")
    first, second = closed
    assert first.done == first.total == second.done == second.total == 4 + 3 + 7 + ESTIMATE + 1 + 0 + 4
    assert first.rate > 0
    assert second.rate == 0  # nothing was encoded


# ---------------------------------------------------------------------------------------------- unusual orders of chips


def test_rows_keep_their_order_if_only_some_units_have_checkpoints(tmp_path):
    shard = {"s:a": [1, 0, 2], "s:b": [3], "s:c": [4, 5], "s:d": [6], "s:e": [7]}
    plain = ("s:b", "s:d")
    expected = embed_scenes(Scenes(shard), tmp_path / "without", batch=2)
    for _ in range(2):
        retry = Scenes(shard, unversioned=plain)
        assert embed_scenes(retry, tmp_path / "o", tmp_path / "checkpoints", batch=2) == expected
    assert sorted(retry.read) == ["s:a", "s:b", "s:d"]


def test_units_with_interleaved_chips_have_complete_checkpoints_or_none(tmp_path):
    class Mixed(Scenes):
        def chips(self, loaded):
            events = [list(super(Mixed, self).chips(iter([piece]))) for piece in loaded]
            for several in zip(*events, strict=False):
                yield from several

    shard = {"s:a": [1, 2, 3], "s:b": [4, 5, 6]}
    expected = embed_scenes(Mixed(shard), tmp_path / "without", batch=1)
    first = embed_scenes(Mixed(shard), tmp_path / "o", tmp_path / "checkpoints", batch=1)
    assert first == expected
    rows = {}
    for u, (table_, entry) in (
        Checkpoints.for_metadata(str(tmp_path / "checkpoints"), METADATA)
        .read_finished(Mixed(shard).units(), COLUMNS)
        .items()
    ):
        rows[u] = (len(table_), entry.embedded)
    assert all(a == b for a, b in rows.values()), rows


def test_units_that_are_never_opened_have_no_checkpoints(tmp_path):
    class Unsure(Scenes):
        def chips(self, loaded):
            yield from (e for e in super().chips(loaded) if not isinstance(e, Opened))

    shard = {u: [n] * ESTIMATE for n, u in enumerate(("s:a", "s:b"), 1)}
    expected = embed_scenes(Unsure(shard), tmp_path / "without")
    assert embed_scenes(Unsure(shard), tmp_path / "o", tmp_path / "checkpoints") == expected
    assert checkpoint_names(tmp_path / "checkpoints") == {}
    assert {e["expected_known"] for e in expected[1]} == {False}
