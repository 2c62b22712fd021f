"""A small fourth archive: tiles in NumPy files. docs/add-an-archive.md explains it step by step.

Each tile is `<root>/<year>/<name>.npz` with `pixels` (uint8 [3, H, W], 0 is nodata), `west` and `north` (metres in
EPSG:32614) and `day` (ISO date). A pixel is 10 m.
"""

from collections.abc import Mapping
from typing import Any

from kiln.archives.registry import Archive, Provenance, Provider
from kiln.errors import ConfigError
from kiln.formats.sensor import Sensor


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice: the side of a chip, counted from each tile's top left corner."""
    if section["chip_size"] % 8:
        raise ConfigError(f"toy.chip_size: expected a multiple of 8, got {section['chip_size']}. Change it.")
    return {"chip_size": section["chip_size"], "lattice": "tile"}


ARCHIVE = Archive(
    name="toy",
    title="Toy tiles",
    recipe=1,
    sensor=Sensor("toy", ("red", "green", "blue"), (100.0, 100.0, 100.0), (50.0, 50.0, 50.0), (0.65, 0.56, 0.48), 10.0),
    module="tests.support.toy_archive",
    lattice=chip_lattice,
    provenance=Provenance(
        title="Toy tiles",
        href="https://example.com/toy",
        license="CC0-1.0",
        license_href="https://creativecommons.org/publicdomain/zero/1.0/",
        license_title="CC0 1.0 Universal",
        attribution="Made from toy tiles.",
        providers=(Provider("Nobody", ("producer", "licensor"), "https://example.com"),),
        keywords=("toy",),
        temporal_resolution="single_acquisition",
    ),
    plan_keys=("archive", "years", "chip_size", "tiles_per_shard"),
    embed_keys=("max_nodata", "metadata", "gsd"),
    path_keys=("archive",),
)
