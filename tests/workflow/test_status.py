"""The commands that `kiln status` prints run as they are."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from kiln.formats.ledger import ledger_name
from tests.workflow.workflow import ROOT, Run, fresh, job_counts


def status(run: Run, *arguments: str) -> str:
    command = [sys.executable, "-m", "kiln.cli.status", "results/tiny", *arguments]
    environment = run.environment(PYTHONPATH=str(ROOT))
    return subprocess.run(command, cwd=run.folder, env=environment, capture_output=True, text=True, check=True).stdout


def commands(run: Run) -> list[str]:
    return [line for line in status(run, "--cores", "2").splitlines() if line.startswith("  snakemake")]


def typed(run: Run, command: str) -> dict[str, int]:
    """Run a printed command in a shell, in the run's folder; returns the jobs that were done, by rule."""
    words = shlex.join([sys.executable, "-m", "snakemake"])
    done = subprocess.run(
        command.strip().replace("snakemake", words, 1),
        shell=True,
        cwd=run.folder,
        env=run.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return job_counts(done.stdout)


def times(run: Run) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in run.shards()}


def test_the_printed_commands_redo_exactly_the_shards_they_name(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", {"max_failed_fraction": 1.0, "worldcover": {"columns_per_shard": 3}})
    tile = sorted((run.folder / "archive").rglob("*N43E000*.tif"))[0]
    good = tile.read_bytes()
    half = len(good) // 2
    tile.write_bytes(good[:half] + bytes(len(good) - half))  # the same size, so the plan still holds
    run.snakemake("--cores", "2", "worldcover")
    tile.write_bytes(good)
    failing = {p.name for p in run.shards() if "failed" in pq.read_table(ledger_name(str(p)))["status"].to_pylist()}
    missing = next(p for p in run.shards() if p.name not in failing)
    missing.unlink()
    assert failing
    assert len(run.shards()) > len(failing), "one shard is left alone"

    first, second, last = commands(run)
    before = times(run)
    assert typed(run, first) == {"embed_worldcover": 1}
    after = times(run)
    assert {n for n in after if after[n] != before.get(n)} == {missing.name}
    assert typed(run, second) == {"embed_worldcover": len(failing)}
    forced = times(run)
    assert {n for n in forced if forced[n] != after[n]} == failing
    assert "unreadable" not in status(run)
    assert commands(run) == [last]
    done = typed(run, last)
    assert "embed_worldcover" not in done
    assert done["merge_worldcover"] == 1
    record = json.loads(max(run.folder.glob("results/tiny/worldcover-*/products/2021/*.json")).read_text())
    assert record["counts"]["failed"] == 0
    assert "Nothing to be done" in run.snakemake("--cores", "2")
    assert commands(run) == []
    assert "Nothing to do: all " in status(run)

    next(run.folder.glob("results/tiny/worldcover-*/products/2021/*/chips/part-0000.parquet")).unlink()
    assert "damaged (chips/part-0000.parquet is gone)" in status(run)
    product, last = commands(run)
    assert typed(run, product) == {"merge_worldcover": 1}
    typed(run, last)
    assert commands(run) == [], status(run)

    shutil.rmtree(run.folder / "results/tiny/explorer")
    assert "explorer database damaged: its files are gone" in status(run)
    database, last = commands(run)
    assert typed(run, database) == {"build_index": 1}
    typed(run, last)
    assert commands(run) == []
