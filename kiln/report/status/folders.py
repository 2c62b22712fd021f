"""The status of datasets' folders: shards that are done, missing and failing, by the plans and ledgers in them."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import pyarrow as pa

from kiln.errors import ConfigError, SourceError
from kiln.formats import plan_file
from kiln.formats.ledger import LEDGER_SCHEMA, ledger_name
from kiln.formats.parquet import open_stream, parquet_errors, read_footer
from kiln.io import storage
from kiln.report.status.outputs import MAX_CACHED, Output, product_state

FOLDER = re.compile(r"[a-z0-9]+-[0-9a-f]{8}")  # of a dataset: its name and its fingerprint
PLAN = re.compile(r"plan-[^/]+\.jsonl(\.gz)?")
CHECKPOINT = re.compile(r"(?<!\.patches)\.parquet$")
CHECKPOINTS = "checkpoints"  # folder of the runs' checkpoints, next to results/
LEDGER_COLUMNS = ["unit_id", "status", "reason", "expected", "embedded", "failed", "source", "etag"]
MAX_READERS = 8  # ledgers read at a time
MAX_NAMED = 3  # partitions named in a note


@dataclass(frozen=True)
class Failure:
    """A failed unit and the reason; without a unit, a failure of the shard.

    Attributes:
        unit: Its id.
        reason: The reason.
        source: URI of its file or folder.
        etag: ETag that its file had; empty where the store has none.
    """

    unit: str
    reason: str
    source: str = ""
    etag: str = ""


@dataclass(frozen=True)
class LedgerSummary:
    """The content of a ledger.

    Attributes:
        failures: Its failed units.
        embedded: Embedded chips.
        expected: Chips of all its units.
        written: Nanoseconds since the epoch when it was written; 0 on a store.
    """

    failures: tuple[Failure, ...] = ()
    embedded: int = 0
    expected: int = 0
    written: int = 0


@dataclass(frozen=True)
class PartitionStatus:
    """The status of one partition.

    Attributes:
        name: Merge partition.
        plan: Name of the plan that it is in.
        shards: Names of its shards.
        missing: Names of those that are not embedded.
        ledgers: Ledgers of the others, by shard, in the plan's order.
        checkpoints: Number of checkpoints of its unfinished shards.
        product: State of its product.
    """

    name: str
    plan: str
    shards: list[str]
    missing: list[str]
    ledgers: Mapping[str, LedgerSummary]
    checkpoints: int
    product: Output

    @property
    def failing(self) -> list[str]:
        """Names of shards with a failed unit, or without an intact ledger."""
        return [shard for shard, ledger in self.ledgers.items() if ledger.failures]


@dataclass(frozen=True)
class DatasetFolder:
    """The folder `results/<run>/<dataset>-<fingerprint>` below `root`, which is empty, a folder or `s3://...`."""

    root: str
    run: str
    name: str

    @classmethod
    def of(cls, uri: str) -> Self:
        """Return the folder at a path or s3://. Raises ConfigError for another one."""
        root, (results, run, name) = split_end(uri, 3)
        if results != "results" or not FOLDER.fullmatch(name):
            raise ConfigError(
                f"{uri}: expected the folder of a dataset, results/<run>/<dataset>-<fingerprint>, "
                "got another one. Correct the address."
            )
        return cls(root, run, name)

    @property
    def path(self) -> str:
        """The path in the workflow."""
        return f"results/{self.run}/{self.name}"

    @property
    def uri(self) -> str:
        """The path or s3:// of the folder."""
        return join_root(self.root, self.path)


@dataclass(frozen=True)
class FolderStatus:
    """The status of a dataset's folder; `notes` are about plans that were not taken."""

    folder: DatasetFolder
    partitions: Sequence[PartitionStatus]
    notes: Sequence[str] = ()

    @property
    def missing(self) -> list[str]:
        """Paths in the workflow of the shards that are not embedded."""
        return self._paths((partition.name, partition.missing) for partition in self.partitions)

    @property
    def failing(self) -> list[str]:
        """Paths in the workflow of the shards with failures."""
        return self._paths((partition.name, partition.failing) for partition in self.partitions)

    def failures(self) -> Iterator[tuple[str, Failure, int]]:
        """Yield each failure with the path of its shard in the workflow, and when its ledger was written."""
        for partition in self.partitions:
            for shard, ledger in partition.ledgers.items():
                (path,) = self._paths([(partition.name, [shard])])
                yield from ((path, failure, ledger.written) for failure in ledger.failures)

    def _paths(self, shards: Iterable[tuple[str, list[str]]]) -> list[str]:
        folder = f"{self.folder.path}/shards"
        return [f"{folder}/{partition}/{name}.parquet" for partition, names in shards for name in names]


@dataclass(frozen=True)
class ChosenPlans:
    """The shards of a folder by partition, the plan that each partition was taken from, and notes about the others."""

    shards: Mapping[str, list[str]]
    plans: Mapping[str, str]
    notes: Sequence[str]

    def limited(self, patterns: Sequence[str]) -> Self:
        """Return the partitions that fit a pattern; without patterns, all."""
        if not patterns:
            return self
        shards = {p: names for p, names in self.shards.items() if plan_file.takes_partition(patterns, p)}
        left = len(self.shards) - len(shards)
        note = [f"the run is limited to {', '.join(patterns)}: {left:,} partitions are left out"] if left else []
        return replace(self, shards=shards, notes=[*self.notes, *note])

    def existing(self, folder: str, files: Collection[str]) -> Self:
        """Return the shards that are there, of the partitions that have any."""
        there = {p: [n for n in names if f"{folder}/{p}/{n}.parquet" in files] for p, names in self.shards.items()}
        left = sum(map(len, self.shards.values())) - sum(map(len, there.values()))
        note = [f"the run embeds nothing (allow_missing): {left:,} shards are left out"] if left else []
        return replace(self, shards={p: names for p, names in there.items() if names}, notes=[*self.notes, *note])


def read_folder(
    folder: DatasetFolder,
    plans: Sequence[str],
    files: Mapping[str, storage.Stat],
    *,
    exact: bool = False,
    checkpoints: str | None = None,
    partitions: Sequence[str] = (),
    allow_missing: bool = False,
) -> FolderStatus:
    """Read the status of a folder by its plans: every ledger, the products, and the list of its checkpoints.

    Args:
        folder: The folder.
        plans: Paths or s3:// of its plans.
        files: Size and time of all files of the folder.
        exact: Whether a person named these plans.
        checkpoints: Folder of the run's checkpoints.
        partitions: Patterns of the partitions that the run is limited to; none takes all.
        allow_missing: Whether the shards that are there are all that the run takes.
    """
    chosen = choose_plans(folder, plans, files, exact=exact).limited(partitions)
    if allow_missing:
        chosen = chosen.existing(f"{folder.uri}/shards", files)
    root = storage.join(checkpoints or join_root(folder.root, f"{CHECKPOINTS}/{folder.run}"), folder.name)
    checkpoint_count = Counter(
        file.removeprefix(f"{root}/").partition("/")[0] for file in list_files(root) if CHECKPOINT.search(file)
    )
    by_partition = _by_partition(folder.uri, files)
    ledger_of_shard = {
        (partition, shard): ledger_name(file)
        for partition, names in chosen.shards.items()
        for shard in names
        if (file := f"{folder.uri}/shards/{partition}/{shard}.parquet") in files
    }
    absent = LedgerSummary((Failure("", "the ledger is gone"),))
    with ThreadPoolExecutor(MAX_READERS) as pool:
        summaries = pool.map(
            lambda uri: _read_ledger_of(uri, files[uri]) if uri in files else absent,
            ledger_of_shard.values(),
        )
        ledgers = dict(zip(ledger_of_shard, summaries, strict=True))

        def product_of(partition: str) -> Output:
            names, own_files = chosen.shards[partition], by_partition.get(partition, {})
            counts = _sums(ledgers, partition, names)
            return product_state(folder.uri, folder.path, partition, names, counts, own_files)

        products = dict(zip(chosen.shards, pool.map(product_of, chosen.shards), strict=True))
    statuses = [
        PartitionStatus(
            name=partition,
            plan=chosen.plans[partition],
            shards=names,
            missing=[shard for shard in names if (partition, shard) not in ledgers],
            ledgers={shard: ledgers[partition, shard] for shard in names if (partition, shard) in ledgers},
            checkpoints=checkpoint_count[partition],
            product=products[partition],
        )
        for partition, names in chosen.shards.items()
    ]
    return FolderStatus(folder, statuses, chosen.notes)


def _by_partition(folder: str, files: Mapping[str, storage.Stat]) -> dict[str, dict[str, storage.Stat]]:
    """Return the files of shards and products of a folder by partition."""
    by_partition: dict[str, dict[str, storage.Stat]] = {}
    for uri, stat in files.items():
        kind, _, inner = uri.removeprefix(f"{folder}/").partition("/")
        if kind in ("shards", "products"):
            by_partition.setdefault(inner.partition("/")[0], {})[uri] = stat
    return by_partition


def _sums(ledgers: Mapping[tuple[str, str], LedgerSummary], partition: str, names: Sequence[str]) -> tuple[int, int]:
    """Return the chips of a partition's ledgers, embedded and in all."""
    found = [ledgers[partition, name] for name in names if (partition, name) in ledgers]
    return sum(ledger.embedded for ledger in found), sum(ledger.expected for ledger in found)


def choose_plans(folder: DatasetFolder, plans: Sequence[str], files: Collection[str], *, exact: bool) -> ChosenPlans:
    """Return the shards of a folder by partition, each from the plan that was written last.

    Raises ConfigError if several plans have a partition and nothing shows which one counts: a person named these plans
    (`exact`), or they lie on S3, where times are those of a copy.
    """
    ambiguous = exact or storage.is_s3(folder.uri)
    if not ambiguous:
        plans = sorted(plans, key=lambda file: (Path(file).stat().st_mtime_ns, file))
    shards: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for plan in plans:
        name = plan.rpartition("/")[2]
        for partition, names in read_shard_names(plan, files).items():
            if earlier := taken.get(partition):
                if names == shards[partition]:  # as after a change of settings that decide about no shard
                    continue
                if ambiguous:
                    raise ConfigError(
                        f"{folder.uri}: expected one plan of {partition}, got {earlier} and {name}. "
                        "Name one with --plans."
                    )
                others.setdefault(partition, []).append(earlier)
            taken[partition], shards[partition] = name, names
    partitions_of: dict[tuple[str, str], list[str]] = {}
    for partition, plan_names in sorted(others.items()):
        partitions_of.setdefault((taken[partition], ", ".join(plan_names)), []).append(partition)
    notes = []
    for (plan, left), partitions in partitions_of.items():
        hidden = len(partitions) - MAX_NAMED
        which = ", ".join(partitions[:MAX_NAMED]) + (f" and {hidden} more" if hidden > 0 else "")
        notes.append(f"{which}: {plan} was written last and is taken; left alone: {left}")
    return ChosenPlans(dict(sorted(shards.items())), taken, notes)


def read_ledger(ledger: str) -> LedgerSummary:
    """Return the content of a ledger; a damaged one is a failure of the shard.

    Raises TransientError or StorageError if the store fails.
    """
    try:
        data = storage.read_bytes(ledger)
        stream = pa.BufferReader(data)
        file = open_stream(stream, read_footer(stream, len(data), ledger), ledger)
        with parquet_errors(ledger):
            rows = file.read(LEDGER_COLUMNS)
            rows = rows.cast(pa.schema([LEDGER_SCHEMA.field(name) for name in LEDGER_COLUMNS]))
    except SourceError as e:
        return LedgerSummary((Failure("", str(e)),))
    except (ValueError, pa.ArrowException) as e:  # other columns, of other types, or with nulls
        reason = f"{ledger}: not a ledger ({str(e).splitlines()[0][:120]}). Embed the shard again."
        return LedgerSummary((Failure("", reason),))
    failed = [row for row in rows.to_pylist() if row["failed"] or row["status"] == "failed"]
    return LedgerSummary(
        tuple(Failure(row["unit_id"], row["reason"], row["source"], row["etag"]) for row in failed),
        sum(rows["embedded"].to_pylist()),
        sum(rows["expected"].to_pylist()),
    )


def _read_ledger_of(uri: str, stat: storage.Stat) -> LedgerSummary:
    return _read_version(uri, stat.size, stat.etag, stat.modified)


@lru_cache(maxsize=MAX_CACHED)
def _read_version(uri: str, size: int, etag: str, modified: int) -> LedgerSummary:
    """Return the content of a ledger, read once for each version of its file."""
    return replace(read_ledger(uri), written=modified)


def read_shard_names(plan: str, files: Collection[str]) -> dict[str, list[str]]:
    """Return the names of a plan's shards by partition, from its names file where there is one."""
    names_file = f"{plan.removesuffix('.gz').removesuffix('.jsonl')}.json"
    if names_file in files:
        return plan_file.read_names(names_file)
    names: dict[str, list[str]] = {}
    for shard in plan_file.read_plan(plan):
        names.setdefault(shard.partition, []).append(shard.name)
    if not names:
        raise ConfigError(f"{plan}: expected shards, got no shard in it. Check what the config selects.")
    return names


def find_runs() -> list[str]:
    """Return the runs below results/ that have a plan. Raises ConfigError if there is none."""
    folders = {path.parent for path in Path("results").glob("*/*/plan-*") if PLAN.fullmatch(path.name)}
    if not (runs := sorted({str(folder.parent) for folder in folders if FOLDER.fullmatch(folder.name)})):
        raise ConfigError(
            "results: expected a run, got no run with a plan below results/. Name one, or run `snakemake plan`."
        )
    return runs


def dataset_folders(run: str, files: Mapping[str, storage.Stat]) -> dict[str, dict[str, storage.Stat]]:
    """Return the files of each dataset's folder of a run, of those that have a plan.

    Raises ConfigError if there is none.
    """
    files_of: dict[str, dict[str, storage.Stat]] = {}
    for file, stat in files.items():
        folder, _, inner = file.removeprefix(f"{run}/").partition("/")
        if FOLDER.fullmatch(folder) and inner:
            files_of.setdefault(f"{run}/{folder}", {})[file] = stat
    if not (planned := {folder: files for folder, files in files_of.items() if plans_among(folder, files)}):
        raise ConfigError(f"{run}: expected a planned run, got no plan in it. Run `snakemake plan`.")
    return planned


def run_folder(run: str) -> str:
    """Return the folder of a run without a slash at its end.

    Raises ConfigError if it is not that of a run, or does not exist.
    """
    top = run.rstrip("/") if storage.is_s3(run) else os.path.normpath(run)
    if split_end(top, 2)[1][0] != "results":
        raise ConfigError(f"{run}: expected the folder of a run, results/<run>, got another one. Correct the address.")
    if not storage.is_s3(top) and not Path(top).is_dir():
        others = sorted(str(path) for path in Path(top).parent.glob("*") if path.is_dir() and path.name != "models")
        there = f" There are {', '.join(others)}." if others else ""
        raise ConfigError(f"{run}: expected the folder of a run, got no such folder. Correct the name.{there}")
    return top


def plans_among(folder: str, files: Iterable[str]) -> list[str]:
    """Return the files that are plans of a folder."""
    return [file for file in files if PLAN.fullmatch(file.removeprefix(f"{folder}/"))]


def list_stats(folder: str) -> dict[str, storage.Stat]:
    """Return size and time of the files below a folder or prefix; none where there is no such folder."""
    return storage.listing(folder) if storage.is_s3(folder) or Path(folder).is_dir() else {}


def list_files(folder: str) -> list[str]:
    """Return the files below a folder or prefix; none where there is no such folder."""
    return list(list_stats(folder))


def split_end(uri: str, count: int) -> tuple[str, list[str]]:
    """Return what lies above the last `count` parts of a path or URI, and these parts, '' for each that is absent."""
    path = uri.rstrip("/") if storage.is_s3(uri) else os.path.normpath(uri)
    scheme, _, inner = path.partition("://") if storage.is_s3(uri) else ("", "", path)
    parts = inner.split("/")
    last = [""] * (count - len(parts)) + parts[-count:]
    root = "/".join(parts[:-count]) or ("/" if inner.startswith("/") and len(parts) > count else "")
    return f"{scheme}://{root}" if scheme else root, last


def join_root(root: str, path: str) -> str:
    """Return a path of the workflow below its root, which is empty, a folder or s3://."""
    return storage.join(root, path) if root != "/" else f"/{path}"
