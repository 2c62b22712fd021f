"""Checkpoints: a file for each finished unit of an unfinished shard, so that a job that is retried resumes there.

The name of a checkpoint holds its unit and a digest of everything that its rows depend on: settings, weights and
software (`identity`), and the state of the unit's files (`Unit.version`). The file holds the unit's rows and its entry
of the ledger. The checkpoints of a shard are deleted when the shard is complete.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kiln.errors import SourceError
from kiln.formats import patch_file
from kiln.formats.fingerprint import digest
from kiln.formats.ledger import LedgerEntry
from kiln.formats.parquet import read_table, write_table
from kiln.formats.records import Unit
from kiln.io import storage

ENTRY_KEY = b"kiln-entry"  # of the Parquet metadata
DELETE_THREADS = 8
PATCHES_END = patch_file.patches_name("")
log = logging.getLogger(__name__)


@dataclass
class Checkpoints:
    """The checkpoints of a job. A thread writes them, one at a time, while the encoder goes on.

    Attributes:
        folder: Path or s3:// of their folder.
        identity: Digest of the settings, weights and software that the rows depend on.
        with_patches: Whether each checkpoint with rows has a file of patch vectors.
    """

    folder: str
    identity: str
    with_patches: bool = False
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoints"), repr=False
    )
    _pending_write: Future[None] | None = field(default=None, repr=False)
    _spool: patch_file.Spool | None = field(default=None, repr=False)  # the last one; open if the job fails

    @classmethod
    def for_metadata(cls, folder: str, metadata: Mapping[str, Any]) -> Self:
        """Return the checkpoints of jobs whose files have this `kiln` metadata. `sources` may differ."""
        identity = digest({k: v for k, v in metadata.items() if k != "sources"})
        return cls(folder, identity, "patches" in metadata)

    def uri(self, unit: Unit) -> str:
        """Return the path or s3:// of the checkpoint of a unit in its present state."""
        return storage.join(self.folder, f"{_file_stem(unit)}-{digest([self.identity, unit.version])[:12]}.parquet")

    def read_finished(self, units: Iterable[Unit], schema: pa.Schema) -> dict[str, tuple[pa.Table, LedgerEntry]]:
        """Return rows and ledger entry of each unit that has a checkpoint, by unit id.

        Unreadable checkpoints are ignored with a warning.
        """
        existing = self._list_files()
        finished = {}
        for unit in units:
            if not unit.version or (uri := self.uri(unit)) not in existing:
                continue
            try:
                rows, entry = _read_checkpoint(uri, unit, schema)
                if self.with_patches:
                    self._check_patches(unit, rows)
                finished[unit.unit_id] = rows, entry
            except SourceError as e:
                log.warning("checkpoint ignored, its unit is embedded again: %s", e)
        return finished

    def read_patches(self, unit: Unit, rows: int) -> Iterator[tuple[list[str], NDArray[np.float16]]]:
        """Yield chip ids and patch vectors [n, L * D] of a unit's checkpoint. A checkpoint without rows has none."""
        if rows:
            with storage.local_copy(patch_file.patches_name(self.uri(unit))) as path:
                yield from patch_file.read_patches(path)

    def _check_patches(self, unit: Unit, rows: pa.Table) -> None:
        """Raise SourceError unless the patches of a checkpoint are complete and belong to its rows."""
        chip_ids = rows["chip_id"].to_pylist()
        if chip_ids != [chip_id for ids, _ in self.read_patches(unit, len(rows)) for chip_id in ids]:
            raise SourceError(
                f"{patch_file.patches_name(self.uri(unit))}: expected the patches of its checkpoint's {len(chip_ids)} "
                "chips, got others. Delete it."
            )

    def open_spool(self, unit: Unit, schema: pa.Schema) -> patch_file.Spool:
        """Open the file for the patches of an unfinished unit. Give it to `write`, or abandon it."""
        self._spool = patch_file.Spool(patch_file.patches_name(self.uri(unit)), schema)
        return self._spool

    def write(self, rows: pa.Table, entry: LedgerEntry, spool: patch_file.Spool | None = None) -> None:
        """Begin to write the checkpoint of a finished unit, its patches first.

        Raises:
            StorageError: If the checkpoint before it could not be written.
        """
        self._wait_for_write()
        metadata = {ENTRY_KEY: json.dumps(asdict(entry), sort_keys=True).encode()}
        uri = self.uri(entry.unit)

        def work() -> None:
            if spool:
                spool.finish()
            with storage.atomic(uri) as path:
                table = rows.replace_schema_metadata(metadata)
                write_table(table, path, compression="zstd")

        self._pending_write = self._executor.submit(work)

    def _wait_for_write(self) -> None:
        if self._pending_write is not None:
            self._pending_write.result()
            self._pending_write = None

    def delete(self, units: Iterable[Unit]) -> None:
        """Delete all checkpoints of these units, also those of other states, settings and software."""
        stems = {_file_stem(unit) for unit in units}
        uris = [uri for uri in self._list_files() if uri.rpartition("/")[2].rpartition("-")[0] in stems]
        with ThreadPoolExecutor(DELETE_THREADS) as pool:
            list(pool.map(storage.delete, uris))

    def _list_files(self) -> dict[str, storage.Stat]:
        return storage.listing(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the last checkpoint, also if the job fails: the retry resumes from it."""
        self._executor.shutdown(wait=True)
        if self._spool:
            self._spool.abandon()
        if kind is None:
            self._wait_for_write()


def check_checkpoint(uri: str) -> None:
    """Raise SourceError for a file of a folder of checkpoints that is damaged or another one."""
    if uri.endswith(PATCHES_END):
        with storage.local_copy(uri) as path:
            for _ in patch_file.read_patches(path):
                pass
    else:
        _read_checkpoint(uri)


def _read_checkpoint(
    uri: str, unit: Unit | None = None, schema: pa.Schema | None = None
) -> tuple[pa.Table, LedgerEntry]:
    """Return rows and ledger entry of a unit's checkpoint. Raises SourceError for another file, unit or schema."""
    with storage.local_copy(uri) as path:
        rows = read_table(path, uri)
    try:
        values = json.loads((rows.schema.metadata or {})[ENTRY_KEY])
        entry = LedgerEntry(**values | {"unit": Unit(**values["unit"])})
        rows = rows.replace_schema_metadata(None)
        if schema is not None:
            rows = rows.cast(schema.remove_metadata())
    except (KeyError, TypeError, ValueError, pa.ArrowException) as e:
        raise SourceError(
            f"{uri}: expected a checkpoint of this dataset, got another file ({type(e).__name__}: {str(e)[:120]}). "
            "Delete it."
        ) from e
    unit_id = unit.unit_id if unit else entry.unit.unit_id
    if entry.unit.unit_id != unit_id or len(rows) != entry.embedded:
        raise SourceError(
            f"{uri}: expected {entry.embedded} rows of {unit_id}, got {len(rows)} of {entry.unit.unit_id}. Delete it."
        )
    return rows, entry


def _file_stem(unit: Unit) -> str:
    """Return a unit's id as a file name. Ids hold colons, which some stores and shells do not accept."""
    return re.sub(r"[^\w.-]", "-", unit.unit_id)
