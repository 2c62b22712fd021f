"""Finished units of an unfinished shard: a file each, so that a job that died goes on where it was.

A part is named by its unit and by everything that its rows depend on: settings, weights and software (`identity`), and
the state of the unit's files (`Unit.version`). It holds the unit's rows and its entry of the ledger, and is deleted
once the shard is whole.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import SourceError
from kiln.formats import patch_file
from kiln.formats.fingerprint import digest
from kiln.formats.ledger import LedgerEntry
from kiln.formats.parquet import parquet_errors
from kiln.formats.records import Unit
from kiln.io import storage

ENTRY = b"kiln-entry"  # key of the file's metadata
DELETED_TOGETHER = 8
log = logging.getLogger(__name__)


@dataclass
class Parts:
    """The parts below `folder` (path or s3://). Files are written by a thread, one behind the encoder at most."""

    folder: str
    identity: str
    with_patches: bool = False  # which lie in a file beside each part
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "parts"), repr=False)
    _written: Future | None = field(default=None, repr=False)
    _spool: patch_file.Spool | None = field(default=None, repr=False)  # the last one; it may be open when a job fails

    @classmethod
    def of(cls, folder: str, about: dict[str, Any]) -> Self:
        """The parts of jobs whose files have the metadata `about`, less their sources."""
        return cls(folder, digest({k: v for k, v in about.items() if k != "sources"}), "patches" in about)

    def uri(self, unit: Unit) -> str:
        """Where the part of a unit in its present state lies."""
        return storage.join(self.folder, f"{_stem(unit)}-{digest([self.identity, unit.version])[:12]}.parquet")

    def finished(self, units: Iterable[Unit], columns: pa.Schema) -> dict[str, tuple[pa.Table, LedgerEntry]]:
        """Rows and entries of the units that have a part; one that cannot be read is as none, and told."""
        there = self._listing()
        found = {}
        for unit in units:
            if not unit.version or (uri := self.uri(unit)) not in there:
                continue
            try:
                rows, entry = _read(uri, unit, columns)
                if self.with_patches:
                    self._check_patches(unit, rows)
                found[unit.unit_id] = rows, entry
            except SourceError as e:
                log.warning("a part is of no use, and its unit is done again: %s", e)
        return found

    def spool(self, unit: Unit, columns: pa.Schema) -> patch_file.Spool:
        """Where the patches of a unit go until it is finished; then `keep` takes it, or it is to be abandoned."""
        self._spool = patch_file.Spool(patch_file.patches_name(self.uri(unit)), columns)
        return self._spool

    def patches_of(self, unit: Unit, rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """The patches of a finished unit, as `patches.read`; nothing where it has no rows."""
        if rows:
            with storage.local_copy(patch_file.patches_name(self.uri(unit))) as path:
                yield from patch_file.read_patches(path)

    def _check_patches(self, unit: Unit, rows: pa.Table) -> None:
        """Raise SourceError unless the patches of a part are whole, and those of its rows."""
        ids = rows["chip_id"].to_pylist()
        if ids != [chip_id for some, _ in self.patches_of(unit, len(rows)) for chip_id in some]:
            raise SourceError(f"{patch_file.patches_name(self.uri(unit))}: not the patches of its part")

    def keep(self, rows: pa.Table, entry: LedgerEntry, spool: patch_file.Spool | None = None) -> None:
        """Write a finished unit's part, after its patches, while the encoder goes on.

        Raises what the writing of the one before met.
        """
        self._settle()
        about = json.dumps(asdict(entry), sort_keys=True).encode()
        uri = self.uri(entry.unit)

        def write() -> None:
            if spool:
                spool.finish()
            with storage.atomic(uri) as path:
                pq.write_table(
                    rows.replace_schema_metadata({ENTRY: about}), path, compression="zstd", write_page_checksum=True
                )

        self._written = self._writer.submit(write)

    def _settle(self) -> None:
        if self._written is not None:
            self._written.result()
            self._written = None

    def remove(self, units: Iterable[Unit]) -> None:
        """Delete all parts of these units, those of other states and software too."""
        stems = {_stem(u) for u in units}
        mine = [uri for uri in self._listing() if uri.rpartition("/")[2].rpartition("-")[0] in stems]
        with ThreadPoolExecutor(DELETED_TOGETHER) as pool:
            list(pool.map(storage.delete, mine))

    def _listing(self) -> dict[str, storage.Stat]:
        return storage.listing(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the last part, also of a job that fails: it is what the next try begins with."""
        self._writer.shutdown(wait=True)
        if self._spool:
            self._spool.abandon()
        if kind is None:
            self._settle()


def _read(uri: str, unit: Unit, columns: pa.Schema) -> tuple[pa.Table, LedgerEntry]:
    """Rows and entry of a unit's part. Raises SourceError for a file that is none."""
    with storage.local_copy(uri) as path, parquet_errors(uri):
        rows = pq.read_table(path, page_checksum_verification=True)
    try:
        told = json.loads((rows.schema.metadata or {})[ENTRY])
        entry = LedgerEntry(**told | {"unit": Unit(**told["unit"])})
        rows = rows.replace_schema_metadata(None).cast(columns.remove_metadata())
    except (KeyError, TypeError, ValueError, pa.ArrowException) as e:
        raise SourceError(f"{uri}: not a part of this dataset ({type(e).__name__}: {str(e)[:120]})") from e
    if entry.unit.unit_id != unit.unit_id or len(rows) != entry.embedded:
        raise SourceError(f"{uri}: {len(rows)} rows, but {entry.embedded} of {entry.unit.unit_id} are told")
    return rows, entry


def _stem(unit: Unit) -> str:
    """A unit's id as a file's name; ids hold colons, which some stores and shells dislike."""
    return re.sub(r"[^\w.-]", "-", unit.unit_id)
