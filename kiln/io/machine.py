"""The machine that this process runs on."""

from pathlib import Path

import pynvml

CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Return the processor's name; empty where Linux does not state it."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def gpu_name() -> str:
    """Return the name of the first GPU; empty where there is none, or NVML cannot be read."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    except pynvml.NVMLError:
        return ""
