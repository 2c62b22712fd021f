"""How Sentinel-2's chips are made, as file metadata and fingerprint say it. Read by the Snakefile: nothing heavy."""

from typing import Any

from scripts.kiln.errors import ConfigError

CONTRADICTED = 0.005  # share of clear pixels below 1000 that shows that the offset is gone already


def layout(chip: int, contradicted: float = CONTRADICTED) -> dict[str, Any]:
    """The layout of chips of `chip` pixels, and the share of dark pixels that decides about the offset.

    Raises ConfigError for what cannot be.
    """
    if chip < 8 or chip % 8:
        raise ConfigError(f"chip size {chip}: want a multiple of the model's patch of 8 px")
    if not 0 <= contradicted <= 1:
        raise ConfigError(f"contradicted {contradicted}: want a share, 0 to 1")
    return {"chip_size": chip, "lattice": "scene", "contradicted": float(contradicted)}
