"""`snakemake --logger kiln`: the lines of a run, from records as Snakemake makes them."""

import contextlib
import io
import logging
import os
import pty
import sys
import termios
from types import SimpleNamespace
from typing import TextIO

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_kiln import LogHandler
from snakemake_logger_plugin_kiln.progress import stage_title, time_left

PLANS = {"plan_a": 1, "plan_b": 1, "all": 1}
JOBS = {**PLANS, "embed_a": 10, "embed_b": 4, "merge_a": 1, "merge_b": 1}


class Events:
    """Records of a run, given to a handler. `now` is their time in seconds."""

    def __init__(self, handler: LogHandler) -> None:
        self.handler, self.now = handler, 1000.0
        self.record(None, "Provided cores: 2")

    def record(self, event: LogEvent | None, message: str | None = None, level: int = logging.INFO, **fields) -> None:
        fields = {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), **fields}
        self.handler.handle(logging.makeLogRecord({"created": self.now, "event": event, **fields}))

    def graph(self, jobs: dict[str, int], more: bool = False) -> None:
        self.record(LogEvent.JOB_STARTED, job_counts=jobs, more_jobs=more)

    def start(self, job: int, rule: str) -> None:
        action, _, archive = rule.partition("_")
        message, wildcards = f"{archive.upper()} nd-2019: {action} x{job}-1", {"shard": f"x{job}-1", "part": "nd-2019"}
        self.record(LogEvent.JOB_INFO, jobid=job, rule_name=rule, rule_msg=message, wildcards=wildcards)

    def finish(self, *jobs: int) -> None:
        for job in jobs:
            self.record(LogEvent.JOB_FINISHED, job_id=job)

    def fail(self, job: int, log: str) -> None:
        absent = {"rule_msg": None, "output": [], "conda_env": None, "shellcmd": "false", "aux": {}, "indent": False}
        fields = {"rule_name": "embed_a", "input": ["w"], "log": [log], **absent}
        self.record(LogEvent.JOB_ERROR, "Error in rule", logging.ERROR, jobid=job, **fields)

    def plan(self) -> None:
        """Start and finish both plans. The second finishes after the graph has grown by the shards of the first."""
        self.graph(PLANS, more=True)
        self.start(1, "plan_a")
        self.start(2, "plan_b")
        self.finish(1)
        self.graph({**PLANS, "embed_a": 10, "merge_a": 1}, more=True)
        self.finish(2)
        self.graph(JOBS)


def make_run(monkeypatch, stream: TextIO, dryrun: bool = False) -> Events:
    """Make a run whose lines go to a stream."""
    settings = SimpleNamespace(dryrun=dryrun, stdout=False, nocolor=True, quiet=None, show_failed_logs=True)
    monkeypatch.setattr(sys, "stderr", stream)
    return Events(LogHandler(settings, None))


@pytest.fixture
def stream():
    """What the plugin writes to a pipe or a file."""
    return io.StringIO()


@pytest.fixture
def run(monkeypatch, stream):
    return make_run(monkeypatch, stream)


def lines(stream: io.StringIO) -> list[str]:
    """Take the lines written since the last call."""
    text = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return text.splitlines()


def test_a_finished_stage_is_one_line_and_a_started_one_none(run, stream):
    run.plan()
    assert lines(stream) == ["   ?  A: plan", "   ?  B: plan"]
    for job in range(3, 13):
        run.start(job, "embed_a")
        run.finish(job)
    assert lines(stream) == [" 63%  A: embed (10 of 10)"]


def test_the_percentage_is_unknown_until_all_plans_are_made_and_never_falls(run, stream):
    run.plan()
    run.start(3, "embed_b")
    run.start(4, "merge_b")
    run.finish(4)
    run.graph({**JOBS, "embed_a": 1000})
    run.start(5, "merge_a")
    run.finish(5)
    assert lines(stream)[2:] == [" 15%  B: merge", " 15%  A: merge"]


def test_100_percent_is_only_the_last_job(run, stream):
    run.graph({"embed_a": 1, "embed_b": 299})
    for job in range(1, 300):
        run.start(job, "embed_b")
        run.finish(job)
    run.start(300, "embed_a")
    run.finish(300)
    assert lines(stream) == [" 99%  B: embed (299 of 299)", "100%  A: embed"]


def test_the_time_left_is_that_of_the_jobs_left_at_the_present_parallelism(run, stream):
    """Half of 8 equal jobs took 200 s, two at a time."""
    run.graph({"embed_a": 4, "embed_b": 4})
    for job in range(1, 5, 2):
        run.start(job, "embed_a")
        run.start(job + 1, "embed_a")
        run.now += 100
        run.finish(job)
        run.finish(job + 1)
    assert lines(stream)[-1] == " 50%  A: embed (4 of 4), about 3 min left"


def test_there_is_no_time_left_before_a_large_stage_has_a_finished_job(run, stream):
    run.graph({"embed_a": 2, "embed_b": 3})
    for job in (1, 2):
        run.start(job, "embed_a")
        run.now += 60
        run.finish(job)
    assert lines(stream)[-1] == " 40%  A: embed (2 of 2)"
    run.start(3, "embed_b")
    run.now += 600
    run.finish(3)
    assert lines(stream) == [" 60%  B: embed (1 of 3), about 20 min left"]


def test_a_pipe_gets_a_line_of_a_long_stage_each_30_s_without_control_codes(run, stream):
    run.graph({"embed_a": 100, "embed_b": 1})
    run.start(100, "embed_b")
    for job in range(6):
        run.start(job, "embed_a")
        run.now += 12
        run.finish(job)
    assert lines(stream) == [
        "  2%  A: embed (3 of 100), B: embed, about 10 min left",
        "  5%  A: embed (6 of 100), B: embed, about 9 min left",
    ]


def test_a_failed_job_shows_its_log_and_counts_as_failed_until_it_starts_again(run, stream, tmp_path):
    log = tmp_path / "job.log"
    log.write_text("error: out of luck\n")
    run.graph({"embed_a": 2})
    run.start(1, "embed_a")
    run.start(2, "embed_a")
    run.finish(1)
    run.fail(2, str(log))
    text = lines(stream)
    assert "Error in rule embed_a:" in text
    assert "error: out of luck" in text
    assert text[-1] == " 50%  A: embed (1 of 2, 1 failed)"
    run.start(2, "embed_a")
    run.finish(2)
    assert lines(stream) == ["100%  A: embed (2 of 2)"]


def test_warnings_and_results_are_shown_and_details_are_not(run, stream):
    run.record(None, "DAG of jobs will be updated after completion.")
    run.record(None, "Nothing to be done (all requested files are present and up to date).")
    run.record(None, "model.sha256 is missing", logging.WARNING)
    run.record(LogEvent.ERROR, "At least one job did not complete successfully.", logging.ERROR)
    run.record(None, "Complete log(s): a.log")
    assert [line.split()[0] for line in lines(stream)] == ["Nothing", "model.sha256", "At", "Complete"]


def test_a_dry_run_prints_what_snakemake_prints(monkeypatch, stream):
    run = make_run(monkeypatch, stream, dryrun=True)
    run.record(None, "This was a dry-run (flag -n).")
    assert lines(stream) == ["Provided cores: 2", "This was a dry-run (flag -n)."]


def test_without_numbers_of_jobs_the_jobs_that_were_seen_are_counted(run, stream):
    run.start(1, "embed_a")
    run.start(2, "embed_a")
    run.finish(1, 2)
    assert lines(stream) == ["   ?  A: embed (2 of 2)"]


def test_a_terminal_shows_running_stages_in_a_line_that_is_replaced(monkeypatch):
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # newlines stay as they are
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "27")
        run = make_run(monkeypatch, terminal)
        run.graph({"embed_a": 2, "embed_b": 1})
        run.start(1, "embed_a")
        run.start(2, "embed_b")
        run.finish(2)
        run.handler.close()
    text = ""
    with contextlib.suppress(OSError):  # the end
        while chunk := os.read(ours, 1 << 16):
            text += chunk.decode()
    os.close(ours)
    shown = [line.split("\033[K")[-1] for line in text.replace("\n", "\n\r").split("\r")]
    assert [line for line in shown if line] == [
        "  0%  A: embed (0 of 2)",
        "  0%  A: embed (0 of 2), B",  # cut at the width
        " 33%  B: embed\n",
        " 33%  A: embed (0 of 2)",
    ]
    assert text.endswith("\r\033[K"), "closing removes the line"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2, "about 10 s left"),
        (44, "about 40 s left"),
        (58, "about 1 min left"),
        (3540, "about 59 min left"),
        (3599, "about 1 h 00 min left"),
        (90000, "about 25 h 00 min left"),
    ],
)
def test_the_time_left_in_words(seconds, text):
    assert time_left(seconds) == text


def test_a_title_has_no_values_of_wildcards():
    assert stage_title("embed_a", "A nd-1: embed nd-1-x2", {"partition": "nd-1", "shard": "nd-1-x2"}) == "A: embed"
    assert stage_title("merge_a", "Sentinel-2 2: merge", {"partition": "2"}) == "Sentinel-2: merge"
    assert stage_title("build_index", None, {}) == "build index"
