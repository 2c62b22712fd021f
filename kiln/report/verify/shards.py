"""Verification of shards with their ledgers and patch vectors, of plans, and of checkpoints."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kiln.engine.checkpoints import check_checkpoint
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file, patch_file, plan_file
from kiln.formats.ledger import ledger_name, read_ledger
from kiln.formats.parquet import read_batches
from kiln.io import storage
from kiln.report.verify.finding import Check, Finding, problem_of

BATCH_ROWS = 4096
COUNTED = ("embedded", "skipped_nodata", "skipped_cloud", "failed")  # of a ledger; together they are the expected chips


def plan_check(plan: str, files: Collection[str]) -> Check:
    """Return the check of a plan, and of the small file of its names."""
    names_file = f"{plan.removesuffix('.gz').removesuffix('.jsonl')}.json"

    def problems() -> Iterator[Finding]:
        both = tuple(uri for uri in (plan, names_file) if uri in files)
        names: dict[str, list[str]] = {}

        def read() -> None:
            for shard in plan_file.read_plan(plan):
                names.setdefault(shard.partition, []).append(shard.name)

        if problem := problem_of(read, plan):
            yield Finding(plan, problem, both)
        elif names_file in files:

            def compare() -> None:
                if plan_file.read_names(names_file) != names:
                    raise ConfigError(f"{names_file}: expected the names of the plan's shards, got others.")

            if problem := problem_of(compare, names_file):
                yield Finding(names_file, problem, both)

    return Check(plan, problems)


class PlannedUnits:
    """The number of units of each shard of some plans, which are read when a shard is verified first."""

    def __init__(self, plans: Sequence[str]) -> None:
        self._plans, self._lock = plans, threading.Lock()
        self._counts: dict[str, int] | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of units by name of the shard; nothing of damaged plans, which have a finding of their own."""
        with self._lock:
            if self._counts is None:
                self._counts = {}
                for plan in self._plans:
                    with suppress(ConfigError, SourceError):
                        self._counts |= {shard.name: len(shard.units) for shard in plan_file.read_plan(plan)}
            return self._counts


def shard_check(shard: str, files: Collection[str], planned: PlannedUnits) -> Check:
    """Return the check of a shard, its ledger and its file of patches.

    Args:
        shard: Path or s3:// of the shard.
        files: All files of the run.
        planned: Units of the shards of its folder.
    """
    ledger, patches = ledger_name(shard), patch_file.patches_name(shard)

    def problems() -> Iterator[Finding]:
        delete = tuple(uri for uri in (shard, ledger, patches) if uri in files)
        found: dict[str, Any] = {}
        if problem := problem_of(lambda: found.update(_read_shard(shard)), shard):
            yield Finding(shard, problem, delete)
        if ledger not in files:
            yield Finding(ledger, "expected a ledger, got no file.", delete)
        elif problem := problem_of(lambda: _check_ledger(ledger, found, planned.counts), ledger):
            yield Finding(ledger, problem, delete)
        if found and "patches" in found["metadata"]:
            if patches not in files:
                yield Finding(patches, "expected the patch vectors of the shard, got no file.", delete)
            elif problem := problem_of(lambda: _check_patches(patches, found["ids"]), patches):
                yield Finding(patches, problem, delete)

    return Check(shard, problems)


def _read_shard(shard: str) -> dict[str, Any]:
    """Return `metadata` and chip `ids` of a shard, every page of which is read.

    Raises SourceError if it is damaged or of another folder.
    """
    folder = shard.rpartition("/shards/")[0]
    with storage.local_copy(shard) as path:
        metadata = embeddings_file.read_metadata(path, shard)
        batches = [batch["chip_id"] for batch in read_batches(path, BATCH_ROWS, where=shard)]
    ids = pa.chunked_array(batches, pa.string())
    if not str(metadata["fingerprint"]).startswith(folder.rpartition("-")[2]):
        raise SourceError(f"{shard}: expected the fingerprint of its folder, got {metadata['fingerprint'][:8]}.")
    if (distinct := pc.count_distinct(ids).as_py()) != len(ids):
        raise SourceError(f"{shard}: expected {len(ids)} different chips, got {distinct}.")
    return {"metadata": metadata, "ids": ids}


def _check_ledger(uri: str, shard: Mapping[str, Any], planned: Mapping[str, int]) -> None:
    """Raise SourceError unless a ledger has the units of the plan, and accounts for all chips and rows."""
    with storage.local_copy(uri) as path:
        ledger = read_ledger(path, uri)
    units = planned.get(uri.rpartition("/")[2].removesuffix(ledger_name("")), len(ledger))
    if units != (distinct := pc.count_distinct(ledger["unit_id"]).as_py()) or distinct != len(ledger):
        raise SourceError(f"{uri}: expected {units} units as in the plan, got {distinct}.")
    for row in ledger.to_pylist():
        if row["expected"] != sum(row[name] for name in COUNTED):
            raise SourceError(f"{uri}: expected an account of all {row['expected']} chips of {row['unit_id']}.")
    embedded = pc.sum(ledger["embedded"]).as_py() or 0
    if shard and embedded != len(shard["ids"]):
        raise SourceError(f"{uri}: expected {len(shard['ids'])} embedded chips as in the shard, got {embedded}.")


def _check_patches(uri: str, ids: pa.ChunkedArray) -> None:
    """Raise SourceError unless a file of patches has the chips of its shard."""
    with storage.local_copy(uri) as path:
        chip_ids = [chip_id for some, _ in patch_file.read_patches(path) for chip_id in some]
    if chip_ids != ids.to_pylist():
        raise SourceError(f"{uri}: expected the patch vectors of {len(ids)} chips, got those of {len(chip_ids)}.")


def checkpoint_check(uri: str) -> Check:
    """Return the check of a file of an unfinished shard."""

    def problems() -> Iterator[Finding]:
        if problem := problem_of(lambda: check_checkpoint(uri), uri):
            yield Finding(uri, problem, (uri,))

    return Check(uri, problems)
