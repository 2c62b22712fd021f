"""One grid of chips per UTM zone: the same ground is the same chip in every year, resolution and overlapping scene.

Grid of a zone: NAD83 / UTM (EPSG:269zz), anchored at its (0, 0), `gsd` metres a pixel. With side = chip * gsd, cell
(col, row) covers [col * side, (col + 1) * side) east and [row * side, (row + 1) * side) north; rows count northwards.
Pixels that do not fall on the grid are resampled: `average` where they are smaller than the grid's, else `bilinear`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyproj
import rasterio.warp
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.windows import Window

from kiln.errors import SourceError

BANDS = 4
ZONES = range(1, 24)  # that NAD83 / UTM has
SAME_SIZE = 1e-6  # relative difference of pixel sizes that is none
NEAR = 1e-3  # pixels by which an origin may be off, or an extent reach over, and does not
HALF = 0.5 - 1e-4  # weight that valid pixels need for theirs to be one: half, and a float's noise
STRIPE = 8 << 20  # bytes of float32 planes, about, that are resampled at a time
OUTLINE = 32  # points along a side of an extent that is bent by going to another CRS
FAR = 15  # degrees from a zone's middle, two zones off: what lies beyond is no misnamed neighbour
WARP_ERROR = 0.01  # source pixels by which an approximated warp may be off

Kernel = Literal["average", "bilinear"]
Rows = Callable[[int, int], np.ndarray]  # rows [first, last) of a scene, uint8 [4, rows, width]
Stripe = Callable[[int, int], np.ndarray]  # rows [first, last) of an image as float32 [bands and weight, rows, cols]


@dataclass(frozen=True)
class Grid:
    """The chips of one zone."""

    zone: int
    chip: int
    gsd: float

    @property
    def crs(self) -> str:
        """`EPSG:26914`."""
        return f"EPSG:{26900 + self.zone}"

    @property
    def name(self) -> str:
        """`utm14:1.0`, the first part of its chips' names."""
        return f"utm{self.zone}:{float(self.gsd)!r}"

    def x0(self, col: int) -> float:
        """West edge of a column, metres; a product of integers first, so that it is the same wherever it is asked."""
        return col * self.chip * self.gsd

    def y0(self, row: int) -> float:
        """North edge of a row, metres."""
        return (row + 1) * self.chip * self.gsd


class Cell(NamedTuple):
    """A cell of the grid, and where its first pixel is in an image of whole cells."""

    y: int
    x: int
    col: int
    row: int


@dataclass(frozen=True)
class Aligned:
    """A scene on the grid: an image [4, height, width] of whole cells, 0 outside the scene, and the cells it touches.

    Its rows are made one stretch at a time, `image(first, last, read)`, from the rows of the scene that `needs(first,
    last)` tells. `how` says how pixels come there; empty if they are copied.
    """

    height: int
    width: int
    transform: Affine
    cells: list[Cell]
    how: str
    needs: Callable[[int, int], tuple[int, int]]
    image: Callable[[int, int, Rows], np.ndarray]


def zone_of(crs: str) -> int | None:
    """Zone of a UTM CRS, on whatever datum and hemisphere; None for another CRS."""
    zone = pyproj.CRS.from_user_input(crs).utm_zone
    return int(zone[:-1]) if zone else None


def align(height: int, width: int, transform: Affine, crs: str, grid: Grid) -> Aligned:
    """How a north-up scene of uint8 comes on the cells of the grid. Nodata is 0 in all bands.

    Raises SourceError for a scene that lies nowhere near the grid's zone.
    """
    if crs != grid.crs:
        return _warped(height, width, transform, crs, grid)
    size = transform.a / grid.gsd  # of the scene's pixels, in those of the grid; so are all lengths below
    left, top = transform.c / grid.gsd, transform.f / grid.gsd
    exact = abs(size - 1) <= SAME_SIZE and max(abs(left - round(left)), abs(top - round(top))) <= NEAR
    if exact:
        size, left, top = 1.0, round(left), round(top)
    cols, rows = _touched(left, left + width * size, grid.chip), _touched(top - height * size, top, grid.chip)
    x, y = left - cols.start * grid.chip, rows.stop * grid.chip - top  # of the scene in the image of whole cells
    shape = (len(rows) * grid.chip, len(cols) * grid.chip)
    place = (*shape, _corner(cols, rows, grid), _cells(cols, rows, grid.chip))
    if exact:
        return Aligned(*place, "", *_copied(int(x), int(y), height, width, shape[1]))
    kernel: Kernel = "average" if size < 1 - SAME_SIZE else "bilinear"
    down = _taps(kernel, shape[0], -y / size, 1 / size, height)
    across = _taps(kernel, shape[1], -x / size, 1 / size, width)
    wide = max(width * max(height / shape[0], 1), shape[1])

    def needs(first: int, last: int) -> tuple[int, int]:
        return int(down[0][first:last].min()), int(down[0][first:last].max()) + 1

    def image(first: int, last: int, read: Rows) -> np.ndarray:
        def stripe(a: int, b: int) -> np.ndarray:
            low, high = needs(a, b)
            return _stripe(read(low, high), (down[0][a:b] - low, down[1][a:b]), across)

        return _filled(stripe, first, last, shape[1], wide)

    return Aligned(*place, f"resampled from {transform.a:g} m ({kernel})", needs, image)


def _copied(x: int, y: int, height: int, width: int, wide: int) -> tuple[Callable, Callable]:
    """`needs` and `image` of a scene whose pixels are cells' pixels, its first at (x, y) of an image `wide` across."""

    def needs(first: int, last: int) -> tuple[int, int]:
        low = min(max(first - y, 0), height)
        return low, max(min(last - y, height), low)

    def image(first: int, last: int, read: Rows) -> np.ndarray:
        pixels = np.zeros((BANDS, last - first, wide), np.uint8)
        low, high = needs(first, last)
        if low < high:
            pixels[:, low + y - first : high + y - first, x : x + width] = read(low, high)
        return pixels

    return needs, image


def _touched(low: float, high: float, chip: int) -> range:
    """Cells that an extent [low, high], in pixels of the grid, touches along one axis."""
    return range(math.floor((low + NEAR) / chip), math.ceil((high - NEAR) / chip))


def _cells(cols: range, rows: range, chip: int) -> list[Cell]:
    """North to south, west to east."""
    return [Cell(y * chip, x * chip, col, row) for y, row in enumerate(reversed(rows)) for x, col in enumerate(cols)]


def _corner(cols: range, rows: range, grid: Grid) -> Affine:
    """Where an image of whole cells lies."""
    return Affine(grid.gsd, 0, grid.x0(cols.start), 0, -grid.gsd, grid.y0(rows.stop - 1))


def _taps(kernel: Kernel, count: int, start: float, step: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `size` source pixels make each of `count` pixels along an axis, and their weights: [count, taps] each.

    Pixel i of the grid spans [start + i * step, start + (i + 1) * step] in source pixels. `average` weighs pixels by
    what they share with that, `bilinear` the two nearest by their distance. Outside the scene the weight is 0.
    """
    edges = round(start, 6) + step * np.arange(count + 1)  # rounded: a shift of 0.5 is one, whatever the zone's metres
    low, high = edges[:-1, None], edges[1:, None]
    if kernel == "average":
        at = np.floor(low).astype(np.int64) + np.arange(math.ceil(step) + 1)
        weights = np.clip(np.minimum(at + 1, high) - np.maximum(at, low), 0, None) / step
    else:
        centre = (low + high) / 2 - 0.5
        at = np.floor(centre).astype(np.int64) + np.arange(2)
        weights = np.clip(1 - np.abs(at - centre), 0, None)
    inside = (at >= 0) & (at < size)
    return np.clip(at, 0, size - 1), np.where(inside, weights, 0).astype(np.float32)


def _stripe(
    pixels: np.ndarray, down: tuple[np.ndarray, np.ndarray], across: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Weighted sums [bands and weight, rows, cols] of a scene's pixels: first down the columns, then across."""
    planes = _planes(pixels).astype(np.float32)
    for axis, (at, weights) in ((1, down), (2, across)):
        along = (-1, 1) if axis == 1 else (1, -1)
        total = np.take(planes, at[:, 0], axis) * weights[:, 0].reshape(along)
        for tap in range(1, at.shape[1]):
            part = np.take(planes, at[:, tap], axis)
            part *= weights[:, tap].reshape(along)
            total += part
        planes = total
    return planes


def _planes(pixels: np.ndarray) -> np.ndarray:
    """The bands and, as one more, 1 where a pixel is valid; a nodata pixel is 0 in all of them."""
    return np.concatenate([pixels, pixels.any(axis=0, keepdims=True).astype(np.uint8)])


def _stretches(first: int, last: int, wide: float) -> list[tuple[int, int]]:
    """Rows [first, last) in stretches whose float32 stays small; `wide` is what a row needs at once, in pixels."""
    step = max(1, int(STRIPE / (4 * (BANDS + 1) * wide)))
    return [(a, min(a + step, last)) for a in range(first, last, step)]


def _filled(stripe: Stripe, first: int, last: int, width: int, wide: float) -> np.ndarray:
    """Rows [first, last) of the image, uint8 [4, rows, width], that stripes make.

    A pixel is the mean of the valid ones under its kernel where they have half its weight, else nodata: neither bleeds
    into the other. A valid pixel that rounds to 0 in all bands is given 1 in the first.
    """
    image = np.zeros((BANDS, last - first, width), np.uint8)
    for a, b in _stretches(first, last, wide):
        sums = stripe(a, b)
        valid = sums[-1] >= HALF
        values = np.divide(sums[:-1], sums[-1], out=np.zeros_like(sums[:-1]), where=valid)
        np.rint(values, out=values)
        here = image[:, a - first : b - first]
        here[...] = np.clip(values, 0, 255)
        here[0][valid & ~here.any(axis=0)] = 1
    return image


def _warped(height: int, width: int, transform: Affine, crs: str, grid: Grid) -> Aligned:
    """The same for a scene in another CRS, pixel by pixel through PROJ."""
    metre = pyproj.CRS.from_user_input(crs).axis_info[0].unit_conversion_factor
    kernel: Kernel = "average" if transform.a * metre < grid.gsd * (1 - SAME_SIZE) else "bilinear"
    window = Window(0, 0, width, height)
    east = _outline(window, transform, crs, "EPSG:4326")[:, 0] - (6 * grid.zone - 183)  # degrees from its middle
    if not (np.abs((east + 180) % 360 - 180) < FAR).all():
        raise SourceError(f"lies nowhere near UTM zone {grid.zone}")
    # Told to GDAL, which else takes the ratio of a stretch's sides, and where the scene is turned that is another one.
    grown = transform.a * metre / grid.gsd
    extent = shapely.Polygon(_outline(window, transform, crs, grid.crs))
    shapely.prepare(extent)
    west, south, east, north = np.array(extent.bounds) / grid.gsd
    cols, rows = _touched(west, east, grid.chip), _touched(south, north, grid.chip)
    cells = _cells(cols, rows, grid.chip)
    places, side = np.array([(c.col, c.row) for c in cells]), grid.chip * grid.gsd
    squares = shapely.box(*(places * side).T, *((places + 1) * side).T)
    least = NEAR * grid.gsd * side  # square metres: what reaches over a side by less touches nothing
    touched = shapely.area(shapely.intersection(extent, squares)) > least
    corner = _corner(cols, rows, grid)
    shape = (len(rows) * grid.chip, len(cols) * grid.chip)

    wide = max(width * max(height / shape[0], 1), shape[1])

    def source(first: int, last: int) -> tuple[int, int, int, int]:
        """West, north, east, south pixel of the scene that rows of the image can need."""
        here = corner * Affine.translation(0, first)
        back = _outline(Window(0, 0, shape[1], last - first), here, grid.crs, crs)
        return _source(back, transform, (width, height), 1 / grown)

    def needs(first: int, last: int) -> tuple[int, int]:
        spans = [source(a, b) for a, b in _stretches(first, last, wide)]
        spans = [(y0, y1) for x0, y0, x1, y1 in spans if x0 < x1 and y0 < y1]
        return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else (0, 0)

    def image(first: int, last: int, read: Rows) -> np.ndarray:
        def stripe(a: int, b: int) -> np.ndarray:
            sums = np.zeros((BANDS + 1, b - a, shape[1]), np.float32)
            x0, y0, x1, y1 = source(a, b)
            if x0 >= x1 or y0 >= y1:
                return sums
            planes = _planes(read(y0, y1)[:, :, x0:x1])
            rasterio.warp.reproject(
                np.pad(planes, ((0, 0), (2, 2), (2, 2))),  # so that outside weighs nothing
                sums,
                src_transform=transform * Affine.translation(x0 - 2, y0 - 2),
                src_crs=crs,
                dst_transform=corner * Affine.translation(0, a),
                dst_crs=grid.crs,
                resampling=Resampling[kernel],
                tolerance=WARP_ERROR,
                XSCALE=grown,
                YSCALE=grown,
            )
            return sums

        return _filled(stripe, first, last, shape[1], wide)

    name = crs if crs.startswith("EPSG:") else pyproj.CRS.from_user_input(crs).name
    how = f"resampled from {transform.a * metre:g} m in {name} ({kernel})"
    return Aligned(*shape, corner, list(itertools.compress(cells, touched)), how, needs, image)


def _outline(window: Window, transform: Affine, crs: str, to: str) -> np.ndarray:
    """A window's outline [points, 2] in another CRS, each side as several points."""
    t = np.arange(OUTLINE) / OUTLINE
    zero, one = np.zeros(OUTLINE), np.ones(OUTLINE)
    x = np.concatenate([t, one, 1 - t, zero]) * window.width
    y = np.concatenate([zero, t, one, 1 - t]) * window.height
    return np.stack(rasterio.warp.transform(crs, to, *(transform * (x, y))), axis=1)


def _source(outline: np.ndarray, transform: Affine, size: tuple[int, int], ratio: float) -> tuple[int, int, int, int]:
    """West, north, east, south pixel of a scene that an outline in its CRS can need, with a margin for the kernel."""
    x, y = ~transform * (outline[:, 0], outline[:, 1])
    margin = 4 + 2 * max(ratio, 1)
    west, east = np.clip([x.min() - margin, x.max() + margin], 0, size[0])
    north, south = np.clip([y.min() - margin, y.max() + margin], 0, size[1])
    return math.floor(west), math.floor(north), math.ceil(east), math.ceil(south)
