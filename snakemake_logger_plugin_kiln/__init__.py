"""Snakemake's logger plugin `kiln`: a line per stage, with the progress of the whole run and the time left.

A stage is all jobs of a rule. `snakemake --logger kiln` prints its line when it is finished. A terminal also shows the
stages that run, in one line that changes in place. Other outputs get that line every 30 s. Errors are printed in full.
All details are in Snakemake's log file.

Snakemake loads this package before the Snakefile chooses a version of Kiln's code, so it must not import `kiln`.
"""

import os
import shutil
import sys
from logging import INFO, WARNING, LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_kiln.progress import RunProgress, Stage, stage_title

LOG_INTERVAL_S = 30.0
SHOWN = ("Nothing to be done", "Trying to restart job", "Complete log")  # messages that are neither events nor warnings
CLEAR_LINE = "\r\033[K"


class LogHandler(LogHandlerBase):
    """The handler that Snakemake gives its log records to, one after the other."""

    writes_to_stream = has_formatter = True
    writes_to_file = has_filter = needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, DefaultFormatter

        settings = self.common_settings
        self._stream = sys.stdout if settings.stdout else sys.stderr
        self._in_place = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        formatter = DefaultFormatter(settings.quiet, settings.show_failed_logs)
        self._text = ColorizingTextHandler(settings.nocolor, self._stream, formatter)
        self._progress = RunProgress()
        self._printed: float | None = None  # time of the last line

    def emit(self, record: LogRecord) -> None:
        """Print what a record says, the line of the stage that it ends, and the line of the stages that run."""
        if self.common_settings.dryrun:
            self._text.emit(record)
            return
        if self._in_place:
            self._stream.write(CLEAR_LINE)
        if record.levelno >= WARNING or (record.levelno == INFO and record.getMessage().startswith(SHOWN)):
            self._text.emit(record)
        self._printed = self._printed or record.created
        changed = self._update(record)
        running = [s for s in self._progress.stages.values() if s.running or (s is changed and s.left)]
        if changed and not changed.left:
            self._print(record.created, changed)
        elif changed and not self._in_place and record.created - self._printed >= LOG_INTERVAL_S:
            self._print(record.created, *running)
        if self._in_place and running:  # the cursor stays at the left: what a job prints replaces the line
            self._stream.write(self._progress.line(*running)[: shutil.get_terminal_size().columns - 1] + "\r")
        self._stream.flush()

    def close(self) -> None:
        """Remove the line that changes in place."""
        if self._in_place:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()
        super().close()

    def _update(self, record: Any) -> Stage | None:
        """Count the job of a record. Return its stage if the job ended."""
        match getattr(record, "event", None):
            case LogEvent.JOB_STARTED if hasattr(record, "job_counts"):
                self._progress.expect(record.job_counts, record.more_jobs)
            case LogEvent.JOB_INFO:
                title = stage_title(record.rule_name, record.rule_msg, record.wildcards)
                self._progress.start(record.jobid, record.rule_name, title, record.created)
            case LogEvent.JOB_FINISHED:
                return self._progress.end(record.job_id, failed=False, now=record.created)
            case LogEvent.JOB_ERROR:
                return self._progress.end(record.jobid, failed=True, now=record.created)
        return None

    def _print(self, now: float, *stages: Stage) -> None:
        self._stream.write(self._progress.line(*stages) + "\n")
        self._printed = now
