"""The layout of WorldCover's chips, as file metadata and fingerprint hold it. Every dry run imports this module."""

from collections.abc import Mapping
from typing import Any

from kiln.archives.worldcover.lattice import Lattice
from kiln.errors import ConfigError


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice of chips from the config section.

    Raises:
        ConfigError: If chips, or their quarters, are not multiples of the patch of the model (8 px).
    """
    lattice = Lattice(section["chip_size"], section["pixels_per_degree"])
    check_encode(lattice, section["encode"])
    return {"chip_size": lattice.chip, "pixels_per_degree": lattice.ppd, "encode": section["encode"]}


def check_encode(lattice: Lattice, encode: str) -> None:
    """Raise ConfigError unless chips, or their quarters, are multiples of the patch of the model (8 px)."""
    divisor = 16 if encode == "quarters" else 8
    if lattice.chip % divisor:
        raise ConfigError(
            f"chip_size: expected a multiple of {divisor} with encode {encode}, got {lattice.chip}. Change one of them."
        )
