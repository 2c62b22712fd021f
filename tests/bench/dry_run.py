"""What a dry run costs against a bare workflow of as many jobs: all of CONUS, both years, and all of NAIP.

    python -m tests.bench.dry_run [--rounds 5] [--keys FILE.gz] [--only conus | --only naip] [--no-weights]

NAIP is planned first, from real keys (of either bucket) or from as many made here, into some 12 315 shards. The weights
are there, as they are before a run's first shard; --no-weights shows what it costs while they are still to be made, and
an input of every embedding job. Both dry runs are done in turn, so that a busy machine slows both. The ratio of medians
of processor time counts, at most 1.5 for CONUS and 1.6 for NAIP, since seconds on the clock wander with what else the
machine does; they are shown beside it. A dry run may take 500 MB, its own process alone.
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

BARE = """
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
KEYS = 740_000  # made ones
DIGEST = "0" * 64  # of weights that nobody reads


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds on the clock and of processors, and its own largest memory."""

    wall: float
    cpu: float
    peak_mb: float


@dataclass(frozen=True)
class Comparison:
    """Dry runs of a workflow and of a bare one of as many jobs."""

    jobs: int
    ours: list[Cost]
    bare: list[Cost]

    @property
    def peak_mb(self) -> float:
        return max(c.peak_mb for c in self.ours)

    def median(self, which: str, of: str) -> float:
        """Seconds of `ours` or `bare`, `of` the clock (wall) or processors (cpu)."""
        return statistics.median(getattr(c, of) for c in getattr(self, which))

    def ratio(self, of: str) -> float:
        return self.median("ours", of) / self.median("bare", of)


def measured(command: list[str], folder: Path) -> tuple[Cost, str]:
    """What a command costs, and what it said; exits where it fails."""
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # for the jobs
    with (folder / "said").open("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=found, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # whose memory, where RUSAGE_CHILDREN has the largest of all
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(text)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), text


def compared(configs: list[Path], folder: Path, rounds: int) -> Comparison:
    """Dry runs of the workflow with these configs, and of a bare one, in turn in a folder."""
    ours = [*SNAKEMAKE, "-n", "-s", str(ROOT / "Snakefile"), "--directory", str(folder), "--configfile"]
    ours += map(str, configs)
    jobs = sum(job_counts(measured(ours, folder)[1]).values()) - 1  # but for `all`; the first warms the disk's cache
    bare = folder / "Snakefile"
    bare.write_text(BARE.format(jobs=jobs))
    plain = [*SNAKEMAKE, "-n", "-s", str(bare), "--directory", str(folder)]
    costs = [(measured(ours, folder)[0], measured(plain, folder)[0]) for _ in range(rounds)]
    return Comparison(jobs, [c for c, _ in costs], [c for _, c in costs])


def conus(folder: Path, rounds: int) -> Comparison:
    """CONUS, whose shards the config tells."""
    return compared([ROOT / "config/conus.yaml", pinned(folder, {})], folder, rounds)


def stand_for_weights(folder: Path, config: Path) -> None:
    """An empty file where the weights lie: a dry run looks no further."""
    precision = yaml.safe_load(config.read_text())["model"].get("precision", "float32")
    models = folder / "results/models"
    models.mkdir(parents=True)
    (models / f"{DIGEST[:8]}-{precision}.safetensors").touch()


def naip(folder: Path, rounds: int, keys: list[str]) -> Comparison:
    """NAIP, whose plan of these keys is made first."""
    (folder / "manifest.txt.gz").write_bytes(gzip.compress("".join(f"{k}\n" for k in keys).encode(), 1))
    changes = {"manifest": "manifest.txt.gz", "scenes_per_shard": round(len(keys) / SHARDS)}
    configs = [ROOT / "config/naip.yaml", pinned(folder, {"naip": changes})]
    plan = [*SNAKEMAKE, "--cores", "1", "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    measured([*plan, "plan", "--configfile", *map(str, configs)], folder)
    return compared(configs, folder, rounds)


def pinned(folder: Path, changes: dict) -> Path:
    """A config beside a shipped one: weights whose digest is known, and changes."""
    path = folder / "pinned.yaml"
    path.write_text(yaml.safe_dump({"model": {"sha256": DIGEST}, **changes}))
    return path


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exits 1 above a limit."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.dry_run", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--keys", type=Path, help=f"file of NAIP's keys, plain or gzip; none: {KEYS:,} are made")
    p.add_argument("--only", choices=("conus", "naip"), help="one of both")
    p.add_argument("--no-weights", action="store_true", help="the weights are not made yet")
    p.add_argument("--most", type=float, default=1.5, help="ratio of CONUS that fails")
    p.add_argument("--most-naip", type=float, default=1.6, help="ratio of NAIP that fails")
    p.add_argument("--most-mb", type=float, default=500.0, help="memory of a dry run that fails")
    args = p.parse_args(argv)
    if args.rounds < 1:
        p.error(f"--rounds {args.rounds}: want 1 or more")
    good = True
    for name, most in (("conus", args.most), ("naip", args.most_naip)):
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            if not args.no_weights:
                stand_for_weights(Path(folder), ROOT / f"config/{name}.yaml")
            if name == "conus":
                found = conus(Path(folder), args.rounds)
            else:
                keys = plan_naip.read(args.keys) if args.keys else plan_naip.made(KEYS)
                found = naip(Path(folder), args.rounds, keys)
        good &= found.ratio("cpu") <= most and found.peak_mb <= args.most_mb
        report(name, found, most, args.most_mb)
    sys.exit(not good)


def report(name: str, found: Comparison, most: float, most_mb: float) -> None:
    """Medians and ratios as text, and every figure as a line of JSON."""
    print(f"{name}: {found.jobs:,} jobs, peak {found.peak_mb:.0f} MB (at most {most_mb:.0f})")
    for of, told in (("cpu", "processor"), ("wall", "clock")):
        seconds = f"{found.median('ours', of):.2f} s, bare {found.median('bare', of):.2f} s"
        print(f"  {told:<10} {seconds}, ratio {found.ratio(of):.2f}{f' (at most {most})' if of == 'cpu' else ''}")
    seconds = {
        which: {of: [round(getattr(c, of), 2) for c in getattr(found, which)] for of in ("cpu", "wall")}
        for which in ("ours", "bare")
    }
    figures = {"jobs": found.jobs, "seconds": seconds, "peak_mb": round(found.peak_mb)}
    print(json.dumps({"name": name, **figures, "ratio": round(found.ratio("cpu"), 3)}), flush=True)


if __name__ == "__main__":
    main()
