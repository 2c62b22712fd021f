"""The flags of `kiln status` for its live page and its HTML page."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from kiln.cli import status, status_watch
from kiln.io import storage
from kiln.report.status import failures
from tests.unit.report.status.test_folders import shard, write_outputs, write_run, write_source


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run of 12 shards in the working folder; return their names."""
    monkeypatch.chdir(tmp_path)
    _, names, _ = write_run(tmp_path, per_shard=1)
    return names


@pytest.fixture
def terminal(monkeypatch):
    """Let standard output be a terminal for the command."""
    stdout = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(status, "sys", SimpleNamespace(stdout=stdout))


def stop():
    raise KeyboardInterrupt


def exit_code(*arguments):
    with pytest.raises(SystemExit) as stop:
        status.main(list(arguments))
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--watch"], "--watch: expected a terminal, got another output. Use --html or --json."),
        (["--watch", "--interval", "0"], "--watch: expected an --interval above 0 and no --json."),
        (["--watch", "--interval", "-1"], "--watch: expected an --interval above 0 and no --json."),
        (["--watch", "--json"], "--watch: expected an --interval above 0 and no --json."),
    ],
)
def test_what_cannot_be_watched_is_an_error(run, capsys, monkeypatch, arguments, why):
    monkeypatch.setattr(status_watch, "watch", lambda read, interval_s: pytest.fail("watched"))
    assert exit_code("results/sample", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {why}")
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--json"]])
def test_in_a_terminal_wrong_flags_of_watch_are_errors_too(run, capsys, monkeypatch, terminal, arguments):
    monkeypatch.setattr(status_watch, "watch", lambda read, interval_s: pytest.fail("watched"))
    assert exit_code("results/sample", "--watch", *arguments) == 2
    assert "--watch: expected an --interval above 0" in capsys.readouterr().err


def test_watch_looks_again_and_writes_the_page_and_its_lists_again(run, capsys, monkeypatch, terminal):
    pages = []

    def watch(read, interval_s):
        assert interval_s == 5
        for _ in range(2):
            (found,) = read()
            pages.append((len(found.folders[0].missing), Path("page.html").read_text()))
            for name in run[:9]:
                storage.delete(shard(name))
        raise KeyboardInterrupt

    monkeypatch.setattr(status_watch, "watch", watch)
    assert exit_code("results/sample", "--watch", "--interval", "5", "--html", "page.html") == 130
    assert [missing for missing, _ in pages] == [0, 9]
    assert all('<meta http-equiv=refresh content="5">' in page for _, page in pages)
    assert "9 shards missing (the list was written to redo-missing.txt):" in pages[1][1]
    assert len(Path("redo-missing.txt").read_text().splitlines()) == 9
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("is_live", "looks"), [(True, 1), (False, 2)])
def test_sources_are_looked_at_once_while_a_page_is_live(
    tmp_path, monkeypatch, capsys, terminal, looked_at, is_live, looks
):
    """A requester-pays archive bills each look."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: 5.0))
    monkeypatch.setattr(status_watch, "watch", lambda read, interval_s: [read(), read()] and stop())
    write_source("tiles/a.tif", age_s=60)
    write_run(tmp_path, fail=lambda col: "tiles/a.tif: unreadable" if col == 5 else "")
    if is_live:
        assert exit_code("results/sample", "--watch") == 130
    else:
        for _ in range(2):
            status.main(["results/sample"])
    assert looked_at.count("tiles/a.tif") == looks


def test_html_writes_a_page_that_stays(run, capsys):
    write_outputs()
    status.main(["results/sample", "--html", "deep/status.html"])
    assert capsys.readouterr().out == "deep/status.html is written\n"
    page = Path("deep/status.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<h2>results/sample</h2>" in page
    assert "all 12 shards are done" in page
    assert "http-equiv" not in page


def test_html_goes_to_object_storage_too(run, bucket, capsys):
    uri = f"{bucket}/pages/status.html"
    status.main(["results/sample", "--html", uri])
    assert capsys.readouterr().out == f"{uri} is written\n"
    assert b"<h2>results/sample</h2>" in storage.read_bytes(uri)


def test_html_cannot_be_written_to_a_web_address(run, capsys):
    assert exit_code("results/sample", "--html", "http://host/status.html") == 1
    assert "expected a path or s3://, got a web address" in capsys.readouterr().err


def test_json_and_html_can_be_had_at_once(run, capsys):
    status.main(["results/sample", "--json", "--html", "status.html"])
    assert capsys.readouterr().out.startswith("{\n")
    assert Path("status.html").exists()
