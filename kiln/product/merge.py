"""Merge the shards of one partition into its product: sorted GeoParquet parts, ledger, STAC, data card, record.

The merge works out of core. Keys come from the footprints' bounding boxes, rows go to buckets on disk, and each bucket
is sorted and written as complete row groups. The bytes of a product do not depend on the memory. Data is written first,
the record last.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kiln.archives.registry import get_archive
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file, plan_file
from kiln.formats.fingerprint import digest
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA, ledger_name, read_ledger, write_ledger
from kiln.io import storage
from kiln.product.deduplicate import deduplicate, move_removed
from kiln.product.description.data_card import data_card
from kiln.product.description.stac import stac_documents
from kiln.product.description.stac_fields import README
from kiln.product.facts import ProductFacts
from kiln.product.order import hilbert_order
from kiln.product.part_writer import product_schema, write_parts
from kiln.product.record import LedgerFile, ProductFile, ProductRecord, write_record

LEDGER = "ledger.parquet"
ONE_VALUE_KEYS = ("fingerprint", "partition", "vector_dtype", "dimensions")  # equal in the metadata of all shards
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeOptions:
    """How a product is written.

    Attributes:
        deduplicate: Keep one row per lattice cell: the one with the least nodata.
        memory_bytes: Memory of the sort. It does not change the product.
        row_group_rows: Rows of a row group at most. A giant group would make remote readers fetch complete columns.
        part_bytes: Bytes of a part at most, given smaller row groups.
        costs: Path or s3:// of the record of what the jobs took, which the STAC collection links.
    """

    deduplicate: bool = False
    memory_bytes: int = 1 << 30
    row_group_rows: int = 50_000
    part_bytes: int = 2_000_000_000
    costs: str | None = None


def merge_partition(
    plan: str,
    shards: str,
    product: str,
    *,
    partition: str | None = None,
    ledgers: str | None = None,
    record: str | None = None,
    allow_missing: bool = False,
    options: MergeOptions | None = None,
) -> ProductRecord:
    """Merge the shards of a plan and write the product's record.

    Args:
        plan: Path or s3:// of the plan.
        shards: Local folder of the embeddings files.
        product: Path or s3:// of the folder to write.
        partition: The partition to merge, where the plan has several.
        ledgers: Path or s3:// of the folder of the ledgers, by default that of the shards.
        record: Path or s3:// of the record, by default `<product>.json`.
        allow_missing: Merge the shards that exist. The product names the others.
        options: How the product is written.

    Raises:
        ConfigError: If the plan is damaged, no shard exists, or shards do not belong together.
        SourceError: If a shard or ledger is missing or damaged.
    """
    planned = [shard.name for shard in plan_file.read_plan(plan, partition)]
    names = [n for n in planned if not allow_missing or (Path(shards) / f"{n}.parquet").is_file()]
    missing = sorted(set(planned) - set(names))
    merged = merge(names, shards, ledgers or shards, product, missing=missing, options=options)
    write_record(record or f"{product}.json", merged)
    log.info("%s: %d rows in %d parts from %d shards", product, merged.rows, len(merged.files), len(names))
    if missing:
        log.warning("%d shards are missing in this product", len(missing))
    return merged


def merge(
    names: Sequence[str],
    shards: str,
    ledgers: str,
    product: str,
    *,
    missing: Sequence[str] = (),
    options: MergeOptions | None = None,
) -> ProductRecord:
    """Merge the named shards into a product, without its record.

    Args:
        names: Names of the shards.
        shards: Local folder of the embeddings files.
        ledgers: Path or s3:// of the folder of the ledgers.
        product: Path or s3:// of the folder to write. Files of an earlier merge are deleted.
        missing: Names of planned shards that are left out. The product names them.
        options: How the product is written.

    Raises:
        ConfigError: If no shard is named, or shards do not belong together.
        SourceError: If a shard or ledger is missing or damaged, or rows and ledgers disagree.
    """
    options = options or MergeOptions()
    paths = [Path(shards) / f"{name}.parquet" for name in names]
    if absent := [path for path in paths if not path.is_file()]:
        raise SourceError(
            f"{absent[0]}: expected {len(paths)} shards, got {len(absent)} of {len(paths)} shards missing. "
            "Embed them first."
        )
    if not paths:
        raise ConfigError(f"{shards}: expected shards, got no shard to merge. Embed some first.")
    metadata = product_metadata(paths)
    ledger = merge_ledgers([ledger_name(storage.join(ledgers, f"{name}.parquet")) for name in names])
    if missing:
        metadata["missing_shards"] = sorted(missing)
    keep = None
    if options.deduplicate:
        metadata["deduplicated"] = True
        result = deduplicate(paths, ledger)
        keep, ledger = result.keep, move_removed(ledger, result.removed)
    schema = product_schema(paths[0], metadata, get_archive(metadata["dataset"]).load("columns", "COLUMNS"))
    parts = write_parts(
        paths,
        product,
        schema,
        hilbert_order(paths, keep),
        row_group_rows=options.row_group_rows,
        part_bytes=options.part_bytes,
        memory_bytes=options.memory_bytes,
    )
    counts = {name: pc.sum(ledger[name]).as_py() or 0 for name in LEDGER_COUNTS}
    rows = sum(part.rows for part in parts)
    if rows != counts["embedded"]:
        raise SourceError(
            f"{shards}: expected {counts['embedded']} rows by the ledgers, got {rows}. Embed the shards again."
        )
    ledger_file = _write_ledger(product, ledger)
    facts = ProductFacts(tuple(parts), schema, metadata, counts, ledger_file)
    documents = {**stac_documents(product, facts, options.costs), README: data_card(facts, ledger)}
    for name, text in documents.items():
        storage.write_bytes(storage.join(product, name), text.encode())
    _delete_other_files(product, [LEDGER, *documents, *(part.name for part in parts)])
    files = tuple(ProductFile(part.name, part.size, part.sha256, part.rows) for part in parts)
    return ProductRecord(
        dataset=metadata["dataset"],
        partition=metadata["partition"],
        fingerprint=metadata["fingerprint"],
        weights_sha256=metadata["weights_sha256"],
        untrained=metadata["untrained"],
        shards=digest(sorted(names)),
        missing_shards=tuple(sorted(missing)),
        rows=rows,
        counts=counts,
        units=dict(sorted((v["values"], v["counts"]) for v in pc.value_counts(ledger["status"]).to_pylist())),
        files=files,
        ledger=ledger_file,
        documents=tuple(documents),
        tag=digest([metadata["fingerprint"], [asdict(file) for file in files]])[:8],
        deduplicated=options.deduplicate,
        document_sha256={name: hashlib.sha256(text.encode()).hexdigest() for name, text in documents.items()},
    )


def product_metadata(shards: Sequence[Path]) -> dict[str, Any]:
    """Return the `kiln` metadata of a product: that of its shards, with the sources and software of all of them.

    Raises ConfigError for shards of different settings, weights or recipes.
    """
    merged: dict[str, Any] = {}
    for path in shards:
        metadata = embeddings_file.read_metadata(path)
        sources, software = metadata.pop("sources"), metadata.pop("software")
        metadata.pop("patches", None)  # patch files stay with the shards
        if merged and any(merged[key] != metadata[key] for key in ONE_VALUE_KEYS):
            raise ConfigError(
                f"{path}: expected the settings of {shards[0]}, got other settings. Embed the shards with one config."
            )
        merged = merged or {**metadata, "sources": {}, "software": []}
        merged["sources"].update(sources)
        if software not in merged["software"]:  # machines may have different versions
            merged["software"].append(software)
    merged["sources"] = dict(sorted(merged["sources"].items()))
    return merged


def merge_ledgers(uris: Sequence[str]) -> pa.Table:
    """Return the ledgers of all shards, one after the other. Raises SourceError for one that is missing or damaged."""
    ledgers = []
    for uri in uris:
        if storage.stat(uri) is None:
            shard = uri.replace(".ledger.parquet", ".parquet")
            raise SourceError(f"{uri}: expected a ledger, got no file. Delete {shard} and run again to make both.")
        with storage.local_copy(uri) as path:
            ledgers.append(read_ledger(path, uri))
    return pa.concat_tables(ledgers) if ledgers else LEDGER_SCHEMA.empty_table()


def _write_ledger(product: str, ledger: pa.Table) -> LedgerFile:
    with storage.atomic(storage.join(product, LEDGER)) as path:
        write_ledger(path, ledger)
        return LedgerFile(LEDGER, path.stat().st_size, storage.sha256(path))


def _delete_other_files(product: str, names: Sequence[str]) -> None:
    """Delete the files that an earlier merge left in the product's folder."""
    own = {storage.join(product, name) for name in names}
    for uri in set(storage.listing(product)) - own:
        storage.delete(uri)
