"""What planning costs: a dry run of full CONUS, both years, against a bare workflow of as many jobs.

    python -m tests.bench.dry_run [--rounds 5]

Both are run in turn, so that a busy machine slows both; the ratio of medians is what counts (at most 1.5).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.rules.workflow import ROOT, job_counts

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


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a command, and what it said."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.monotonic() - began, done.stdout + done.stderr


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exits 1 above the ratio."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.dry_run", description=__doc__)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--most", type=float, default=1.5, help="ratio that fails")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pinned = folder / "pinned.yaml"
        pinned.write_text(yaml.safe_dump({"model": {"sha256": "0" * 64}}))
        snakemake = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--directory", name]
        conus = [
            *snakemake,
            "-s",
            str(ROOT / "Snakefile"),
            "--configfile",
            str(ROOT / "config/conus.yaml"),
            str(pinned),
        ]
        jobs = sum(job_counts(timed(conus, folder)[1]).values()) - 1  # but for `all`
        bare = folder / "Snakefile"
        bare.write_text(BARE.format(jobs=jobs))
        plain = [*snakemake, "-s", str(bare)]
        times: dict[str, list[float]] = {"conus": [], "bare": []}
        for _ in range(args.rounds):
            times["conus"].append(timed(conus, folder)[0])
            times["bare"].append(timed(plain, folder)[0])
    medians = {k: statistics.median(v) for k, v in times.items()}
    ratio = medians["conus"] / medians["bare"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    seconds = f"CONUS {medians['conus']:.2f} s, bare {medians['bare']:.2f} s"
    print(f"{jobs} jobs: {seconds}, ratio {ratio:.2f}, peak {peak:.0f} MB")
    print(json.dumps({"jobs": jobs, "seconds": times, "ratio": round(ratio, 3), "peak_mb": round(peak)}))
    sys.exit(ratio > args.most)


if __name__ == "__main__":
    main()
