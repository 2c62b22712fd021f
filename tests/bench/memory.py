"""Peak memory of a job by the size of its scene. It should depend only on the budget and on the strips of a row.

    python -m tests.bench.memory [--sides 3000 12000] [--read-ahead-mb 128]

Each job is a separate process with the tiny encoder.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.harness import publish
from tests.bench.workload import MAKERS, Workload, write_weights

JOB = """\
import sys
from importlib import import_module
from kiln.io.memory import peak_memory
script = import_module(sys.argv[1])
print(peak_memory() / 1e6)
script.main(sys.argv[2:])
print(peak_memory() / 1e6)
"""


def peaks(load: Workload, weights: Path, output: Path, ahead_mb: int) -> tuple[float, float]:
    """Return the MB of a job's process after its imports, and at its peak."""
    flags = load.arguments(weights, output, "--batch-size", "8", "--read-threads", "2", "--metadata", "zeros")
    flags += ["--read-ahead-mb", str(ahead_mb)]
    command = [sys.executable, "-c", JOB, "scripts.embed", *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    start, end = map(float, done.stdout.split()[:1] + done.stdout.split()[-1:])
    return start, end


def measure(dataset: str, side: int, ahead_mb: int) -> dict[str, Any]:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as temporary:
        folder = Path(temporary)
        load = MAKERS[dataset](folder / "archive", side)
        start, peak = peaks(load, write_weights(folder, "tiny"), folder / "out", ahead_mb)
    return {
        "dataset": dataset,
        "side": side,
        "MB of pixels": load.shard.read_bytes / 1e6,
        "budget MB": ahead_mb,
        "imports MB": start,
        "peak MB": peak,
        "beyond imports": peak - start,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--sides", type=int, nargs="+", default=[3000, 12000], help="in pixels; divisors of 12000")
    p.add_argument("--read-ahead-mb", type=int, default=128)
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    rows = [measure(dataset, side, args.read_ahead_mb) for dataset in MAKERS for side in args.sides]
    publish("memory", rows, ["budget: resources.read_ahead_mb; imports: memory after the imports"], args.out)


if __name__ == "__main__":
    main()
