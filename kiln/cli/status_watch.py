"""The live terminal page of `kiln status --watch`."""

import time
from collections.abc import Callable, Sequence

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kiln.errors import SourceError, StorageError, TransientError
from kiln.report.status.progress import RunProgress
from kiln.report.status.run import RunStatus
from kiln.report.status.text import database_text, failures_text

BAR_WIDTH = 24
MAX_ROWS = 20  # partitions of a dataset; those that are under way come first


def watch(read: Callable[[], Sequence[RunStatus]], interval_s: float) -> None:
    """Show the status until Ctrl-C, read again every `interval_s` seconds.

    Where it cannot be read, the page before stays, with the reason below it.
    """
    shown = page(read())
    with Live(shown, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            try:
                shown = page(read())
                live.update(shown, refresh=True)
            except (TransientError, StorageError, SourceError) as e:
                live.update(Group(shown, Text(f"\n{e}", style="yellow")), refresh=True)


def page(runs: Sequence[RunStatus]) -> Group:
    """Return the page of runs."""
    parts: list[Rule | Table | Text] = []
    for run in runs:
        parts += [Rule(Text(run.uri, style="bold")), Text(RunProgress.of(run).text() + "\n"), _table(run)]
        parts.append(Text("\n" + database_text(run)))
    if failures := failures_text(runs):
        parts.append(Text("\n" + failures, style="red"))
    parts.append(Text(f"\n{time.strftime('%H:%M:%S')}   Ctrl-C ends", style="dim"))
    return Group(*parts)


def _table(run: RunStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("partition", "", "shards", "failing", "chips", "product"):
        table.add_column(name, justify="right" if name in ("shards", "failing", "chips") else "left")
    for folder in run.folders:
        partitions = sorted(folder.partitions, key=lambda p: (not p.missing, not p.failing, p.name))
        for partition in partitions[:MAX_ROWS]:
            done, total = len(partition.ledgers), len(partition.shards)
            bar = ProgressBar(total, done, width=BAR_WIDTH)
            failing = Text(f"{len(partition.failing):,}", style="red" if partition.failing else "")
            chips = f"{sum(ledger.embedded for ledger in partition.ledgers.values()):,}"
            title = f"{folder.folder.name.rpartition('-')[0]} {partition.name}"
            table.add_row(title, bar, f"{done:,} of {total:,}", failing, chips, partition.product.state)
        if len(partitions) > MAX_ROWS:
            table.add_row(f"and {len(partitions) - MAX_ROWS:,} more", "", "", "", "", "")
    return table
