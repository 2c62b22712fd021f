"""Statuses of runs with given numbers, without a file."""

from collections.abc import Collection, Mapping, Sequence

from kiln.formats.job_record import JobRecord
from kiln.report.costs import DatasetCosts
from kiln.report.status.command import RunCommand
from kiln.report.status.folders import DatasetFolder, Failure, FolderStatus, LedgerSummary, PartitionStatus
from kiln.report.status.outputs import Output
from kiln.report.status.run import RunStatus

MERGED = Output("merged")
CHIPS = 40  # of each shard


def make_partition(
    name: str = "2021",
    shards: int = 3,
    *,
    missing: Collection[int] = (),
    failures: Mapping[int, Sequence[Failure]] | None = None,
    product: Output = MERGED,
) -> PartitionStatus:
    """Return a partition with the shards `<name>-0` and so on, of which some are missing or have failures."""
    names = [f"{name}-{number}" for number in range(shards)]
    ledgers = {
        shard: LedgerSummary(tuple((failures or {}).get(number, ())), CHIPS, CHIPS)
        for number, shard in enumerate(names)
        if number not in missing
    }
    return PartitionStatus(name, "plan.jsonl", names, [n for n in names if n not in ledgers], ledgers, 0, product)


def make_folder(
    *partitions: PartitionStatus,
    name: str = "worldcover-1a2b3c4d",
    run: str = "sample",
    root: str = "",
    notes: Sequence[str] = (),
) -> FolderStatus:
    """Return a folder with partitions, by default a complete one."""
    return FolderStatus(DatasetFolder(root, run, name), partitions or [make_partition()], notes)


def make_run(
    *folders: FolderStatus,
    database: Output = MERGED,
    command: RunCommand | None = None,
    records: Sequence[JobRecord] = (),
) -> RunStatus:
    """Return a run with folders, by default a complete one. The records are those of the first folder."""
    folders = folders or (make_folder(),)
    first, command = folders[0].folder, command or RunCommand()
    costs = [
        DatasetCosts(folder.folder.name, [] if number else records, command.price_per_hour)
        for number, folder in enumerate(folders)
    ]
    return RunStatus(first.root, first.run, folders, database, command, costs)
