"""A Sentinel-2 scene but for its reading: where chips lie, what SCL says of each, what becomes of the offset."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from shapely.affinity import translate

from kiln.archives.sentinel2.item import Item, baseline_number
from kiln.errors import SourceError

FULL = 10_980  # pixels of a tile's side at 10 m
NODATA = 0  # of SCL
CLOUD = (1, 3, 8, 9, 10)  # of SCL: saturated, shadow, medium and high probability, cirrus
CLEAR = (2, 4, 5, 6, 7)  # of SCL: dark, vegetation, bare, water, unclassified
CLASSES = 12  # of SCL, 0 to 11
OFFSET = 1000  # added to every number since processing baseline 04.00
SINCE = (4, 0)
PASSES, TOO_EMPTY, TOO_CLOUDY = 0, 1, 2  # what SCL says of a chip
PATCH = 8  # pixels of the model; chips and strips of them are multiples of it
EMPTY, CLOUDY = "more nodata than max_nodata", "more cloud than max_cloud"


# -------------------------------------------------------------------------------------------------- where chips are


@dataclass(frozen=True)
class Grid:
    """The scene's finest pixels and its whole chips of `chip` pixels, from the top left; `crs` is of metres."""

    height: int
    width: int
    transform: Affine
    crs: str
    chip: int

    @property
    def rows(self) -> int:
        """Whole chips from north to south."""
        return self.height // self.chip

    @property
    def cols(self) -> int:
        """Whole chips from west to east."""
        return self.width // self.chip

    @property
    def pixel(self) -> float:
        """Metres of a pixel's side."""
        return self.transform.a

    def footprints(self) -> tuple[np.ndarray, np.ndarray]:
        """Footprints [rows, cols] and centres [rows, cols, 2], longitude and latitude, of the chips.

        Four true corners each; a footprint over the antimeridian is a MultiPolygon cut there. Raises SourceError if
        the corners lie nowhere on the Earth.
        """
        corners = self._degrees(np.arange(self.cols + 1.0), np.arange(self.rows + 1.0))
        ring = [corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]]  # NW, SW, SE, NE
        rings = np.stack(ring, axis=2)  # [rows, cols, 4, 2]
        if not np.isfinite(rings).all():
            raise SourceError(f"its corners lie nowhere on the Earth in {self.crs[:60]}")
        shapes = shapely.polygons(rings)
        for at in zip(*np.nonzero(np.ptp(rings[..., 0], axis=2) > 180), strict=True):
            shapes[at] = cut_at_antimeridian(rings[at])
        return shapes, self._degrees(np.arange(self.cols) + 0.5, np.arange(self.rows) + 0.5)

    def _degrees(self, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """Longitudes and latitudes [down, across, 2] of places counted in chips."""
        t = self.transform
        east, north = np.meshgrid(t.c + across * self.chip * t.a, t.f + down * self.chip * t.e)
        return np.stack(_to_degrees(self.crs).transform(east, north), axis=-1)


@cache
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def cut_at_antimeridian(ring: np.ndarray) -> shapely.Geometry:
    """The footprint of corners [4, 2] on both sides of it: east's part, then west's; one polygon if it only touches."""
    ring = np.column_stack([np.where(ring[:, 0] < 0, ring[:, 0] + 360, ring[:, 0]), ring[:, 1]])
    whole = shapely.polygons(ring)
    halves = [
        whole & shapely.box(0, -90, 180, 90),
        translate(whole & shapely.box(180, -90, 360, 90), xoff=-360),
    ]
    parts = [shapely.geometry.polygon.orient(p) for p in halves if p.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def grid_of(uri: str, file: rasterio.DatasetReader, item: Item, chip: int) -> Grid:
    """The grid of an open band of 10 m. The file says where it lies; the item is asked only if it has no CRS.

    Raises SourceError unless it is a north-up grid of square pixels in a UTM zone.
    """
    t = file.transform
    if t.is_identity or (file.crs is None and item.epsg is None):
        raise SourceError(f"{uri}: neither the file nor its item tells a projection: its place is unknown")
    epsg = file.crs.to_epsg() if file.crs else item.epsg
    if epsg is None or epsg // 100 not in (326, 327):
        raise SourceError(f"{uri}: its CRS is {str(file.crs or epsg)[:60]}, want a UTM zone")
    if t.b or t.d or t.a <= 0 or abs(t.a + t.e) > 1e-6 * t.a:
        raise SourceError(f"{uri}: pixels are not square and north-up: {tuple(t)[:6]}")
    return Grid(file.height, file.width, t, f"EPSG:{epsg}", chip)


def ratio_of(uri: str, file: rasterio.DatasetReader, band: str, grid: Grid, first: tuple[str, str]) -> int:
    """Grid pixels that a pixel of an open band spans: 1 at 10 m, 2 at 20 m.

    `first` is band and URI of the file the grid is from. Raises SourceError, naming the band, unless it covers the
    grid exactly, in the grid's CRS, in pixels that divide a patch.
    """
    want = "uint8" if band == "scl" else "uint16"
    if file.count != 1 or file.dtypes[0] != want:
        raise SourceError(f"{uri}: {band} is {file.count} x {file.dtypes[0]}, want one band of {want}")
    if file.crs is not None and file.crs.to_epsg() != int(grid.crs.removeprefix("EPSG:")):
        raise SourceError(f"{uri}: {band} lies in {str(file.crs)[:60]}, but {first[0]} in {grid.crs} ({first[1]})")
    t, at = file.transform, grid.transform
    ratio = round(t.a / at.a)
    fits = ratio >= 1 and (-(-grid.height // ratio), -(-grid.width // ratio)) == file.shape
    near = (t.c - at.c, t.f - at.f, t.a - ratio * at.a, t.e - ratio * at.e, t.b, t.d)
    if not fits or PATCH % ratio or max(map(abs, near)) > 0.01 * at.a:  # of a pixel
        raise SourceError(
            f"{uri}: {band} is {file.width} x {file.height} px of {t.a:g} m from ({t.c:g}, {t.f:g}), which does not "
            f"fit {first[0]}'s {grid.width} x {grid.height} px of {at.a:g} m from ({at.c:g}, {at.f:g})"
        )
    return ratio


# ---------------------------------------------------------------------------------------------------- what SCL says


def judge(scl: np.ndarray, ratio: int, grid: Grid, max_nodata: float, max_cloud: float) -> np.ndarray:
    """What SCL alone says of every chip, uint8 [rows, cols]: it passes, or holds too much nodata, or too much cloud.

    `scl` [height, width] with pixels of `ratio` grid pixels. Cloud is a share of the valid pixels; nodata goes first,
    and a chip without any valid pixel never passes.
    """
    side = grid.chip // ratio
    whole = scl[: grid.rows * side, : grid.cols * side].reshape(grid.rows, side, grid.cols, side)
    empty = np.count_nonzero(whole == NODATA, axis=(1, 3))
    cloud = np.count_nonzero(_is(CLOUD)[whole], axis=(1, 3))
    verdict = np.full((grid.rows, grid.cols), PASSES, np.uint8)
    verdict[cloud > max_cloud * (side**2 - empty)] = TOO_CLOUDY
    verdict[(empty > max_nodata * side**2) | (empty == side**2)] = TOO_EMPTY
    return verdict


def cloudy(scl: np.ndarray) -> np.ndarray:
    """Mask of the cloud classes."""
    return _is(CLOUD)[scl]


def repeated(pixels: np.ndarray, ratio: int, out: np.ndarray) -> None:
    """Fill `out` [rows * ratio, cols * ratio] by repetition; in long strides, thrice as fast as element by element."""
    for n in range(ratio):
        out[::ratio, n::ratio] = pixels
    for n in range(1, ratio):
        out[n::ratio] = out[::ratio]


def summed(mask: np.ndarray, ratio: int) -> np.ndarray:
    """How many of `ratio` x `ratio` pixels are set, int [rows / ratio, cols / ratio]."""
    places = itertools.product(range(ratio), repeat=2)
    return sum(mask[y::ratio, x::ratio].astype(np.int32) for y, x in places)  # type: ignore[return-value]


def impossible(scl: np.ndarray) -> int:
    """Pixels of a class that SCL does not have (12 occurs); they count as valid and clear."""
    return int(np.count_nonzero(scl >= CLASSES))


@cache
def _is(classes: tuple[int, ...]) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(classes)] = True
    return table


# ------------------------------------------------------------------------------------------------------- the offset


def offset_rule(item: Item) -> tuple[bool, tuple[str, ...]]:
    """Whether 1000 is to be subtracted, if the pixels do not contradict it, and the notes for the ledger.

    `no_offset`: processed before baseline 04.00; `offset_applied_by_producer`: the archive's flag says that it is gone;
    `offset_flag_missing`: there is no flag, which is taken as not applied; `raster_offset_contradicts`: what
    `raster:bands` says does not go with the baseline, and is not believed. The source adds `offset_subtracted` or
    `offset_flag_contradicted`. Raises SourceError where neither baseline nor flag tells.
    """
    late = baseline_number(item.baseline) >= SINCE
    notes = []
    if item.baseline and item.raster_offset is not None and (item.raster_offset != 0) != late:
        notes.append("raster_offset_contradicts")
    if item.baseline and not late:
        return False, ("no_offset", *notes)
    if item.offset_applied:
        return False, ("offset_applied_by_producer", *notes)
    if not item.baseline:
        raise SourceError(
            f"{item.href}: no processing baseline and no flag that the offset was applied: its numbers may be {OFFSET} "
            "too high"
        )
    return True, (*(["offset_flag_missing"] if item.offset_applied is None else []), *notes)


def step_of(grid: Grid) -> int:
    """Grid pixels a sample of the evidence spans: a power of two, as overviews are, that leaves 512 or more a side."""
    return 2 ** max(0, int(math.log2(max(min(grid.height, grid.width) / 512, 1))))


def share_below(visible: np.ndarray, scl: np.ndarray, ratio: int, step: int) -> float:
    """Share of the clear pixels that lie below 1000 in blue, green and red alike; 0 if no pixel is clear.

    `visible` [3, rows, cols] is every `step`-th pixel of the grid, `scl` has pixels of `ratio` grid pixels. Where the
    offset is still there, such a pixel would have a negative reflectance in all three.
    """
    rows, cols = (
        np.minimum((np.arange(n) * step + step // 2) // ratio, m - 1)
        for n, m in zip(visible.shape[1:], scl.shape, strict=True)
    )
    seen = _is(CLEAR)[scl[np.ix_(rows, cols)]] & visible.all(axis=0)
    count = np.count_nonzero(seen)
    return float(np.count_nonzero(seen & (visible < OFFSET).all(axis=0)) / count) if count else 0.0


def subtract(pixels: np.ndarray) -> np.ndarray:
    """The numbers without the offset; 0 stays 0, and nothing else becomes it."""
    without = np.maximum(pixels, OFFSET + 1)
    without -= OFFSET
    without *= pixels > 0
    return without
