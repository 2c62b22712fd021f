"""Dry runs of all of CONUS (both years) and all of NAIP, compared with dry runs of a minimal workflow.

    python -m tests.bench.dry_run [--rounds 5] [--keys FILE.gz] [--only conus | --only naip] [--no-weights]

The minimal workflow has the same number of jobs. NAIP is planned first, into about 12 315 shards, from a file of real
keys (of either bucket) or from 740 000 generated ones. The weights exist, as they do when a run's first shard starts.
With --no-weights they are missing, so that they are an output to make and an input of every embedding job.

Both dry runs are timed in turn, so that a busy machine slows both. The limits are for the ratio of the medians of
processor time: 1.5 for CONUS and 1.6 for NAIP. Wall-clock time is printed too, but it depends more on the load of the
machine. The process of a dry run may use 500 MB.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench import plan_naip
from tests.workflow.workflow import ROOT, job_counts

MINIMAL = """
rule all:
    input:
        expand("out/{{n}}.txt", n=range({jobs}))


rule one:
    output:
        "out/{{n}}.txt",
    shell:
        "touch {{output}}"
"""
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--quiet", "rules"]
SHARDS = 12_315  # of all NAIP at 100 scenes each
KEYS = 740_000  # generated keys
DIGEST = "0" * 64  # of weights that a dry run does not read


@dataclass(frozen=True)
class Cost:
    """The cost of a process: wall-clock seconds, processor seconds, and its peak memory."""

    wall: float
    cpu: float
    peak_mb: float


@dataclass(frozen=True)
class Comparison:
    """Dry runs of Kiln's workflow and of a minimal one with the same number of jobs."""

    jobs: int
    ours: list[Cost]
    minimal: list[Cost]

    @property
    def peak_mb(self) -> float:
        """The largest memory of Kiln's dry runs."""
        return max(c.peak_mb for c in self.ours)

    def median(self, which: str, of: str) -> float:
        """Return the median seconds of `ours` or `minimal`; `of` is "wall" or "cpu"."""
        return statistics.median(getattr(c, of) for c in getattr(self, which))

    def ratio(self, of: str) -> float:
        """Return the ratio of the medians, ours by minimal."""
        return self.median("ours", of) / self.median("minimal", of)


def measure_command(command: list[str], folder: Path) -> tuple[Cost, str]:
    """Run a command; return its cost and its output. Exit if it fails."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # for the jobs
    with (folder / "output").open("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # RUSAGE_CHILDREN has the peak of all children
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(text)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), text


def compare_dry_runs(configs: list[Path], folder: Path, rounds: int) -> Comparison:
    """Time dry runs of Kiln's workflow with the configs and of a minimal workflow, in turn."""
    ours = [*SNAKEMAKE, "-n", "-s", str(ROOT / "Snakefile"), "--directory", str(folder), "--configfile"]
    ours += map(str, configs)
    jobs = sum(job_counts(measure_command(ours, folder)[1]).values()) - 1  # without `all`; warms the disk cache
    minimal = folder / "Snakefile"
    minimal.write_text(MINIMAL.format(jobs=jobs))
    theirs = [*SNAKEMAKE, "-n", "-s", str(minimal), "--directory", str(folder)]
    costs = [(measure_command(ours, folder)[0], measure_command(theirs, folder)[0]) for _ in range(rounds)]
    return Comparison(jobs, [c for c, _ in costs], [c for _, c in costs])


def conus(folder: Path, rounds: int) -> Comparison:
    """Compare dry runs of CONUS."""
    return compare_dry_runs([ROOT / "config/conus.yaml", write_config(folder, {})], folder, rounds)


def write_empty_weights(folder: Path, config: Path) -> None:
    """Write an empty file in place of the weights. A dry run only checks that it exists."""
    precision = yaml.safe_load(config.read_text())["model"].get("precision", "float32")
    models = folder / "results/models"
    models.mkdir(parents=True)
    (models / f"{DIGEST[:8]}-{precision}.safetensors").touch()


def naip(folder: Path, rounds: int, keys: list[str]) -> Comparison:
    """Plan NAIP from the keys, then compare dry runs of it."""
    (folder / "manifest.txt.gz").write_bytes(gzip.compress("".join(f"{k}\n" for k in keys).encode(), 1))
    changes = {"manifest": "manifest.txt.gz", "scenes_per_shard": round(len(keys) / SHARDS)}
    configs = [ROOT / "config/naip.yaml", write_config(folder, {"naip": changes})]
    plan = [*SNAKEMAKE, "--cores", "1", "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    measure_command([*plan, "plan", "--configfile", *map(str, configs)], folder)
    return compare_dry_runs(configs, folder, rounds)


def write_config(folder: Path, changes: dict) -> Path:
    """Write a config to use after one of config/: it sets the digest of the weights, and the changes."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({"model": {"sha256": DIGEST}, **changes}))
    return path


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 above a limit."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.dry_run", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--keys", type=Path, help=f"file of NAIP's keys, plain or gzip (default: {KEYS:,} generated keys)")
    p.add_argument("--only", choices=("conus", "naip"), help="measure only this dataset")
    p.add_argument("--no-weights", action="store_true", help="measure with missing weights")
    p.add_argument("--max-ratio", type=float, default=1.5, help="limit for CONUS (default: %(default)s)")
    p.add_argument("--max-ratio-naip", type=float, default=1.6, help="limit for NAIP (default: %(default)s)")
    p.add_argument("--max-mb", type=float, default=500.0, help="limit of the memory (default: %(default)s)")
    args = p.parse_args(argv)
    if args.rounds < 1:
        p.error(f"--rounds {args.rounds}: expected 1 or more")
    good = True
    for name, max_ratio in (("conus", args.max_ratio), ("naip", args.max_ratio_naip)):
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            if not args.no_weights:
                write_empty_weights(Path(folder), ROOT / f"config/{name}.yaml")
            if name == "conus":
                comparison = conus(Path(folder), args.rounds)
            else:
                keys = plan_naip.read(args.keys) if args.keys else plan_naip.generate_keys(KEYS)
                comparison = naip(Path(folder), args.rounds, keys)
        good &= comparison.ratio("cpu") <= max_ratio and comparison.peak_mb <= args.max_mb
        report(name, comparison, max_ratio, args.max_mb)
    sys.exit(not good)


def report(name: str, comparison: Comparison, max_ratio: float, max_mb: float) -> None:
    """Print medians and ratios as text, and all values as a line of JSON."""
    print(f"{name}: {comparison.jobs:,} jobs, peak {comparison.peak_mb:.0f} MB (limit {max_mb:.0f})")
    for of, label in (("cpu", "processor"), ("wall", "clock")):
        seconds = f"{comparison.median('ours', of):.2f} s, minimal {comparison.median('minimal', of):.2f} s"
        limit = f" (limit {max_ratio})" if of == "cpu" else ""
        print(f"  {label:<10} {seconds}, ratio {comparison.ratio(of):.2f}{limit}")
    seconds = {
        which: {of: [round(getattr(c, of), 2) for c in getattr(comparison, which)] for of in ("cpu", "wall")}
        for which in ("ours", "minimal")
    }
    figures = {"jobs": comparison.jobs, "seconds": seconds, "peak_mb": round(comparison.peak_mb)}
    print(json.dumps({"name": name, **figures, "ratio": round(comparison.ratio("cpu"), 3)}), flush=True)


if __name__ == "__main__":
    main()
