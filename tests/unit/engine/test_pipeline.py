"""The streaming loop: order, memory, errors, the account of every chip, vectors that depend on nothing else."""

import collections
import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.engine import pipeline
from kiln.engine.pipeline import Budget, read_ahead
from kiln.errors import SourceError, TooManyFailuresError, TransientError
from kiln.formats import patch_file as patches
from kiln.formats import vectors
from kiln.formats.records import Chip, Dropped, Read
from kiln.io.progress import Progress
from kiln.model.embedder import Embedder, EmbedPolicy
from tests.conftest import ROOT
from tests.support.chips import PLAIN, ListSource, make_chip


def threads_left() -> list[str]:
    """Names of the engine's threads that have not ended within ten seconds."""
    end = time.monotonic() + 10
    while True:
        left = [t.name for t in threading.enumerate() if t.name.startswith(("read", "chips"))]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.002)


class Echo:
    """Stands for an encoder: the token of a chip is its first pixel, over four dimensions."""

    cls_token = torch.zeros(1, 1, 4)

    def __init__(self, values: dict[int, float] | None = None, fails_at: int = -1) -> None:
        self.values, self.fails_at, self.sizes = values or {}, fails_at, []

    def __call__(self, pixels: torch.Tensor, **told: object) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(self.sizes) - 1 == self.fails_at:
            raise RuntimeError("out of memory")
        first = [self.values.get(int(v), float(v)) for v in pixels[:, 0, 0, 0]]
        return torch.tensor(first).view(-1, 1, 1).expand(-1, 5, 4)


def embed(
    source, encoder, path, *, storage="float32", batch=4, threads=2, ahead=1 << 20, allowed=1.0, dim=4,
    embedding="class", patches=None,
):  # fmt: skip
    return pipeline.embed(
        source,
        lambda: encoder,
        dim,
        path,
        {"patches": {"shape": [2, 2, dim], "storage": "float16"}} if patches else {},
        policy=EmbedPolicy("zeros", 10.0, storage, embedding, patches is not None),
        budget=Budget(batch, threads, ahead),
        max_failed_fraction=allowed,
        patch_file=patches,
    )


# ------------------------------------------------------------------------------------------- reading ahead


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), max_size=25), st.integers(1, 4), st.integers(1, 120))
def test_reads_keep_their_order_and_never_hold_more_than_the_budget(sizes, threads, budget):
    lock, held, peaks = threading.Lock(), collections.deque(), []

    def load(n: int) -> int:
        with lock:
            held.append(n)
            peaks.append([sizes[i] for i in held])
        return n

    seen = []
    for loaded in read_ahead((Read(s, lambda n=n: load(n), n) for n, s in enumerate(sizes)), threads, budget):
        seen.append(loaded.value)
        assert loaded.error is None
        assert loaded.read.key == loaded.value
        with lock:
            held.remove(loaded.value)  # let go only when the next one is asked for
    assert seen == list(range(len(sizes)))
    for together in peaks:
        assert sum(together) <= budget or len(together) == 1
    assert threads_left() == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 50), max_size=8), max_size=8), st.integers(1, 4), st.integers(1, 120))
def test_what_follows_from_a_read_comes_right_behind_it_and_within_the_budget(files, threads, budget):
    lock, held, peaks, opened = threading.Lock(), collections.Counter(), [], []

    def load(name: tuple[int, int], size: int) -> tuple[int, int]:
        with lock:
            held[name] = size
            peaks.append((held.total(), size))
        return name

    def head(n: int) -> Read:
        sizes = files[n]
        opened.append(n)
        return Read(
            0,
            lambda: (n, -1),
            then=lambda _: [Read(s, lambda i=i, s=s: load((n, i), s)) for i, s in enumerate(sizes)],
        )

    seen = []
    for loaded in read_ahead(map(head, range(len(files))), threads, budget):
        seen.append(loaded.value)
        with lock:
            held.pop(loaded.value, None)
    assert opened == list(range(len(files)))
    assert seen == [(n, i) for n, sizes in enumerate(files) for i in range(-1, len(sizes))]
    assert all(together <= budget or together == size for together, size in peaks)
    assert threads_left() == []


def test_nothing_follows_from_a_read_that_failed():
    def bad() -> None:
        raise SourceError("gone")

    heads = [Read(1, bad, then=lambda _: pytest.fail("asked")), Read(1, lambda: 2, then=lambda v: [Read(1, lambda: v)])]
    first, second, third = read_ahead(heads, 2, 10)
    assert (str(first.error), second.value, third.value) == ("gone", 2, 2)


def test_reads_go_on_at_the_same_time():
    together = threading.Barrier(3)
    reads = [Read(1, lambda: together.wait(timeout=10)) for _ in range(3)]
    assert sorted(loaded.value for loaded in read_ahead(reads, 3, 100)) == [0, 1, 2]


def test_reads_are_asked_for_only_as_the_budget_allows():
    asked = []

    def reads() -> Iterator[Read]:
        for n in itertools.count():
            asked.append(n)
            yield Read(10, lambda n=n: n)

    ahead = read_ahead(reads(), 2, 50)
    assert next(ahead).value == 0
    assert len(asked) <= 7
    assert next(ahead).value == 1
    assert len(asked) <= 8
    ahead.close()
    assert threads_left() == []


def test_a_bad_source_comes_as_the_value_of_its_read():
    def bad() -> None:
        raise SourceError("x.tif: unreadable")

    good, broken, after = read_ahead([Read(1, lambda: 1), Read(1, bad), Read(1, lambda: 3)], 2, 10)
    assert (good.value, good.error, after.value) == (1, None, 3)
    assert broken.value is None
    assert str(broken.error) == "x.tif: unreadable"


@pytest.mark.parametrize("error", [TransientError("throttled"), ValueError("a bug"), MemoryError()])
def test_any_other_error_of_a_read_ends_the_job_and_its_threads(tmp_path, error):
    chips = [make_chip(n) for n in range(30)]
    with pytest.raises(type(error)) as caught:
        embed(ListSource(chips, {"u": 30}, broken=error), Echo(), tmp_path / "o")
    assert caught.value is error
    assert threads_left() == []


def test_an_error_of_the_encoder_ends_the_job_and_its_threads(tmp_path):
    chips = [make_chip(n) for n in range(200)]
    with pytest.raises(RuntimeError, match="out of memory"):
        embed(ListSource(chips, {"u": 200}), Echo(fails_at=1), tmp_path / "o", ahead=300)
    assert threads_left() == []


def test_an_error_of_the_source_s_stitching_ends_the_job_and_its_threads(tmp_path):
    class Broken(ListSource):
        def chips(self, loaded):
            yield next(loaded).value
            raise ArithmeticError("stitching")

    with pytest.raises(ArithmeticError, match="stitching"):
        embed(Broken([make_chip(n) for n in range(50)], {"u": 50}), Echo(), tmp_path / "o")
    assert threads_left() == []


# ---------------------------------------------------------------------------------------------- the account


EVENT = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["chip", "chip", "nan", "nodata", "cloud", "failed"]), st.integers(1, 3)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(EVENT, max_size=40), st.integers(1, 9))
def test_every_expected_chip_is_embedded_skipped_or_failed(tmp_path_factory, told, batch):
    path = tmp_path_factory.mktemp("account") / "o.parquet"
    events: list[Chip | Dropped] = []
    tally = {u: collections.Counter() for u in "abc"}
    for n, (unit, kind, count) in enumerate(told):
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
    order = [e.chip_id for e, (_, kind, _) in zip(events, told, strict=True) if kind == "chip"]
    assert [r["chip_id"] for r in rows] == order
    assert outcome.rows == len(rows)


def test_a_chip_that_a_source_forgets_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="u: 2 of 3 chips accounted for"):
        embed(ListSource([make_chip(1), make_chip(2)], {"u": 3}), Echo(), tmp_path / "o")


@pytest.mark.parametrize(
    ("storage", "value", "kept"),
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
def test_a_vector_that_is_not_finite_as_stored_is_counted_and_never_written(tmp_path, storage, value, kept):
    chips = [make_chip(n) for n in range(1, 8)]
    outcome = embed(ListSource(chips, {"u": 7}), Echo({3: value}), tmp_path / "o", storage=storage)
    (entry,) = outcome.ledger.to_pylist()
    assert (entry["embedded"], entry["failed"]) == ((7, 0) if kept else (6, 1))
    assert entry["reason"] == ("" if kept else f"vector not finite in {storage}")
    rows = pq.read_table(tmp_path / "o")
    assert ("u:3" in rows["chip_id"].to_pylist()) == kept
    vectors = np.stack(rows["embeddings"].to_numpy())
    assert vectors.dtype == storage
    assert np.isfinite(vectors).all()


def test_one_bad_channel_is_enough_to_fail_a_vector(tmp_path):
    class OneNaN(Echo):
        def __call__(self, pixels, **told):
            tokens = super().__call__(pixels).clone()
            tokens[1, 0, 2] = float("nan")
            return tokens

    outcome = embed(ListSource([make_chip(n) for n in range(4)], {"u": 4}), OneNaN(), tmp_path / "o")
    assert outcome.rows == 3
    assert pq.read_table(tmp_path / "o")["chip_id"].to_pylist() == ["u:0", "u:2", "u:3"]


def test_more_failures_than_allowed_raise_with_the_ledger_in_the_log(tmp_path, caplog):
    def source() -> ListSource:  # half of one of three units fails
        bad = Dropped("b", "failed", 1, "b.tif: unreadable")
        return ListSource([make_chip(1, "a"), bad, make_chip(3, "b"), make_chip(2, "c")], {"a": 1, "b": 2, "c": 1})

    assert embed(source(), Echo(), tmp_path / "o", allowed=1 / 6).rows == 3
    caplog.clear()
    with pytest.raises(TooManyFailuresError, match=r"17% of the shard failed.*the first reason: b\.tif: unreadable"):
        embed(source(), Echo(), tmp_path / "o", allowed=0.16)
    logged = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    for text in ("unit_id", "b.tif: unreadable", "embedded", "failed"):
        assert text in logged
    assert len(logged.splitlines()) == 5  # a title, the columns' names, three units


def test_a_unit_of_which_nothing_is_known_counts_as_failed_altogether(tmp_path):
    def source() -> ListSource:
        return ListSource([Dropped("a", "failed", 0, "a.tif: unreadable"), make_chip(1, "b")], {"a": 0, "b": 1})

    with pytest.raises(TooManyFailuresError, match="50% of the shard"):
        embed(source(), Echo(), tmp_path / "o", allowed=0.4)
    entry = embed(source(), Echo(), tmp_path / "o", allowed=0.5).ledger.to_pylist()[0]
    assert (entry["status"], entry["expected"], entry["expected_known"]) == ("failed", 0, False)


def test_long_stretches_without_a_chip_are_told_as_they_go(tmp_path, monkeypatch):
    told, seen = [0], []
    advance = Progress.advance
    monkeypatch.setattr(
        Progress, "advance", lambda self, n, **k: (told.__setitem__(0, told[0] + n), advance(self, n, **k))
    )

    class Sea(ListSource):
        def chips(self, loaded):
            yield from super().chips(loaded)
            for n in range(8 * pipeline.TELL):
                yield Dropped("u", "nodata")
                seen.append(n - told[0])

    embed(Sea([make_chip(1)], {"u": 8 * pipeline.TELL + 1}), Echo(), tmp_path / "o")
    assert told[0] == 8 * pipeline.TELL + 1
    assert max(seen) <= (pipeline.QUEUE + 3) * pipeline.TELL


# ------------------------------------------------------------------------------------------------- vectors


def vectors_of(path) -> dict[str, bytes]:
    rows = pq.read_table(path)
    return {
        c: np.asarray(v).tobytes()
        for c, v in zip(rows["chip_id"].to_pylist(), rows["embeddings"].to_numpy(), strict=True)
    }


def test_a_vector_is_bit_equal_alone_and_among_any_others(tmp_path, encoder):
    rng = np.random.default_rng(1)
    chips = [make_chip(n, pixels=rng.normal(size=(2, 16, 16)).astype(np.float32)) for n in range(7)]

    def run(which: list[int], name: str) -> dict[str, bytes]:
        copies = [make_chip(n, pixels=chips[n].pixels.copy()) for n in which]
        embed(ListSource(copies, {"u": len(which)}), encoder, tmp_path / name, dim=32)
        return vectors_of(tmp_path / name)

    together = run(list(range(7)), "all")
    assert len(set(together.values())) == 7
    assert run([6, 2, 5, 0, 1], "mixed") == {k: together[k] for k in ("u:6", "u:2", "u:5", "u:0", "u:1")}
    assert run([3], "alone") == {"u:3": together["u:3"]}


def test_the_encoder_sees_full_batches_whatever_comes(tmp_path):
    echo = Echo()
    events = [make_chip(1), Dropped("u", "cloud", 4), *(make_chip(n) for n in range(2, 8))]
    embed(ListSource(events, {"u": 11}), echo, tmp_path / "o", batch=3)
    assert echo.sizes == [3, 3, 3]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.6, 1.0, 1.0 + 2**-52, "dropped"]), max_size=30), st.integers(1, 5), st.booleans())
def test_a_batch_has_one_pixel_size_where_each_chip_s_own_is_told(told, size, one_gsd):
    events = [
        Dropped("u", "nodata", 1, str(n)) if gsd == "dropped" else make_chip(n, pixel_size=gsd)
        for n, gsd in enumerate(told)
    ]
    batches = list(pipeline._batches(iter(events), size, one_gsd=one_gsd))
    assert [c for b in batches for c in b.chips] == [e for e in events if isinstance(e, Chip)]
    assert [d for b in batches for d in b.dropped] == [e for e in events if isinstance(e, Dropped)]
    sizes = [[c.pixel_size for c in b.chips] for b in batches]
    assert all(len(s) <= size and (not one_gsd or len(set(s)) <= 1) for s in sizes)
    for some, after in itertools.pairwise([s for s in sizes if s]):  # none is cut short without a reason
        assert len(some) == size or (one_gsd and some[-1] != after[0])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_chips_of_many_pixel_sizes_are_told_their_own_whatever_their_neighbours(tmp_path, encoder, size):
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(7, 2, 16, 16)).astype(np.float32)
    gsds = [1.0, 0.6, 0.6, 2.5, 1.0, 1.0, 0.6]
    events = [make_chip(n, pixels=pixels[n].copy(), pixel_size=g) for n, g in enumerate(gsds)]
    pipeline.embed(
        ListSource(events, {"u": 7}), lambda: encoder, 32, tmp_path / "o", {},
        policy=EmbedPolicy("zeros", None), budget=Budget(size, 2, 1 << 20), max_failed_fraction=0,
    )  # fmt: skip
    made = pq.read_table(tmp_path / "o")
    assert made["pixel_size"].to_pylist() == gsds
    unknown = torch.zeros(1, 4)
    for n, gsd in enumerate(gsds):
        ours = made["embeddings"][n].as_py()
        x = torch.from_numpy(pixels[n])[None]
        told = {"wavelengths": torch.tensor([0.5, 0.6]), "time": unknown, "latlon": unknown}
        assert ours == pytest.approx(encoder(x, gsd=gsd, **told)[0, 0].tolist(), abs=1e-5)
        assert ours != pytest.approx(encoder(x, gsd=10.0, **told)[0, 0].tolist(), abs=1e-4)
        embed_alone = Embedder(encoder, PLAIN, EmbedPolicy("zeros", None), size)
        alone = embed_alone([make_chip(n, pixels=pixels[n], pixel_size=gsd)])
        assert np.array_equal(np.array(ours, np.float32), alone["embeddings"][0])


def test_rows_wait_for_their_row_group_without_pixels(tmp_path):
    chips = [make_chip(n) for n in range(9)]
    embed(ListSource(chips, {"u": 9}), Echo(), tmp_path / "o")
    assert sum(c.pixels.nbytes for c in chips) == 0


# ------------------------------------------------------------------------------- class, mean, both and all patches


@pytest.mark.parametrize("storage", vectors.VECTOR_DTYPES)
def test_files_of_every_kind_hold_the_same_chips_and_come_out_alike_twice(tmp_path, encoder, storage):
    rng = np.random.default_rng(11)
    pixels = rng.normal(size=(7, 2, 16, 16)).astype(np.float32)
    pixels[3, 0, 0, 0] = np.nan

    def events():
        return [make_chip(n, pixels=pixels[n].copy()) for n in range(7)]

    made = {}
    for embedding in vectors.EMBEDDINGS:
        for again in (0, 1):
            path, beside = tmp_path / f"{embedding}{again}", tmp_path / f"{embedding}{again}.patches"
            outcome = embed(
                ListSource(events(), {"u": 7}), encoder, path, storage=storage, dim=32, embedding=embedding,
                patches=beside, batch=2 + again,
            )  # fmt: skip
            assert (outcome.ledger["failed"].to_pylist(), outcome.rows) == ([1], 6)
        made[embedding] = pq.read_table(path)
        assert made[embedding]["chip_id"].to_pylist() == [f"u:{n}" for n in (0, 1, 2, 4, 5, 6)]
        kept = pq.read_table(beside)
        assert kept["chip_id"].equals(made[embedding]["chip_id"])
        assert json.loads(kept.schema.metadata[b"kiln"])["patches"] == {"shape": [2, 2, 32], "storage": "float16"}
        patches = np.array(kept["patches"].to_pylist(), np.float32).reshape(6, 4, 32)
        for name, kind in vectors.KINDS[embedding].items():
            ours = vectors.read(made[embedding], name)
            if kind == "mean":
                np.testing.assert_allclose(ours, patches.mean(axis=1), atol=0.02)
    assert np.array_equal(vectors.read(made["both"]), vectors.read(made["class"]))
    assert np.array_equal(vectors.read(made["both"], "embeddings_mean"), vectors.read(made["mean"]))
    assert not np.allclose(vectors.read(made["mean"]), vectors.read(made["class"]), atol=0.05)


def test_the_same_batches_give_the_same_bytes_in_every_kind(tmp_path, encoder):
    pixels = np.random.default_rng(12).normal(size=(9, 2, 16, 16)).astype(np.float32)
    for storage, embedding in itertools.product(vectors.VECTOR_DTYPES, vectors.EMBEDDINGS):
        seen = set()
        for again in range(2):
            events = [make_chip(n, pixels=p.copy()) for n, p in enumerate(pixels)]
            path, beside = tmp_path / f"{again}", tmp_path / f"{again}.patches"
            embed(
                ListSource(events, {"u": 9}), encoder, path, storage=storage, dim=32, embedding=embedding,
                patches=beside, threads=1 + again,
            )  # fmt: skip
            seen.add((path.read_bytes(), beside.read_bytes()))
        assert len(seen) == 1


def test_patches_that_float16_cannot_hold_have_failed(tmp_path):
    beside = tmp_path / "o.patches"
    source = ListSource([make_chip(1), make_chip(2), make_chip(3)], {"u": 3})
    outcome = embed(source, Echo({2: 1e6}), tmp_path / "o", patches=beside)
    entry = outcome.ledger.to_pylist()[0]
    assert (entry["embedded"], entry["failed"], entry["reason"]) == (2, 1, "vector not finite in float16")
    assert pq.read_table(beside)["chip_id"].to_pylist() == ["u:1", "u:3"]


def test_a_shard_without_a_chip_has_an_empty_file_of_patches(tmp_path):
    embed(ListSource([Dropped("u", "nodata", 2, "sea")], {"u": 2}), Echo(), tmp_path / "o", patches=tmp_path / "p")
    assert pq.read_table(tmp_path / "p").num_rows == 0
    assert pq.read_schema(tmp_path / "p").field("patches").type.list_size == 16


def test_row_groups_of_patches_depend_on_the_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "GROUP_BYTES", 3 * 16 * 2)
    columns = patches.schema({"patches": {"shape": [2, 2, 4]}})
    block = np.arange(10 * 16, dtype=np.float16).reshape(10, 16)
    ids = [f"c{n}" for n in range(10)]
    seen = set()
    for cuts in ([10], [1] * 10, [2, 5, 3], [3, 3, 3, 1]):
        with patches.PatchWriter(tmp_path / "p", columns) as out:
            first = 0
            for count in cuts:
                out.append(ids[first : first + count], block[first : first + count])
                first += count
        seen.add((tmp_path / "p").read_bytes())
    assert len(seen) == 1
    file = pq.ParquetFile(tmp_path / "p")
    assert [file.metadata.row_group(n).num_rows for n in range(4)] == [3, 3, 3, 1]
    read = list(patches.read_patches(tmp_path / "p"))
    assert [c for some, _ in read for c in some] == ids
    assert np.array_equal(np.concatenate([b for _, b in read]), block)


def test_peak_memory_is_this_process_s_own_and_not_its_parent_s():
    ballast = np.ones(100_000_000)  # 800 MB
    told = [sys.executable, "-c", "from kiln.engine.pipeline import peak_memory; print(peak_memory())"]
    child = int(subprocess.run(told, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert 50e6 < child < ballast.nbytes < pipeline.peak_memory()
