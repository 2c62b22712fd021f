"""Finished runs of the workflow, one of each kind per test process; tests work on copies of them."""

from dataclasses import dataclass

import pytest

from tests.workflow.workflow import Run, finished_jobs, fresh, fresh_naip, job_counts


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which every rule has been done; nobody changes it."""
    run = fresh(tmp_path_factory.mktemp("finished") / "run")
    run.snakemake("--cores", "2")
    return run


@dataclass(frozen=True)
class Story:
    """A run and how it came about, as jobs by rule: of dry runs before and after `snakemake plan`, and those done."""

    run: Run
    before: dict[str, int]
    planned: dict[str, int]
    done: dict[str, int]


@pytest.fixture(scope="session")
def naip_story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A finished run of NAIP beside WorldCover; nobody changes it."""
    run = fresh_naip(tmp_path_factory.mktemp("finished-naip") / "run")
    before = run.jobs()
    run.snakemake("--cores", "2", "plan")
    planned = run.jobs()
    said = run.snakemake("--cores", "2")
    assert job_counts(said) == planned, "the table of a run is that of the dry run"
    return Story(run, before, planned, finished_jobs(said))


@pytest.fixture(scope="session")
def finished_naip(naip_story: Story) -> Run:
    return naip_story.run
