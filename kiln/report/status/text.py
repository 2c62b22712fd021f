"""The status of runs as text for a terminal and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kiln.io.text_table import aligned
from kiln.report.status.failures import Outlook
from kiln.report.status.folders import FolderStatus, PartitionStatus
from kiln.report.status.progress import RunProgress
from kiln.report.status.redo import CommandGroup
from kiln.report.status.run import RunStatus

HEAD = ("shards", "done", "missing", "failing", "failed units", "embedded", "of chips", "checkpoints")
MAX_PARTITIONS = 30  # of a dataset shown one by one; with more, those that are complete are hidden
MAX_FAILURES = 20  # failed units shown
OUTLOOK_TITLES: Mapping[Outlook, str] = {
    "retry": "What failed and a retry may repair, since the source has changed or the ledger is damaged:",
    "recurs": "What failed and will fail again, since the source is the same:",
    "unknown": "What failed, from sources that cannot be looked at:",
    "unchecked": "What else failed, from sources that were not looked at:",
}
TOTAL_ABOVE = 3  # partitions; more get a row with their total


def status_text(runs: Sequence[RunStatus], groups: Sequence[CommandGroup]) -> str:
    """Return the tables of the folders, the failures, and the commands for what is left.

    Args:
        runs: Status of each run.
        groups: The commands.
    """
    blocks = []
    for run in runs:
        folders = [table_text(status) for status in run.folders]
        name = [run.uri] if len(runs) > 1 else []
        ending = "\n".join([database_text(run), RunProgress.of(run).text(), *_command_notes(run)])
        blocks.append("\n\n".join(["\n".join([*name, folders[0]]), *folders[1:], ending]))
    return "\n\n".join(block for block in [*blocks, failures_text(runs), ending_text(runs, groups)] if block)


def ending_text(runs: Sequence[RunStatus], groups: Sequence[CommandGroup]) -> str:
    """Return the commands, or that nothing is left to do."""
    if commands := commands_text(groups):
        return commands
    shards = sum(len(p.shards) for run in runs for folder in run.folders for p in folder.partitions)
    looks = [look for run in runs for look in run.outlooks.values()]
    unchecked = f", {looks.count('unchecked'):,} that were not looked at" if "unchecked" in looks else ""
    failures = f"{looks.count('recurs'):,} units have failures that recur{unchecked}" if looks else "none with failures"
    outputs = [p.product for run in runs for folder in run.folders for p in folder.partitions]
    outputs += [run.database for run in runs]
    whole = "; products and database are there" if all(output.state == "merged" for output in outputs) else ""
    return f"Nothing to do: all {shards:,} shards are done, {failures}{whole}."


def _command_notes(run: RunStatus) -> list[str]:
    """Return what a person must know about the commands below."""
    if missing := run.command.missing_files:
        return [f"The run was called on a machine that has {', '.join(missing)}; this one does not."]
    return []


def database_text(run: RunStatus) -> str:
    """Return the line about the explorer database."""
    note = f": {run.database.note}" if run.database.note and run.database.state != "waits" else ""
    words = {"merged": "complete", "waits": f"waits {run.database.note}"}
    return f"explorer database {words.get(run.database.state, run.database.state)}{note}"


def status_json(runs: Sequence[RunStatus], groups: Sequence[CommandGroup]) -> dict[str, Any]:
    """Return the content of `status_text`, with every failure and target, as a JSON object."""
    return {
        "folders": [
            {
                "folder": status.folder.uri,
                "notes": list(status.notes),
                "partitions": [_partition_json(partition, run) for partition in status.partitions],
            }
            for run in runs
            for status in run.folders
        ],
        "databases": [{"run": run.uri, **asdict(run.database)} for run in runs],
        "commands": [command.arguments for group in groups for command in group.commands],
    }


def _partition_json(partition: PartitionStatus, run: RunStatus) -> dict[str, Any]:
    return {
        "partition": partition.name,
        "plan": partition.plan,
        **dict(zip((name.replace(" ", "_") for name in HEAD), _numbers(partition), strict=True)),
        "product": asdict(partition.product),
        "missing_shards": partition.missing,
        "failures": [
            {
                "shard": shard,
                "unit": failure.unit,
                "reason": failure.reason,
                "outlook": run.outlooks[failure],
            }
            for shard, ledger in partition.ledgers.items()
            for failure in ledger.failures
        ],
    }


def _numbers(partition: PartitionStatus) -> list[int]:
    """Return the numbers of a partition's row, in the order of HEAD."""
    ledgers = partition.ledgers.values()
    return [
        len(partition.shards),
        len(ledgers),
        len(partition.missing),
        len(partition.failing),
        sum(1 for ledger in ledgers for failure in ledger.failures if failure.unit),
        sum(ledger.embedded for ledger in ledgers),
        sum(ledger.expected for ledger in ledgers),
        partition.checkpoints,
    ]


def table_rows(status: FolderStatus) -> list[tuple[str, ...]]:
    """Return the rows of a folder's table: a head, a row per shown partition, and their total if there are many."""
    every, shown = status.partitions, _shown(status)
    rows = [(p.name, *(f"{number:,}" for number in _numbers(p)), _product_text(p)) for p in shown]
    if len(every) > TOTAL_ABOVE:
        totals = [sum(numbers) for numbers in zip(*map(_numbers, every), strict=True)]
        rows.append(("total", *(f"{number:,}" for number in totals), ""))
    return [(status.folder.name, *HEAD, "product"), *rows]


def _shown(status: FolderStatus) -> Sequence[PartitionStatus]:
    every = status.partitions
    return [p for p in every if not _is_complete(p)] if len(every) > MAX_PARTITIONS else every


def table_text(status: FolderStatus) -> str:
    """Return a folder's table, and the notes."""
    lines = aligned(table_rows(status), left=(0, len(HEAD) + 1), rule=True)
    if hidden := len(status.partitions) - len(_shown(status)):
        lines.append(f"Not shown: {hidden:,} partitions with every shard and product.")
    return "\n".join([*lines, *status.notes])


def _is_complete(partition: PartitionStatus) -> bool:
    return not partition.missing and not partition.failing and partition.product.state == "merged"


def _product_text(partition: PartitionStatus) -> str:
    """Return the state of a product, and what is wrong with it."""
    product = partition.product
    return f"{product.state} ({product.note})" if product.note and product.state != "waits" else product.state


def failures_text(runs: Sequence[RunStatus]) -> str:
    """Return the first failures with their reasons, by whether they recur; empty without a failure."""
    blocks = []
    for outlook, title in OUTLOOK_TITLES.items():
        lines = [
            ": ".join(word for word in (Path(shard).stem, failure.unit, failure.reason) if word)
            for run in runs
            for folder in run.folders
            for shard, failure, _ in folder.failures()
            if run.outlooks[failure] == outlook
        ]
        more = [f"and {len(lines) - MAX_FAILURES:,} more"] if len(lines) > MAX_FAILURES else []
        if lines:
            blocks.append("\n".join([title, *(f"  {line}" for line in lines[:MAX_FAILURES] + more)]))
    return "\n".join(blocks)


def commands_text(groups: Sequence[CommandGroup]) -> str:
    """Return the commands as a person types them, each below its purpose; empty without a command."""
    lines = []
    for group in groups:
        for command in group.commands:
            note = f" (the list was written to {command.targets_file})" if command.targets_file else ""
            lines += [f"{group.name + ', ' if group.name else ''}{command.purpose}{note}:", f"  {command.text()}"]
    return "\n".join(lines)
