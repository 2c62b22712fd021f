"""Pace, time left and price of a run, by the records of its jobs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kiln.report.costs import DatasetCosts
from kiln.report.status import progress
from kiln.report.status.command import RunCommand
from kiln.report.status.progress import RunProgress
from tests.support.job_records import make_job_record
from tests.support.run_statuses import make_folder, make_partition, make_run

TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)


def at(minutes):
    return TEN + timedelta(minutes=minutes)


def job(start, end, **changes):
    """Return the record of a job of 100 chips from one minute after ten o'clock to another."""
    times = {"started": at(start).isoformat(), "ended": at(end).isoformat(), "wall_s": (end - start) * 60.0}
    return make_job_record(**(times | changes))


JOBS = [job(0, 10), job(10, 20), job(20, 30), job(30, 40)]  # 400 chips in 2,400 s


def progress_of(records=JOBS, *, minutes=41, missing=2, price_per_hour=None):
    """Return the progress of six shards at a time."""
    folder = make_folder(make_partition(shards=6, missing=range(missing)))
    run = make_run(folder, command=RunCommand(price_per_hour=price_per_hour), records=records)
    return RunProgress.of(run, at(minutes))


# ------------------------------------------------------------------------------------------------------------- numbers


def test_shards_and_chips_are_those_of_the_ledgers():
    folders = [
        make_folder(make_partition("2020", 3, missing=[0]), make_partition("2021", 4, missing=[0, 1])),
        make_folder(make_partition("nd-2019", 2), name="naip-1a2b3c4d"),
    ]
    found = RunProgress.of(make_run(*folders))
    assert (found.shards, found.done, found.chips) == (9, 6, 240)


def test_pace_and_time_left():
    found = progress_of()
    assert found.chips_per_second == pytest.approx(400 / 2400)
    assert found.seconds_left == pytest.approx(2 / (4 / 2400))
    assert not found.is_idle


def test_the_pace_is_that_since_the_first_job_ended():
    """What it did before is not seen, since other jobs may have run then, too."""
    records = [job(0, 10, chips=7000), *JOBS[1:]]
    assert progress_of(records).chips_per_second == pytest.approx(300 / 1800)
    assert progress_of(records).seconds_left == pytest.approx(2 * 1800 / 3)


def test_the_pace_does_not_reach_beyond_a_pause():
    """The longest job of these takes ten minutes, so twenty without an end are a pause."""
    before = [job(-50, -40, chips=1), job(-30, -20, chips=1)]
    assert progress_of([*before, *JOBS]).chips_per_second == pytest.approx(300 / 1800)
    before = [job(-30, -20, chips=1), job(-20, -10, chips=1)]
    assert progress_of([*before, *JOBS]).chips_per_second == pytest.approx(401 / 3600)
    assert progress_of([*JOBS[:2], job(50, 60)], minutes=61).chips_per_second is None, "one job since the pause"


def test_jobs_of_several_machines_add_up():
    found = progress_of([job(0, 10), job(5, 15), job(10, 20), job(15, 25)], minutes=26)
    assert found.chips_per_second == pytest.approx(300 / 900)
    assert found.seconds_left == pytest.approx(2 * 900 / 3)


@pytest.mark.parametrize("apart", [0, 1 / 60])
def test_the_first_jobs_of_many_machines_end_almost_at_once(apart):
    """The seconds between their ends are no time in which they ran."""
    records = [job(n * apart, 10 + n * apart) for n in range(20)]
    found = progress_of(records, minutes=11)
    assert found.chips_per_second == pytest.approx(2000 / (600 + 19 * 60 * apart))
    assert found.seconds_left == pytest.approx(2 / 20 * (600 + 19 * 60 * apart))


def test_jobs_that_end_together_again_and_again_have_the_pace_of_their_rounds():
    found = progress_of([job(10 * n, 10 * n + 10) for n in range(4) for _ in range(60)])
    assert found.chips_per_second == pytest.approx(100 * 60 / 600, rel=0.5), "half a round too much at most"
    assert found.seconds_left == pytest.approx(2 / (60 / 600), rel=0.5)


def test_two_jobs_are_too_few_for_a_pace():
    found = progress_of(JOBS[:2])
    assert (found.chips_per_second, found.seconds_left, found.is_idle) == (None, None, False)
    assert progress_of(JOBS[:2], minutes=10_000).is_idle is False
    assert progress_of(JOBS[:3]).chips_per_second == pytest.approx(300 / 1800)


def test_only_the_last_jobs_make_the_pace(monkeypatch):
    monkeypatch.setattr(progress, "RECENT_JOBS", 3)
    earlier = [job(-10 * n - 10, -10 * n, chips=1) for n in range(5)]
    for records in ([*earlier, *JOBS], [*JOBS, *earlier]):
        assert progress_of(records).chips_per_second == pytest.approx(200 / 1200), "in any order"


def test_the_last_jobs_are_those_of_two_long_ones_at_least(monkeypatch):
    """The long one took 20 minutes, so all that ended in the last 40 count, and no more."""
    monkeypatch.setattr(progress, "RECENT_JOBS", 5)
    short = [job(n, n + 1, chips=10) for n in range(60)]
    found = progress_of([*short, job(37, 57.5)], minutes=61)
    assert found.chips_per_second == pytest.approx((41 * 10 + 100) / (41 * 60))


def test_jobs_of_no_time_have_no_pace():
    assert progress_of([job(0, 0), job(0, 0), job(0, 0)], minutes=0).chips_per_second is None


@pytest.mark.parametrize(("minutes", "is_idle"), [(41, False), (60, False), (61, True)])
def test_a_run_is_idle_long_after_its_last_job(minutes, is_idle):
    """The last job ended after 40 minutes, and the longest took ten; ten more are waited for."""
    found = progress_of(minutes=minutes)
    assert found.is_idle == is_idle
    assert (found.seconds_left is None) == is_idle


def test_a_run_of_long_jobs_is_waited_for_longer():
    records = [*JOBS[:3], job(0, 40)]
    assert not progress_of(records, minutes=90).is_idle
    assert progress_of(records, minutes=91).is_idle


def test_a_finished_run_has_no_time_left():
    found = progress_of(missing=0)
    assert found.seconds_left is None
    assert found.chips_per_second == pytest.approx(400 / 2400)


def test_the_price_so_far_and_the_price_to_come():
    found = progress_of(price_per_hour=3.0)
    assert found.price == pytest.approx(2400 / 3600 * 3.0)
    assert found.price_left == pytest.approx(found.price / 4 * 2), "two shards at the mean of four"
    assert progress_of(missing=0, price_per_hour=3.0).price_left == 0


def test_each_dataset_has_its_own_mean_price():
    """A shard of the first takes ten minutes, of the second an hour."""
    names = ("worldcover-1a2b3c4d", "naip-1a2b3c4d")
    folders = [make_folder(make_partition("p", 6, missing=[0, 1]), name=name) for name in names]
    costs = [DatasetCosts(names[1], [job(0, 60)] * 3, 3.0), DatasetCosts(names[0], JOBS, 3.0)]
    found = RunProgress.of(replace(make_run(*folders), costs=costs), at(41))
    assert found.price == pytest.approx(3 * 3.0 + 4 * 0.5)
    assert found.price_left == pytest.approx(2 * 3.0 + 2 * 0.5)
    costs[0] = DatasetCosts(names[1], [job(0, 60)] * 2, 3.0)
    assert RunProgress.of(replace(make_run(*folders), costs=costs)).price_left is None, "two jobs are too few"
    folders[1] = make_folder(make_partition("p", 6), name=names[1])
    found = RunProgress.of(replace(make_run(*folders), costs=costs))
    assert found.price_left == pytest.approx(2 * 0.5), "of that one nothing is left"


def test_without_a_known_price_none_is_stated():
    found = progress_of()
    assert (found.price, found.price_left) == (None, None)


def test_without_jobs_the_price_to_come_is_unknown():
    found = progress_of([], price_per_hour=3.0)
    assert (found.price, found.price_left) == (0, None)


def test_jobs_of_all_folders_count():
    costs = [DatasetCosts("naip-1a2b3c4d", JOBS[:2], 0.0), DatasetCosts("worldcover-1a2b3c4d", JOBS[2:], 0.0)]
    found = RunProgress.of(replace(make_run(), costs=costs), at(41))
    assert found.sums.jobs == 4
    assert found.chips_per_second == pytest.approx(400 / 2400)


def test_by_default_the_progress_is_that_of_the_present():
    now = datetime.now(UTC)
    times = {"started": (now - timedelta(minutes=2)).isoformat(), "ended": now.isoformat(), "wall_s": 120.0}
    folder = make_folder(make_partition(missing=[0]))
    assert RunProgress.of(make_run(folder, records=JOBS)).is_idle
    assert not RunProgress.of(make_run(folder, records=[make_job_record(**times)] * 3)).is_idle


# --------------------------------------------------------------------------------------------------------------- text


def lines(*arguments, **options):
    return progress_of(*arguments, **options).text().splitlines()


def test_the_lines_of_a_run_under_way():
    assert lines(price_per_hour=3.0) == [
        "66%: 4 of 6 shards, 160 chips",
        "0.167 chips/s now, all jobs together",
        "about 20 min left at this pace",
        "so far 40 min of jobs, 4.0 kWh, price 2.00, about 1.00 to come",
    ]


def test_the_lines_of_an_idle_run():
    assert lines(minutes=120) == [
        "66%: 4 of 6 shards, 160 chips",
        "0.167 chips/s at last, all jobs together",
        "no job has ended for a long time",
        "so far 40 min of jobs, 4.0 kWh",
    ]


def test_the_lines_of_a_finished_run():
    expected = [
        "100%: 6 of 6 shards, 240 chips",
        "0.167 chips/s at last, all jobs together",
        "so far 40 min of jobs, 4.0 kWh, price 2.00",
    ]
    assert lines(missing=0, price_per_hour=3.0) == expected
    assert lines(missing=0, minutes=120, price_per_hour=3.0) == expected, "a finished run is not called idle"


def test_the_lines_of_a_run_without_jobs():
    assert lines([], missing=6, price_per_hour=3.0) == ["0%: 0 of 6 shards, 0 chips"]


def test_energy_that_was_not_measured_is_about():
    records = [*JOBS[:3], job(30, 40, energy_is_measured=False)]
    assert lines(records)[-1] == "so far 40 min of jobs, about 4.0 kWh"


@pytest.mark.parametrize(
    ("chips", "text"),
    [(1, "0.00167"), (100, "0.167"), (59_940, "99.9"), (60_000, "100"), (7_407_400, "12,346")],
)
def test_a_pace_is_written_without_an_exponent(chips, text):
    """Each of four jobs has these chips; together they take 2,400 s."""
    records = [job(10 * n, 10 * n + 10, chips=chips) for n in range(4)]
    assert lines(records)[1] == f"{text} chips/s now, all jobs together"
