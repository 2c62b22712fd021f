"""The layout of Sentinel-2's chips, as file metadata and fingerprint hold it. Every dry run imports this module."""

from collections.abc import Mapping, Sequence
from typing import Any

from kiln.errors import ConfigError

OFFSET_MAX_DARK_FRACTION = 0.005  # of clear pixels below 1000; more show that the offset was removed already
TILE_SIDE_PX = 10_980  # of 10 m
BUCKET = "s3://sentinel-cogs"
WEB = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"  # the bucket, as most items name it
ITEM_SOURCES = ("inventory", "search", "items")


def check_item_source(section: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the config section names exactly one source of items."""
    sources = [key for key in ITEM_SOURCES if section[key]]
    if len(sources) != 1:
        raise ConfigError(
            f"sentinel2: expected exactly one of {', '.join(ITEM_SOURCES)}, got {' and '.join(sources) or 'none'}. "
            "Set one."
        )


def rewrites(archive: str, own: Sequence[str]) -> list[str]:
    """Return `OLD=NEW` prefixes of addresses: those of the config, then the public bucket's, read from `archive`."""
    root = archive.rstrip("/")
    return [*own, *(f"{old}/={root}/" for old in (WEB, BUCKET) if old != root)]


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice of chips from the config section. Raises ConfigError for contradictory settings."""
    check_item_source(section)
    return chip_layout(section["chip_size"], section["offset_max_dark_fraction"])


def chip_layout(chip: int, offset_max_dark_fraction: float = OFFSET_MAX_DARK_FRACTION) -> dict[str, Any]:
    """Return the lattice of chips.

    Args:
        chip: Side of a chip in pixels.
        offset_max_dark_fraction: Fraction of dark pixels that decides about the offset.

    Returns:
        The lattice, JSON values only.

    Raises:
        ConfigError: If chips are not multiples of the model's patch, or the fraction is not 0 to 1.
    """
    if chip < 8 or chip % 8:
        raise ConfigError(f"chip_size: expected a multiple of the model's patch of 8 px, got {chip}. Correct it.")
    if not 0 <= offset_max_dark_fraction <= 1:
        raise ConfigError(
            f"offset_max_dark_fraction: expected a fraction, 0 to 1, got {offset_max_dark_fraction}. Correct it."
        )
    return {"chip_size": chip, "lattice": "scene", "offset_max_dark_fraction": float(offset_max_dark_fraction)}
