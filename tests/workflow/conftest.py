"""Finished runs of the workflow, one of each kind per test session; tests work on copies of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.workflow.workflow import Run, finished_jobs, fresh, fresh_naip, job_counts, naip_run

Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """A function `once(name, make)` that returns a folder which `make(folder)` fills, once for all test processes.

    Where `make` fails, the next process that needs the folder tries it again in an empty one.
    """
    base = tmp_path_factory.getbasetemp()
    session = base if worker_id == "master" else base.parent

    def get(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(session / f"{name}.lock"):
            folder = next(session.glob(f"{name}-*.finished"), None)
            if folder is not None:
                return folder.with_suffix("")
            made = session / f"{name}-{worker_id}"
            make(made)
            made.with_suffix(".finished").touch()
            return made

    return get


@pytest.fixture(scope="session")
def finished(once: Once) -> Run:
    """A run in which every rule is finished. Tests must not change it."""
    return Run(once("finished", lambda folder: fresh(folder).snakemake("--cores", "2")))


@dataclass(frozen=True)
class Story:
    """A run and its job counts by rule: of dry runs before and after `snakemake plan`, and of the finished jobs."""

    run: Run
    before: dict[str, int]
    planned: dict[str, int]
    done: dict[str, int]


@pytest.fixture(scope="session")
def naip_story(once: Once) -> Story:
    """A finished run of NAIP and WorldCover. Tests must not change it."""

    def make(folder: Path) -> None:
        run = fresh_naip(folder)
        before = run.jobs()
        run.snakemake("--cores", "2", "plan")
        planned = run.jobs()
        output = run.snakemake("--cores", "2")
        assert job_counts(output) == planned, "the table of a run is that of the dry run"
        counts = {"before": before, "planned": planned, "done": finished_jobs(output)}
        (folder / "counts.json").write_text(json.dumps(counts))

    folder = once("finished-naip", make)
    return Story(naip_run(folder), **json.loads((folder / "counts.json").read_text()))


@pytest.fixture(scope="session")
def finished_naip(naip_story: Story) -> Run:
    return naip_story.run
