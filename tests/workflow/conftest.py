"""Finished runs of the workflow; tests work on copies of them."""

from dataclasses import dataclass

import pytest

from tests.workflow.workflow import Run, finished_jobs, fresh, fresh_naip, job_counts


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which every rule is finished. Tests must not change it."""
    run = fresh(tmp_path_factory.mktemp("finished") / "run")
    run.snakemake("--cores", "2")
    return run


@dataclass(frozen=True)
class Story:
    """A run and its job counts by rule: of dry runs before and after `snakemake plan`, and of the finished jobs."""

    run: Run
    before: dict[str, int]
    planned: dict[str, int]
    done: dict[str, int]


@pytest.fixture(scope="session")
def naip_story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A finished run of NAIP and WorldCover. Tests must not change it."""
    run = fresh_naip(tmp_path_factory.mktemp("finished-naip") / "run")
    before = run.jobs()
    run.snakemake("--cores", "2", "plan")
    planned = run.jobs()
    output = run.snakemake("--cores", "2")
    assert job_counts(output) == planned, "the table of a run is that of the dry run"
    return Story(run, before, planned, finished_jobs(output))


@pytest.fixture(scope="session")
def finished_naip(naip_story: Story) -> Run:
    return naip_story.run
