"""The commands that embed again exactly the shards that are missing or failing."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kiln.io import storage
from kiln.report.status import FolderStatus

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
    statuses: Sequence[FolderStatus], *, config_files: Sequence[str] = (), cores: str = "all", list_file: str
) -> list[CommandGroup]:
    """Return the commands of every group of folders that has something to do.

    Args:
        statuses: Status of each folder.
        config_files: Config files of the run, for the commands.
        cores: `--cores` of the commands.
        list_file: Name of the lists of targets, without their label: `redo.txt` is `redo-missing.txt` and so on.
    """
    flags = {"--configfile": list(config_files), "--cores": [cores]}
    groups = _group_by_config(statuses)
    result = []
    for group in groups:
        folder = group[0].folder
        same_run = [g for g in groups if (g[0].folder.root, g[0].folder.run) == (folder.root, folder.run)]
        name = f"results/{folder.run}" if len(same_run) == 1 else folder.path
        label = name.removeprefix("results/").replace("/", "-") if len(groups) > 1 else ""
        if commands := _commands_of_group(group, flags, list_file, label):
            result.append(CommandGroup(name if len(groups) > 1 else "", commands))
    return result


def _group_by_config(statuses: Sequence[FolderStatus]) -> list[list[FolderStatus]]:
    """Return the folders that one config can have created together: of a run, with one fingerprint per dataset."""
    groups: dict[tuple[str, ...], list[FolderStatus]] = {}
    keys = [(s.folder.root, s.folder.run, s.folder.name.rpartition("-")[0]) for s in statuses]
    for status, (root, run, dataset) in zip(statuses, keys, strict=True):
        alone = (status.folder.name,) if keys.count((root, run, dataset)) > 1 else ()
        groups.setdefault((root, run, *alone), []).append(status)
    return list(groups.values())


def _commands_of_group(
    group: Sequence[FolderStatus], flags: Mapping[str, Sequence[str]], list_file: str, label: str
) -> list[SnakemakeCommand]:
    """Return what embeds the missing shards, what embeds the failing ones again, and what continues after both."""
    root = group[0].folder.root
    place: dict[str, list[str]] = {}
    if storage.is_s3(root):
        place = {"--default-storage-provider": ["s3"], "--default-storage-prefix": [root]}
    elif root:
        place = {"--directory": [root]}
    common = [word for flag, values in {**flags, **place}.items() if values for word in (flag, *values)]
    missing = [target for status in group for target in status.missing]
    failing = [target for status in group for target in status.failing]
    commands = []
    for targets, what, file_label, force in (
        (missing, "missing", "missing", []),
        (failing, "with failures", "failed", ["--force"]),
    ):
        if not targets:
            continue
        file = Path(list_file)
        file = file.with_stem("-".join(word for word in (file.stem, file_label, label) if word))
        purpose = f"{len(targets):,} {'shard' if len(targets) == 1 else 'shards'} {what}"
        targets_file = str(file) if len(targets) > MAX_INLINE else ""
        commands.append(SnakemakeCommand(purpose, [*common, *force], targets, targets_file))
    if commands:
        commands.append(SnakemakeCommand("then carry the results on (products, index)", common, []))
    return commands


def write_target_lists(groups: Sequence[CommandGroup]) -> None:
    """Write the lists of targets that commands read."""
    for group in groups:
        for command in group.commands:
            if command.targets_file:
                text = "".join(f"{target}\n" for target in command.targets)
                storage.write_bytes(command.targets_file, text.encode())
