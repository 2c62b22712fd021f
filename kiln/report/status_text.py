"""The status of runs as text for a terminal and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from kiln.io.text_table import aligned
from kiln.report.redo import CommandGroup
from kiln.report.status import FolderStatus, PartitionStatus

HEAD = ("shards", "done", "missing", "failing", "failed units", "embedded", "of chips", "checkpoints")
MAX_PARTITIONS = 30  # of a dataset shown one by one; with more, those that are complete are hidden
MAX_FAILURES = 20  # failed units shown
TOTAL_ABOVE = 3  # partitions; more get a row with their total


def status_text(statuses: Sequence[FolderStatus], groups: Sequence[CommandGroup]) -> str:
    """Return the tables of the folders, the failures, and the commands that embed shards again.

    Args:
        statuses: Status of each folder.
        groups: The commands.
    """
    several_runs = len({(status.folder.root, status.folder.run) for status in statuses}) > 1
    blocks = []
    for status in statuses:
        run = f"{status.folder.uri.rpartition('/')[0]}\n" if several_runs else ""
        blocks.append(run + table_text(status))
    shards = sum(len(partition.shards) for status in statuses for partition in status.partitions)
    commands = commands_text(groups) or f"Nothing to do: all {shards:,} shards are done, none with failures."
    return "\n\n".join(block for block in [*blocks, failures_text(statuses), commands] if block)


def status_json(statuses: Sequence[FolderStatus], groups: Sequence[CommandGroup]) -> dict[str, Any]:
    """Return the content of `status_text`, with every failure and target, as a JSON object."""
    return {
        "folders": [
            {
                "folder": status.folder.uri,
                "notes": list(status.notes),
                "partitions": [_partition_json(partition) for partition in status.partitions],
            }
            for status in statuses
        ],
        "commands": [command.arguments for group in groups for command in group.commands],
    }


def _partition_json(partition: PartitionStatus) -> dict[str, Any]:
    return {
        "partition": partition.name,
        "plan": partition.plan,
        **dict(zip((name.replace(" ", "_") for name in HEAD), _numbers(partition), strict=True)),
        "missing_shards": partition.missing,
        "failures": [
            {"shard": shard, "unit": failure.unit, "reason": failure.reason}
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


def table_text(status: FolderStatus) -> str:
    """Return a folder's table: a row per partition, their total if there are more than three, and the notes."""
    every = status.partitions
    shown = [p for p in every if p.missing or p.failing] if len(every) > MAX_PARTITIONS else every
    rows = [(partition.name, *(f"{number:,}" for number in _numbers(partition))) for partition in shown]
    if len(every) > TOTAL_ABOVE:
        totals = [sum(numbers) for numbers in zip(*map(_numbers, every), strict=True)]
        rows.append(("total", *(f"{number:,}" for number in totals)))
    lines = aligned([(status.folder.name, *HEAD), *rows], rule=True)
    if len(shown) < len(every):
        lines.append(f"Not shown: {len(every) - len(shown):,} partitions with every shard done and none failing.")
    return "\n".join([*lines, *status.notes])


def failures_text(statuses: Sequence[FolderStatus]) -> str:
    """Return the first failed units with their reasons; empty without a failure."""
    lines = [
        ": ".join(word for word in (shard, failure.unit, failure.reason) if word)
        for status in statuses
        for partition in status.partitions
        for shard, ledger in partition.ledgers.items()
        for failure in ledger.failures
    ]
    more = [f"and {len(lines) - MAX_FAILURES:,} more"] if len(lines) > MAX_FAILURES else []
    return "\n".join(["What failed:", *(f"  {line}" for line in lines[:MAX_FAILURES] + more)]) if lines else ""


def commands_text(groups: Sequence[CommandGroup]) -> str:
    """Return the commands as a person types them, each below its purpose; empty without a command."""
    lines = []
    for group in groups:
        for command in group.commands:
            note = f" (the list was written to {command.targets_file})" if command.targets_file else ""
            lines += [f"{group.name + ', ' if group.name else ''}{command.purpose}{note}:", f"  {command.text()}"]
    return "\n".join(lines)
