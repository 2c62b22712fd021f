"""Where Kiln works around Snakemake: each test fails when Snakemake no longer needs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from kiln.workflow.snakemake_adapter import _profile_options
from tests import ROOT

JOBS = 12
SNAKEFILE = """
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, {root!r})
from kiln.workflow.snakemake_adapter import remove_default_submission_rate

rule all:
    input: [f"{{n}}.txt" for n in range({jobs})]

rule one:
    output: "{{n}}.txt"
    shell: "sleep 0.5; touch {{output}}"

onstart:
    on_store = SimpleNamespace(default_storage_prefix="s3://bucket")
    if config["remove"]:
        remove_default_submission_rate(SimpleNamespace(
            scheduling_settings=workflow.scheduling_settings, storage_settings=on_store, scheduler=workflow.scheduler
        ))
    select, looks = workflow.scheduler.job_selector, []
    def counted(jobs):
        looks.append(len(jobs))
        Path("looks.txt").write_text(str(len(looks)))
        return select(jobs)
    workflow.scheduler.job_selector = counted
"""


def start(folder: Path, remove: bool) -> subprocess.Popen[str]:
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE.format(root=str(ROOT), jobs=JOBS))
    command = ["-m", "snakemake", "--cores", "1", "--scheduler", "greedy", "--config", f"remove={remove}"]
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_without_its_default_rate_snakemake_looks_for_work_less_often(tmp_path: Path) -> None:
    """If this fails with an equal number of looks, delete `remove_default_submission_rate`."""
    looks = {}
    running = {remove: start(tmp_path / str(remove), remove) for remove in (False, True)}
    for remove, process in running.items():
        output = process.communicate()[0]
        assert process.returncode == 0, output
        looks[remove] = int((tmp_path / str(remove) / "looks.txt").read_text())
    assert looks[True] <= 2 * JOBS + 2, "a look for each submission and each end of a job"
    assert looks[False] > 1.5 * looks[True], looks


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--cores", "2", "--", "all"], []),
        (["--profile", "slurm", "--cores", "2"], ["--profile", "slurm"]),
        (["--profile=slurm"], ["--profile", "slurm"]),
        (["--workflow-profile", "a", "--profile=b=c"], ["--workflow-profile", "a", "--profile", "b=c"]),
        (["--config", "profile=x", "--profiles", "y"], []),
    ],
)
def test_profiles_are_found_on_the_command_line(arguments: list[str], options: list[str]) -> None:
    """Snakemake replaces a profile by its values, so that the workflow sees no name of it."""
    assert _profile_options(["/bin/snakemake", *arguments]) == options
