"""The live terminal page of `kiln status --watch`."""

import io
from datetime import UTC, datetime, timedelta

import pytest
import rich
from rich.console import Console

from kiln.cli import status_watch
from kiln.cli.status_watch import MAX_ROWS, page, watch
from kiln.errors import ConfigError, SourceError, StorageError, TransientError
from kiln.report.status.command import RunCommand
from kiln.report.status.folders import Failure
from kiln.report.status.outputs import Output
from tests.support.job_records import make_job_record
from tests.support.run_statuses import make_folder, make_partition, make_run


def console(**options):
    return Console(file=io.StringIO(), width=120, **options)


def lines_of(*runs):
    """Return the lines of a page in a terminal of 120 columns."""
    terminal = console()
    terminal.print(page(runs))
    return [line.rstrip() for line in terminal.file.getvalue().splitlines()]


def cells(lines, title):
    """Return the words of a partition's row, without its bar."""
    row = next(line for line in lines if line.startswith(title))
    return [word for word in row.removeprefix(title).split() if word.strip("━╸╺")]


def recent_jobs():
    """Return the records of three jobs that ended now: 300 chips in 60 s."""
    ended = datetime.now(UTC)
    times = {"started": (ended - timedelta(seconds=60)).isoformat(), "ended": ended.isoformat()}
    return [make_job_record(**times, wall_s=60.0) for _ in range(3)]


def test_a_page_has_the_progress_the_partitions_and_the_database():
    folders = [
        make_folder(make_partition("2020", 50), make_partition("2021", 4, missing=[0], product=Output("waits"))),
        make_folder(make_partition("nd-2019", 2, product=Output("outdated")), name="naip-99aa99aa"),
    ]
    lines = lines_of(make_run(*folders, database=Output("missing"), records=recent_jobs()))
    assert " results/sample " in lines[0]
    assert lines[1:3] == ["98%: 55 of 56 shards, 2,200 chips", "5 chips/s now, all jobs together"]
    assert "about 20 s left at this pace" in lines
    assert cells(lines, "partition") == ["shards", "failing", "chips", "product"]
    assert cells(lines, "worldcover 2021") == ["3", "of", "4", "0", "120", "waits"]
    assert cells(lines, "worldcover 2020") == ["50", "of", "50", "0", "2,000", "merged"]
    assert cells(lines, "naip nd-2019") == ["2", "of", "2", "0", "80", "outdated"]
    assert "explorer database missing" in lines
    assert lines[-1].endswith("Ctrl-C ends")


def test_a_bar_is_as_long_as_its_partition_is_done():
    lines = lines_of(make_run(make_folder(make_partition("2020", 4, missing=[0]), make_partition("2021", 2))))
    bars = {line.split()[1]: line.count("━") for line in lines if line.startswith("worldcover")}
    assert bars == {"2020": 18, "2021": 24}


def test_price_and_energy_are_on_the_page():
    lines = lines_of(make_run(records=recent_jobs(), command=RunCommand(price_per_hour=10.0)))
    assert "so far 3 min of jobs, 3.0 kWh, price 0.50" in lines


def test_partitions_under_way_come_first_and_many_are_cut():
    partitions = [make_partition(f"p{n:02d}") for n in range(MAX_ROWS + 5)]
    partitions[20] = make_partition("p20", failures={0: [Failure("u", "vector not finite")]})
    partitions[23] = make_partition("p23", missing=[1])
    lines = lines_of(make_run(make_folder(*partitions)))
    titles = [line.split()[1] for line in lines if line.startswith("worldcover ")]
    assert titles == ["p23", "p20", *(f"p{n:02d}" for n in range(MAX_ROWS - 2))]
    assert "and 5 more" in lines
    assert cells(lines, "worldcover p20")[3] == "1"


def test_as_many_partitions_as_fit_are_not_cut():
    lines = lines_of(make_run(make_folder(*(make_partition(f"p{n:02d}") for n in range(MAX_ROWS)))))
    assert len([line for line in lines if line.startswith("worldcover ")]) == MAX_ROWS
    assert not [line for line in lines if line.startswith("and ")]


def test_failures_are_on_the_page():
    failures = {0: [Failure("u1", "vector not finite in float16")]}
    lines = lines_of(make_run(make_folder(make_partition(failures=failures))))
    assert "What failed and will fail again, since the source is the same:" in lines
    assert "  2021-0: u1: vector not finite in float16" in lines


def test_several_runs_are_on_one_page_by_their_names():
    lines = lines_of(make_run(), make_run(make_folder(root="/data/[old]/[/b]", run="other")))
    assert " results/sample " in lines[0]
    assert any(" /data/[old]/[/b]/results/other " in line for line in lines), "brackets are no markup"


# --------------------------------------------------------------------------------------------------------------- watch


@pytest.fixture
def terminal(monkeypatch):
    """The terminal that a live page is shown in."""
    terminal = console(force_terminal=True, _environ={"TERM": "xterm"}, height=50)
    monkeypatch.setattr(rich, "_console", terminal)
    return terminal


@pytest.fixture
def pauses(monkeypatch):
    """The pauses so far; Ctrl-C ends the third."""
    seconds = []

    def sleep(pause_s):
        seconds.append(pause_s)
        if len(seconds) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_watch.time, "sleep", sleep)
    return seconds


def run_with(done):
    return [make_run(make_folder(make_partition(shards=3, missing=range(3 - done))))]


def test_watch_reads_again_after_each_pause_until_ctrl_c(terminal, pauses):
    looks = []

    def read():
        looks.append(len(looks) + 1)
        return run_with(looks[-1])

    with pytest.raises(KeyboardInterrupt):
        watch(read, 7.5)
    assert looks == [1, 2, 3]
    assert pauses == [7.5] * 3
    shown = terminal.file.getvalue()
    at = [shown.index(f"{done} of 3 shards") for done in looks]
    assert at == sorted(at), "each look is shown"
    assert shown.rindex("\x1b[?1049l") > shown.rindex("3 of 3"), "the terminal is given back as it was"


@pytest.mark.parametrize("error", [TransientError, StorageError, SourceError])
def test_the_page_stays_while_a_store_does_not_answer(terminal, pauses, error):
    looks = iter([run_with(1), error("s3://b: the store does not answer"), run_with(3)])

    def read():
        found = next(looks)
        if isinstance(found, error):
            raise found
        return found

    with pytest.raises(KeyboardInterrupt):
        watch(read, 1.0)
    shown = terminal.file.getvalue()
    at = shown.index("s3://b: the store does not answer")
    assert shown[:at].count("1 of 3 shards") == 2, "the page before stays"
    assert shown.rindex("3 of 3 shards") > shown.rindex("s3://b: the store does not answer")


def test_what_a_person_must_correct_ends_the_page(terminal, pauses):
    looks = iter([run_with(1)])

    def read():
        for found in looks:
            return found
        raise ConfigError("results/sample: expected a planned run")

    with pytest.raises(ConfigError):
        watch(read, 1.0)
    assert pauses == [1.0]
