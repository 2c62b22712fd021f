"""The energy of a process: measured by the processor and the GPU where they can be read, else estimated."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pynvml

RAPL = Path("/sys/class/powercap")
CPU_TIMES = Path("/proc/stat")
# Watts of a busy virtual CPU of AWS, of the Cloud Carbon Footprint methodology (min 0.74, max 3.5). It is used where
# the processor's counters cannot be read.
WATTS_PER_CORE = 3.5
RAPL_INTERVAL_S = 30.0  # a counter of 262 kJ begins again after nine minutes at 500 W
WATTS_PER_GPU = 300.0  # of a busy data-centre GPU, about, where NVML cannot be read


@dataclass(frozen=True)
class Energy:
    """Energy in joules, and whether the counters of processor and GPU gave it or an estimate.

    Attributes:
        cpu_j: Energy of processor and memory: this process' part, by processor time.
        gpu_j: Energy of the GPU.
        is_measured: Whether everything comes from counters.
    """

    cpu_j: float
    gpu_j: float
    is_measured: bool


class RaplSum:
    """The energy of packages and memory since its creation.

    The counters begin again after minutes of work, so a thread reads them every `interval_s` seconds.
    """

    def __init__(self, interval_s: float = RAPL_INTERVAL_S) -> None:
        self._last = _rapl_joules()
        self._joules: float | None = 0.0 if self._last else None
        self._stop, self._lock = threading.Event(), threading.Lock()
        if self._last:
            threading.Thread(target=self._watch, args=(interval_s,), name="energy", daemon=True).start()

    def _watch(self, interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            self.read()

    def read(self) -> float | None:
        """Return the joules so far; None if the counters cannot be read."""
        with self._lock:
            now = _rapl_joules()
            if self._joules is None or self._last.keys() != now.keys():
                self._joules = None
            else:
                self._joules += sum((now[name][0] - joules) % span for name, (joules, span) in self._last.items())
            self._last = now
            return self._joules

    def stop(self) -> float | None:
        """End the thread. Return the joules; None if the counters could not be read."""
        self._stop.set()
        return self.read()


@dataclass
class EnergyMeter:
    """A measurement from its creation to `stop`.

    Attributes:
        gpu: UUID of the GPU that is held, as `GPU-...`; empty for a job without one.
    """

    gpu: str = ""
    _start: float = field(default_factory=time.monotonic)
    _cpu_s: float = field(default_factory=time.process_time)

    def __post_init__(self) -> None:
        self._rapl = RaplSum()
        self._busy_s = _busy_seconds()
        self._nvml = _nvml_joules(self.gpu)

    def stop(self) -> Energy:
        """Return the energy since the measurement began, which ends."""
        cpu_s, held_s = time.process_time() - self._cpu_s, time.monotonic() - self._start
        cpu_j, gpu_j = self._measured_cpu(cpu_s), self._measured_gpu()
        is_measured = cpu_j is not None and gpu_j is not None
        if gpu_j is None:
            gpu_j = held_s * WATTS_PER_GPU
        return Energy(cpu_s * WATTS_PER_CORE if cpu_j is None else cpu_j, gpu_j, is_measured)

    def _measured_cpu(self, cpu_s: float) -> float | None:
        """Return this process' part of the processor's energy: the part that it has of all busy time."""
        used, busy_s = self._rapl.stop(), _busy_seconds()
        if used is None or busy_s <= self._busy_s:
            return None
        return used * min(1.0, cpu_s / (busy_s - self._busy_s))

    def _measured_gpu(self) -> float | None:
        if not self.gpu:
            return 0.0
        now = _nvml_joules(self.gpu)
        return None if now is None or self._nvml is None else now - self._nvml


def _rapl_joules() -> dict[str, tuple[float, float]]:
    """Return the counters of packages and memory in joules, each with the value at which it begins again.

    They are empty where the kernel has none, or does not let this user read them.
    """
    counters = {}
    for zone in sorted(RAPL.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                joules = int((zone / "energy_uj").read_text()) / 1e6
                counters[zone.name] = (joules, int((zone / "max_energy_range_uj").read_text()) / 1e6)
        except (OSError, ValueError):  # not readable, or empty
            return {}
    return counters


def _busy_seconds() -> float:
    """Return the seconds that all cores of the machine together were busy since it started; 0 if unknown."""
    try:
        user, nice, system = map(int, CPU_TIMES.read_text().split(None, 4)[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system) / 100  # Linux counts hundredths


def _nvml_joules(uuid: str) -> float | None:
    """Return the GPU's energy since its driver started; None without such a GPU, or for one that does not count it."""
    if not uuid:
        return None
    try:
        pynvml.nvmlInit()
        joules: float = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid)) / 1e3
    except pynvml.NVMLError:
        return None
    return joules
