"""Kiln's scripts: one module per rule, typed pure functions and a thin `main`."""

import kiln.cli  # noqa: F401 (leaves out the variables of GDAL and PROJ before anything imports these)
