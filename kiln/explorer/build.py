"""Build or grow the explorer database from merged products and published files: LanceDB, float16, checked, then tagged.

Work starts from the tagged version, whatever a killed job left after it. Products already in it are left alone, new or
changed ones are upserted by chip_id, chips that no product has any more are removed; products of other weights or
settings make a new table. Readers see the old version until the new one is indexed, counted, its recall measured, and
tagged. Beside the table, `state/<version>.json` says which products a version holds and what was measured, and
`state/<version>-colours.json` how to colour its vectors.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kiln.cli import command_line
from kiln.errors import ConfigError, KilnError, SourceError, TransientError
from kiln.explorer import colours, database, published, recall
from kiln.explorer.database import Table, lancedb
from kiln.formats import embeddings_file, vectors
from kiln.formats.fingerprint import digest
from kiln.formats.parquet import read_batches
from kiln.io import storage

BATCH = 2048  # rows fed at a time
UNUSED = ("geometry", "sources", "crs")  # columns of products that the table is not made of
EXACT_BELOW = 50_000  # rows; fewer are searched exactly, faster than an index would pay for itself
LEAST_RECALL = 0.95
KEPT = timedelta(days=7)  # versions kept for readers that have them open
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Product:
    """A merged product: its record and where its files lie."""

    record: dict[str, Any]
    uri: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, partition and digest: what tells products apart."""
        return (
            self.record["dataset"],
            self.record["partition"],
            digest([self.record["fingerprint"], self.record["files"]]),
        )

    def about(self) -> dict[str, Any]:
        """The `kiln` metadata of its files."""
        with storage.local_copy(storage.join(self.uri, self.record["files"][0]["name"])) as path:
            return embeddings_file.read_metadata(path)


Source = Product | published.File  # of rows


@dataclass(frozen=True)
class Select:
    """What goes in: every field that is set, of published files `years` and `bbox` alone.

    `bbox` [west, south, east, north] holds the chip's centre; west > east goes over the antimeridian.
    """

    datasets: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    embedding: str | None = None  # `class` or `mean`, of Kiln's own products; None: the class token where there is one
    bbox: tuple[float, float, float, float] | None = None
    max_rows: int = 10_000_000

    def __post_init__(self) -> None:
        if self.bbox is not None:
            database.check_bbox(self.bbox)
        if self.embedding not in (None, "class", "mean"):
            raise ConfigError(f"index.select.embedding {self.embedding!r}: want class or mean")


def read_products(records: Sequence[str], products: Sequence[str]) -> list[Product]:
    """The products of the given records. Raises ConfigError for a record that is none."""
    made = []
    for record, uri in zip(records, products, strict=True):
        try:
            made.append(Product(json.loads(storage.read_bytes(record)), uri))
            made[-1].key  # noqa: B018 (raises for another JSON)
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"{record}: not the record of a product ({e}); merge it again") from e
    return sorted(made, key=lambda p: p.key)


def batches(source: Source, select: Select, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A source's rows as the explorer table has them, a few thousand at a time."""
    bare = columns.remove_metadata()
    for batch in _read(source, lambda names: vectors.searched_columns(names, select.embedding, UNUSED)):
        if (rows := _rows(batch, source.record["dataset"], select, bare)) is not None:
            yield rows


def chip_ids(source: Source, select: Select) -> Iterator[str]:
    """The ids of a source's rows that `select` takes; of a product, without reading a vector."""
    for batch in _read(source, lambda names: [n for n in names if n in ("chip_id", "bbox", "year", "datetime")]):
        yield from batch["chip_id"].filter(pa.array(_keep(batch, select))).to_pylist()


def _read(source: Source, wanted: Callable[[list[str]], list[str]]) -> Iterator[pa.RecordBatch]:
    """A source's rows; a published file always gives all columns, since its vectors tell which rows there are."""
    if isinstance(source, published.File):
        yield from source.read()
        return
    for path in _files(source):
        yield from read_batches(path, BATCH, wanted(pq.read_schema(path).names))


def _files(product: Product) -> Iterator[Path]:
    """The product's files on this machine, one at a time."""
    for file in product.record["files"]:
        with storage.local_copy(storage.join(product.uri, file["name"])) as path:
            if path.stat().st_size != file["size"]:
                raise SourceError(f"{path}: not the {file['size']} bytes its record says; merge the product again")
            yield path


def _year(batch: pa.RecordBatch) -> pa.Array:
    """The partition's year where the dataset has one, else that of the acquisition."""
    years = batch["year"] if "year" in batch.schema.names else pc.year(batch["datetime"])
    return years.cast(pa.int16())


def _keep(batch: pa.RecordBatch, select: Select) -> np.ndarray:
    """Mask [n] of the rows that `select` takes."""
    keep = np.ones(len(batch), bool)
    if select.years:
        keep &= np.isin(np.asarray(_year(batch)), select.years)
    if select.bbox:
        (lon, lat), (w, s, e, n) = embeddings_file.box_centres(batch["bbox"]), select.bbox
        keep &= (lon >= w) & (lon <= e) if w < e else (lon >= w) | (lon <= e)
        keep &= (lat >= s) & (lat <= n)
    return keep


def _rows(batch: pa.RecordBatch, dataset: str, select: Select, columns: pa.Schema) -> pa.RecordBatch | None:
    lon, lat = embeddings_file.box_centres(batch["bbox"])
    numbers = vectors.read(batch, vectors.vector_column(batch.schema.names, select.embedding))
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        halves = numbers.astype(np.float16)
    arrays: dict[str, Any] = {
        **vectors.to_arrow({database.VECTOR: halves}, columns),
        "dataset": pa.array([dataset] * len(batch)),
        "year": _year(batch),
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "cell": pa.array(database.cells(lon, lat)),
        **{k: batch["bbox"].field(k) for k in ("xmin", "ymin", "xmax", "ymax")},
    }
    rows = pa.RecordBatch.from_arrays(
        [arrays.get(f.name, batch[f.name] if f.name in batch.schema.names else None) for f in columns], schema=columns
    )
    keep = _keep(batch, select)
    finite = vectors.finite_rows({database.VECTOR: halves})
    if not finite.all():
        raise SourceError(f"{rows['chip_id'][int(np.flatnonzero(~finite)[0])]}: its vector does not fit float16")
    return rows.filter(pa.array(keep)) if keep.any() else None


def table_about(sources: Sequence[Source], kind: str | None = None) -> tuple[dict[str, Any], int]:
    """The `kiln` metadata by dataset, without sources, and the dimension D that all share.

    Its `embedding` is what the table holds: `kind` of products that hold both. Raises ConfigError for a product
    without that kind, and for vectors of different weights, kinds or lengths, which must never be searched together.
    """
    about: dict[str, Any] = {}
    for source in sources:
        kiln = source.about()
        for per_product in ("sources", "partition", "missing_shards", "dequantisation"):
            kiln.pop(per_product, None)
        if isinstance(source, Product):
            kiln["embedding"] = vectors.select_kind(kiln["embedding"], kind, source.uri)
        known = about.setdefault(source.record["dataset"], kiln)
        if known["fingerprint"] != kiln["fingerprint"]:
            raise ConfigError(f"{source.uri}: two fingerprints of {kiln['dataset']} cannot be in one database")
    spaces = {database.space(a) for a in about.values()}
    if len(spaces) > 1:
        told = "; ".join(
            f"{n}: {', '.join(filter(None, (a['model'], a['embedding'], str(a['dimensions']))))} numbers"
            for n, a in sorted(about.items())
        )
        raise ConfigError(
            f"vectors of {len(spaces)} different weights, kinds or lengths cannot be searched together ({told}): "
            "give each its own run, or --db"
        )
    return about, next(iter(about.values()))["dimensions"]


def build(
    records: Sequence[str], products: Sequence[str], db: str, select: Select, files: Sequence[published.File] = ()
) -> dict[str, Any]:
    """Bring the database at `db` to the state of these products and published files; returns what was measured.

    Raises ConfigError for more rows than `select.max_rows`, sources that do not belong together, or none at all;
    SourceError for a broken one or recall below 0.95; TransientError if another job writes the same database.
    """
    chosen: list[Source] = [
        p
        for p in read_products(records, products)
        if (not select.datasets or p.record["dataset"] in select.datasets)
        and (not select.partitions or p.record["partition"] in select.partitions)
    ]
    if records and not chosen:
        raise ConfigError("index.select leaves no product: look at its datasets and partitions")
    chosen += files
    if not (select.years or select.bbox):
        _check_rows(sum(p.record.get("rows", 0) for p in chosen), select)
    about, dim = table_about(chosen, select.embedding)
    columns = database.chips_schema(dim, about)
    scope = digest([select.years, select.bbox, columns.metadata[b"kiln"].decode()])
    state = {"scope": scope, "products": sorted(list(p.key) for p in chosen)}
    try:
        with _conflicts(db):
            return _bring(database.connect(db), db, chosen, columns, select, state)
    except (FileExistsError, NotADirectoryError) as e:
        raise ConfigError(f"{db}: no place for a database: {e.strerror}") from e


def _check_rows(rows: int, select: Select) -> None:
    if rows > select.max_rows:
        raise ConfigError(
            f"{rows} chips are more than index.select.max_rows {select.max_rows}: raise it (a million 1024-d chips "
            "take 2 GB), or choose datasets, partitions, years or a bbox"
        )


def _wanted(chosen: Sequence[Source], select: Select) -> set[str]:
    """The ids of all rows that go in. Raises ConfigError for none or too many, SourceError for one that comes twice."""
    wanted: set[str] = set()
    dropped: Counter[tuple[str, str]] = Counter()
    for source in chosen:
        ids = list(chip_ids(source, select))
        whole = len(wanted) + len(ids)
        _check_rows(whole, select)
        twice = next((c for c, n in Counter(ids).items() if n > 1 or c in wanted), None)
        if twice is not None:
            raise SourceError(f"{source.uri}: {twice} is there already, from two products or files; ids must be unique")
        wanted.update(ids)
        if isinstance(source, published.File):
            dropped.update({(source.entry.name, why): n for why, n in source.dropped.items()})
    for (name, why), count in sorted(dropped.items()):
        log.warning("%s: %d rows dropped: %s", name, count, why)
    if not wanted and (select.years or select.bbox):
        raise ConfigError("index.select leaves no chip: look at its years and bbox")
    return wanted


def _bring(
    connection: Any, db: str, chosen: Sequence[Source], columns: pa.Schema, select: Select, state: dict[str, Any]
) -> dict[str, Any]:
    chips = _open(connection)
    tagged = _tagged(chips) if chips is not None else None
    held = _state(db, tagged)
    if tagged is not None and {k: held.get(k) for k in state} == state:
        log.info("%s holds these products already: nothing to do", db)
        chips.checkout(database.TAG)
        _check_rows(chips.count_rows(), select)
        _colour(chips, db, tagged)
        return held.get("measured") or _measure(chips, state)
    wanted = _wanted(chosen, select)
    if held.get("scope") == state["scope"]:
        known = {tuple(key) for key in held["products"]}
        grown = [p for p in chosen if p.key not in known]
        log.info("%s: %d of %d products are new or changed", db, len(grown), len(chosen))
        chips.checkout(database.TAG)
        chips.restore()  # what a killed job wrote after the tag is not built upon
        with _stream(grown, select, columns) as reader:
            upsert = chips.merge_insert("chip_id").when_matched_update_all().when_not_matched_insert_all()
            upsert.use_index(False).execute(reader)  # through the index, two writers would double rows
        gone = sorted(set(_ids(chips)) - wanted)
        for first in range(0, len(gone), 500):
            chips.delete(f"chip_id IN ({', '.join(database.quote(c) for c in gone[first : first + 500])})")
    else:
        log.info("%s: a new table of %d products", db, len(chosen))
        with _stream(chosen, select, columns) as reader:
            mode = "create" if chips is None else "overwrite"
            chips = connection.create_table(database.TABLE, reader, schema=columns, mode=mode)
        chips.set_unenforced_primary_key("chip_id")
    ids = _ids(chips)
    if twice := [c for c, n in Counter(ids).items() if n > 1]:
        raise SourceError(f"{twice[0]} and {len(twice) - 1} more chips are in two products; ids must be unique")
    if set(ids) != wanted:
        raise SourceError(f"{db}: {len(ids)} chips were written, {len(wanted)} are in the products; run again")
    _index(chips)
    measured = _measure(chips, state)
    if measured["recall_at_10"] < LEAST_RECALL:
        raise SourceError(
            f"{db}: recall@10 is {measured['recall_at_10']:.3f}, under {LEAST_RECALL}; the old version stays tagged"
        )
    _colour(chips, db, chips.version)
    text = json.dumps(state | {"measured": measured}, sort_keys=True) + "\n"
    storage.write_bytes(storage.join(db, "state", f"{chips.version}.json"), text.encode())
    _tag(chips)
    return measured


@contextmanager
def _conflicts(db: str) -> Iterator[None]:
    """TransientError for what LanceDB says when two jobs write one table."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as e:
        said = str(e).lower()
        if not any(word in said for word in ("conflict", "incompatible transaction", "preempted", "already exists")):
            raise
        raise TransientError(f"{db}: another job is writing it; run again ({str(e).splitlines()[0][:160]})") from e


@contextmanager
def _stream(products: Sequence[Source], select: Select, columns: pa.Schema) -> Iterator[pa.RecordBatchReader]:
    """The products' rows for LanceDB, which hides our errors in its own: they are raised here as they were."""
    failed: list[KilnError] = []

    def rows() -> Iterator[pa.RecordBatch]:
        try:
            for product in products:
                yield from batches(product, select, columns)
        except KilnError as e:
            failed.append(e)
            raise

    try:
        yield pa.RecordBatchReader.from_batches(columns, rows())
    except (RuntimeError, OSError, ValueError, KilnError):
        if failed:
            raise failed[0] from None
        raise


def _open(connection: Any) -> Table | None:
    """The table, if it has a version: a folder without one is being made, or its maker was killed."""
    if database.TABLE not in connection.list_tables().tables:
        return None
    try:
        return connection.open_table(database.TABLE)
    except ValueError as e:
        if "not found" not in str(e):
            raise
        return None


def _ids(chips: Table) -> list[str]:
    return chips.search().select(["chip_id"]).limit(max(1, chips.count_rows())).to_arrow()["chip_id"].to_pylist()


def _tagged(chips: Table) -> int | None:
    return chips.tags.list().get(database.TAG, {}).get("version")


def _tag(chips: Table) -> None:
    """Show this version to readers; versions that nobody can have open any more go."""
    if _tagged(chips) is None:
        chips.tags.create(database.TAG, chips.version)
    else:
        chips.tags.update(database.TAG, chips.version)
        chips.optimize(cleanup_older_than=KEPT)


def _state(db: str, version: int | None) -> dict[str, Any]:
    """Which products a version holds; empty if there is no such version."""
    uri = storage.join(db, "state", f"{version}.json")
    return json.loads(storage.read_bytes(uri)) if version is not None and storage.stat(uri) else {}


def _index(chips: Table) -> None:
    """Vector and filter indexes where they are missing; new rows folded into those that are there."""
    have = {c for i in chips.list_indices() for c in i.columns}
    rows = chips.count_rows()
    if rows >= EXACT_BELOW and database.VECTOR not in have:
        chips.create_index(database.VECTOR, config=lancedb.index.IvfSq(distance_type=database.METRIC))
    bitmap, tree = lancedb.index.Bitmap, lancedb.index.BTree
    scalar = {"cell": bitmap(), "dataset": bitmap(), "year": bitmap(), "chip_id": tree()}
    for column, config in scalar.items():
        if column not in have and rows:
            chips.create_index(column, config=config)
    chips.optimize()


def _measure(chips: Table, state: dict[str, Any]) -> dict[str, Any]:
    """Rows, kind of search, its recall@10 and time per query, and what the version holds."""
    return {**recall.measure(chips), "state": digest(state)[:16]}


def _colour(chips: Table, db: str, version: int) -> None:
    """Put beside a version how its vectors are coloured, if it is not there."""
    uri = colours.name(db, version)
    if storage.stat(uri) is None:
        about = json.loads(chips.schema.metadata[b"kiln"])
        storage.write_bytes(uri, colours.to_bytes(colours.fit_table(chips, about)))


def main(argv: list[str] | None = None) -> None:
    """Build or grow the explorer database."""
    p = command_line.parser(__doc__, "kiln.explorer.build")
    p.add_argument("--records", nargs="*", default=[], help="records of the products to search together")
    p.add_argument("--products", nargs="*", help="their folders, path or s3://, if not the records' names less .json")
    p.add_argument("--published", type=json.loads, default=[], help="JSON as index.published: others' files to take in")
    p.add_argument("--db", required=True, help="path or s3:// of the database")
    p.add_argument("--record", required=True, help="the record to write last")
    p.add_argument("--withdraw", metavar="FOLDER", help="folder of records: others speak of a database that is gone")
    p.add_argument("--select", type=json.loads, default={}, help="JSON: datasets, partitions, years, bbox, max_rows")
    args = p.parse_args(argv)

    def work() -> None:
        products = args.products or [r.removesuffix(".json") for r in args.records]
        if len(products) != len(args.records):
            raise ConfigError(f"{len(args.records)} records, but {len(products)} products")
        files = published.files_of(published.entries(args.published))
        if not (args.records or files):
            raise ConfigError("nothing to index: want --records or --published")
        unknown = set(args.select) - set(Select.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"index.select: unknown {', '.join(sorted(unknown))}")
        select = Select(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.select.items() if v is not None})
        for other in storage.listing(args.withdraw) if args.withdraw else {}:
            if other.rpartition("/")[2] != args.record.rpartition("/")[2]:
                storage.delete(other)
        measured = build(args.records, products, args.db, select, files)
        record = {
            **{k: v for k, v in measured.items() if k != "query_ms"},  # equal runs write equal records
            "tag": database.TAG,
            "embedding": {name: a["embedding"] for name, a in sorted(database.Explorer(args.db).about.items())},
            "products": [p.record for p in read_products(args.records, products)],
            "published": [
                {"file": f.uri, "size": f.size, "version": f.version, "dataset": f.entry.name} for f in files
            ],
        }
        storage.write_bytes(args.record, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        log.info(
            "%s: %d chips, %s search, recall@10 %.3f, %.1f ms a query",
            args.db,
            *(measured[k] for k in ("rows", "search", "recall_at_10", "query_ms")),
        )

    command_line.run(work)


if __name__ == "__main__":
    main()
