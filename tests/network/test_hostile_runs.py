"""Runs through a hostile network end with the bytes of an undisturbed run, or with an error and nothing lost."""

import pytest

from kiln.archives.registry import archives
from tests.network.proxy import Fault
from tests.network.runs import SCHEMES, Ending, HostileRuns

SEEDS = range(4)  # http, https, S3 and http again
RATE = 0.15


@pytest.fixture(scope="module", params=sorted(archives()))
def runs(request, tmp_path_factory):
    """The runs of one dataset's archive."""
    with HostileRuns(request.param, tmp_path_factory.mktemp("hostile")) as runs:
        yield runs


def test_a_sound_file_is_never_blamed_for_the_network(runs):
    outcomes = [runs.run(seed, RATE) for seed in SEEDS]
    assert [o.message for o in outcomes if o.ending is Ending.WRONG] == []
    assert sum(bool(o.faults) for o in outcomes) >= len(outcomes) / 2, "the network failed hardly a request"


def test_an_honest_network_disturbs_nothing(runs):
    for seed, _ in enumerate(SCHEMES):
        outcome = runs.run(seed, 0.0)
        assert (outcome.ending, outcome.faults) == (Ending.SAME, {}), outcome.message


def test_a_network_that_fails_every_request_stops_the_run_with_an_error(runs):
    outcome = runs.run(0, 1.0)
    assert outcome.ending is Ending.STOPPED
    assert "exit 1: error: " in outcome.message or "exit 2: error: " in outcome.message
    assert set(outcome.faults) <= set(Fault)
