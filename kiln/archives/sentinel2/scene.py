"""The rules of a Sentinel-2 scene, without its reading: places of chips, classes of SCL, and the offset."""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.affinity import translate

from kiln.archives.raster_reading import (
    check_crs,
    check_on_earth,
    check_square_pixels,
    check_transform,
    horizontal,
    to_degrees,
)
from kiln.archives.sentinel2.item import Item, baseline_number
from kiln.errors import SourceError

UTM_ZONES = range(1, 61)  # EPSG:32661 and 32761 are polar
SCL_NODATA = 0
SCL_CLOUD = (1, 3, 8, 9, 10)  # saturated, shadow, medium and high probability, cirrus
SCL_CLEAR = (2, 4, 5, 6, 7)  # dark, vegetation, bare, water, unclassified
SCL_CLASSES = 12  # 0 to 11
OFFSET = 1000  # added to every digital number since OFFSET_BASELINE
OFFSET_BASELINE = (4, 0)
PASSES, TOO_EMPTY, TOO_CLOUDY = 0, 1, 2  # verdicts on a chip
PATCH_PX = 8  # of the model; chips and strips of them are multiples of it
REASON_EMPTY, REASON_CLOUDY = "more nodata than max_nodata", "more cloud than max_cloud"


# --------------------------------------------------------------------------------------------------- places of chips


@dataclass(frozen=True)
class SceneGrid:
    """The scene's finest pixels, and its complete chips of `chip` pixels from the top left; `crs` is in metres."""

    height: int
    width: int
    transform: Affine
    crs: str
    chip: int

    @property
    def rows(self) -> int:
        """Complete chips from north to south."""
        return self.height // self.chip

    @property
    def cols(self) -> int:
        """Complete chips from west to east."""
        return self.width // self.chip

    @property
    def pixel_size(self) -> float:
        """Side of a pixel in metres."""
        return float(self.transform.a)

    def footprints(self) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """Return footprints and centres of the chips.

        Returns:
            Footprints [rows, cols], four true corners each, a MultiPolygon where they cross the antimeridian; and
            centres [rows, cols, 2], longitude and latitude.

        Raises:
            SourceError: If the corners are not on the Earth.
        """
        corners = self._degrees(np.arange(self.cols + 1.0), np.arange(self.rows + 1.0))
        ring = [corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]]  # NW, SW, SE, NE
        rings = np.stack(ring, axis=2)  # [rows, cols, 4, 2]
        if not np.isfinite(rings).all():
            raise SourceError(f"expected corners on the Earth, got none in {self.crs[:60]}.")
        shapes = shapely.polygons(rings)
        for at in zip(*np.nonzero(np.ptp(rings[..., 0], axis=2) > 180), strict=True):
            shapes[at] = cut_at_antimeridian(rings[at])
        return shapes, self._degrees(np.arange(self.cols) + 0.5, np.arange(self.rows) + 0.5)

    def _degrees(self, across: NDArray[np.floating[Any]], down: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return longitudes and latitudes [down, across, 2] of positions counted in chips."""
        t = self.transform
        east, north = np.meshgrid(t.c + across * self.chip * t.a, t.f + down * self.chip * t.e)
        return np.stack(to_degrees(self.crs).transform(east, north), axis=-1)


def cut_at_antimeridian(ring: NDArray[np.float64]) -> shapely.Geometry:
    """Return the footprint of corners [4, 2] on both sides, the east's part first; one polygon if it only touches."""
    ring = np.column_stack([np.where(ring[:, 0] < 0, ring[:, 0] + 360, ring[:, 0]), ring[:, 1]])
    polygon = shapely.polygons(ring)
    halves = [
        polygon & shapely.box(0, -90, 180, 90),
        translate(polygon & shapely.box(180, -90, 360, 90), xoff=-360),
    ]
    parts = [shapely.geometry.polygon.orient(p) for p in halves if p.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def read_grid(uri: str, file: rasterio.DatasetReader, item: Item, chip: int) -> SceneGrid:
    """Return the grid of an open band of 10 m. The item's CRS is used only if the file has none.

    Args:
        uri: The file's address, for errors.
        file: The open file.
        item: Its item.
        chip: Side of a chip in pixels.

    Returns:
        The grid.

    Raises:
        SourceError: Unless it is a north-up grid of square pixels in a UTM zone.
    """
    if item.epsg is None:
        check_crs(uri, file)
    check_transform(uri, file)
    epsg = horizontal(file.crs).to_epsg() if file.crs else item.epsg
    if epsg is None or epsg // 100 not in (326, 327) or epsg % 100 not in UTM_ZONES:
        raise SourceError(f"{uri}: expected the CRS of a UTM zone, got {str(file.crs or epsg)[:60]}.")
    check_square_pixels(uri, file.transform)
    check_on_earth(uri, file.width, file.height, file.transform, f"EPSG:{epsg}")
    return SceneGrid(file.height, file.width, file.transform, f"EPSG:{epsg}", chip)


def read_ratio(uri: str, file: rasterio.DatasetReader, band: str, grid: SceneGrid, reference: tuple[str, str]) -> int:
    """Return the grid pixels that a pixel of an open band spans: 1 at 10 m, 2 at 20 m.

    Args:
        uri: The file's address, for errors.
        file: The open file.
        band: Its band.
        grid: The scene's grid.
        reference: Band and address of the file that the grid is from.

    Returns:
        The ratio, a divisor of the model's patch.

    Raises:
        SourceError: Unless the band covers the grid exactly, in the grid's CRS.
    """
    dtype = "uint8" if band == "scl" else "uint16"
    if file.count != 1 or file.dtypes[0] != dtype:
        raise SourceError(f"{uri}: {band}: expected one band of {dtype}, got {file.count} x {file.dtypes[0]}.")
    if file.crs is not None and horizontal(file.crs).to_epsg() != int(grid.crs.removeprefix("EPSG:")):
        raise SourceError(
            f"{uri}: {band}: expected {grid.crs} as {reference[0]} ({reference[1]}), got {str(file.crs)[:60]}."
        )
    check_transform(uri, file)
    t, at = file.transform, grid.transform
    ratio: int = round(t.a / at.a)
    fits = ratio >= 1 and (-(-grid.height // ratio), -(-grid.width // ratio)) == file.shape
    differences = (t.c - at.c, t.f - at.f, t.a - ratio * at.a, t.e - ratio * at.e, t.b, t.d)
    if not fits or PATCH_PX % ratio or max(map(abs, differences)) > 0.01 * at.a:  # of a pixel
        raise SourceError(
            f"{uri}: {band} does not cover {reference[0]}: expected {grid.width} x {grid.height} px of {at.a:g} m from "
            f"({at.c:g}, {at.f:g}), got {file.width} x {file.height} px of {t.a:g} m from ({t.c:g}, {t.f:g})."
        )
    return ratio


# ------------------------------------------------------------------------------------------------------ classes of SCL


def judge_chips(
    scl: NDArray[np.uint8], ratio: int, grid: SceneGrid, max_nodata: float, max_cloud: float
) -> NDArray[np.uint8]:
    """Return the verdict of SCL on every chip.

    Args:
        scl: SCL [height, width], whose pixels span `ratio` pixels of the grid.
        ratio: Grid pixels that a pixel of SCL spans.
        grid: The scene's grid.
        max_nodata: Maximum fraction of nodata.
        max_cloud: Maximum fraction of cloud among the valid pixels.

    Returns:
        PASSES, TOO_EMPTY or TOO_CLOUDY [rows, cols]. Nodata is judged first, and a chip without a valid pixel never
        passes.
    """
    side = grid.chip // ratio
    chips = scl[: grid.rows * side, : grid.cols * side].reshape(grid.rows, side, grid.cols, side)
    empty = np.count_nonzero(chips == SCL_NODATA, axis=(1, 3))
    cloud = np.count_nonzero(_class_table(SCL_CLOUD)[chips], axis=(1, 3))
    verdict = np.full((grid.rows, grid.cols), PASSES, np.uint8)
    verdict[cloud > max_cloud * (side**2 - empty)] = TOO_CLOUDY
    verdict[(empty > max_nodata * side**2) | (empty == side**2)] = TOO_EMPTY
    return verdict


def cloud_mask(scl: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask of the cloud classes."""
    return _class_table(SCL_CLOUD)[scl]


def repeat_pixels(pixels: NDArray[Any], ratio: int, out: NDArray[Any]) -> None:
    """Fill `out` [rows * ratio, cols * ratio] by repetition; in long strides, thrice as fast as by element."""
    for n in range(ratio):
        out[::ratio, n::ratio] = pixels
    for n in range(1, ratio):
        out[n::ratio] = out[::ratio]


def count_in_blocks(mask: NDArray[np.bool_], ratio: int) -> NDArray[np.int32]:
    """Return the number of pixels that are set in each block of `ratio` x `ratio`, [rows / ratio, cols / ratio]."""
    count = np.zeros((-(-mask.shape[0] // ratio), -(-mask.shape[1] // ratio)), np.int32)
    for y, x in itertools.product(range(ratio), repeat=2):
        count += mask[y::ratio, x::ratio]
    return count


def count_unknown_classes(scl: NDArray[np.uint8]) -> int:
    """Return the pixels of a class that SCL does not define (12 occurs); they count as valid and clear."""
    return int(np.count_nonzero(scl >= SCL_CLASSES))


@cache
def _class_table(classes: tuple[int, ...]) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(classes)] = True
    return table


# ------------------------------------------------------------------------------------------------------- the offset


def offset_rule(item: Item) -> tuple[bool, tuple[str, ...]]:
    """Decide from an item whether its files carry the offset; the source's pixels may contradict it.

    The notes are: `no_offset`, processed before baseline 04.00; `offset_applied_by_producer`, the archive's flag states
    that the offset was removed; `offset_flag_missing`, there is no flag, which counts as not removed;
    `raster_offset_contradicts`, `raster:bands` does not fit the baseline, and is ignored. The source adds
    `offset_subtracted` or `offset_flag_contradicted`.

    Args:
        item: The item.

    Returns:
        Whether 1000 is subtracted, and the notes for the ledger.

    Raises:
        SourceError: If the item has neither a baseline nor a flag.
    """
    is_late = baseline_number(item.baseline) >= OFFSET_BASELINE
    notes = []
    if item.baseline and item.raster_offset is not None and (item.raster_offset != 0) != is_late:
        notes.append("raster_offset_contradicts")
    if item.baseline and not is_late:
        return False, ("no_offset", *notes)
    if item.offset_applied:
        return False, ("offset_applied_by_producer", *notes)
    if not item.baseline:
        raise SourceError(
            f"{item.href}: expected a processing baseline or a flag for the offset, got neither: digital numbers may "
            f"be {OFFSET} too high."
        )
    return True, (*(["offset_flag_missing"] if item.offset_applied is None else []), *notes)


def sample_step(grid: SceneGrid) -> int:
    """Return the grid pixels that a sample spans: a power of two, as of overviews, that leaves 512 or more a side."""
    return int(2 ** max(0, int(math.log2(max(min(grid.height, grid.width) / 512, 1)))))


def dark_fraction(visible: NDArray[np.uint16], scl: NDArray[np.uint8], ratio: int, step: int) -> float:
    """Return the fraction of clear pixels that are below 1000 in blue, green and red alike.

    A file that carries the offset has no such pixels: their reflectance would be negative in all three bands.

    Args:
        visible: Every `step`-th pixel of the grid, [3, rows, cols].
        scl: SCL [height, width], whose pixels span `ratio` pixels of the grid.
        ratio: Grid pixels that a pixel of SCL spans.
        step: Grid pixels that a sample spans.

    Returns:
        The fraction, 0 if no pixel is clear.
    """
    rows, cols = (
        np.minimum((np.arange(n) * step + step // 2) // ratio, m - 1)
        for n, m in zip(visible.shape[1:], scl.shape, strict=True)
    )
    clear = _class_table(SCL_CLEAR)[scl[np.ix_(rows, cols)]] & np.logical_and.reduce(visible, axis=0)
    count = np.count_nonzero(clear)
    return float(np.count_nonzero(clear & (visible < OFFSET).all(axis=0)) / count) if count else 0.0


def subtract(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return digital numbers without the offset; 0 stays 0, and no other number becomes 0."""
    without = np.maximum(pixels, OFFSET + 1)
    without -= OFFSET
    without *= pixels > 0
    return without
