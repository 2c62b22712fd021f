"""What every bench shares: two ways timed in turn, a machine described, a table and a file of figures."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kiln.io.text_table import aligned

PACKAGES = ("torch", "numpy", "pyarrow", "rasterio", "lancedb", "snakemake")


@dataclass(frozen=True)
class Pair:
    """Seconds of two ways to do one thing, measured in turn: round n of both saw the same machine."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of theirs by ours: how many times faster ours is."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)


def timed(work: Callable[[], object]) -> float:
    """Seconds on the clock of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_rounds(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each way, round by round: a round has all of them, and begins with the next one each time."""
    found: list[list[float]] = [[] for _ in ways]
    for n in range(rounds):
        for i in range(n, n + len(ways)):
            found[i % len(ways)].append(timed(ways[i % len(ways)]))
    return found


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, *, warm: bool = True) -> Pair:
    """Both ways `rounds` times, in turn and each first every other time, after one call of each that is not counted."""
    if warm:
        ours(), theirs()
    return Pair(*in_rounds([ours, theirs], rounds))


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions: without these no figure means anything."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    import torch

    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "vector_unit": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": [round(n, 1) for n in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def publish(name: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), out: Path | None = None) -> None:
    """Print rows of equal keys as a table with notes below; with the machine they go to `<out>/<name>.json`."""
    about = machine()
    where = f"{about['processor']}, {about['cores']} cores, {about['vector_unit']}; load {about['load'][0]}"
    print(f"\n{name}: {where}")
    if rows:
        cells = [[_told(value) for value in row.values()] for row in rows]
        print("\n".join(aligned([list(rows[0]), *cells], left=[0], rule=True)))
    for note in notes:
        print(note)
    folder = out or Path("results/bench")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "machine": about, "rows": list(rows), "notes": list(notes)}, indent=1))
    print(f"figures: {path}", flush=True)


def _told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)
