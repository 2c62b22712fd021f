"""A job that died goes on where it was: what it kept is used once, and never shows in the file or its ledger."""

import errno
import logging
import re
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.cli.command_line import Terminated
from kiln.engine import pipeline
from kiln.engine.checkpoints import Checkpoints
from kiln.engine.pipeline import Budget
from kiln.errors import SourceError, StorageError, TooManyFailuresError, TransientError
from kiln.formats import embeddings_file
from kiln.formats.ledger import LedgerEntry
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, Unit
from kiln.io import storage
from kiln.io.progress import Progress
from kiln.model.embedder import Embedder, EmbedPolicy
from tests.support.chips import make_chip, make_info
from tests.support.engine import Echo

ABOUT = {"fingerprint": "f1", "software": {"torch": "1"}, "sources": {"a": 1}}
GUESS = 9  # chips that a scene is taken to have until it is opened
COLUMNS = embeddings_file.schema(
    4, "float32", [pa.field("state", pa.dictionary(pa.int32(), pa.string())), pa.field("year", pa.int16())], {}
)
NAN = Echo({0: float("nan")}).values
SHARD = {  # of every kind: a number is a chip of such pixels (of 0 the vector is not finite), n is nodata, c is cloud
    "s:a": [1, 2, "n", 3],
    "s:b": ["n", "c", "n"],
    "s:c": [4, 5, 6, 7, 8, 9, "c"],
    "s:d": SourceError("d.tif: unreadable"),
    "s:e": [10],
    "s:f": [],
    "s:g": [11, 0, 12],
    "s:h": ["n", 13, 14, "n"],
}
KEPT = ["s:a", "s:b", "s:c", "s:e", "s:f", "s:h"]  # those of which all is known


@dataclass
class Scenes:
    """A source of scenes, a read each; a scene may be an error instead, which its read raises."""

    scenes: dict[str, list | Exception]
    version: str = "1"
    unversioned: tuple[str, ...] = ()
    read: list[str] = field(default_factory=list)  # as it came about
    info = make_info()
    columns = list(COLUMNS)[-2:]

    def units(self) -> list[Unit]:
        return [
            Unit(u, GUESS, f"s3://b/{u}", "e", False, "" if u in self.unversioned else self.version)
            for u in self.scenes
        ]

    def check(self) -> None:
        pass

    def reads(self) -> Iterator[Read]:
        for u in self.scenes:
            yield Read(100, lambda u=u: self._load(u), u, u)

    def _load(self, u: str) -> list:
        self.read.append(u)
        values = self.scenes[u]
        if isinstance(values, Exception):
            raise values
        return values

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        for piece in loaded:
            u = piece.read.unit_id
            if piece.error is not None:
                yield Dropped(u, "failed", GUESS, str(piece.error))
                continue
            yield Opened(u, len(piece.value), f"etag of {u}", (f"a note; of {u}", "an other"))
            if not piece.value:
                yield Dropped(u, "nodata", 0, "smaller than a chip")
            for n, value in enumerate(piece.value):
                yield self.chip(u, n, value)

    def chip(self, u: str, n: int, value: int | str) -> Chip | Dropped:
        if isinstance(value, str):
            kind = {"n": "nodata", "c": "cloud"}[value]
            return Dropped(u, kind, 1, f"too much {kind}")
        made = make_chip(value, u, chip_id=f"{u}:{n}", extra={"state": "xyz"[value % 3], "year": 2020})
        return made if value % 4 else replace(made, datetime=None, cloud_fraction=0.5)

    def provenance(self) -> dict:
        return {f"s3://b/{u}": {"size": n} for n, u in enumerate(self.scenes)}


@contextmanager
def row_groups(rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings_file.ShardWriter.__init__, "__defaults__", (rows,))
        yield


def embed(source, path, parts=None, *, encoder=None, batch=4, allowed=1.0, dim=4, about=ABOUT, gsd=10.0):
    """Bytes of the shard's file, and its ledger; `parts` is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome = pipeline.embed(
        source,
        lambda: encoder or Echo(NAN),
        dim,
        path,
        about,
        policy=EmbedPolicy("zeros", gsd),
        budget=Budget(batch, 2, 1000),
        max_failed_fraction=allowed,
        checkpoints=Checkpoints.for_metadata(str(parts), about) if parts else None,
    )
    return path.read_bytes(), outcome.ledger.to_pylist()


@pytest.fixture
def encoded(monkeypatch):
    """Ids of the chips that were encoded."""
    ids: list[str] = []
    start = Embedder.start
    monkeypatch.setattr(
        Embedder, "start", lambda self, chips: ids.extend(c.chip_id for c in chips) or start(self, chips)
    )
    return ids


def kept(folder) -> dict[str, str]:
    """Files of the folder by the unit that they should be of."""
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return {re.sub(r"-[0-9a-f]{12}\.parquet$", "", n).replace("-", ":"): n for n in names}


def keep_only(folder, units) -> None:
    """As if the job had died when these were finished."""
    for u, name in kept(folder).items():
        if u not in units:
            (folder / name).unlink()


# ------------------------------------------------------------------------------------------- what it makes of parts


def test_scenes_of_which_all_is_known_have_a_part_each_and_failed_ones_have_none(tmp_path):
    without = embed(Scenes(SHARD), tmp_path / "without")
    assert embed(Scenes(SHARD), tmp_path / "with", tmp_path / "parts") == without
    assert list(kept(tmp_path / "parts")) == KEPT
    assert [e["unit_id"] for e in without[1] if e["status"] != "failed"] == KEPT


@settings(deadline=None, max_examples=25)
@given(
    st.sets(st.sampled_from(KEPT)),
    st.sampled_from([2, 3, 100]),
    st.integers(1, 7),
    st.permutations(list(SHARD)),
)
def test_it_does_not_matter_which_scenes_were_finished(tmp_path_factory, finished, row_group, batch, order):
    folder = tmp_path_factory.mktemp("any")
    shard = {u: SHARD[u] for u in order}
    with row_groups(row_group):
        without = embed(Scenes(shard), folder / "without", batch=batch)
        embed(Scenes(shard), folder / "first", folder / "parts", batch=batch)
        keep_only(folder / "parts", finished)
        again = Scenes(shard)
        assert embed(again, folder / "with", folder / "parts", batch=batch) == without
        assert sorted(again.read) == sorted(set(shard) - finished)
        assert list(kept(folder / "parts")) == KEPT
    rows = [pq.ParquetFile(folder / "with").metadata.row_group(n).num_rows for n in range(-(-14 // row_group))]
    assert rows[:-1] == [row_group] * (len(rows) - 1)
    assert sum(rows) == 14


@pytest.mark.parametrize(
    "finished", [["s:a"], ["s:h"], ["s:c", "s:e"], ["s:b", "s:f"], KEPT, []], ids=lambda u: " ".join(u) or "none"
)
@pytest.mark.parametrize("gsd", [10.0, None])
def test_vectors_of_a_real_encoder_are_bit_equal_whichever_scenes_were_finished(
    tmp_path, encoder, encoded, finished, gsd
):
    class Noisy(Scenes):
        def chip(self, u, n, value):
            made = super().chip(u, n, value)
            if isinstance(made, Chip):
                made.pixels = np.random.default_rng(value).normal(size=(2, 16, 16)).astype(np.float32)
                made.pixels[0, 0, 0] = np.nan if value == 0 else 1
                made.pixel_size = 0.6 if u in "s:a s:c s:h" else 1.0
            return made

    how = {"encoder": encoder, "dim": 32, "batch": 3, "gsd": gsd}
    without = embed(Noisy(SHARD), tmp_path / "without", **how)
    embed(Noisy(SHARD), tmp_path / "first", tmp_path / "parts", **how)
    keep_only(tmp_path / "parts", finished)
    encoded.clear()
    assert embed(Noisy(SHARD), tmp_path / "with", tmp_path / "parts", **how) == without
    vectors = pq.read_table(tmp_path / "with")["embeddings"].to_pylist()
    assert len({tuple(v) for v in vectors}) == len(vectors) == 14
    done = {f"{u}:{n}" for u, v in SHARD.items() if isinstance(v, list) for n, x in enumerate(v) if isinstance(x, int)}
    assert sorted(encoded) == sorted(i for i in done if i.rpartition(":")[0] not in finished)


def test_a_shard_that_is_finished_but_for_its_file_loads_no_weights(tmp_path):
    shard = {u: SHARD[u] for u in KEPT}
    without = embed(Scenes(shard), tmp_path / "without", tmp_path / "parts")
    with row_groups(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "__init__", lambda *a: pytest.fail("weights were loaded"))
        again = Scenes(shard)
        assert embed(again, tmp_path / "with", tmp_path / "parts")[1] == without[1]
    assert again.read == []


# -------------------------------------------------------------------------------------------------- jobs that die


def test_a_store_that_is_busy_in_the_middle_costs_no_scene_that_was_finished(tmp_path, encoded):
    mended = {"s:a": [1, 2], "s:b": ["n"], "s:c": [3, 4], "s:d": [5, 6], "s:e": [7]}
    without = embed(Scenes(mended), tmp_path / "without")
    with pytest.raises(TransientError, match="busy"):
        embed(Scenes(mended | {"s:d": TransientError("busy")}), tmp_path / "o", tmp_path / "parts", batch=1)
    finished = list(kept(tmp_path / "parts"))
    assert set(finished) <= {"s:a", "s:b", "s:c"}
    encoded.clear()
    again = Scenes(mended)
    assert embed(again, tmp_path / "o", tmp_path / "parts", batch=1) == without
    assert set(again.read) == set(mended) - set(finished)
    assert {i.rpartition(":")[0] for i in encoded} == {"s:a", "s:c", "s:d", "s:e"} - set(finished)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Terminated(), KeyboardInterrupt()], ids=repr)
def test_what_was_finished_before_the_encoder_broke_is_kept_whole_though_it_was_being_written(
    tmp_path, monkeypatch, error
):
    class Breaks(Echo):
        def __call__(self, pixels, **told):
            if len(self.sizes) == 2:
                raise error
            return super().__call__(pixels, **told)

    atomic = storage.atomic

    @contextmanager
    def slow(uri):
        with atomic(uri) as path:
            time.sleep(0.2)
            yield path

    monkeypatch.setattr(storage, "atomic", slow)
    shard = {f"s:{n}": [n + 1] for n in range(4)}
    with pytest.raises(type(error)):
        embed(Scenes(shard), tmp_path / "o", tmp_path / "parts", encoder=Breaks(), batch=1)
    assert list(kept(tmp_path / "parts")) == ["s:0", "s:1"]
    assert [t.name for t in threading.enumerate() if t.name.startswith("checkpoints")] == []
    again = Scenes(shard)
    embed(again, tmp_path / "o", tmp_path / "parts", batch=1)
    assert sorted(again.read) == ["s:2", "s:3"]


def test_a_shard_that_failed_too_often_keeps_its_parts_and_once_mended_only_the_rest_is_encoded(tmp_path, encoded):
    mended = SHARD | {"s:d": [20, 21], "s:g": [22, 23, 24]}
    without = embed(Scenes(mended), tmp_path / "without")
    with pytest.raises(TooManyFailuresError):
        embed(Scenes(SHARD), tmp_path / "o", tmp_path / "parts", allowed=0.1)
    assert list(kept(tmp_path / "parts")) == KEPT
    encoded.clear()
    again = Scenes(mended)
    assert embed(again, tmp_path / "o", tmp_path / "parts", allowed=0.1) == without
    assert sorted(again.read) == ["s:d", "s:g"]
    assert encoded == ["s:d:0", "s:d:1", "s:g:0", "s:g:1", "s:g:2"]


# ------------------------------------------------------------------------------------------ parts that are not used


@pytest.mark.parametrize(
    ("about", "version", "used"),
    [
        (ABOUT, "1", True),
        (ABOUT | {"sources": {"other": 2}}, "1", True),  # the state of a unit's files is in its version
        (ABOUT, "2", False),
        (ABOUT | {"software": {"torch": "2"}}, "1", False),
        (ABOUT | {"fingerprint": "f2"}, "1", False),
        (ABOUT, "", False),
    ],
)
def test_a_part_is_of_one_state_of_the_files_settings_and_software(tmp_path, about, version, used):
    embed(Scenes(SHARD), tmp_path / "first", tmp_path / "parts")
    before = kept(tmp_path / "parts")
    again = Scenes(SHARD, version)
    embed(again, tmp_path / "o", tmp_path / "parts", about=about)
    assert sorted(again.read) == (["s:d", "s:g"] if used else list(SHARD))
    names = {p.name for p in (tmp_path / "parts").iterdir()}
    assert set(before.values()) <= names
    assert len(names) == len(before) * (1 if used or not version else 2)


def test_the_parts_of_a_shard_are_removed_in_all_their_states_and_nothing_else_is(tmp_path):
    shard, other = {"s:a": [1], "s:b": [2], "s:c": ["n"]}, {"s:aa": [3], "s:a-b": [4], "s": [5]}
    for version in "12":
        embed(Scenes(shard, version), tmp_path / "o", tmp_path / "parts")
    embed(Scenes(other), tmp_path / "o", tmp_path / "parts")
    for name in ("README.txt", "s-a.parquet", "s-a", ".s-a-0123456789ab.parquet.elsewhere.1.partial"):
        (tmp_path / "parts" / name).write_text("not a part")
    assert len(list((tmp_path / "parts").iterdir())) == 13
    source = Scenes(shard | {"s:never": [7]})
    embed(source, tmp_path / "o", tmp_path / "parts")
    Checkpoints.for_metadata(str(tmp_path / "parts"), ABOUT).delete(source.units())
    left = {re.sub(r"-[0-9a-f]{12}\.parquet$", "", p.name) for p in (tmp_path / "parts").iterdir()}
    assert left == {"s-aa", "s-a-b", "s", "README.txt", "s-a.parquet", "s-a", *(n for n in left if n[0] == ".")}


def test_removing_parts_that_never_were_is_no_error(tmp_path):
    Checkpoints.for_metadata(str(tmp_path / "never"), ABOUT).delete(Scenes(SHARD).units())
    assert not (tmp_path / "never").exists()


def cut_short(part, other):
    part.write_bytes(part.read_bytes()[:-40])


def emptied(part, other):
    part.write_bytes(b"")


def rotten(part, other):
    data = bytearray(part.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    part.write_bytes(data)


def a_web_page(part, other):
    part.write_text("<html>Please sign in</html>")


def another_table(part, other):
    pq.write_table(pa.table({"x": [1, 2]}), part)


def without_entry(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)


def an_entry_of_other_names(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata({b"kiln-entry": b'{"unit": {}, "colour": 1}'}), part)


def an_entry_that_is_no_json(part, other):
    pq.write_table(pq.read_table(part).replace_schema_metadata({b"kiln-entry": b"none"}), part)


def fewer_columns(part, other):
    pq.write_table(pq.read_table(part).drop_columns(["geometry"]), part)


def fewer_rows(part, other):
    pq.write_table(pq.read_table(part).slice(1), part)


def another_unit(part, other):
    part.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short, emptied, rotten, a_web_page, another_table, without_entry, an_entry_of_other_names,
        an_entry_that_is_no_json, fewer_columns, fewer_rows, another_unit,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_part_that_is_none_is_told_and_its_scene_done_again(tmp_path, caplog, spoil):
    without = embed(Scenes(SHARD), tmp_path / "without", tmp_path / "parts")
    part, other = (tmp_path / "parts" / kept(tmp_path / "parts")[u] for u in ("s:c", "s:a"))
    whole = part.read_bytes()
    spoil(part, other)
    again = Scenes(SHARD)
    assert embed(again, tmp_path / "o", tmp_path / "parts") == without
    assert sorted(again.read) == ["s:c", "s:d", "s:g"]
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(part) in told
    assert part.read_bytes() == whole


def test_a_part_on_s3_that_is_none_is_told_by_its_name_there(tmp_path, bucket, caplog):
    without = embed(Scenes(SHARD), tmp_path / "without", f"{bucket}/parts")
    (part,) = [uri for uri in storage.listing(f"{bucket}/parts") if "/s-c-" in uri]
    storage.write_bytes(part, b"<html>")
    again = Scenes(SHARD)
    assert embed(again, tmp_path / "o", f"{bucket}/parts") == without
    assert sorted(again.read) == ["s:c", "s:d", "s:g"]
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert part in told
    Checkpoints.for_metadata(f"{bucket}/parts", ABOUT).delete(again.units())
    assert storage.listing(bucket) == {}


def test_a_folder_s_name_is_no_column(tmp_path):
    folder = tmp_path / "year=2019" / "state=nd"
    without = embed(Scenes(SHARD), tmp_path / "without", folder)
    again = Scenes(SHARD)
    assert embed(again, tmp_path / "o", folder) == without
    assert sorted(again.read) == ["s:d", "s:g"]


@pytest.mark.parametrize("folder", ["parts/", "./parts", "a/../parts", "parts//deep"])
def test_a_folder_may_be_spelled_in_many_ways(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    embed(Scenes(SHARD), tmp_path / "first", folder)
    again = Scenes(SHARD)
    embed(again, tmp_path / "o", folder)
    assert sorted(again.read) == ["s:d", "s:g"]
    Checkpoints.for_metadata(folder, ABOUT).delete(again.units())
    assert not list((tmp_path / "parts").rglob("*.parquet"))


# --------------------------------------------------------------------------------------------------- entries, counts


def test_an_entry_comes_back_as_it_was(tmp_path):
    unit = Unit("s:ä/ü:1", 7, "s3://b/x y.tif", 'W/"1"', True, "12 e")
    entry = LedgerEntry(unit, 2, 3, 2, 0, [], ["sea; open", 'clouds\n"thick"'], ["né", "b; c"])
    rows = embeddings_file.chip_table(
        [Scenes({}).chip("s:a", n, n + 3) for n in range(2)], {"embeddings": np.eye(2, 4, dtype=np.float32)}, COLUMNS
    )
    with Checkpoints.for_metadata(str(tmp_path), ABOUT) as parts:
        parts.write(rows, entry)
    parts = Checkpoints.for_metadata(str(tmp_path), ABOUT)
    ((unit_id, (again, same)),) = parts.read_finished([replace(unit, expected=99, etag="")], COLUMNS).items()
    assert (unit_id, same, same.as_row()) == ("s:ä/ü:1", entry, entry.as_row())
    assert again.equals(rows)
    assert again.schema.equals(rows.schema)
    other = embeddings_file.schema(4, "float32", list(COLUMNS)[-2:], {"sources": "others"})
    assert parts.read_finished([unit], other)[unit_id][0].cast(other).equals(rows.cast(other))


def test_progress_of_a_job_that_goes_on_ends_at_its_total_and_tells_the_pace_of_this_try_alone(tmp_path, monkeypatch):
    seen: list[Progress] = []
    close = Progress.close
    monkeypatch.setattr(Progress, "close", lambda self: seen.append(self) or close(self))
    shard = {u: v for u, v in SHARD.items() if u != "s:g"}
    for _ in range(2):
        embed(Scenes(shard), tmp_path / "o", tmp_path / "parts")
    first, second = seen
    assert first.done == first.total == second.done == second.total == 4 + 3 + 7 + GUESS + 1 + 0 + 4
    assert first.rate > 0
    assert second.rate == 0  # nothing was encoded


# ----------------------------------------------------------------------------------------------- odd orders of chips


def test_rows_keep_their_order_where_only_some_units_can_be_kept(tmp_path):
    shard = {"s:a": [1, 0, 2], "s:b": [3], "s:c": [4, 5], "s:d": [6], "s:e": [7]}
    plain = ("s:b", "s:d")
    without = embed(Scenes(shard), tmp_path / "without", batch=2)
    for _ in range(2):
        again = Scenes(shard, unversioned=plain)
        assert embed(again, tmp_path / "o", tmp_path / "parts", batch=2) == without
    assert sorted(again.read) == ["s:a", "s:b", "s:d"]


def test_units_whose_chips_come_among_others_are_whole_or_not_kept(tmp_path):
    class Mixed(Scenes):
        def chips(self, loaded):
            events = [list(super(Mixed, self).chips(iter([piece]))) for piece in loaded]
            for several in zip(*events, strict=False):
                yield from several

    shard = {"s:a": [1, 2, 3], "s:b": [4, 5, 6]}
    without = embed(Mixed(shard), tmp_path / "without", batch=1)
    first = embed(Mixed(shard), tmp_path / "o", tmp_path / "parts", batch=1)
    assert first == without
    rows = {}
    for u, (table_, entry) in (
        Checkpoints.for_metadata(str(tmp_path / "parts"), ABOUT).read_finished(Mixed(shard).units(), COLUMNS).items()
    ):
        rows[u] = (len(table_), entry.embedded)
    assert all(a == b for a, b in rows.values()), rows


def test_units_that_no_source_ever_opens_are_never_kept(tmp_path):
    class Unsure(Scenes):
        def chips(self, loaded):
            yield from (e for e in super().chips(loaded) if not isinstance(e, Opened))

    shard = {u: [n] * GUESS for n, u in enumerate(("s:a", "s:b"), 1)}
    without = embed(Unsure(shard), tmp_path / "without")
    assert embed(Unsure(shard), tmp_path / "o", tmp_path / "parts") == without
    assert kept(tmp_path / "parts") == {}
    assert {e["expected_known"] for e in without[1]} == {False}


# ------------------------------------------------------------------------------------------------ places and races


@pytest.mark.parametrize("scenes", [1, 3])
def test_a_folder_that_cannot_be_written_ends_the_job(tmp_path, scenes):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        embed(Scenes({f"s:{n}": [n + 1] for n in range(scenes)}), tmp_path / "o", tmp_path / "file" / "parts")


@pytest.mark.parametrize("scenes", [1, 3])
def test_a_full_disk_ends_the_job_and_leaves_nothing_partial(tmp_path, scenes):
    shard = Scenes({f"s:{n}": [n + 1] for n in range(scenes)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # bytes of any file
    try:
        with pytest.raises(StorageError, match="File too large"), storage.atomic(str(tmp_path / "o")) as path:
            embed(shard, path, tmp_path / "parts", batch=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.rglob("*")] == ["parts"]


def test_a_full_disk_of_the_parts_alone_ends_the_job_too(tmp_path, monkeypatch):
    atomic = storage.atomic

    @contextmanager
    def full(uri):
        with atomic(uri) as path:
            yield path
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "atomic", full)
    for shard in ({"s:a": [1]}, {"s:a": ["n"]}, SHARD):
        with pytest.raises(StorageError, match=f"{tmp_path}/parts/s-a-.*No space left"):
            embed(Scenes(shard), tmp_path / "o", tmp_path / "parts", batch=1)
        assert kept(tmp_path / "parts") == {}


def test_parts_that_other_jobs_make_and_remove_meanwhile_are_no_error(tmp_path):
    stop = threading.Event()
    (tmp_path / "parts").mkdir()

    def others() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            for k in range(20):
                storage.write_bytes(str(tmp_path / "parts" / f"o-{k}-0123456789ab.parquet"), b"x")
            for k in range(20):
                storage.delete(str(tmp_path / "parts" / f"o-{k}-0123456789ab.parquet"))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        parts = Checkpoints.for_metadata(str(tmp_path / "parts"), ABOUT)
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            assert parts.read_finished(Scenes(SHARD).units(), COLUMNS) == {}
            parts.delete(Scenes(SHARD).units())
    finally:
        stop.set()
        thread.join()


# ------------------------------------------------------------------------------------------------ patches, int8, both


WITH_PATCHES = ABOUT | {"patches": {"shape": [2, 2, 32], "storage": "float16"}}


class Drawn(Scenes):
    """Scenes whose chips differ, for a real encoder; a value of 0 is not finite."""

    def chip(self, u, n, value):
        made = super().chip(u, n, value)
        if isinstance(made, Chip):
            made.pixels = np.random.default_rng(value).normal(size=(2, 16, 16)).astype(np.float32)
            made.pixels[0, 0, 0] = np.nan if value == 0 else 1
        return made


def embed_all(source, path, parts=None, *, encoder, batch=3):
    """Bytes of the shard's file and of its patches, both kinds of vectors as int8; its ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".patches")
    outcome = pipeline.embed(
        source,
        lambda: encoder,
        32,
        path,
        WITH_PATCHES,
        policy=EmbedPolicy("zeros", 10.0, "int8", "both", patches=True),
        budget=Budget(batch, 2, 1000),
        max_failed_fraction=1.0,
        checkpoints=Checkpoints.for_metadata(str(parts), WITH_PATCHES) if parts else None,
        patch_path=beside,
    )
    return path.read_bytes(), beside.read_bytes(), outcome.ledger.to_pylist()


def parts_of(folder, unit):
    """Files of a unit's part: rows and patches."""
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(unit.replace(":", "-")))


@pytest.mark.parametrize(
    "finished", [["s:a"], ["s:h"], ["s:c", "s:e"], ["s:b", "s:f"], KEPT, []], ids=lambda u: " ".join(u) or "none"
)
def test_patches_and_scales_are_bit_equal_whichever_scenes_were_finished(tmp_path, encoder, encoded, finished):
    folder = tmp_path / "parts"
    without = embed_all(Drawn(SHARD), tmp_path / "without", encoder=encoder)
    assert embed_all(Drawn(SHARD), tmp_path / "first", folder, encoder=encoder) == without
    for u in KEPT:
        mine = parts_of(folder, u)
        assert len(mine) == (1 if u in ("s:b", "s:f") else 2), "a scene without rows has no patches"
        for name in mine:
            if u not in finished:
                (folder / name).unlink()
    encoded.clear()
    assert embed_all(Drawn(SHARD), tmp_path / "with", folder, encoder=encoder) == without
    assert not {i.rpartition(":")[0] for i in encoded} & set(finished)
    rows = pq.read_table(tmp_path / "with")
    assert pq.read_table(tmp_path / "with.patches")["chip_id"].equals(rows["chip_id"])
    assert not [p for p in folder.iterdir() if "partial" in p.name]


@pytest.mark.parametrize("damage", ["gone", "short", "rotten", "others"])
def test_a_part_without_its_own_whole_patches_is_done_again(tmp_path, encoder, encoded, caplog, damage):
    folder = tmp_path / "parts"
    without = embed_all(Drawn(SHARD), tmp_path / "first", folder, encoder=encoder)
    patches_, _ = (folder / name for name in sorted(parts_of(folder, "s:c"), key=lambda n: ".patches." not in n))
    data = bytearray(patches_.read_bytes())
    if damage == "gone":
        patches_.unlink()
    elif damage == "short":
        patches_.write_bytes(data[:-40])
    elif damage == "rotten":
        data[len(data) // 2] ^= 0xFF
        patches_.write_bytes(data)
    else:
        patches_.write_bytes((folder / next(n for n in parts_of(folder, "s:a") if ".patches." in n)).read_bytes())
    encoded.clear()
    with caplog.at_level(logging.WARNING):
        assert embed_all(Drawn(SHARD), tmp_path / "again", folder, encoder=encoder) == without
    assert "checkpoint ignored" in caplog.text
    assert {i.rpartition(":")[0] for i in encoded} == {"s:c", "s:g"}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), TransientError("busy")], ids=repr)
def test_patches_of_a_scene_that_was_not_finished_leave_nothing_behind(tmp_path, encoder, error):
    class Breaks:
        cls_token, seen = encoder.cls_token, 0

        def __call__(self, *args, **told):
            self.seen += 1
            if self.seen == 3:
                raise error
            return encoder(*args, **told)

    folder = tmp_path / "parts"
    with pytest.raises(type(error)):
        embed_all(Drawn({"s:a": [1, 2], "s:c": list(range(3, 13))}), tmp_path / "o", folder, encoder=Breaks(), batch=2)
    assert [n for n in kept(folder).values() if "patches" not in n] == parts_of(folder, "s:a")[:1]
    assert not parts_of(folder, "s:c")
    Checkpoints.for_metadata(str(folder), WITH_PATCHES).delete(Drawn(SHARD).units())
    assert not list(folder.iterdir())


def test_patches_of_parts_on_a_store_come_back(bucket, tmp_path, encoder, encoded):
    folder = f"{bucket}/parts"

    def embed_there(source, path):
        beside = path.with_suffix(".patches")
        pipeline.embed(
            source, lambda: encoder, 32, path, WITH_PATCHES,
            policy=EmbedPolicy("zeros", 10.0, "int8", "both", patches=True),
            budget=Budget(3, 2, 1000), max_failed_fraction=1.0, patch_path=beside,
            checkpoints=Checkpoints.for_metadata(folder, WITH_PATCHES),
        )  # fmt: skip
        return path.read_bytes(), beside.read_bytes()

    first = embed_there(Drawn(SHARD), tmp_path / "first")
    assert sum(".patches." in uri for uri in storage.listing(folder)) == 4
    encoded.clear()
    assert embed_there(Drawn(SHARD), tmp_path / "again") == first
    assert {i.rpartition(":")[0] for i in encoded} == {"s:g"}
