"""Functions of all benches: time ways in turn, describe the machine, print a table and write a file of results."""

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
    """Seconds of two ways to do the same, measured in turn, so that the load of the machine affects both."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of theirs by ours: our speedup."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)


def timed(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_rounds(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each way in each round. Each round starts with another way."""
    seconds: list[list[float]] = [[] for _ in ways]
    for n in range(rounds):
        for i in range(n, n + len(ways)):
            seconds[i % len(ways)].append(timed(ways[i % len(ways)]))
    return seconds


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, *, warm: bool = True) -> Pair:
    """Time both ways `rounds` times, in turn; each is first in every other round. `warm` calls both once before."""
    if warm:
        ours(), theirs()
    return Pair(*in_rounds([ours, theirs], rounds))


def machine() -> dict[str, Any]:
    """Return what results depend on: processor, cores, memory, versions."""
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
    """Print rows with equal keys as a table, and notes below it. Write them and the machine to `<out>/<name>.json`."""
    about = machine()
    description = f"{about['processor']}, {about['cores']} cores, {about['vector_unit']}; load {about['load'][0]}"
    print(f"\n{name}: {description}")
    if rows:
        cells = [[_as_cell(value) for value in row.values()] for row in rows]
        print("\n".join(aligned([list(rows[0]), *cells], left=[0], rule=True)))
    for note in notes:
        print(note)
    folder = out or Path("results/bench")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "machine": about, "rows": list(rows), "notes": list(notes)}, indent=1))
    print(f"results: {path}", flush=True)


def _as_cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)
