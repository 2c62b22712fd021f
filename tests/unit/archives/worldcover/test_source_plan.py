"""A shard of a plan whose details are not those of its units is refused before anything is read."""

from dataclasses import replace

import pytest

from kiln.archives.worldcover.config import Config
from kiln.archives.worldcover.lattice import Column, Lattice, unit_id
from kiln.archives.worldcover.source import open_source
from kiln.errors import ConfigError
from kiln.formats.fingerprint import shard_name
from kiln.formats.plan_file import ShardPlan

LATTICE = Lattice(24, 48)
COLUMNS = [Column(270, 12, 2), Column(271, 12, 2)]
UNITS = tuple(unit_id(LATTICE, 2021, column) for column in COLUMNS)
DETAILS = {
    "year": 2021,
    "columns": [[270, 12, 2], [271, 12, 2]],
    "tiles": [["N43E010", "s3://b/2021/N43/t.tif", 1000, "e1"]],
}
SHARD = ShardPlan("worldcover", "2021", shard_name("x0", UNITS), UNITS, 24, 4, 1000, "s3://b", DETAILS)
CONFIG = Config(chip_size=24, pixels_per_degree=48)


def test_the_source_has_the_units_of_the_plan():
    assert [unit.unit_id for unit in open_source(SHARD, CONFIG).units()] == list(UNITS)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"columns": [[270, 12, 2]]}, "expected the columns of its units"),
        ({"columns": [[270, 12, 2], [271, 12, 10**12]]}, "expected the columns of its units"),
        ({"year": 2020}, "expected the columns of its units"),
        ({"columns": []}, "columns: expected at least 1 values"),
        ({"columns": [[270, 12]]}, "columns.0.2: expected a value, got none"),
        ({"columns": [[270, 12, "2"]]}, "columns.0.2: expected a whole number, got '2'"),
        ({"columns": 5}, "columns: expected a list, got 5"),
        ({"year": "2021"}, "year: expected a whole number, got '2021'"),
        ({"tiles": [["../x", "u", 1, ""]]}, "tiles.0.0: expected text that matches"),
        ({"tiles": [["N43E010", "u", -1, ""]]}, "tiles.0.2: expected 0 or more, got -1"),
        ({"tiles": [["N43E010", 7, 1, ""]]}, "tiles.0.1: expected text, got 7"),
        ({"tiles": None}, "tiles: expected a list, got None"),
        ({"more": 1}, "more: expected no such key, got 1"),
    ],
)
def test_details_of_another_shape_are_refused(changes, problem):
    with pytest.raises(ConfigError) as error:
        open_source(replace(SHARD, details=DETAILS | changes), CONFIG)
    assert str(error.value).startswith(f"shard {SHARD.name}: ")
    assert problem in str(error.value)
    assert str(error.value).endswith("Make the plan again.")


def test_a_plan_of_other_pixels_per_degree_is_refused():
    with pytest.raises(ConfigError, match="expected the columns of its units at 24 pixels per degree"):
        open_source(SHARD, Config(chip_size=24, pixels_per_degree=24))
