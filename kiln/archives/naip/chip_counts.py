"""The number of chips of a scene that is known by its key alone, on either lattice."""

import math
from dataclasses import dataclass

from kiln.archives.naip.keys import SceneKey
from kiln.archives.naip.layout import Edge, Lattice


@dataclass(frozen=True)
class ChipCounts:
    """Counts chips of scenes, as `layout.chip_layout` describes their lattice.

    Attributes:
        chip: Side of a chip in pixels.
        lattice: `scene` or `utm`.
        lattice_gsd: Metres of the pixels of lattice `utm`.
        edge: `drop` or `align`, for lattice `scene` only.
    """

    chip: int
    lattice: Lattice = "scene"
    lattice_gsd: float = 1.0
    edge: Edge = "drop"

    def about(self, scene: SceneKey) -> int:
        """Return the number of a scene's chips by estimate. On lattice `utm` these are the cells that it touches."""
        width, height = self._sides(scene)
        if self.lattice == "utm":  # a side of n chips touches n + 1 cells in the mean, wherever it begins
            return round(width + 1) * round(height + 1)
        return self._along(width) * self._along(height) if min(width, height) >= 1 else 0

    def at_most(self, scene: SceneKey) -> int:
        """Return the most chips that a scene can have: its sides may be up to a chip longer than is known."""
        width, height = self._sides(scene)
        return (self._along(width) + 1) * (self._along(height) + 1)

    def _along(self, side: float) -> int:
        """Return the chips along a side. A side of n chips touches n + 1 cells of lattice `utm`, or one more."""
        return math.floor(side) if self.lattice == "scene" and self.edge == "drop" else math.ceil(side)

    def _sides(self, scene: SceneKey) -> tuple[float, float]:
        """Return width and height of a scene in chips."""
        pixel_m = self.lattice_gsd if self.lattice == "utm" else scene.cm / 100
        width, height = scene.extent_m
        return width / pixel_m / self.chip, height / pixel_m / self.chip
