"""Write constraints.txt (of all requirements) and kiln.yaml (of the run's alone) from two universal locks.

Only the markers that tell Python versions apart are kept: the lock is solved for one platform and taken everywhere.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
HEAD = "# Every dependency, direct and transitive, of requirements.txt and requirements-test.txt. Made by lock.sh.\n"
CONDA = """\
# The same pins for `snakemake --software-deployment-method conda`. Made by lock.sh.
# It cannot be solved without its channel, conda-forge. Packages of torch's CUDA build are not listed: torch pins them.
name: kiln
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""
SOLVED = ("python_full_version < '3.15'", "platform_machine == 'x86_64'", "sys_platform == 'linux'")  # for lock.sh
CUDA = ("nvidia-", "cuda-", "triton")


def tidy(lock: Path) -> list[str]:
    """The pins of a lock, one a line."""
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
    listed = [f'      - "{p}"\n' for p in run if not p.startswith(CUDA)]
    (HERE / "kiln.yaml").write_text(CONDA + "".join(listed))
