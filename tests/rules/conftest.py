"""One finished run of the workflow per test process; tests work on copies of it."""

import pytest

from tests.rules.workflow import Run, fresh


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which every rule has been done; nobody changes it."""
    run = fresh(tmp_path_factory.mktemp("finished") / "run")
    run.snakemake("--cores", "2")
    return run
