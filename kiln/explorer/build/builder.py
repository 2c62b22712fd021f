"""Build or grow the explorer database: LanceDB, float16, checked, then tagged.

A build starts from the tagged version, also if a killed build left a newer one. Sources in the database stay, new or
changed ones are upserted by chip_id, and chips that no source has any more are removed. Sources of other weights or
settings make a new table, and so does a table of an older Kiln that lacks a column. Readers see the old version until
the new one is indexed, counted, its recall measured, and tagged. Next to the table, `state/<version>.json` records
which sources a version holds and what was measured, and `state/<version>-colours.json` how its vectors become colours.
"""

import json
import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.index import Bitmap, BTree, IvfSq

from kiln.errors import ConfigError, KilnError, SourceError, TransientError
from kiln.explorer.build.products import (
    RowSource,
    Select,
    read_products,
    selected_ids,
    table_metadata,
    table_rows,
)  # fmt: skip
from kiln.explorer.build.published import PublishedFile
from kiln.explorer.build.recall import measure_recall
from kiln.explorer.build.table_files import read_file_digests, write_file_digests
from kiln.explorer.colours import write_colours
from kiln.explorer.database import (
    METRIC,
    TABLE,
    TAG,
    VECTOR,
    ExplorerDatabase,
    Table,
    chips_schema,
    connect,
    first_line,
)
from kiln.explorer.filters import quote
from kiln.formats.fingerprint import digest
from kiln.formats.json_digest import with_digest
from kiln.io import storage
from kiln.io.in_thread import in_thread
from kiln.io.lance import store_error

MIN_INDEXED_ROWS = 50_000  # fewer are searched exactly, faster than an index would pay for itself
MIN_RECALL = 0.95
OLD_VERSIONS = timedelta(days=7)  # stay for readers that have them open
DELETED_AT_ONCE = 500  # rows
MAX_WAITING_BATCHES = 2  # of rows, before LanceDB takes them
FILTER_INDEXES: dict[str, Bitmap | BTree] = {
    "cell": Bitmap(), "dataset": Bitmap(), "year": Bitmap(), "chip_id": BTree(),
}  # fmt: skip
CONFLICTS = ("conflict", "incompatible transaction", "preempted", "already exists")  # in LanceDB's messages
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What a database shall hold.

    Attributes:
        sources: The sources of its rows.
        select: The selection of their rows.
        schema: The columns of its table, with the `kiln` metadata.
    """

    sources: Sequence[RowSource]
    select: Select
    schema: pa.Schema

    def state(self) -> dict[str, Any]:
        """Return the state to record: a version with equal `scope` can grow, one with equal state is finished."""
        kiln = self.schema.metadata[b"kiln"].decode()
        scope = digest([self.select.years, self.select.bbox, kiln, self.schema.names])
        return {"scope": scope, "products": sorted(list(s.key) for s in self.sources)}


@dataclass(frozen=True)
class TaggedVersion:
    """The version that readers see: its table, its number and its recorded state."""

    chips: Table
    version: int
    state: dict[str, Any]

    def missing_columns(self, target: Target) -> list[str]:
        """Return the columns that it lacks, because an older Kiln built it."""
        self.chips.checkout(self.version)
        return [name for name in target.schema.names if name not in self.chips.schema.names]

    def holds(self, target: Target) -> bool:
        """Return whether it is what `target` describes."""
        target_state = target.state()
        return {k: self.state.get(k) for k in target_state} == target_state


def build(
    records: Sequence[str], products: Sequence[str], db: str, select: Select, files: Sequence[PublishedFile] = ()
) -> dict[str, Any]:
    """Bring a database to the state of products and published files.

    Args:
        records: Records of the products.
        products: Folders of the products' files, one for each record.
        db: Path or s3:// URI of the database.
        select: Which products and rows go in.
        files: Published files that go in.

    Returns:
        Rows, kind of search, recall@10, settings, milliseconds per query, and a digest of the state.

    Raises:
        ConfigError: More rows than `select.max_rows`, sources of different vector spaces, or none at all; or a store
            without conditional PUT.
        SourceError: A broken source, or a recall below MIN_RECALL.
        StorageError: The database cannot be written.
        TransientError: Another job writes the same database, or its store does not answer.
    """
    if storage.is_s3(db):
        storage.require_conditional_put(db)
    chosen: list[RowSource] = [p for p in read_products(records, products) if select.takes_product(p)]
    if records and not chosen:
        raise ConfigError("index.select leaves no product. Correct its datasets and partitions.")
    chosen += files
    if not (select.years or select.bbox):
        select.check_rows(sum(s.expected_rows for s in chosen))
    metadata, dim = table_metadata(chosen, select.embedding)
    target = Target(chosen, select, chips_schema(dim, metadata))
    try:
        with _conflicts(db):
            return _bring_up_to_date(connect(db), db, target)
    except (FileExistsError, NotADirectoryError) as e:
        raise ConfigError(f"{db}: expected a folder for a database, got {e.strerror}. Choose another place.") from e


def build_index(
    records: Sequence[str],
    products: Sequence[str],
    db: str,
    record: str,
    *,
    select: Select,
    files: Sequence[PublishedFile] = (),
    other_records: str | None = None,
) -> None:
    """Build a database, then write the record of the rule `build_index`.

    Args:
        records: Records of the products.
        products: Folders of the products' files, one for each record.
        db: Path or s3:// URI of the database.
        record: Path or URI of the record, written last.
        select: Which products and rows go in.
        files: Published files that go in.
        other_records: Folder of the database's records: those of other builds are deleted first.

    Raises:
        What `build` raises.
    """
    if len(products) != len(records):
        raise ConfigError(f"--products: expected one for each record, got {len(products)} for {len(records)} records.")
    if not (records or files):
        raise ConfigError("nothing to index: expected --records or --published.")
    for other in storage.listing(other_records) if other_records else {}:
        if other.rpartition("/")[2] != record.rpartition("/")[2]:
            storage.delete(other)
    measured = build(records, products, db, select, files)
    content = {
        **{k: v for k, v in measured.items() if k != "query_ms"},  # equal runs write equal records
        "tag": TAG,
        "embedding": {name: m["embedding"] for name, m in sorted(ExplorerDatabase(db).metadata.items())},
        "products": [p.record for p in read_products(records, products)],
        "published": [{"file": f.uri, "size": f.size, "version": f.version, "dataset": f.dataset} for f in files],
    }
    storage.write_bytes(record, (json.dumps(with_digest(content), indent=1, sort_keys=True) + "\n").encode())
    log.info(
        "%s: %d chips, %s search, recall@10 %.3f, %.1f ms a query",
        db,
        *(measured[k] for k in ("rows", "search", "recall_at_10", "query_ms")),
    )


def _bring_up_to_date(connection: lancedb.DBConnection, db: str, target: Target) -> dict[str, Any]:
    chips = _open_table(connection)
    tagged = None if chips is None else _tagged_version(chips, db)
    if tagged is not None and tagged.holds(target):
        log.info("%s holds these products already: nothing to do", db)
        tagged.chips.checkout(TAG)
        target.select.check_rows(tagged.chips.count_rows())
        write_colours(tagged.chips, db, tagged.version)
        if read_file_digests(db, tagged.version) is None:  # an older Kiln built it
            write_file_digests(db, tagged.version)
        measured: dict[str, Any] | None = tagged.state.get("measured")
        return measured or measure(tagged.chips, target)
    ids = _expected_ids(target)
    if tagged is not None and tagged.state.get("scope") == target.state()["scope"]:
        chips = _grow(tagged, db, target, ids)
    else:
        if tagged is not None and (missing := tagged.missing_columns(target)):
            log.warning(
                "%s: an older Kiln built it without the column %s; every product is read again, and readers see the "
                "old version until that is done",
                db,
                ", ".join(missing),
            )
        log.info("%s: a new table of %d products", db, len(target.sources))
        with _reader(target.sources, target) as reader:
            mode = "create" if chips is None else "overwrite"
            chips = connection.create_table(TABLE, reader, schema=target.schema, mode=mode)
        chips.set_unenforced_primary_key("chip_id")  # type: ignore[attr-defined]  # LanceTable has it, Table has not
    _check_ids(chips, db, ids)
    create_indexes(chips)
    measured = measure(chips, target)
    if measured["recall_at_10"] < MIN_RECALL:
        raise SourceError(
            f"{db}: recall@10 is {measured['recall_at_10']:.3f}, under {MIN_RECALL}; the old version stays tagged"
        )
    write_colours(chips, db, chips.version)
    text = json.dumps(target.state() | {"measured": measured}, sort_keys=True) + "\n"
    storage.write_bytes(storage.join(db, "state", f"{chips.version}.json"), text.encode())
    version = chips.version
    _tag(chips)
    write_file_digests(db, version)
    return measured


def _expected_ids(target: Target) -> set[str]:
    """Return the ids of all rows that go in. Raise ConfigError for none or too many, SourceError for a duplicate."""
    ids: set[str] = set()
    dropped: Counter[tuple[str, str]] = Counter()
    for source in target.sources:
        own_ids = selected_ids(source, target.select)
        target.select.check_rows(len(ids) + len(own_ids))
        twice = next((c for c, n in Counter(own_ids).items() if n > 1 or c in ids), None)
        if twice is not None:
            raise SourceError(f"{source.uri}: {twice} is there already, from two products or files; ids must be unique")
        ids.update(own_ids)
        dropped.update({(source.dataset, why): n for why, n in source.dropped.items()})
    for (name, why), count in sorted(dropped.items()):
        log.warning("%s: %d rows dropped: %s", name, count, why)
    if not ids and (target.select.years or target.select.bbox):
        raise ConfigError("index.select leaves no chip. Correct its years and bbox.")
    return ids


def _grow(tagged: TaggedVersion, db: str, target: Target, ids: set[str]) -> Table:
    """Upsert the rows of new or changed sources into the tagged version, and delete rows of no source."""
    known = {tuple(key) for key in tagged.state["products"]}
    changed = [s for s in target.sources if s.key not in known]
    log.info("%s: %d of %d products are new or changed", db, len(changed), len(target.sources))
    chips = tagged.chips
    chips.checkout(TAG)
    chips.restore()  # what a killed build wrote after the tag is not built upon
    with _reader(changed, target) as reader:
        upsert = chips.merge_insert("chip_id").when_matched_update_all().when_not_matched_insert_all()
        upsert.use_index(False).execute(reader)  # through the index, two writers would double rows
    gone = sorted(set(_ids(chips)) - ids)
    for first in range(0, len(gone), DELETED_AT_ONCE):
        chips.delete(f"chip_id IN ({', '.join(quote(c) for c in gone[first : first + DELETED_AT_ONCE])})")
    return chips


def _check_ids(chips: Table, db: str, expected: set[str]) -> None:
    """Raise SourceError unless the table has each of the expected ids once."""
    ids = _ids(chips)
    if twice := [c for c, n in Counter(ids).items() if n > 1]:
        raise SourceError(f"{twice[0]} and {len(twice) - 1} more chips are in two products; ids must be unique")
    if set(ids) != expected:
        raise SourceError(f"{db}: expected {len(expected)} chips as in the products, got {len(ids)}. Run again.")


@contextmanager
def _conflicts(db: str) -> Iterator[None]:
    """Raise Kiln's errors for those of LanceDB: of two jobs that write one table, and of the store."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as e:
        if any(word in str(e).lower() for word in CONFLICTS):
            raise TransientError(f"{db}: another job is writing it; run again ({first_line(e)})") from e
        is_of_lance = isinstance(e, RuntimeError) or (isinstance(e, OSError) and e.errno is None)
        if is_of_lance and (error := store_error(db, e)):
            raise error from e
        raise


@contextmanager
def _reader(sources: Sequence[RowSource], target: Target) -> Iterator[pa.RecordBatchReader]:
    """Yield the sources' rows for LanceDB, which wraps our errors in its own: they are raised here unchanged.

    LanceDB takes batches in threads of its own, in which PROJ crashes. The rows are made in a thread of Python.
    """
    failed: list[KilnError] = []

    def rows() -> Generator[pa.RecordBatch, None, None]:
        try:
            for source in sources:
                yield from table_rows(source, target.select, target.schema)
        except KilnError as e:
            failed.append(e)
            raise

    try:
        yield pa.RecordBatchReader.from_batches(target.schema, in_thread(rows(), MAX_WAITING_BATCHES))
    except (RuntimeError, OSError, ValueError, KilnError):
        if failed:
            raise failed[0] from None
        raise


def _open_table(connection: lancedb.DBConnection) -> Table | None:
    """Return the table, if it has a version: without one it is being created, or its writer was killed."""
    if TABLE not in connection.list_tables().tables:
        return None
    try:
        return connection.open_table(TABLE)
    except ValueError as e:
        if "not found" not in str(e):
            raise
        return None


def _ids(chips: Table) -> list[str]:
    ids: list[str] = (
        chips.search().select(["chip_id"]).limit(max(1, chips.count_rows())).to_arrow()["chip_id"].to_pylist()
    )
    return ids


def _tag_version(chips: Table) -> int | None:
    tags: dict[str, Any] = dict(chips.tags.list())
    version: int | None = tags.get(TAG, {}).get("version")
    return version


def _tagged_version(chips: Table, db: str) -> TaggedVersion | None:
    """Return the tagged version with its state, empty if there is no record; None: nothing is tagged yet."""
    if (version := _tag_version(chips)) is None:
        return None
    uri = storage.join(db, "state", f"{version}.json")
    return TaggedVersion(chips, version, json.loads(storage.read_bytes(uri)) if storage.stat(uri) else {})


def _tag(chips: Table) -> None:
    """Show this version to readers; remove versions that no reader can have open any more."""
    if _tag_version(chips) is None:
        chips.tags.create(TAG, chips.version)
    else:
        chips.tags.update(TAG, chips.version)
        chips.optimize(cleanup_older_than=OLD_VERSIONS)


def create_indexes(chips: Table) -> None:
    """Create vector and filter indexes that are missing; fold new rows into those that exist."""
    indexed = {column for index in chips.list_indices() for column in index.columns}
    rows = chips.count_rows()
    if rows >= MIN_INDEXED_ROWS and VECTOR not in indexed:
        chips.create_index(VECTOR, config=IvfSq(distance_type=METRIC))
    for column, config in FILTER_INDEXES.items():
        if column not in indexed and rows:
            chips.create_index(column, config=config)
    chips.optimize()


def measure(chips: Table, target: Target) -> dict[str, Any]:
    """Return rows, kind of search, its recall@10 and time per query, and a digest of the state."""
    return {**measure_recall(chips), "state": digest(target.state())[:16]}
