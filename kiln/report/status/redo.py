"""The commands that do exactly what is left of a run: missing shards, failures worth a retry, lost outputs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kiln.io import storage
from kiln.report.status.command import RunCommand
from kiln.report.status.failures import Outlook
from kiln.report.status.folders import FolderStatus
from kiln.report.status.outputs import Output
from kiln.report.status.run import RunStatus

MAX_INLINE = 8  # files named in a command; more go to a list


@dataclass(frozen=True)
class SnakemakeCommand:
    """A call of Snakemake.

    Attributes:
        purpose: What it does.
        flags: Its flags.
        targets: The files it is called for; none means everything.
        targets_file: File that lists the targets, where there are many.
    """

    purpose: str
    flags: Sequence[str]
    targets: Sequence[str]
    targets_file: str = ""

    @property
    def arguments(self) -> list[str]:
        """The arguments, targets included."""
        return ["snakemake", *self.flags, *(["--", *self.targets] if self.targets else [])]

    def text(self) -> str:
        """Return the command as a person types it."""
        if not self.targets:
            return shlex.join(self.arguments)
        targets = f"$(cat {shlex.quote(self.targets_file)})" if self.targets_file else shlex.join(self.targets)
        return f"{shlex.join(['snakemake', *self.flags])} -- {targets}"


@dataclass(frozen=True)
class CommandGroup:
    """The commands for the folders of one config, under a name where there are several configs."""

    name: str
    commands: Sequence[SnakemakeCommand]


def redo_commands(
    runs: Sequence[RunStatus], *, config_files: Sequence[str] = (), cores: str = "all", list_file: str
) -> list[CommandGroup]:
    """Return the commands of every group of folders that has something to do.

    Args:
        runs: Status of each run.
        config_files: Config files for the commands, instead of those that the run keeps.
        cores: `--cores` of the commands.
        list_file: Name of the lists of targets, without their label: `redo.txt` is `redo-missing.txt` and so on.
    """
    groups = [(run, group) for run in runs for group in _group_by_config(run.folders)]
    result = []
    for run, group in groups:
        folder = group[0].folder
        same_run = [g for r, g in groups if r is run]
        name = f"results/{folder.run}" if len(same_run) == 1 else folder.path
        label = name.removeprefix("results/").replace("/", "-") if len(groups) > 1 else ""
        command = replace(run.command, config_files=config_files) if config_files else run.command
        work = _Work(run, group, len(same_run) == 1)
        if commands := work.commands(snakemake_flags(command, cores, run.root), list_file, label):
            result.append(CommandGroup(name if len(groups) > 1 else "", commands))
    return result


def _group_by_config(statuses: Sequence[FolderStatus]) -> list[list[FolderStatus]]:
    """Return the folders that one config can have created together: with one fingerprint per dataset."""
    groups: dict[str, list[FolderStatus]] = {}
    datasets = [status.folder.name.rpartition("-")[0] for status in statuses]
    for status, dataset in zip(statuses, datasets, strict=True):
        groups.setdefault(status.folder.name if datasets.count(dataset) > 1 else "", []).append(status)
    return list(groups.values())


def snakemake_flags(command: RunCommand, cores: str, root: str) -> list[str]:
    """Return the flags of Snakemake for a run: how it was started, cores, and where its files lie."""
    flags = command.flags()
    uses_profile = "--profile" in flags
    flags += [] if uses_profile else ["--cores", cores]
    if storage.is_s3(root):
        place = ["--default-storage-provider", "s3", "--default-storage-prefix", root]
        return flags + ([] if uses_profile else place)
    return flags + (["--directory", root] if root else [])


@dataclass(frozen=True)
class _Work:
    """What is left to do in folders of one run.

    Attributes:
        run: The run.
        folders: The folders.
        with_database: Whether the run's database is made of these folders.
    """

    run: RunStatus
    folders: Sequence[FolderStatus]
    with_database: bool

    def commands(self, flags: Sequence[str], list_file: str, label: str) -> list[SnakemakeCommand]:
        """Return what embeds missing shards, embeds repaired ones again, makes damaged outputs again, and goes on."""
        commands = []
        force = ["--force"]
        for targets, thing, what, file_label, forced in (
            (self._missing, "shard", "missing", "missing", []),
            (self._failing("retry"), "shard", "with failures that a retry may repair", "failed", force),
            (self._failing("unknown"), "shard", "with failures whose sources cannot be looked at", "unknown", force),
            (self._damaged, "output", "with lost files", "damaged", force),
        ):
            if targets:
                file = Path(list_file)
                file = file.with_stem("-".join(word for word in (file.stem, file_label, label) if word))
                targets_file = str(file) if len(targets) > MAX_INLINE else ""
                purpose = f"{len(targets):,} {thing if len(targets) == 1 else f'{thing}s'} {what}"
                commands.append(SnakemakeCommand(purpose, [*flags, *forced], targets, targets_file))
        if commands or self._is_unfinished:
            purpose = f"{'then ' if commands else ''}carry the results on (products, index)"
            commands.append(SnakemakeCommand(purpose, flags, []))
        return commands

    @property
    def _missing(self) -> list[str]:
        return [target for folder in self.folders for target in folder.missing]

    def _failing(self, outlook: Outlook) -> list[str]:
        """Return the shards with a failure of an outlook. One that a retry may repair counts before others."""
        looks: dict[str, set[Outlook]] = {}
        for folder in self.folders:
            for shard, failure, _ in folder.failures():
                looks.setdefault(shard, set()).add(self.run.outlooks[failure])
        if outlook == "retry":
            return [shard for shard, found in looks.items() if "retry" in found]
        return [shard for shard, found in looks.items() if outlook in found and "retry" not in found]

    @property
    def _outputs(self) -> list[Output]:
        products = [partition.product for folder in self.folders for partition in folder.partitions]
        return products + ([self.run.database] if self.with_database else [])

    @property
    def _damaged(self) -> list[str]:
        return [output.record for output in self._outputs if output.state == "damaged"]

    @property
    def _is_unfinished(self) -> bool:
        return any(output.state in ("missing", "outdated") for output in self._outputs)


def write_target_lists(groups: Sequence[CommandGroup]) -> None:
    """Write the lists of targets that commands read."""
    for group in groups:
        for command in group.commands:
            if command.targets_file:
                text = "".join(f"{target}\n" for target in command.targets)
                storage.write_bytes(command.targets_file, text.encode())
