"""Print a universal lock with the markers that are true wherever Kiln runs left out, so that people can read it."""

import re
import sys
from pathlib import Path

HEAD = "# Every dependency, direct and transitive, of requirements.txt and requirements-test.txt. Made by lock.sh."
BOUND = " and python_full_version < '3.15'", "python_full_version < '3.15' and "  # the solver's upper limit
ALWAYS = "(python_full_version < '3.15' and sys_platform == 'darwin') or (python_full_version < '3.15' and sys_platform == 'linux')"
SIDES = re.compile(r"^\((.*) and sys_platform == 'darwin'\) or \(\1 and sys_platform == 'linux'\)$")

print(HEAD)
for line in Path(sys.argv[1]).read_text().splitlines():
    pin, _, marker = line.partition(" ; ")
    marker = "" if marker == ALWAYS else marker
    for bound in BOUND:
        marker = marker.replace(bound, "")
    if sides := SIDES.match(marker):
        marker = sides[1]
    print(f"{pin} ; {marker}" if marker else pin)
