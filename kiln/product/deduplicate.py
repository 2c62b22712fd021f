"""One row per lattice cell, where scenes that overlap share a lattice: the row with the least nodata stays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file
from kiln.formats.ledger import LEDGER_SCHEMA
from kiln.formats.parquet import open_file, read_batches

SHARED_LATTICE = "utm"  # `lattice.lattice` of the metadata, where a cell may hold a chip of several scenes
BATCH_ROWS = 65_536  # read at a time, of narrow columns
LESS_NODATA = "scenes with less nodata"  # what cells are left to
EQUAL_NODATA = "scenes with as much nodata and an earlier chip_id"


@dataclass(frozen=True)
class Deduplication:
    """The rows that stay.

    Attributes:
        keep: Mask [n] of the rows, one shard after the other.
        removed: Number of rows [units, 2] that each unit loses, in the order of the ledger: to rows with less nodata,
            and to rows with as much nodata.
    """

    keep: NDArray[np.bool_]
    removed: NDArray[np.int64]


def deduplicate(shards: Sequence[Path], ledger: pa.Table) -> Deduplication:
    """Choose one row per lattice cell (crs, col, row): the least nodata, then the first chip_id.

    About 60 bytes a row are held in memory, and the chip_ids of rows with equal nodata. `source` assigns a row to its
    unit.

    Args:
        shards: Embeddings files of one partition.
        ledger: The ledgers of these shards, one after the other.

    Raises:
        ConfigError: If the chips lie on a lattice that units do not share, or several units have one source.
        SourceError: If a shard is damaged, or has rows of a source that is not in the ledger.
    """
    for path in shards:
        lattice = embeddings_file.read_metadata(path)["lattice"]
        if lattice.get("lattice") != SHARED_LATTICE:
            raise ConfigError(
                f"{path}: --deduplicate expected chips of lattice {SHARED_LATTICE}, got {lattice}, "
                "whose chips are unique. Merge without it."
            )
    sources = ledger["source"].to_pylist()
    unit_of_source = {source: number for number, source in enumerate(sources)}
    if len(unit_of_source) < len(sources):
        raise ConfigError("--deduplicate: expected one source per unit, got units with the same one. Merge without it.")
    zone, col, row, nodata, unit = _read_cells(shards, unit_of_source)
    order = np.lexsort((nodata, row, col, zone))
    first_of_cell = np.zeros(len(order), bool)  # in this order
    first_of_cell[:1] = True
    for key in (zone, col, row):
        first_of_cell[1:] |= np.diff(key[order]) != 0
    cell = np.cumsum(first_of_cell, dtype=np.int32) - 1
    best = order[first_of_cell]  # row of each cell with the least nodata
    equal = nodata[order] == nodata[best][cell]
    tied = equal & (np.bincount(cell[equal], minlength=len(best))[cell] > 1)
    _break_ties(shards, order[tied], cell[tied], best)
    keep = np.zeros(len(order), bool)
    keep[best] = True
    ties = np.zeros(len(order), bool)
    ties[order[tied]] = True
    removed = [np.bincount(unit[~keep & rows], minlength=len(ledger)) for rows in (~ties, ties)]
    return Deduplication(keep, np.stack(removed, axis=1))


def _read_cells(shards: Sequence[Path], unit_of_source: dict[str, int]) -> tuple[NDArray[Any], ...]:
    """Return zone, col, row, nodata fraction and unit [n] of all rows. Raises SourceError for an unknown source."""
    total = sum(open_file(path).metadata.num_rows for path in shards)
    dtypes = (np.int16, np.int32, np.int32, np.float32, np.int32)
    zone, col, row, nodata, unit = (np.empty(total, dtype) for dtype in dtypes)
    zones: dict[str, int] = {}
    first = 0
    for path in shards:
        for batch in read_batches(path, BATCH_ROWS, ["crs", "col", "row", "nodata_fraction", "source"]):
            here = slice(first, first := first + len(batch))
            zone[here] = _as_numbers(batch["crs"], lambda crs: zones.setdefault(crs, len(zones)))
            for values, name in ((col, "col"), (row, "row"), (nodata, "nodata_fraction")):
                values[here] = np.asarray(batch[name])
            unit[here] = _as_numbers(batch["source"], lambda source: unit_of_source.get(source, -1))
            if (unit[here] < 0).any():
                raise SourceError(
                    f"{path}: expected rows of sources in the ledgers, got rows of others. Embed the shards again."
                )
    return zone, col, row, nodata, unit


def _as_numbers(column: pa.Array, number_of: Callable[[str], int]) -> NDArray[np.int64]:
    """Return the number of each string [n]; each distinct string is looked up once."""
    encoded = column.dictionary_encode()
    number_of_code = np.array([number_of(text) for text in encoded.dictionary.to_pylist()], np.int64)
    numbers: NDArray[np.int64] = number_of_code[np.asarray(encoded.indices)]
    return numbers


def _break_ties(
    shards: Sequence[Path], rows: NDArray[np.int64], cell: NDArray[np.int32], best: NDArray[np.int64]
) -> None:
    """Set `best` of each cell to that of its tied rows with the first chip_id; only the ids of these rows are kept."""
    by_row = np.argsort(rows)
    rows, cell = rows[by_row], cell[by_row]
    ids, first = [], 0
    for path in shards:
        for batch in read_batches(path, BATCH_ROWS, ["chip_id"]):
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(batch))]
            ids.append(batch["chip_id"].take(pa.array(here - first)))
            first += len(batch)
    tied = pa.table({"cell": cell, "chip_id": pa.chunked_array(ids, pa.string())})
    order = np.asarray(pc.sort_indices(tied, [("cell", "ascending"), ("chip_id", "ascending")]))
    cells, first_of_cell = np.unique(cell[order], return_index=True)
    best[cells] = rows[order[first_of_cell]]


def move_removed(ledger: pa.Table, removed: NDArray[np.int64]) -> pa.Table:
    """Return the ledger of a deduplicated product.

    A unit's removed rows move from its embedded chips to its deduplicated ones. Its notes state to which scenes.

    Args:
        ledger: The ledgers of the shards.
        removed: Rows [units, 2] that each of its units loses, as `Deduplication` has them.
    """
    rows = ledger.to_pylist()
    for row, counts in zip(rows, removed.tolist(), strict=True):
        if not sum(counts):
            continue
        row["embedded"] -= sum(counts)
        row["deduplicated"] += sum(counts)
        winners = dict(zip((LESS_NODATA, EQUAL_NODATA), counts, strict=True))
        notes = [f"{n} chip{'s' if n > 1 else ''} left to {scenes}" for scenes, n in winners.items() if n]
        row["notes"] = "; ".join(filter(None, [row["notes"], *notes]))
        if row["status"] == "embedded" and not row["embedded"]:
            scenes = " or ".join(scenes for scenes, n in winners.items() if n)
            row |= {"status": "empty", "reason": f"every chip left its cell to {scenes}"}
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
