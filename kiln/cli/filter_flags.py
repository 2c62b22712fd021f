"""Flags of the commands that filter chips, and the values of flags."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kiln.errors import ConfigError


def add_filters(group: argparse._ArgumentGroup, *, bbox: str, area: str) -> None:
    """Add the flags of place, time and quality.

    Args:
        group: The group of the parser.
        bbox: Help of --bbox: how a chip fits a box.
        area: Help of --area: how a chip fits an area.
    """
    group.add_argument("--bbox", type=degrees(4), metavar="W,S,E,N", help=f"{bbox}, degrees; W > E crosses 180")
    group.add_argument("--area", metavar="FILE", help=f"{area}, a local file with a GeoJSON polygon")
    group.add_argument("--year", type=int, action="append", default=[], help="of this year (may be repeated)")
    group.add_argument("--from", dest="first_day", metavar="DAY", help="acquired on this day or later")
    group.add_argument("--to", dest="last_day", metavar="DAY", help="acquired on this day or earlier")
    group.add_argument("--max-nodata", type=float, metavar="FRACTION", help="with at most this fraction of nodata")
    group.add_argument("--max-cloud", type=float, metavar="FRACTION", help="with at most this fraction of cloud")


def degrees(count: int) -> Callable[[str], tuple[float, ...]]:
    """Return a parser of `count` numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(v) for v in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them, got {text!r}")
        return values

    return parse


def read_geojson(path: str, option: str) -> Any:
    """Return the content of a JSON file. Raise ConfigError, naming the option, for another file."""
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except (ValueError, OSError) as e:
        raise ConfigError(f"{option}: expected a GeoJSON file, got {path} ({e}). Correct it.") from e
