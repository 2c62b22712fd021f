"""How Sentinel-2's chips are made, as file metadata and fingerprint say it. Read by the Snakefile: nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Any

from kiln.errors import ConfigError

OFFSET_MAX_DARK_FRACTION = 0.005  # share of clear pixels below 1000 that shows that the offset is gone already


BUCKET = "s3://sentinel-cogs"
WEB = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"  # how most items name the bucket
WAYS = ("inventory", "search", "items")


def check_way(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError unless exactly one way to a plan is set."""
    ways = [way for way in WAYS if settings[way]]
    if len(ways) != 1:
        raise ConfigError(f"sentinel2: one of {', '.join(WAYS)} says where items come from; set: {ways or 'none'}")


def rewrites(archive: str, more: Sequence[str]) -> list[str]:
    """`OLD=NEW` prefixes of addresses: those of the config first, then the bucket's own, read at `archive`."""
    root = archive.rstrip("/")
    return [*more, *(f"{old}/={root}/" for old in (WEB, BUCKET) if old != root)]


def with_rewrites(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section with all prefixes to rewrite: its own, then those of the public bucket."""
    return {**section, "rewrite": rewrites(section["archive"], section["rewrite"])}


def chip_lattice(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lattice of chips from the config section. Raises ConfigError for contradictory settings."""
    check_way(section)
    return chip_layout(section["chip_size"], section["offset_max_dark_fraction"])


def chip_layout(chip: int, contradicted: float = OFFSET_MAX_DARK_FRACTION) -> dict[str, Any]:
    """The layout of chips of `chip` pixels, and the share of dark pixels that decides about the offset.

    Raises ConfigError for what cannot be.
    """
    if chip < 8 or chip % 8:
        raise ConfigError(f"chip size {chip}: want a multiple of the model's patch of 8 px")
    if not 0 <= contradicted <= 1:
        raise ConfigError(f"contradicted {contradicted}: want a share, 0 to 1")
    return {"chip_size": chip, "lattice": "scene", "contradicted": float(contradicted)}
