"""Build or grow the explorer database from merged products: LanceDB, float16, checked, then tagged.

Products already in it are left alone, new or changed ones are upserted by chip_id, chips that no product has any more
are removed. A product of other weights or settings makes a new version of the whole table. Readers see the old
version until the new one is indexed, counted, its recall measured, and tagged.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.kiln import cli, explorer, storage
from scripts.kiln.errors import ConfigError, SourceError
from scripts.kiln.explorer import Table, lancedb
from scripts.kiln.fingerprint import digest

STATE = "products"  # table beside `chips`: which products are in it
BATCH = 2048  # rows fed at a time
EXACT_BELOW = 50_000  # rows; fewer are searched exactly, faster than an index would pay for itself
RECALL_QUERIES = 100
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


@dataclass(frozen=True)
class Select:
    """What goes in: every field that is set; `bbox` [west, south, east, north] holds the chip's centre."""

    datasets: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    bbox: tuple[float, float, float, float] | None = None
    max_rows: int = 10_000_000


def read_products(records: Sequence[str], products: Sequence[str]) -> list[Product]:
    """The products of the given records. Raises ConfigError for a record that is none."""
    made = []
    for record, uri in zip(records, products, strict=True):
        try:
            made.append(Product(json.loads(storage.read_bytes(record)), uri))
            made[-1].key  # noqa: B018 (raises KeyError for another JSON)
        except (ValueError, KeyError) as e:
            raise ConfigError(f"{record}: not the record of a product ({e}); merge it again") from e
    return sorted(made, key=lambda p: p.key)


def batches(product: Product, select: Select, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A product's rows as the explorer table has them, a few thousand at a time."""
    bare = columns.remove_metadata()
    for path in _files(product):
        wanted = [n for n in pq.read_schema(path).names if n not in ("geometry", "sources", "crs")]
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=wanted):
            if (rows := _rows(batch, product.record["dataset"], select, bare)) is not None:
                yield rows


def chip_ids(product: Product, select: Select) -> Iterator[str]:
    """The ids of a product's rows that `select` takes, without reading a vector."""
    for path in _files(product):
        wanted = [n for n in ("chip_id", "bbox", "year", "datetime") if n in pq.read_schema(path).names]
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=wanted):
            yield from batch["chip_id"].filter(pa.array(_keep(batch, select))).to_pylist()


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


def _centres(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes [n] of the chips' centres."""
    west, south, east, north = (np.asarray(batch["bbox"].field(k)) for k in ("xmin", "ymin", "xmax", "ymax"))
    return (west + east) / 2, (south + north) / 2


def _keep(batch: pa.RecordBatch, select: Select) -> np.ndarray:
    """Mask [n] of the rows that `select` takes."""
    keep = np.ones(len(batch), bool)
    if select.years:
        keep &= np.isin(np.asarray(_year(batch)), select.years)
    if select.bbox:
        (lon, lat), (w, s, e, n) = _centres(batch), select.bbox
        keep &= (lon >= w) & (lon <= e) & (lat >= s) & (lat <= n)
    return keep


def _rows(batch: pa.RecordBatch, dataset: str, select: Select, columns: pa.Schema) -> pa.RecordBatch | None:
    lon, lat = _centres(batch)
    vectors = batch["embeddings"].flatten().cast(pa.float16())
    arrays: dict[str, Any] = {
        explorer.VECTOR: pa.FixedSizeListArray.from_arrays(vectors, type=columns.field(explorer.VECTOR).type),
        "dataset": pa.array([dataset] * len(batch)),
        "year": _year(batch),
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "cell": pa.array(explorer.cells(lon, lat)),
        **{k: batch["bbox"].field(k) for k in ("xmin", "ymin", "xmax", "ymax")},
    }
    rows = pa.RecordBatch.from_arrays(
        [arrays.get(f.name, batch[f.name] if f.name in batch.schema.names else None) for f in columns], schema=columns
    )
    keep = _keep(batch, select)
    finite = np.isfinite(np.asarray(vectors)).reshape(len(batch), -1).all(axis=1)
    if not finite.all():
        raise SourceError(f"{rows['chip_id'][int(np.flatnonzero(~finite)[0])]}: its vector does not fit float16")
    return rows.filter(pa.array(keep)) if keep.any() else None


def table_about(products: Sequence[Product]) -> tuple[dict[str, Any], int]:
    """The `kiln` metadata by dataset, without sources, and the dimension D that all products share.

    Raises ConfigError for products of different weights, which must never be searched together.
    """
    about: dict[str, Any] = {}
    for p in products:
        with storage.local_copy(storage.join(p.uri, p.record["files"][0]["name"])) as path:
            kiln = json.loads(pq.read_schema(path).metadata[b"kiln"])
        for per_product in ("sources", "partition", "missing_shards"):
            kiln.pop(per_product, None)
        known = about.setdefault(p.record["dataset"], kiln)
        if known["fingerprint"] != kiln["fingerprint"]:
            raise ConfigError(f"{p.uri}: two fingerprints of {p.record['dataset']} cannot be in one database")
    weights = {a["weights_sha256"] for a in about.values()}
    if len(weights) > 1:
        raise ConfigError(f"products of {len(weights)} different weights: their vectors cannot be searched together")
    return about, next(iter(about.values()))["dimensions"]


def build(records: Sequence[str], products: Sequence[str], db: str, select: Select) -> dict[str, Any]:
    """Bring the database at `db` to the state of these products; returns what was measured.

    Raises ConfigError for more rows than `select.max_rows`, products that do not belong together, or none at all;
    SourceError for a broken product or recall below 0.95.
    """
    chosen = [
        p
        for p in read_products(records, products)
        if (not select.datasets or p.record["dataset"] in select.datasets)
        and (not select.partitions or p.record["partition"] in select.partitions)
    ]
    if not chosen:
        raise ConfigError("index.select leaves no product: look at its datasets and partitions")
    total = sum(p.record["rows"] for p in chosen)
    if total > select.max_rows and not (select.years or select.bbox):
        raise ConfigError(_too_many(total, select))
    about, dim = table_about(chosen)
    columns = explorer.chips_schema(dim, about)
    state = digest([sorted(p.key for p in chosen), select.years, select.bbox, json.loads(columns.metadata[b"kiln"])])
    connection = explorer.connect(db)
    table = _open(connection)
    if table is not None and _tagged(table, f"state-{state[:16]}") == _tagged(table, explorer.TAG) is not None:
        log.info("%s holds these products already: nothing to do", db)
        table.checkout(explorer.TAG)
        return _measure(table, state)
    present = _present(connection, state_of=table, columns=columns, select=select)
    if present is None:
        log.info("%s: a new table of %d products", db, len(chosen))
        reader = pa.RecordBatchReader.from_batches(
            columns, (b for p in chosen for b in _counted(batches(p, select, columns), select))
        )
        table = connection.create_table(explorer.TABLE, reader, schema=columns, mode="overwrite")
        table.set_unenforced_primary_key("chip_id")
    else:
        assert table is not None
        table.checkout_latest()
        grown = [p for p in chosen if p.key not in present]
        log.info("%s: %d of %d products are new or changed", db, len(grown), len(chosen))
        wanted = {c for p in chosen for c in chip_ids(p, select)}
        if len(wanted) > select.max_rows:
            raise ConfigError(_too_many(len(wanted), select))
        reader = pa.RecordBatchReader.from_batches(columns, (b for p in grown for b in batches(p, select, columns)))
        table.merge_insert("chip_id").when_matched_update_all().when_not_matched_insert_all().execute(reader)
        have = table.search().select(["chip_id"]).limit(table.count_rows()).to_arrow()["chip_id"].to_pylist()
        gone = sorted(set(have) - wanted)
        for first in range(0, len(gone), 500):
            table.delete(f"chip_id IN ({', '.join(explorer.quote(c) for c in gone[first : first + 500])})")
    _index(table)
    measured = _measure(table, state)
    if measured["recall_at_10"] < LEAST_RECALL:
        raise SourceError(
            f"{db}: recall@10 is {measured['recall_at_10']:.3f}, under {LEAST_RECALL}; the old version stays tagged"
        )
    for tag in table.tags.list():
        if tag.startswith("state-"):
            table.tags.delete(tag)
    _tag(table, f"state-{state[:16]}")
    _tag(table, explorer.TAG)
    table.optimize(cleanup_older_than=KEPT)
    keys = [dict(zip(("dataset", "partition", "digest"), p.key, strict=True)) for p in chosen]
    scope = digest([select.years, select.bbox, columns.metadata[b"kiln"].decode()])
    connection.create_table(STATE, pa.Table.from_pylist([k | {"scope": scope} for k in keys]), mode="overwrite")
    return measured


def _too_many(rows: int, select: Select) -> str:
    return (
        f"{rows} chips are more than index.select.max_rows {select.max_rows}: raise it (a million 1024-d chips take "
        "2 GB), or choose datasets, partitions, years or a bbox"
    )


def _counted(rows: Iterator[pa.RecordBatch], select: Select) -> Iterator[pa.RecordBatch]:
    n = 0
    for batch in rows:
        n += len(batch)
        if n > select.max_rows:
            raise ConfigError(_too_many(n, select))
        yield batch


def _open(connection: Any) -> Table | None:
    return connection.open_table(explorer.TABLE) if explorer.TABLE in connection.list_tables().tables else None


def _present(connection: Any, *, state_of: Table | None, columns: pa.Schema, select: Select) -> set | None:
    """Keys of the products that are in the table; None if it must be made anew."""
    if state_of is None or STATE not in connection.list_tables().tables:
        return None
    rows = connection.open_table(STATE).to_arrow().to_pylist()
    scope = digest([select.years, select.bbox, columns.metadata[b"kiln"].decode()])
    if any(r["scope"] != scope for r in rows) or _tagged(state_of, explorer.TAG) is None:
        return None
    return {(r["dataset"], r["partition"], r["digest"]) for r in rows}


def _tagged(table: Table, tag: str) -> int | None:
    return table.tags.list().get(tag, {}).get("version")


def _tag(table: Table, tag: str) -> None:
    if _tagged(table, tag) is None:
        table.tags.create(tag, table.version)
    else:
        table.tags.update(tag, table.version)


def _index(table: Table) -> None:
    """Vector and filter indexes where they are missing; new rows folded into those that are there."""
    have = {c for i in table.list_indices() for c in i.columns}
    rows = table.count_rows()
    if rows >= EXACT_BELOW and explorer.VECTOR not in have:
        table.create_index(explorer.VECTOR, config=lancedb.index.IvfSq(distance_type=explorer.METRIC))
    bitmap, tree = lancedb.index.Bitmap, lancedb.index.BTree
    scalar = {"cell": bitmap(), "dataset": bitmap(), "year": bitmap(), "chip_id": tree()}
    for column, config in scalar.items():
        if column not in have and rows:
            table.create_index(column, config=config)
    table.optimize()


def _measure(table: Table, state: str) -> dict[str, Any]:
    """Rows, kind of search, and recall@10 against exact search of seeded rows."""
    rows = table.count_rows()
    indexed = any(explorer.VECTOR in i.columns for i in table.list_indices())
    k = min(10, rows)
    recall = 1.0
    if indexed:
        chosen = np.random.default_rng(0).choice(rows, min(RECALL_QUERIES, rows), replace=False)
        vectors = table.take_offsets(sorted(chosen.tolist())).select([explorer.VECTOR]).to_arrow()[explorer.VECTOR]
        found = 0
        for vector in vectors:
            query = np.asarray(vector.as_py(), np.float32)
            ask = lambda: table.search(query, vector_column_name=explorer.VECTOR).distance_type(explorer.METRIC)  # noqa: E731, B023
            fast = ask().nprobes(explorer.PROBES).refine_factor(explorer.REFINE).limit(k).select(["chip_id"]).to_list()
            true = ask().bypass_vector_index().limit(k).select(["chip_id"]).to_list()
            found += len({r["chip_id"] for r in fast} & {r["chip_id"] for r in true})
        recall = found / (k * len(vectors))
    return {"rows": rows, "search": "IVF_SQ" if indexed else "exact", "recall_at_10": recall, "state": state[:16]}


def main(argv: list[str] | None = None) -> None:
    """Build or grow the explorer database."""
    p = cli.parser(__doc__, "scripts.index")
    p.add_argument("--records", nargs="+", required=True, help="records of the products to search together")
    p.add_argument("--products", nargs="+", help="their folders, path or s3://, if not the records' names less .json")
    p.add_argument("--db", required=True, help="path or s3:// of the database")
    p.add_argument("--record", required=True, help="the record to write last")
    p.add_argument("--select", type=json.loads, default={}, help="JSON: datasets, partitions, years, bbox, max_rows")
    args = p.parse_args(argv)

    def work() -> None:
        products = args.products or [r.removesuffix(".json") for r in args.records]
        if len(products) != len(args.records):
            raise ConfigError(f"{len(args.records)} records, but {len(products)} products")
        unknown = set(args.select) - set(Select.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"index.select: unknown {', '.join(sorted(unknown))}")
        select = Select(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.select.items() if v is not None})
        measured = build(args.records, products, args.db, select)
        record = {
            **measured,
            "tag": explorer.TAG,
            "products": [p.record for p in read_products(args.records, products)],
        }
        storage.write_bytes(args.record, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        log.info(
            "%s: %d chips, %s search, recall@10 %.3f",
            args.db,
            measured["rows"],
            measured["search"],
            measured["recall_at_10"],
        )

    cli.run(work)


if __name__ == "__main__":
    main()
