"""The status of runs: shards that are done, missing and failing, by the plans and ledgers that lie in their folders."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import ConfigError, SourceError
from kiln.formats import plan_file
from kiln.formats.ledger import LEDGER_SCHEMA, ledger_name
from kiln.formats.parquet import parquet_errors
from kiln.io import storage

FOLDER = re.compile(r"[a-z0-9]+-[0-9a-f]{8}")  # of a dataset: its name and its fingerprint
PLAN = re.compile(r"plan-[^/]+\.jsonl(\.gz)?")
CHECKPOINT = re.compile(r"(?<!\.patches)\.parquet$")
CHECKPOINTS = "checkpoints"  # folder of the runs' checkpoints, next to results/
LEDGER_COLUMNS = ["unit_id", "status", "reason", "expected", "embedded", "failed"]
MAX_READERS = 8  # ledgers read at a time
MAX_NAMED = 3  # partitions named in a note


@dataclass(frozen=True)
class Failure:
    """A failed unit and the reason; without a unit, a failure of the shard."""

    unit: str
    reason: str


@dataclass(frozen=True)
class LedgerSummary:
    """The content of a ledger: failures, embedded chips, and the chips expected."""

    failures: tuple[Failure, ...] = ()
    embedded: int = 0
    expected: int = 0


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
    """

    name: str
    plan: str
    shards: list[str]
    missing: list[str]
    ledgers: Mapping[str, LedgerSummary]
    checkpoints: int

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
        return _join_root(self.root, self.path)


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

    def _paths(self, shards: Iterable[tuple[str, list[str]]]) -> list[str]:
        folder = f"{self.folder.path}/shards"
        return [f"{folder}/{partition}/{name}.parquet" for partition, names in shards for name in names]


@dataclass(frozen=True)
class ChosenPlans:
    """The shards of a folder by partition, the plan that each partition was taken from, and notes about the others."""

    shards: Mapping[str, list[str]]
    plans: Mapping[str, str]
    notes: Sequence[str]


def read_status(
    runs: Sequence[str] = (), plans: Sequence[str] = (), checkpoints: str | None = None
) -> list[FolderStatus]:
    """Read the status of runs, or of some plans. Nothing is changed.

    Args:
        runs: Folders `results/<run>`, paths or s3://. Without runs and plans, all below `results/` that have a plan.
        plans: Exactly these plans instead of runs, where they lie.
        checkpoints: Folder of the run's checkpoints, if not `checkpoints/<run>` next to `results/`.

    Returns:
        The status of each folder of a dataset that has a plan.

    Raises:
        ConfigError: If a folder is not that of a run, has no plan, or several plans have one partition and nothing
            shows which one counts.
    """
    if runs and plans:
        raise ConfigError("status: expected either RUN or --plans, got both. Leave one out.")
    if not plans:
        runs = runs or find_runs()
    if checkpoints and len(runs) > 1:
        raise ConfigError(f"--checkpoints: expected one RUN, got {len(runs)}. Name it.")
    statuses = []
    for run in dict.fromkeys(runs):
        for uri, files in dataset_folders(run).items():
            folder = DatasetFolder.of(uri)
            statuses.append(read_folder(folder, plans_among(uri, files), set(files), checkpoints=checkpoints))
    named: dict[DatasetFolder, list[str]] = {}
    for plan in dict.fromkeys(plans):
        folder = DatasetFolder.of(plan.rpartition("/")[0] or ".")
        named.setdefault(folder, []).append(f"{folder.uri}/{plan.rpartition('/')[2]}")
    for folder, files in named.items():
        statuses.append(read_folder(folder, files, set(list_files(folder.uri)), exact=True, checkpoints=checkpoints))
    return statuses


def read_folder(
    folder: DatasetFolder,
    plans: Sequence[str],
    files: Collection[str],
    *,
    exact: bool = False,
    checkpoints: str | None = None,
) -> FolderStatus:
    """Read the status of a folder by its plans: every ledger, and the list of its checkpoints.

    Args:
        folder: The folder.
        plans: Paths or s3:// of its plans.
        files: All files of the folder.
        exact: Whether a person named these plans.
        checkpoints: Folder of the run's checkpoints.
    """
    chosen = choose_plans(folder, plans, files, exact=exact)
    root = storage.join(checkpoints or _join_root(folder.root, f"{CHECKPOINTS}/{folder.run}"), folder.name)
    checkpoint_partitions = [
        file.removeprefix(f"{root}/").partition("/")[0] for file in list_files(root) if CHECKPOINT.search(file)
    ]
    ledger_of_shard = {
        (partition, shard): ledger_name(file)
        for partition, names in chosen.shards.items()
        for shard in names
        if (file := f"{folder.uri}/shards/{partition}/{shard}.parquet") in files
    }
    absent = LedgerSummary((Failure("", "the ledger is gone"),))
    with ThreadPoolExecutor(MAX_READERS) as pool:
        summaries = pool.map(lambda uri: read_ledger(uri) if uri in files else absent, ledger_of_shard.values())
        ledgers = dict(zip(ledger_of_shard, summaries, strict=True))
    partitions = [
        PartitionStatus(
            name=partition,
            plan=chosen.plans[partition],
            shards=names,
            missing=[shard for shard in names if (partition, shard) not in ledgers],
            ledgers={shard: ledgers[partition, shard] for shard in names if (partition, shard) in ledgers},
            checkpoints=checkpoint_partitions.count(partition),
        )
        for partition, names in chosen.shards.items()
    ]
    return FolderStatus(folder, partitions, chosen.notes)


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
        with parquet_errors(ledger):
            rows = pq.ParquetFile(pa.BufferReader(data)).read(LEDGER_COLUMNS)
            rows = rows.cast(pa.schema([LEDGER_SCHEMA.field(name) for name in LEDGER_COLUMNS]))
    except SourceError as e:
        return LedgerSummary((Failure("", str(e)),))
    except (ValueError, pa.ArrowException) as e:  # other columns, of other types, or with nulls
        reason = f"{ledger}: not a ledger ({str(e).splitlines()[0][:120]}). Embed the shard again."
        return LedgerSummary((Failure("", reason),))
    failed = [row for row in rows.to_pylist() if row["failed"] or row["status"] == "failed"]
    return LedgerSummary(
        tuple(Failure(row["unit_id"], row["reason"]) for row in failed),
        sum(rows["embedded"].to_pylist()),
        sum(rows["expected"].to_pylist()),
    )


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


def dataset_folders(run: str) -> dict[str, list[str]]:
    """Return the files of each dataset's folder of a run, of those that have a plan.

    Raises ConfigError if there is no plan, or the folder is not that of a run.
    """
    top = run.rstrip("/") if storage.is_s3(run) else os.path.normpath(run)
    if split_end(top, 2)[1][0] != "results":
        raise ConfigError(f"{run}: expected the folder of a run, results/<run>, got another one. Correct the address.")
    files_of: dict[str, list[str]] = {}
    for file in list_files(top):
        folder, _, inner = file.removeprefix(f"{top}/").partition("/")
        if FOLDER.fullmatch(folder) and inner:
            files_of.setdefault(f"{top}/{folder}", []).append(file)
    if not (planned := {folder: files for folder, files in files_of.items() if plans_among(folder, files)}):
        raise ConfigError(f"{run}: expected a planned run, got no plan in it. Run `snakemake plan`.")
    return planned


def plans_among(folder: str, files: Iterable[str]) -> list[str]:
    """Return the files that are plans of a folder."""
    return [file for file in files if PLAN.fullmatch(file.removeprefix(f"{folder}/"))]


def list_files(folder: str) -> list[str]:
    """Return the files below a folder or prefix; none where there is no such folder."""
    return list(storage.listing(folder)) if storage.is_s3(folder) or Path(folder).is_dir() else []


def split_end(uri: str, count: int) -> tuple[str, list[str]]:
    """Return what lies above the last `count` parts of a path or URI, and these parts, '' for each that is absent."""
    path = uri.rstrip("/") if storage.is_s3(uri) else os.path.normpath(uri)
    scheme, _, inner = path.partition("://") if storage.is_s3(uri) else ("", "", path)
    parts = inner.split("/")
    last = [""] * (count - len(parts)) + parts[-count:]
    root = "/".join(parts[:-count]) or ("/" if inner.startswith("/") and len(parts) > count else "")
    return f"{scheme}://{root}" if scheme else root, last


def _join_root(root: str, path: str) -> str:
    return storage.join(root, path) if root != "/" else f"/{path}"
