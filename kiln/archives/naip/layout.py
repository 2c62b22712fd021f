"""The layout of NAIP's chips, as file metadata and fingerprint hold it. Every dry run imports this module."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from kiln.errors import ConfigError

Lattice = Literal["scene", "utm"]
Edge = Literal["drop", "align"]
RESAMPLING = "average of smaller pixels, bilinear of others by the pixels' sizes, none on the grid"


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice of chips from the config section. Raises ConfigError for contradictory settings."""
    if section["deduplicate"] and section["lattice"] != "utm":
        raise ConfigError(
            f"naip.deduplicate: expected lattice utm, which scenes share, got {section['lattice']}. Change one of them."
        )
    return chip_layout(section["chip_size"], section["lattice"], section["lattice_gsd"], section["edge"])


def chip_layout(chip: int, lattice: str = "scene", lattice_gsd: float = 1.0, edge: str = "drop") -> dict[str, Any]:
    """Return the lattice of chips.

    Args:
        chip: Side of a chip in pixels.
        lattice: `scene` cuts chips from each scene's top left, `utm` along one grid of the zone.
        lattice_gsd: Metres of the pixels of lattice `utm`.
        edge: `drop` or `align`, for lattice `scene` only.

    Returns:
        The lattice, JSON values only.

    Raises:
        ConfigError: If a setting is out of range, or two contradict each other.
    """
    if chip < 8 or chip % 8:
        raise ConfigError(f"chip_size: expected a multiple of the model's patch of 8 px, got {chip}. Correct it.")
    if edge not in ("drop", "align"):
        raise ConfigError(f"edge: expected drop or align, got {edge!r}. Correct it.")
    if lattice == "scene":
        return {"chip_size": chip, "lattice": "scene", "edge": edge}
    if lattice != "utm":
        raise ConfigError(f"lattice: expected scene or utm, got {lattice!r}. Correct it.")
    if edge == "align":
        raise ConfigError(
            "edge: expected drop with lattice utm, whose cells do not depend on scenes, got align. Correct it."
        )
    if not 0 < lattice_gsd < math.inf:
        raise ConfigError(f"lattice_gsd: expected metres of a pixel, above 0, got {lattice_gsd}. Correct it.")
    return {
        "chip_size": chip,
        "lattice": "utm",
        "lattice_gsd": float(lattice_gsd),
        "anchor": [0, 0],
        "resampling": RESAMPLING,
    }
