"""The status of runs: their datasets' folders, products and database, how they were started, and what they took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kiln.errors import ConfigError
from kiln.io import storage
from kiln.report.costs import DatasetCosts, read_costs
from kiln.report.status.command import NAME, RunCommand
from kiln.report.status.failures import Outlook, outlooks
from kiln.report.status.folders import (
    DatasetFolder,
    Failure,
    FolderStatus,
    dataset_folders,
    find_runs,
    join_root,
    list_stats,
    plans_among,
    read_folder,
    run_folder,
)
from kiln.report.status.outputs import Output, database_state

SHARED = Output("waits", note="for one config: several fingerprints of a dataset share it")


@dataclass(frozen=True)
class RunStatus:
    """The status of one run.

    Attributes:
        root: What lies above `results/`: empty, a folder or s3://.
        run: Name of the run.
        folders: Status of each dataset's folder that has a plan.
        database: State of the explorer database.
        command: How the run was started.
        costs: What the jobs of each folder took.
        keep_s: Seconds for which the outlooks of failures are kept.
    """

    root: str
    run: str
    folders: Sequence[FolderStatus]
    database: Output
    command: RunCommand
    costs: Sequence[DatasetCosts] = field(default=())
    keep_s: float = 0.0

    @property
    def uri(self) -> str:
        """The path or s3:// of the run."""
        return join_root(self.root, f"results/{self.run}")

    @cached_property
    def outlooks(self) -> Mapping[Failure, Outlook]:
        """Whether a retry may repair each failure. The sources of failed units are looked at."""
        failures = [(failure, written) for folder in self.folders for _, failure, written in folder.failures()]
        return outlooks(failures, self.keep_s)


def read_status(
    runs: Sequence[str] = (), plans: Sequence[str] = (), checkpoints: str | None = None, keep_s: float = 0.0
) -> list[RunStatus]:
    """Read the status of runs, or of some plans. Nothing is changed.

    Args:
        runs: Folders `results/<run>`, paths or s3://. Without runs and plans, all below `results/` that have a plan.
        plans: Exactly these plans instead of runs, where they lie.
        checkpoints: Folder of the run's checkpoints, if not `checkpoints/<run>` next to `results/`.
        keep_s: Seconds for which the sources of failed units are not looked at again.

    Raises:
        ConfigError: If a folder is not that of a run, has no plan, or several plans have one partition and nothing
            shows which one counts.
    """
    if runs and plans:
        raise ConfigError("status: expected either RUN or --plans, got both. Leave one out.")
    if not plans:
        runs = [run_folder(run) for run in runs or find_runs()]
    if checkpoints and len(runs) > 1:
        raise ConfigError(f"--checkpoints: expected one RUN, got {len(runs)}. Name it.")
    named: dict[str, dict[DatasetFolder, list[str]]] = {}
    for plan in dict.fromkeys(plans):
        folder = DatasetFolder.of(plan.rpartition("/")[0] or ".")
        run = folder.uri.rpartition("/")[0]
        named.setdefault(run, {}).setdefault(folder, []).append(f"{folder.uri}/{plan.rpartition('/')[2]}")
    every = dict.fromkeys([*runs, *named])
    return [replace(_read_run(run, named.get(run, {}), checkpoints), keep_s=keep_s) for run in every]


def _read_run(run: str, named: Mapping[DatasetFolder, list[str]], checkpoints: str | None) -> RunStatus:
    """Return the status of a run, by its plans or by those that a person named."""
    files = list_stats(run)
    command = RunCommand.read(run) if storage.join(run, NAME) in files else RunCommand()
    by_folder = {DatasetFolder.of(uri): stats for uri, stats in dataset_folders(run, files).items()}
    folders = [
        read_folder(
            folder,
            named.get(folder) or plans_among(folder.uri, stats),
            stats,
            exact=bool(named),
            checkpoints=checkpoints,
            partitions=command.partitions,
            allow_missing=command.allow_missing,
        )
        for folder, stats in by_folder.items()
        if not named or folder in named
    ]
    first = folders[0].folder
    products = {
        f"{folder.folder.name.rpartition('-')[0]} {partition.name}": partition.product
        for folder in folders
        for partition in folder.partitions
    }
    return RunStatus(
        root=first.root,
        run=first.run,
        folders=folders,
        database=SHARED
        if len(products) < sum(len(folder.partitions) for folder in folders)
        else database_state(run, f"results/{first.run}", products, files),
        command=command,
        costs=read_costs(
            storage.join(run, "runs"), [folder.folder.name for folder in folders], command.price_per_hour, files
        ),
    )
