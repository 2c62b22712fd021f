"""Write a few tiles of the toy archive."""

from pathlib import Path

import numpy as np


def make_sample(out: Path, seed: int = 0) -> list[Path]:
    """Write two years of three tiles, 48 x 48 px, and return their paths. The same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    paths = []
    for year in (2023, 2024):
        for number in range(3):
            pixels = rng.integers(1, 255, (3, 48, 48), np.uint8)
            if number == 2:
                pixels[:, :16, :16] = 0  # a chip of nodata
            path = out / str(year) / f"tile-{number}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            west = 500_000.0 + number * 480
            np.savez(path, pixels=pixels, west=west, north=5_000_000.0, day=f"{year}-07-0{number + 1}")
            paths.append(path)
    return paths
