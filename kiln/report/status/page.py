"""The status of runs as one self-contained HTML page."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime

from kiln.report import html_page
from kiln.report.costs import cost_table
from kiln.report.status.progress import RunProgress
from kiln.report.status.redo import CommandGroup
from kiln.report.status.run import RunStatus
from kiln.report.status.text import database_text, ending_text, failures_text, table_rows


def status_page(runs: Sequence[RunStatus], groups: Sequence[CommandGroup], refresh_s: float | None = None) -> str:
    """Return the page: of each run its progress, partitions, database and costs, then failures and commands.

    Args:
        runs: Status of each run.
        groups: The commands.
        refresh_s: Seconds after which a browser loads the page again; None for a page that stays.
    """
    pause_s = max(refresh_s or 0, 1)  # with 0 a browser never rests
    refresh = f'<meta http-equiv=refresh content="{pause_s:.0f}">' if refresh_s else ""
    now = datetime.now(UTC)
    blocks = [refresh, f"<p class=empty>{now:%Y-%m-%d %H:%M:%S} UTC</p>"]
    for run in runs:
        progress = RunProgress.of(run, now)
        blocks.append(f"<h2>{html.escape(run.uri)}</h2><pre>{html.escape(progress.text())}</pre>")
        if progress.shards:
            blocks.append(f'<progress max="{progress.shards}" value="{progress.done}" style="width:100%"></progress>')
        for folder in run.folders:
            rows = table_rows(folder)
            blocks.append(html_page.table("", rows, left=(0, len(rows[0]) - 1)))
            blocks += [f"<p class=empty>{html.escape(note)}</p>" for note in folder.notes]
        blocks.append(f"<p>{html.escape(database_text(run))}</p>")
        if any(costs.records for costs in run.costs):
            blocks.append(cost_table(run.costs))
    if failures := failures_text(runs):
        blocks.append(f"<h2>Failures</h2><pre class=warn>{html.escape(failures)}</pre>")
    blocks.append(f"<h2>What to do</h2><pre>{html.escape(ending_text(runs, groups))}</pre>")
    names = ", ".join(run.run for run in runs)
    return html_page.page(f"Status of {names}", "".join(blocks))
