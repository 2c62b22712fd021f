"""The tests of Kiln."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the project
DATA = Path(__file__).parent / "data"
