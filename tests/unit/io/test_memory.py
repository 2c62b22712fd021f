"""Peak memory of a process."""

import subprocess
import sys

import numpy as np

from kiln.io.memory import peak_memory
from tests import ROOT


def test_peak_memory_is_this_process_s_own_and_not_its_parent_s():
    ballast = np.ones(100_000_000)  # 800 MB
    command = [sys.executable, "-c", "from kiln.io.memory import peak_memory; print(peak_memory())"]
    child = int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert 5e6 < child < ballast.nbytes < peak_memory()
