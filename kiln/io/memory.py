"""Peak memory of this process."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes.

    Linux inherits `ru_maxrss` from the parent process, so `VmHWM` is read where it exists.
    """
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES
