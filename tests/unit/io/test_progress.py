"""Progress: lines in a log file, a bar on a terminal."""

import os
import pty
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from kiln.io import progress
from tests.conftest import ROOT


@pytest.fixture
def now(monkeypatch):
    """A list with the time that the module sees. Servers of other tests in this process keep the real clock."""
    seconds = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_a_log_gets_a_line_each_interval_with_fraction_rate_and_time_left(now, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    p = progress.Progress(400, "shard")
    with caplog.at_level("INFO"):
        for _ in range(10):
            now[0] += 10
            p.advance(10, embedded=5)
    assert [r.message for r in caplog.records] == [
        "shard: 30 of 400 chips (8%), 0.5 embedded/s, 6 min 10 s left",
        "shard: 60 of 400 chips (15%), 0.5 embedded/s, 5 min 40 s left",
        "shard: 90 of 400 chips (22%), 0.5 embedded/s, 5 min 10 s left",
    ]


def test_chips_that_are_not_embedded_have_one_rate(now, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    p = progress.Progress(400, "chips.csv", embeds=False)
    now[0] = 40
    with caplog.at_level("INFO"):
        p.advance(200)
    assert caplog.messages == ["chips.csv: 200 of 400 chips (50%), 5.0 chips/s, 0 min 40 s left"]


def test_the_bar_of_a_terminal_grows_when_more_is_expected():
    code = "from kiln.io.progress import Progress as P; p = P(5, 'shard'); p.grow(5); p.advance(10); p.close()"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=theirs, check=True, timeout=30)
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "10/10" in text
    assert "chip/s" in text


def test_chips_of_checkpoints_count_but_not_in_the_time_left(now, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    p = progress.Progress(400, "shard")
    p.resume(200)
    now[0] = 100
    with caplog.at_level("INFO"):
        p.advance(100, embedded=100)
    assert [r.message for r in caplog.records] == ["shard: 300 of 400 chips (75%), 1.0 embedded/s, 1 min 40 s left"]
