"""Cost and stability of NAIP's plan: seconds, memory, equal bytes, and the shards that change.

    python -m tests.bench.plan_naip [--keys FILE.gz]

The keys are real ones (of either bucket: `rgb` is read as `rgbir_cog`) or 740 000 generated ones. Each plan runs in a
separate process, as in the workflow. The bench exits with 1 if a limit is exceeded:

* 10 s and 500 MB;
* the same bytes for every order of keys;
* no shard larger than twice the requested size;
* one more key changes at most 2 shards;
* 1000 more keys of a new state and year change no existing shard;
* 1000 more keys anywhere change at most 2000 shards.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.workflow.workflow import ROOT

SOME = 1000  # added keys
QUARTERS = ("ne", "nw", "se", "sw")


@dataclass(frozen=True)
class Plan:
    """A plan and its cost. `shards` holds the number of units by partition and name."""

    seconds: float
    peak_mb: float
    sha256: str
    shards: dict[str, int]


def key(state: str, year: int, n: int) -> str:
    """Return the n-th key of a state and year, in the archive's layout."""
    degree, rest = divmod(n, 256)
    block = f"{25 + degree // 50:02d}{70 + degree % 50:03d}"
    name = f"m_{block}{rest // 4 + 1:02d}_{QUARTERS[rest % 4]}_14_1_{year}0720.tif"
    return f"{state}/{year}/100cm/rgbir_cog/{block}/{name}"


def generate_keys(count: int) -> list[str]:
    """Return keys of 48 states in four years each."""
    states = [chr(97 + s // 26) + chr(97 + s % 26) for s in range(48)]
    return [key(states[n % 48], 2014 + n // 48 % 4, n // 192) for n in range(count)]


def read(path: Path) -> list[str]:
    """Return the keys of a file, plain or gzip, in the layout of the analytic bucket."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    return text.replace("/rgb/", "/rgbir_cog/").split()


def plan(keys: list[str], folder: Path, nominal: int) -> Plan:
    """Plan in a separate process."""
    manifest, output, log = folder / "manifest.txt.gz", folder / "plan.gz", folder / "log"
    manifest.write_bytes(gzip.compress("".join(f"{k}\n" for k in keys).encode(), 1))
    command = [sys.executable, "-m", "scripts.plan_units", "naip", "--manifest", str(manifest), "--output", str(output)]
    with log.open("wb") as stderr:
        began = time.monotonic()
        process = subprocess.Popen([*command, "--scenes-per-shard", str(nominal)], cwd=ROOT, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)  # RUSAGE_CHILDREN has the peak of all children
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(log.read_text(errors="replace"))
    data = output.read_bytes()
    shards = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    sizes = {f"{s['partition']}/{s['name']}": len(s["units"]) for s in shards}
    return Plan(seconds, usage.ru_maxrss / 1024, hashlib.sha256(data).hexdigest(), sizes)


def changed(before: Plan, after: Plan) -> dict[str, int]:
    """Return the number of shards that disappeared and of shards that are new."""
    old, new = before.shards.keys(), after.shards.keys()
    return {"removed": len(old - new), "new": len(new - old)}


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 if a limit is exceeded."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.plan_naip", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--keys", type=Path, help="file of keys, plain or gzip (default: 740 000 generated keys)")
    p.add_argument("--scenes-per-shard", type=int, default=100)
    p.add_argument("--max-seconds", type=float, default=10.0)
    p.add_argument("--max-mb", type=float, default=500.0)
    args = p.parse_args(argv)
    rng = random.Random(0)
    keys = read(args.keys) if args.keys else generate_keys(740_000)
    if len(keys) <= SOME:
        p.error(f"{len(keys)} keys: expected more than {SOME}")
    late = rng.sample(keys, SOME)  # plans without and with these keys are compared
    few = set(late)
    with tempfile.TemporaryDirectory() as name:
        folder, nominal = Path(name), args.scenes_per_shard
        whole = plan(keys, folder, nominal)
        again = plan(rng.sample(keys, len(keys)), folder, nominal)
        one = changed(plan([k for k in keys if k != late[0]], folder, nominal), whole)
        other = changed(whole, plan(keys + [key("zz", 2031, n) for n in range(SOME)], folder, nominal))
        anywhere = changed(plan([k for k in keys if k not in few], folder, nominal), whole)
    sizes = whole.shards.values()
    seconds, peak = min(whole.seconds, again.seconds), max(whole.peak_mb, again.peak_mb)
    same = whole.sha256 == again.sha256
    rows = [
        ("keys", f"{len(keys):,}", "", True),
        ("seconds", f"{seconds:.1f}", f"{args.max_seconds:.0f}", seconds <= args.max_seconds),
        ("peak MB", f"{peak:.0f}", f"{args.max_mb:.0f}", peak <= args.max_mb),
        ("shards", f"{len(sizes):,}", "", True),
        ("scenes a shard, mean", f"{sum(sizes) / len(sizes):.1f}", "", True),
        ("scenes a shard, max", f"{max(sizes)}", f"{2 * nominal}", max(sizes) <= 2 * nominal),
        ("same bytes, keys shuffled", "yes" if same else "no", "yes", same),
        ("shards changed by 1 key", in_words(one), "2", max(one.values()) <= 2),
        (f"by {SOME} of a new state-year", in_words(other), "0 removed", other["removed"] == 0),
        (f"by {SOME} anywhere", in_words(anywhere), f"{2 * SOME}", max(anywhere.values()) <= 2 * SOME),
    ]
    for what, value, limit, good in rows:
        print(f"{what:<28}{value:>22}{limit:>10}{'' if good else '  BROKEN'}")
    figures = {"keys": len(keys), "seconds": round(seconds, 2), "peak_mb": round(peak), "shards": len(sizes)}
    stability = {"one": one, "new_state_year": other, "anywhere": anywhere}
    print(json.dumps({**figures, "largest": max(sizes), "same_bytes": same, **stability}))
    sys.exit(not all(good for *_, good in rows))


def in_words(change: dict[str, int]) -> str:
    """Return the changed shards as text."""
    return f"{change['removed']:,} removed, {change['new']:,} new"


if __name__ == "__main__":
    main()
