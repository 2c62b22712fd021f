"""The account of a shard: one ledger entry for each unit, and its rows in the order of the ledger."""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kiln.engine.checkpoints import Checkpoints
from kiln.errors import TooManyFailuresError
from kiln.formats import embeddings_file, patch_file, vectors
from kiln.formats.ledger import LedgerEntry, ledger_table, ledger_text
from kiln.formats.records import Chip, Dropped, Opened, Unit

NO_PIXELS: NDArray[np.uint8] = np.empty((0, 0, 0), np.uint8)
log = logging.getLogger(__name__)


class Ledger:
    """The entries of a shard's units, in ledger order; finished units begin with the entry of their checkpoint."""

    def __init__(self, units: Iterable[Unit], finished: Mapping[str, LedgerEntry]) -> None:
        self._entries = {u.unit_id: finished.get(u.unit_id) or LedgerEntry(u) for u in units}

    def __getitem__(self, unit_id: str) -> LedgerEntry:
        return self._entries[unit_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[LedgerEntry]:
        """The entries in ledger order."""
        return list(self._entries.values())

    @property
    def expected(self) -> int:
        """Chips of all units, as far as is known."""
        return sum(e.unit.expected for e in self.entries)

    @property
    def embedded(self) -> int:
        """Chips of all units that have a row."""
        return sum(e.embedded for e in self.entries)

    @property
    def failed_fraction(self) -> float:
        """Fraction of the units that failed. A partly failed unit counts by its fraction of failed chips."""
        return sum(e.failed_fraction for e in self.entries) / max(len(self), 1)

    def table(self) -> pa.Table:
        """Return the ledger as a table. Raises AssertionError if a unit's chips are not all accounted for."""
        return ledger_table(self.entries)

    def raise_for_failures(self, max_failed_fraction: float) -> None:
        """Log the ledger and raise TooManyFailuresError if more of the shard failed than `max_failed_fraction`."""
        if self.failed_fraction <= max_failed_fraction:
            return
        log.error("the ledger of this shard:\n%s", ledger_text(self.table()))
        reason = next(e.failure_reasons[0] for e in self.entries if e.failure_reasons)
        raise TooManyFailuresError(
            f"max_failed_fraction: expected at most {max_failed_fraction:.0%} of the shard to fail, got "
            f"{self.failed_fraction:.0%}; the first reason: {reason}. Repair the source or raise the limit; the ledger "
            "is in the log above."
        )


class RowOrder:
    """The rows of checkpointed units, which wait for their place in ledger order. Rows are released once taken."""

    def __init__(self, unit_ids: Iterable[str], rows: Mapping[str, pa.Table]) -> None:
        self._position = {unit_id: n for n, unit_id in enumerate(unit_ids)}
        self._rows = dict(rows)
        self._waiting = deque(sorted(rows, key=self._position.__getitem__))

    def take_before(self, unit_id: str | None) -> Iterator[tuple[str, pa.Table]]:
        """Yield ids and rows of the checkpointed units that come before a unit; None yields all that are left."""
        end = len(self._position) if unit_id is None else self._position[unit_id]
        while self._waiting and self._position[self._waiting[0]] < end:
            finished = self._waiting.popleft()
            yield finished, self._rows.pop(finished)


@dataclass
class OpenUnit:
    """A unit whose rows are held until it is finished, so that they become its checkpoint.

    Attributes:
        spool: The file of its patch vectors; None if the shard has none.
    """

    unit_id: str
    spool: patch_file.Spool | None = None
    chips: list[Chip] = field(default_factory=list)
    columns: list[vectors.Columns] = field(default_factory=list)

    def append(self, chips: Sequence[Chip], columns: vectors.Columns) -> None:
        """Add chips and their vectors."""
        self.chips.extend(chips)
        self.columns.append(columns)

    def rows(self, schema: pa.Schema) -> pa.Table:
        """Return the rows that are held."""
        return embeddings_file.chip_table(self.chips, vectors.concatenate(self.columns), schema)


class ShardAccounting:
    """Rows and ledger of a shard: counts chips, writes rows in ledger order, and writes finished units' checkpoints.

    Attributes:
        ledger: The entries so far.
        checkpointed: Ids of the units that have a checkpoint from an earlier try.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        writer: embeddings_file.ShardWriter,
        checkpoints: Checkpoints | None = None,
        patch_writer: patch_file.PatchWriter | None = None,
    ) -> None:
        finished = checkpoints.read_finished(units, writer.schema) if checkpoints else {}
        self.ledger = Ledger(units, {unit_id: entry for unit_id, (_, entry) in finished.items()})
        self.checkpointed = frozenset(finished)
        self._order = RowOrder(self.ledger, {unit_id: rows for unit_id, (rows, _) in finished.items()})
        self._writer, self._checkpoints, self._patch_writer = writer, checkpoints, patch_writer
        self._open: OpenUnit | None = None

    def record_opened(self, event: Opened) -> int:
        """Record the exact number of a unit's chips. Returns how many more chips there are than was expected."""
        entry = self.ledger[event.unit_id]
        before = entry.unit.expected
        entry.record_opened(event)
        return event.expected - before

    def record_skipped(self, event: Dropped) -> None:
        """Record chips that get no row. A unit that is finished thereby, without any row, gets its checkpoint."""
        entry = self.ledger[event.unit_id]
        entry.record_dropped(event)
        if self._checkpoints and _can_be_checkpoint(entry) and not entry.embedded:
            self._checkpoints.write(self._writer.schema.empty_table(), entry)

    def record_embedded(self, chips: list[Chip], columns: vectors.Columns) -> int:
        """Record a batch of encoded chips. A chip whose vector is not finite has failed.

        Args:
            chips: The chips [n]. Their pixels are released.
            columns: Their vectors by column, [n, D], as they are stored.

        Returns:
            The number of chips that get a row.
        """
        for chip in chips:
            chip.pixels = NO_PIXELS  # rows wait for their row group without pixels
        finite = vectors.finite_rows(columns)
        first = 0
        for unit_id, group in itertools.groupby(chips, key=lambda chip: chip.unit_id):
            start, first = first, first + len(list(group))
            rows = np.flatnonzero(finite[start:first]) + start
            entry = self.ledger[unit_id]
            entry.embedded += len(rows)
            if failed := first - start - len(rows):
                dtype = next(v.dtype for v in columns.values() if not np.isfinite(v[start:first]).all())
                entry.record_dropped(Dropped(unit_id, "failed", failed, f"vector not finite in {dtype}"))
            self._append(entry, [chips[i] for i in rows], vectors.select_rows(columns, rows))
        return int(finite.sum())

    def _append(self, entry: LedgerEntry, chips: list[Chip], columns: vectors.Columns) -> None:
        """Hand rows of one unit to the writer, or hold them if they can become a checkpoint."""
        if self._checkpoints and (self._open is None or self._open.unit_id != entry.unit.unit_id):
            self._begin_unit(entry.unit, self._checkpoints)
        if self._patch_writer:
            chip_ids, patches = [chip.chip_id for chip in chips], columns.pop(patch_file.COLUMN)
            self._patch_writer.append(chip_ids, patches)
            if self._open and self._open.spool:
                self._open.spool.append(chip_ids, patches)
        if self._open:
            self._open.append(chips, columns)
        else:
            self._writer.append(chips, columns)

    def _begin_unit(self, unit: Unit, checkpoints: Checkpoints) -> None:
        self.flush_open_unit()
        self.write_checkpointed_rows_before(unit.unit_id)
        if unit.version:
            spool = checkpoints.open_spool(unit, self._patch_writer.schema) if self._patch_writer else None
            self._open = OpenUnit(unit.unit_id, spool)

    def flush_open_unit(self) -> None:
        """Write the rows of the open unit. If it is finished they become its checkpoint too."""
        if self._open is None:
            return
        unit, self._open = self._open, None
        rows, entry = unit.rows(self._writer.schema), self.ledger[unit.unit_id]
        complete = len(rows) == entry.embedded  # fewer: chips of another unit came between
        if self._checkpoints and complete and _can_be_checkpoint(entry):
            self._checkpoints.write(rows, entry, unit.spool)
        elif unit.spool:
            unit.spool.abandon()
        self._writer.append_rows(rows)

    def flush_if_finished(self) -> None:
        """Flush the open unit if all its chips are accounted for."""
        if self._open and _can_be_checkpoint(self.ledger[self._open.unit_id]):
            self.flush_open_unit()

    def write_checkpointed_rows_before(self, unit_id: str | None) -> None:
        """Write the rows of the checkpointed units that come before a unit in the ledger; None: all that are left."""
        for finished, rows in self._order.take_before(unit_id):
            self._writer.append_rows(rows)
            if self._patch_writer and self._checkpoints:
                entry = self.ledger[finished]
                for chip_ids, patches in self._checkpoints.read_patches(entry.unit, entry.embedded):
                    self._patch_writer.append(chip_ids, patches)

    def close(self) -> Ledger:
        """Write all rows that are held. Returns the ledger."""
        self.flush_open_unit()
        self.write_checkpointed_rows_before(None)
        return self.ledger


def _can_be_checkpoint(entry: LedgerEntry) -> bool:
    """Return whether all chips of a unit are accounted for and none failed. Failed units are retried instead."""
    unit = entry.unit
    return bool(unit.version) and unit.expected_known and entry.unaccounted == 0 and entry.status != "failed"
