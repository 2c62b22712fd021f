"""How NAIP's chips are laid out, as file metadata and fingerprint say it. Read by the Snakefile: nothing heavy here."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from kiln.errors import ConfigError

Lattice = Literal["scene", "utm"]
Edge = Literal["drop", "align"]
RESAMPLING = "average of smaller pixels, bilinear of others by the pixels' sizes, none on the grid"


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice of chips from the config section. Raises ConfigError for contradictory settings."""
    return chip_layout(section["chip_size"], section["lattice"], section["lattice_gsd"], section["edge"])


def chip_layout(chip: int, lattice: str = "scene", lattice_gsd: float = 1.0, edge: str = "drop") -> dict[str, Any]:
    """The layout of chips of `chip` pixels; `lattice_gsd`, metres a pixel, counts with the lattice `utm` alone.

    `scene` cuts chips from each scene's top left, `utm` along one grid of the zone. `edge` counts with `scene`
    alone: the other lattice has no edges. Raises ConfigError for what cannot be.
    """
    if chip < 8 or chip % 8:
        raise ConfigError(f"chip size {chip}: want a multiple of the model's patch of 8 px")
    if edge not in ("drop", "align"):
        raise ConfigError(f"edge {edge!r}: want drop or align")
    if lattice == "scene":
        return {"chip_size": chip, "lattice": "scene", "edge": edge}
    if lattice != "utm":
        raise ConfigError(f"lattice {lattice!r}: want scene or utm")
    if edge == "align":
        raise ConfigError("edge align goes with lattice scene: chips of lattice utm lie on a grid that no scene moves")
    if not 0 < lattice_gsd < math.inf:
        raise ConfigError(f"lattice_gsd {lattice_gsd}: want metres a pixel, above 0")
    return {
        "chip_size": chip,
        "lattice": "utm",
        "lattice_gsd": float(lattice_gsd),
        "anchor": [0, 0],
        "resampling": RESAMPLING,
    }
