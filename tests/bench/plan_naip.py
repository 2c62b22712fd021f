"""What NAIP's plan costs and how much of it stays: seconds, memory, equal bytes, and shards that change.

    python -m tests.bench.plan_naip [--keys FILE.gz]

The keys are real ones (of either bucket: `rgb` is read as `rgbir_cog`), or 740 000 made here. Each plan is a process of
its own, as in the workflow. Exits 1 where a promise is broken: 10 s, 500 MB, equal bytes whatever the order of keys,
no shard above twice what was asked; one key changes at most 2 shards, 1000 of a new state and year none that exists,
1000 anywhere at most 2000.
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

SOME = 1000  # keys that come
QUARTERS = ("ne", "nw", "se", "sw")


@dataclass(frozen=True)
class Plan:
    """A plan and what it cost; `shards` are sizes by partition and name."""

    seconds: float
    peak_mb: float
    sha256: str
    shards: dict[str, int]


def key(state: str, year: int, n: int) -> str:
    """The n-th key of a state and year, spelled as the archive does."""
    degree, rest = divmod(n, 256)
    block = f"{25 + degree // 50:02d}{70 + degree % 50:03d}"
    name = f"m_{block}{rest // 4 + 1:02d}_{QUARTERS[rest % 4]}_14_1_{year}0720.tif"
    return f"{state}/{year}/100cm/rgbir_cog/{block}/{name}"


def made(count: int) -> list[str]:
    """Keys of 48 states in four years each."""
    states = [chr(97 + s // 26) + chr(97 + s % 26) for s in range(48)]
    return [key(states[n % 48], 2014 + n // 48 % 4, n // 192) for n in range(count)]


def read(path: Path) -> list[str]:
    """The keys of a file, plain or gzip, as the analytic bucket spells them."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    return text.replace("/rgb/", "/rgbir_cog/").split()


def plan(keys: list[str], folder: Path, nominal: int) -> Plan:
    """Plan in a process of its own."""
    manifest, output, log = folder / "manifest.txt.gz", folder / "plan.gz", folder / "log"
    manifest.write_bytes(gzip.compress("".join(f"{k}\n" for k in keys).encode(), 1))
    command = [sys.executable, "-m", "scripts.plan_units", "naip", "--manifest", str(manifest), "--output", str(output)]
    with log.open("wb") as said:
        began = time.monotonic()
        process = subprocess.Popen([*command, "--scenes-per-shard", str(nominal)], cwd=ROOT, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)  # whose memory, where RUSAGE_CHILDREN has the largest of all
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(log.read_text(errors="replace"))
    data = output.read_bytes()
    shards = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    sizes = {f"{s['partition']}/{s['name']}": len(s["units"]) for s in shards}
    return Plan(seconds, usage.ru_maxrss / 1024, hashlib.sha256(data).hexdigest(), sizes)


def changed(before: Plan, after: Plan) -> dict[str, int]:
    """Shards that are gone, and shards that are new."""
    old, new = before.shards.keys(), after.shards.keys()
    return {"gone": len(old - new), "new": len(new - old)}


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exits 1 where a promise is broken."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.plan_naip", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--keys", type=Path, help="file of keys, plain or gzip; none: 740 000 are made")
    p.add_argument("--scenes-per-shard", type=int, default=100)
    p.add_argument("--most-seconds", type=float, default=10.0)
    p.add_argument("--most-mb", type=float, default=500.0)
    args = p.parse_args(argv)
    rng = random.Random(0)
    keys = read(args.keys) if args.keys else made(740_000)
    if len(keys) <= SOME:
        p.error(f"{len(keys)} keys: want more than {SOME}")
    late = rng.sample(keys, SOME)  # these come last, to see what that changes
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
        ("seconds", f"{seconds:.1f}", f"{args.most_seconds:.0f}", seconds <= args.most_seconds),
        ("peak MB", f"{peak:.0f}", f"{args.most_mb:.0f}", peak <= args.most_mb),
        ("shards", f"{len(sizes):,}", "", True),
        ("scenes a shard, mean", f"{sum(sizes) / len(sizes):.1f}", "", True),
        ("scenes a shard, most", f"{max(sizes)}", f"{2 * nominal}", max(sizes) <= 2 * nominal),
        ("same bytes, keys shuffled", "yes" if same else "no", "yes", same),
        ("shards changed by 1 key", said(one), "2", max(one.values()) <= 2),
        (f"by {SOME} of a new state-year", said(other), "0 gone", other["gone"] == 0),
        (f"by {SOME} anywhere", said(anywhere), f"{2 * SOME}", max(anywhere.values()) <= 2 * SOME),
    ]
    for what, value, most, good in rows:
        print(f"{what:<28}{value:>22}{most:>10}{'' if good else '  BROKEN'}")
    figures = {"keys": len(keys), "seconds": round(seconds, 2), "peak_mb": round(peak), "shards": len(sizes)}
    stability = {"one": one, "new_state_year": other, "anywhere": anywhere}
    print(json.dumps({**figures, "largest": max(sizes), "same_bytes": same, **stability}))
    sys.exit(not all(good for *_, good in rows))


def said(change: dict[str, int]) -> str:
    """Shards changed, in words."""
    return f"{change['gone']:,} gone, {change['new']:,} new"


if __name__ == "__main__":
    main()
