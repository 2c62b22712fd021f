"""Merge the shards of one partition into its product: Hilbert-sorted GeoParquet parts, the ledger, STAC, a record.

Works out of core: keys come from the footprints' boxes alone, rows go to buckets on disk, and each bucket is sorted
and written as whole row groups. What comes out is the same whatever --memory-mb is. Data first, the record last.

With --unique, of rows in the same cell of a lattice that scenes share the one with the least nodata stays.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kiln.cli import command_line
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file, plan_file
from kiln.formats.fingerprint import digest
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA, ledger_name, read_ledger, write_ledger
from kiln.formats.parquet import open_file, parquet_errors, read_batches
from kiln.io import storage
from kiln.product import external_sort, stac

ROW_GROUP = 50_000  # rows at most; one giant group would make every remote hit download the whole column
PART_BYTES = 2_000_000_000  # of a product's file
LEVEL = 16  # bits per axis of the Hilbert curve over the partition's own bounds (geopandas' default)
READ_ROWS = 65_536  # rows read at a time, of narrow columns
POINTS = 100_000  # made at a time: as objects they take more than the rest of a row's key
log = logging.getLogger(__name__)


LEFT_ALL = "every chip is covered by scenes with less nodata"


@dataclass(frozen=True)
class Order:
    """Where every row goes: `rank[i]` of row i, shards one after the other in the order of `shards`; -1: nowhere."""

    rank: np.ndarray
    starts: list[int]

    @property
    def rows(self) -> int:
        """How many go somewhere."""
        return int((self.rank >= 0).sum())


def hilbert_order(shards: Sequence[Path], keep: np.ndarray | None = None) -> Order:
    """Rank of every row along a Hilbert curve through the footprints' centres; ties keep the shards' order.

    Reads the `bbox` columns alone. The curve spans the bounds of all rows, of those to `keep` where that is given.
    """
    middles, starts, n = [], [], 0
    for path in shards:
        starts.append(n)
        with parquet_errors(path):
            box = open_file(path).read(columns=["bbox"])["bbox"].combine_chunks()
        middles.append(np.stack(embeddings_file.box_centres(box), axis=1))
        n += len(box)
    centres = np.concatenate(middles) if middles else np.empty((0, 2))
    rank = np.full(n, -1, np.int64)
    kept = np.flatnonzero(keep) if keep is not None else np.arange(n)
    if not len(kept):
        return Order(rank, starts)
    centres = centres[kept]
    bounds = (*centres.min(axis=0), *centres.max(axis=0))
    keys = np.zeros(len(kept), np.uint32)
    if np.ptp(centres):
        for first in range(0, len(kept), POINTS):
            points = gpd.GeoSeries(gpd.points_from_xy(*centres[first : first + POINTS].T))
            keys[first : first + POINTS] = points.hilbert_distance(total_bounds=bounds, level=LEVEL)
    rank[kept[np.argsort(keys, kind="stable")]] = np.arange(len(kept))
    return Order(rank, starts)


@dataclass(frozen=True)
class Chosen:
    """Which rows stay, in the order of the shards, and how many each unit of the ledger loses."""

    keep: np.ndarray
    lost: np.ndarray


def choose_unique(shards: Sequence[Path], ledger: pa.Table) -> Chosen:
    """One row per lattice cell (crs, col, row): that with the least nodata, of equal ones that with the first chip_id.

    Holds some 60 bytes a row, and the ids of rows that tie. A row's unit is the one of its `source`. Raises ConfigError
    for shards whose lattice no two units share, SourceError for rows that the ledger does not know.
    """
    for path in shards:
        lattice = embeddings_file.read_metadata(path)["lattice"]
        if lattice.get("lattice") != "utm":
            raise ConfigError(f"{path}: --unique wants chips of lattice utm; those of {lattice} are unique as they are")
    sources = ledger["source"].to_pylist()
    units, zones = {s: n for n, s in enumerate(sources)}, {}
    if len(units) < len(sources):
        raise ConfigError("--unique wants units of one source each, and these share some")
    total = sum(open_file(p).metadata.num_rows for p in shards)
    kinds = (np.int16, np.int32, np.int32, np.float32, np.int32)
    zone, col, row, nodata, unit = (np.empty(total, kind) for kind in kinds)
    first = 0
    for path in shards:
        for batch in read_batches(path, READ_ROWS, ["crs", "col", "row", "nodata_fraction", "source"]):
            here = slice(first, first := first + len(batch))
            zone[here] = _numbered(batch["crs"], lambda crs: zones.setdefault(crs, len(zones)))
            for values, name in ((col, "col"), (row, "row"), (nodata, "nodata_fraction")):
                values[here] = np.asarray(batch[name])
            unit[here] = _numbered(batch["source"], lambda source: units.get(source, -1))
            if (unit[here] < 0).any():
                raise SourceError(f"{path}: rows of scenes that the ledgers do not know: embed the shards again")
    order = np.lexsort((nodata, row, col, zone))
    new = np.zeros(total, bool)  # in that order: the first row of its cell
    new[:1] = True
    for key in (zone, col, row):
        new[1:] |= np.diff(key[order]) != 0
    group = np.cumsum(new, dtype=np.int32) - 1
    best = order[new]  # row of each cell with the least nodata
    equal = nodata[order] == nodata[best][group]
    tied = equal & (np.bincount(group[equal], minlength=len(best))[group] > 1)
    _first_ids(shards, order[tied], group[tied], best)
    keep = np.zeros(total, bool)
    keep[best] = True
    return Chosen(keep, np.bincount(unit[~keep], minlength=len(ledger)))


def _numbered(column: pa.Array, number: Callable[[str], int]) -> np.ndarray:
    """Strings as numbers; each different one is asked for once."""
    coded = column.dictionary_encode()
    return np.array([number(s) for s in coded.dictionary.to_pylist()], np.int64)[np.asarray(coded.indices)]


def _first_ids(shards: Sequence[Path], rows: np.ndarray, group: np.ndarray, best: np.ndarray) -> None:
    """Set `best` of each group to that of its rows whose chip_id comes first; reads the ids of those rows alone."""
    by_row = np.argsort(rows)
    rows, group = rows[by_row], group[by_row]
    ids, first = [], 0
    for path in shards:
        for batch in read_batches(path, READ_ROWS, ["chip_id"]):
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(batch))]
            ids.append(batch["chip_id"].take(pa.array(here - first)))
            first += len(batch)
    named = pa.table({"group": group, "chip_id": pa.chunked_array(ids, pa.string())})
    order = np.asarray(pc.sort_indices(named, [("group", "ascending"), ("chip_id", "ascending")]))
    groups, firsts = np.unique(group[order], return_index=True)
    best[groups] = rows[order[firsts]]


def without_lost(ledger: pa.Table, lost: np.ndarray) -> pa.Table:
    """The ledger of a product that left `lost` rows of each unit out: it closes, and says where they went."""
    rows = ledger.to_pylist()
    for row, n in zip(rows, lost.tolist(), strict=True):
        if not n:
            continue
        note = f"{n} chip{'s' if n > 1 else ''} left to scenes with less nodata"
        row["expected"] -= n
        row["embedded"] -= n
        row["notes"] = "; ".join(filter(None, [row["notes"], note]))
        if row["status"] == "embedded" and not row["embedded"]:
            row |= {"status": "empty", "reason": LEFT_ALL}
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def product_metadata(shards: Sequence[Path]) -> dict[str, Any]:
    """The `kiln` metadata of a product: that of its shards, with the sources of all.

    Raises ConfigError if shards were made with different settings, weights or recipes.
    """
    whole: dict[str, Any] = {}
    for path in shards:
        about = embeddings_file.read_metadata(path)
        sources = about.pop("sources")
        about.pop("patches", None)  # stay beside the shards
        if whole and any(whole[k] != about[k] for k in ("fingerprint", "partition", "storage", "dimensions")):
            raise ConfigError(f"{path}: made with other settings than {shards[0]}; they cannot be one product")
        versions = about.pop("software")
        whole = whole or {**about, "sources": {}, "software": []}
        if versions not in whole["software"]:
            whole["software"].append(versions)  # shards of several machines may differ
        whole["sources"].update(sources)
    whole["sources"] = dict(sorted(whole["sources"].items()))
    return whole


def write_parts(
    shards: Sequence[Path],
    product: str,
    about: dict[str, Any],
    *,
    memory: int,
    row_group: int,
    part_bytes: int,
    keep: np.ndarray | None = None,
) -> list[stac.Part]:
    """Write the sorted parts below `product`; each at most `part_bytes`, given row groups that are smaller."""
    order = hilbert_order(shards, keep)
    row_group = max(1, -(-order.rows // max(1, -(-order.rows // row_group))))  # all about as large
    columns = open_file(shards[0]).schema_arrow.remove_metadata().with_metadata(
        {"kiln": json.dumps(about, sort_keys=True)}
    )  # fmt: skip
    groups = external_sort.in_order(shards, order.starts, order.rank, order.rows, row_group, memory)
    group = next(groups, columns.empty_table())
    parts: list[stac.Part] = []
    while group is not None:
        name = f"part-{len(parts):04d}.parquet"
        uri = storage.join(product, name)
        with storage.atomic(uri) as path:
            largest = 0
            with GeoParquetWriter(path, columns) as out:
                while group is not None and path.stat().st_size + largest * 1.05 <= part_bytes:
                    before = path.stat().st_size
                    out.write(group.cast(columns), *embeddings_file.extent(group))
                    largest = max(largest, path.stat().st_size - before)
                    group = next(groups, None)
            times = pc.min_max(pq.read_table(path, columns=["datetime"])["datetime"]).as_py()
            parts.append(
                stac.Part(
                    name, path.stat().st_size, storage.sha256(path), out.rows, out.bbox, (times["min"], times["max"])
                )
            )
    return parts


def merge_ledgers(uris: Sequence[str]) -> pa.Table:
    """The ledgers of all shards, in the shards' order."""
    ledgers = []
    for uri in uris:
        if storage.stat(uri) is None:
            shard = uri.replace(".ledger.parquet", ".parquet")
            raise SourceError(f"{uri}: the ledger is gone; delete {shard} and run again, so that both are made")
        with storage.local_copy(uri) as path:
            ledgers.append(read_ledger(path))
    return pa.concat_tables(ledgers) if ledgers else LEDGER_SCHEMA.empty_table()


def merge(
    names: Sequence[str],
    shards: str,
    ledgers: str,
    product: str,
    *,
    missing: Sequence[str] = (),
    unique: bool = False,
    memory: int = 1 << 30,
    row_group: int = ROW_GROUP,
    part_bytes: int = PART_BYTES,
) -> dict[str, Any]:
    """Make a product of the named shards and return its record.

    `shards` is the local folder of the embeddings files, `ledgers` the path or s3:// of the ledgers, `product` that of
    the folder to write. `missing` names planned shards that are left out on purpose, and is said in the product, as is
    `unique`: one row per lattice cell.
    Raises ConfigError or SourceError for shards that are missing, broken or do not belong together.
    """
    paths = [Path(shards) / f"{n}.parquet" for n in names]
    if gone := [p for p in paths if not p.is_file()]:
        raise SourceError(f"{len(gone)} of {len(paths)} shards are not there, first {gone[0]}; embed them first")
    if not paths:
        raise ConfigError("no shard to merge")
    about = product_metadata(paths)
    if missing:
        about["missing_shards"] = sorted(missing)
    ledger = merge_ledgers([ledger_name(storage.join(ledgers, f"{n}.parquet")) for n in names])
    keep = None
    if unique:
        about["unique"] = True
        chosen = choose_unique(paths, ledger)
        keep, ledger = chosen.keep, without_lost(ledger, chosen.lost)
    parts = write_parts(paths, product, about, memory=memory, row_group=row_group, part_bytes=part_bytes, keep=keep)
    rows = sum(p.rows for p in parts)
    counts = {c: pc.sum(ledger[c]).as_py() or 0 for c in LEDGER_COUNTS}
    if rows != counts["embedded"]:
        raise SourceError(f"{shards}: {rows} rows, but the ledgers say {counts['embedded']}: embed the shards again")
    with storage.atomic(storage.join(product, "ledger.parquet")) as path:
        write_ledger(path, ledger)
        ledger_file = {"name": "ledger.parquet", "size": path.stat().st_size, "sha256": storage.sha256(path)}
    written = stac.write(product, parts, about, counts)
    mine = {storage.join(product, n) for n in ("ledger.parquet", *written, *(p.name for p in parts))}
    for left in set(storage.listing(product)) - mine:
        storage.delete(left)  # of an earlier merge into the same folder
    status = dict(sorted((v["values"], v["counts"]) for v in pc.value_counts(ledger["status"]).to_pylist()))
    record = {
        "dataset": about["dataset"],
        "partition": about["partition"],
        "fingerprint": about["fingerprint"],
        "weights_sha256": about["weights_sha256"],
        "untrained": about["untrained"],
        "shards": digest(sorted(names)),
        "missing_shards": sorted(missing),
        "rows": rows,
        "counts": counts,
        "units": status,
        "files": [{"name": p.name, "size": p.size, "sha256": p.sha256, "rows": p.rows} for p in parts],
        "ledger": ledger_file,
        "stac": written,
        **({"unique": True} if unique else {}),
    }
    return record | {"tag": digest([record["fingerprint"], record["files"]])[:8]}


def main(argv: list[str] | None = None) -> None:
    """Merge one partition of one dataset."""
    p = command_line.parser(__doc__, "kiln.product.merge")
    p.add_argument("--plan", required=True, help="the plan whose shards are merged")
    p.add_argument("--partition", help="those of one partition, where the plan has several")
    p.add_argument("--shards", required=True, help="local folder of the embeddings files")
    p.add_argument("--ledgers", help="path or s3:// of the folder of the ledgers, if not that of the shards")
    p.add_argument("--product", required=True, help="path or s3:// of the folder to write")
    p.add_argument("--record", help="the record to write last, if not <product>.json")
    p.add_argument("--allow-missing", action="store_true", help="merge the shards that exist, and say so")
    p.add_argument("--unique", action="store_true", help="of chips in one lattice cell keep that with the least nodata")
    p.add_argument("--memory-mb", type=int, default=1024, help="megabytes to sort in")
    args = p.parse_args(argv)

    def work() -> None:
        planned = [line.name for line in plan_file.read_plan(args.plan, args.partition)]
        have = [n for n in planned if not args.allow_missing or (Path(args.shards) / f"{n}.parquet").is_file()]
        record = merge(
            have,
            args.shards,
            args.ledgers or args.shards,
            args.product,
            missing=sorted(set(planned) - set(have)),
            unique=args.unique,
            memory=args.memory_mb << 20,
        )
        storage.write_bytes(
            args.record or f"{args.product}.json", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
        )
        log.info(
            "%s: %d rows in %d parts from %d shards", args.product, record["rows"], len(record["files"]), len(have)
        )
        if record["missing_shards"]:
            log.warning("%d shards are missing in this product", len(record["missing_shards"]))

    command_line.run(work)


if __name__ == "__main__":
    main()
