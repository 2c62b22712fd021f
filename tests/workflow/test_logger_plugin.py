"""`snakemake --logger kiln` in real runs: of a workflow whose checkpoint adds jobs, and with a job that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SNAKEFILE = """
import sys
sys.path.insert(0, {root!r})
from kiln.workflow.snakemake_adapter import log_job_counts
log_job_counts(workflow)

checkpoint plan:
    output: "plan.txt"
    message: "Plan the shards"
    shell: "echo 0 1 2 > {{output}}"

rule embed:
    output: "shards/{{n}}.txt"
    log: "logs/{{n}}.log"
    message: "Embed {{wildcards.n}}"
    shell: "echo shard {{wildcards.n}} > {{log}}; test {{wildcards.n}} != {fails}; touch {{output}}"

def shards(wildcards):
    return [f"shards/{{n}}.txt" for n in Path(checkpoints.plan.get().output[0]).read_text().split()]

rule all:
    default_target: True
    input: shards
    message: "Everything is there"
"""


def run(folder: Path, fails: int) -> tuple[int, list[str]]:
    """Return the exit status and the lines of a run. The shard of number `fails` fails."""
    (folder / "Snakefile").write_text(SNAKEFILE.format(root=str(ROOT), fails=fails))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--logger", "kiln", "--show-failed-logs", "-k"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("fails", [9, 1])
def test_each_stage_is_a_line_and_a_failed_job_shows_its_log(tmp_path: Path, fails: int) -> None:
    status, lines = run(tmp_path, fails)
    log = [line for line in lines if line.startswith("Complete log")]
    if fails == 9:
        assert status == 0, lines
        *stages, last = lines
        assert [stage.split(", about")[0] for stage in stages] == [
            "   ?  Plan the shards",
            " 80%  Embed (3 of 3)",
            "100%  Everything is there",
        ]
        assert [last] == log
        assert "Reason: " in Path(last.partition(": ")[2]).read_text(), "the log file has all details"
    else:
        assert status == 1
        assert " 60%  Embed (2 of 3, 1 failed)" in [line.split(", about")[0] for line in lines]
        assert "Error in rule embed:" in lines
        assert "shard 1" in lines, "the log of the failed job"
        assert len(log) == 1
        assert not [line for line in lines if "Everything" in line]
