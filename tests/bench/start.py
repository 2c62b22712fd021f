"""From the start of a process to its first chip, with weights of the published size: seconds, file sizes, imports.

    python -m tests.bench.start [--rounds 3] [--batch 1]

The job has one chip, so that its end is little later than its first chip; with the chip's encoding, which stands beside
it, it bounds the start from above. The disk's cache is warm after the first round.
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

MOST_SECONDS, MOST_GB = 20.0, 0.63


def job(load: Workload, weights: Path, folder: Path, batch: int) -> list[str]:
    """The command of a shard of one chip."""
    flags = load.arguments(weights, folder / "out", "--batch-size", str(batch), "--metadata", "zeros")
    return [sys.executable, "-m", "scripts.embed", *flags]


def imports(most: int = 12) -> list[str]:
    """The modules whose import takes longest, each with what it brings, by the interpreter's own clock."""
    code = "import kiln.model.embedder, kiln.engine.pipeline, kiln.archives.naip.source"
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    ).stderr
    found = [(int(total), name.strip()) for total, name in re.findall(r"\|\s+(\d+) \|( +\S+)", said)]
    return [f"  {total / 1000:7.0f} ms  {name}" for total, name in sorted(found, reverse=True)[:most]]


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exits 1 above a limit."""
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
                told: list[str] = []
                whole.append(timed(lambda c=command, t=told: t.append(said_by(c))))
                encoding.append(float(re.search(r"encoding ([\d.]+) s", told[0])[1]))  # type: ignore[index]
            rows.append(
                {
                    "weights": precision,
                    "GB": weights.stat().st_size / 1e9,
                    "whole job s": statistics.median(whole),
                    "of it encoding s": statistics.median(encoding),
                    "start s": statistics.median(w - e for w, e in zip(whole, encoding, strict=True)),
                }
            )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    notes = [f"peak memory of a job {peak:.2f} GB, weights mapped", "imports, each with what it brings:", *imports()]
    publish("start", rows, notes, args.out)
    if rows[1]["GB"] > MOST_GB or max(r["start s"] for r in rows) > MOST_SECONDS:
        raise SystemExit(f"above a limit: start {MOST_SECONDS} s, weights in bfloat16 {MOST_GB} GB")


def said_by(command: list[str]) -> str:
    """What a job says on its way. Raises CalledProcessError where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    main()
