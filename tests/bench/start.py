"""The time from the start of a job to its first chip, with weights of the published size; file sizes and imports.

    python -m tests.bench.start [--rounds 3] [--batch 1]

The job has one chip. Its time without the encoding of that chip is an upper bound of the time to the first chip. The
disk cache is warm after the first round.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.harness import publish, timed
from tests.bench.workload import Workload, make_naip, write_weights

MAX_SECONDS, MAX_GB = 20.0, 0.63


def job(load: Workload, weights: Path, folder: Path, batch: int) -> list[str]:
    """Return the command that embeds a shard of one chip."""
    flags = load.arguments(weights, folder / "out", "--batch-size", str(batch), "--metadata", "zeros")
    return [sys.executable, "-m", "scripts.embed", *flags]


def imports(count: int = 12) -> list[str]:
    """Return the slowest imports, each with its own imports, as measured by `python -X importtime`."""
    code = "import kiln.model.embedder, kiln.engine.pipeline, kiln.archives.naip.source"
    report = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    ).stderr
    times = [(int(total), name.strip()) for total, name in re.findall(r"\|\s+(\d+) \|( +\S+)", report)]
    return [f"  {total / 1000:7.0f} ms  {name}" for total, name in sorted(times, reverse=True)[:count]]


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 above a limit."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        folder = Path(name)
        load = make_naip(folder / "archive", 256)
        for precision in ("float32", "bfloat16"):
            weights = write_weights(folder, "full", precision)
            command = job(load, weights, folder, args.batch)
            whole, encoding = [], []
            for _ in range(args.rounds):
                logs: list[str] = []
                whole.append(timed(lambda command=command, logs=logs: logs.append(run_job(command))))
                encoding.append(float(re.search(r"encoding ([\d.]+) s", logs[0])[1]))  # type: ignore[index]
            rows.append(
                {
                    "weights": precision,
                    "GB": weights.stat().st_size / 1e9,
                    "whole job s": statistics.median(whole),
                    "encoding s": statistics.median(encoding),
                    "start s": statistics.median(w - e for w, e in zip(whole, encoding, strict=True)),
                }
            )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    notes = [
        f"peak memory of a job {peak:.2f} GB, with mapped weights",
        "imports, each with its own imports:",
        *imports(),
    ]
    publish("start", rows, notes, args.out)
    if rows[1]["GB"] > MAX_GB or max(r["start s"] for r in rows) > MAX_SECONDS:
        raise SystemExit(f"above a limit: start {MAX_SECONDS} s, weights in bfloat16 {MAX_GB} GB")


def run_job(command: list[str]) -> str:
    """Run a job and return its log. Raises CalledProcessError if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    main()
