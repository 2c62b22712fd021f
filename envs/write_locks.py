"""Write constraints.txt (all requirements) and kiln.yaml (only those of a run) from two universal locks.

The locks are solved for one platform and used on all. Of the markers, only those that compare Python versions remain.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
HEAD = "# Every dependency, direct and transitive, of requirements.txt and requirements-test.txt. Written by lock.sh.\n"
CONDA = """\
# The same pins for `snakemake --software-deployment-method conda`. Written by lock.sh.
# Needs the channel conda-forge. The packages of torch's CUDA build are not listed, because torch pins them.
name: kiln
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""
# Markers that hold for everything that lock.sh solves for.
SOLVED = ("python_full_version < '3.15'", "platform_machine == 'x86_64'", "sys_platform == 'linux'")
CUDA = ("nvidia-", "cuda-", "triton")


def tidy(lock: Path) -> list[str]:
    """Return the pins of a lock, without the markers that lock.sh implies."""
    pins = []
    for line in lock.read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        terms = [t for t in marker.split(" and ") if t and t not in SOLVED]
        marker = " and ".join(terms)
        pins.append(f"{pin} ; {marker}" if marker else pin)
    return pins


if __name__ == "__main__":
    every, run = (tidy(Path(p)) for p in sys.argv[1:3])
    (HERE / "constraints.txt").write_text(HEAD + "\n".join(every) + "\n")
    listed = [f'      - "{p}"\n' for p in run if not p.startswith(CUDA) or p.startswith("nvidia-ml-py")]
    (HERE / "kiln.yaml").write_text(CONDA + "".join(listed))
