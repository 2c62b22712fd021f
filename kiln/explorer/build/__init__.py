"""Building the explorer database from merged products and published files."""

from kiln.explorer.build.builder import build as build
from kiln.explorer.build.products import Select as Select
