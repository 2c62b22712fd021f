"""The products and the explorer database of a run: whether they are there, whole, and made of its shards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from kiln.errors import ConfigError, SourceError
from kiln.formats.fingerprint import product_digest
from kiln.io import storage
from kiln.product.record import RECORD_NAME, ProductRecord, product_folder, read_record

CHECKSUM_BYTES = 1_000_000  # of smaller inputs, Snakemake compares the content, and a newer time alone is no reason
MAX_CACHED = 100_000  # ledgers and records whose content is kept while a page is refreshed
State = Literal["merged", "missing", "outdated", "damaged", "waits"]


@dataclass(frozen=True)
class Output:
    """A product or the database.

    Attributes:
        state: `merged`; `missing`; `outdated`, by newer shards or products; `damaged`, files of it are gone or have
            another size; or `waits` for shards.
        record: Path in the workflow of the record that it has; empty where it has none.
        note: What is wrong.
    """

    state: State
    record: str = ""
    note: str = ""


def product_state(
    folder: str,
    path: str,
    partition: str,
    shards: Sequence[str],
    counts: tuple[int, int],
    stats: Mapping[str, storage.Stat],
) -> Output:
    """Return the state of a partition's product.

    Args:
        folder: Path or s3:// of the dataset's folder.
        path: Its path in the workflow.
        partition: The partition.
        shards: Names of its planned shards.
        counts: Chips that its ledgers have, embedded and in all.
        stats: Size and time of each file of the partition's shards and products.
    """
    place = f"products/{partition}"
    known = [product_digest(shards, flags) for flags in ([], ["--deduplicate"])]
    names = {uri.rpartition("/")[2] for uri in stats if uri.rpartition("/")[0] == f"{folder}/{place}"}
    records = [f"{place}/{name}" for name in sorted(names) if RECORD_NAME.fullmatch(name)]
    own = [record for record in records if record.removesuffix(".json").rpartition("/")[2] in known]
    embedded = [uri for shard in shards if (uri := f"{folder}/shards/{partition}/{shard}.parquet") in stats]
    if not own:
        if len(embedded) < len(shards):
            return Output("waits", note="for its shards")
        return Output("outdated" if records else "missing", note="of other shards" if records else "")
    record = max(own, key=lambda name: stats[f"{folder}/{name}"].modified or 0)
    written = stats[f"{folder}/{record}"].modified
    content = _read(f"{folder}/{record}", stats)
    lost = _losses(f"{folder}/{record}", content, stats) if content else ["its record cannot be read"]
    if lost or not content:
        return Output("damaged", f"{path}/{record}", lost[0] + (", and others" if len(lost) > 1 else ""))
    newer = [uri for uri in embedded if written and stats[uri].modified > written]
    are_large = any(stats[uri].size > CHECKSUM_BYTES for uri in newer)
    if newer and (are_large or (content.counts["embedded"], content.counts["expected"]) != counts):
        return Output("outdated", f"{path}/{record}", "of older shards")
    return Output("merged", f"{path}/{record}")


@lru_cache(maxsize=MAX_CACHED)
def _read_version(record: str, size: int, etag: str, modified: int) -> ProductRecord | None:
    """Return a product's record, read once for each version of its file; None for a damaged one."""
    try:
        return read_record(record)
    except (ConfigError, SourceError):
        return None


def _read(record: str, stats: Mapping[str, storage.Stat]) -> ProductRecord | None:
    stat = stats.get(record, storage.Stat(-1))
    return _read_version(record, stat.size, stat.etag, stat.modified)


def _losses(record: str, content: ProductRecord, stats: Mapping[str, storage.Stat]) -> list[str]:
    """Return what is wrong with the files of a product: each that is not there in its size."""
    product = product_folder(record)
    sizes = {file.name: file.size for file in content.files} | {content.ledger.name: content.ledger.size}
    found = {name: stats.get(f"{product}/{name}") for name in [*sizes, *content.documents]}
    return [
        f"{name} has another size" if stat else f"{name} is gone"
        for name, stat in found.items()
        if stat is None or stat.size != sizes.get(name, stat.size)
    ]


def database_state(run: str, path: str, products: Mapping[str, Output], stats: Mapping[str, storage.Stat]) -> Output:
    """Return the state of the explorer database.

    Args:
        run: Path or s3:// of the run.
        path: Its path in the workflow.
        products: Products by dataset and partition, as `naip nd-2019`.
        stats: Size and time of each file of the run.
    """
    root = run.removesuffix(path)
    records = [
        uri for uri in stats if uri.startswith(f"{run}/index/") and RECORD_NAME.fullmatch(uri.rpartition("/")[2])
    ]
    if not records:
        ready = products and all(product.state == "merged" for product in products.values())
        return Output("missing" if ready else "waits", note="" if ready else "for the products")
    record = max(records, key=lambda uri: stats[uri].modified or 0)
    name = f"{path}/index/{record.rpartition('/')[2]}"
    if not any(uri.startswith(f"{run}/explorer/") and ".lance/" in uri for uri in stats):
        return Output("damaged", name, "its files are gone")
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(record))
        held = {product.title: product for product in map(ProductRecord.from_json, content["products"])}
    except (ValueError, KeyError, TypeError):
        return Output("damaged", name, "its record cannot be read")
    for title, product in products.items():
        own = _read(f"{root}{product.record}", stats) if title in held and product.state == "merged" else None
        if title in held and own != held[title]:
            return Output("outdated", name, f"of an older product: {title}")
    absent = sorted(title for title in products if title not in held)
    return Output("merged", name, f"without {', '.join(absent)}" if absent else "")
