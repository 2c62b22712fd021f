"""One grid of chips per UTM zone: the same ground is the same chip in every year, resolution and overlapping scene.

The grid of a zone is NAD83 / UTM (EPSG:269zz), anchored at its (0, 0), with pixels of `gsd` metres. With side = chip *
gsd, cell (col, row) covers [col * side, (col + 1) * side) east and [row * side, (row + 1) * side) north; rows count
northwards. Pixels that do not fall on the grid are resampled: `average` where they are smaller than the grid's, else
`bilinear`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyproj
import rasterio.warp
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from kiln.errors import SourceError

BAND_COUNT = 4
ZONES = range(1, 24)  # of NAD83 / UTM
SIZE_TOLERANCE = 1e-6  # relative difference of pixel sizes that count as equal
POSITION_TOLERANCE_PX = 1e-3  # by which an origin may be off the grid, or an extent may reach into a cell
MIN_VALID_WEIGHT = 0.5 - 1e-4  # of the valid pixels under a kernel: half, and the noise of float32
STRIPE_BYTES = 8 << 20  # of float32 planes, about, that are resampled at once
OUTLINE_POINTS = 32  # along a side of an extent that bends in another CRS
MAX_ZONE_DISTANCE_DEG = 15  # from a zone's middle, two zones off; a scene beyond it has a wrong zone
WARP_TOLERANCE_PX = 0.01  # of the source, by which an approximated warp may be off

Kernel = Literal["average", "bilinear"]
Rows = Callable[[int, int], NDArray[Any]]  # (first, last) -> rows [first, last) of a scene, uint8 [4, rows, width]
Needs = Callable[[int, int], tuple[int, int]]  # (first, last) of an image -> rows [first, last) of its scene
Image = Callable[[int, int, Rows], NDArray[Any]]  # (first, last, rows of the scene) -> uint8 [4, rows, width]
Stripe = Callable[[int, int], NDArray[np.float32]]  # (first, last) of an image -> [bands and weight, rows, cols]
Taps = tuple[NDArray[np.int64], NDArray[np.float32]]  # source pixels [count, taps], and their weights


@dataclass(frozen=True)
class UtmGrid:
    """The chips of one zone."""

    zone: int
    chip: int
    gsd: float

    @property
    def crs(self) -> str:
        """The CRS, as `EPSG:26914`."""
        return f"EPSG:{26900 + self.zone}"

    @property
    def name(self) -> str:
        """The first part of its chips' names, as `utm14:1.0`."""
        return f"utm{self.zone}:{float(self.gsd)!r}"

    def x0(self, col: int) -> float:
        """Return the west edge of a column in metres. The integers are multiplied first, so that it is always equal."""
        return col * self.chip * self.gsd

    def y0(self, row: int) -> float:
        """Return the north edge of a row in metres."""
        return (row + 1) * self.chip * self.gsd


class Cell(NamedTuple):
    """A cell of the grid, and its first pixel in an image of complete cells."""

    y: int
    x: int
    col: int
    row: int


@dataclass(frozen=True)
class Aligned:
    """A scene on the grid: an image [4, height, width] of complete cells, 0 outside the scene.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        transform: From pixels of the image to the grid's CRS.
        cells: The cells that the scene touches, north to south, west to east.
        resampling: Description of the resampling; empty if pixels are copied.
        needs: Returns the rows [first, last) of the scene that rows [first, last) of the image need.
        image: Returns rows [first, last) of the image, given a function that returns rows of the scene.
    """

    height: int
    width: int
    transform: Affine
    cells: list[Cell]
    resampling: str
    needs: Needs
    image: Image


def zone_of(crs: str) -> int | None:
    """Return the zone of a UTM CRS of any datum and hemisphere; None for another CRS."""
    zone = pyproj.CRS.from_user_input(crs).utm_zone
    return int(zone[:-1]) if zone else None


def align(height: int, width: int, transform: Affine, crs: str, grid: UtmGrid) -> Aligned:
    """Bring a north-up scene of uint8 onto the cells of the grid. Nodata is 0 in all bands.

    Pixels need not be square, and the CRS need not be in metres.

    Args:
        height: Rows of the scene.
        width: Columns of the scene.
        transform: From its pixels to its CRS.
        crs: Its CRS.
        grid: The grid.

    Returns:
        The scene on the grid; its rows are computed when `image` is called.

    Raises:
        SourceError: If the scene is far from the grid's zone.
    """
    if crs != grid.crs:
        return _warped(height, width, transform, crs, grid)
    side_x, side_y = _pixel_sides(transform)
    size_x, size_y = side_x / grid.gsd, side_y / grid.gsd  # in pixels of the grid, as all lengths below
    left, top = transform.c / grid.gsd, transform.f / grid.gsd
    exact = (
        max(abs(size_x - 1), abs(size_y - 1)) <= SIZE_TOLERANCE
        and max(abs(left - round(left)), abs(top - round(top))) <= POSITION_TOLERANCE_PX
    )
    if exact:
        size_x, size_y, left, top = 1.0, 1.0, round(left), round(top)
    cols, rows = _touched(left, left + width * size_x, grid.chip), _touched(top - height * size_y, top, grid.chip)
    x, y = left - cols.start * grid.chip, rows.stop * grid.chip - top  # of the scene in the image
    shape = (len(rows) * grid.chip, len(cols) * grid.chip)
    place = (*shape, _corner(cols, rows, grid), _cells(cols, rows, grid.chip))
    if exact:
        return Aligned(*place, "", *_copied(int(x), int(y), height, width, shape[1]))
    kernel = _kernel(size_x, size_y)
    down = _taps(kernel, shape[0], -y / size_y, 1 / size_y, height)
    across = _taps(kernel, shape[1], -x / size_x, 1 / size_x, width)
    row_px = max(width * max(height / shape[0], 1), shape[1])

    def needs(first: int, last: int) -> tuple[int, int]:
        return int(down[0][first:last].min()), int(down[0][first:last].max()) + 1

    def image(first: int, last: int, read: Rows) -> NDArray[Any]:
        def stripe(a: int, b: int) -> NDArray[np.float32]:
            low, high = needs(a, b)
            return _stripe(read(low, high), (down[0][a:b] - low, down[1][a:b]), across)

        return _filled(stripe, first, last, shape[1], row_px)

    return Aligned(*place, f"resampled from {_size_text(side_x, side_y)} ({kernel})", needs, image)


def _pixel_sides(transform: Affine, metres: float = 1.0) -> tuple[float, float]:
    """Return width and height in metres of a pixel of a north-up grid; equal if it is square within SIZE_TOLERANCE.

    Args:
        transform: From pixels to the CRS.
        metres: Of a unit of the CRS.
    """
    width, height = transform.a, -transform.e
    if abs(width - height) <= SIZE_TOLERANCE * width:
        height = width
    return width * metres, height * metres


def _kernel(size_x: float, size_y: float) -> Kernel:
    """Return the kernel for pixels of a size in those of the grid. One that is not square counts by its area."""
    size = size_x if size_x == size_y else math.sqrt(size_x * size_y)
    return "average" if size < 1 - SIZE_TOLERANCE else "bilinear"


def _size_text(width: float, height: float) -> str:
    return f"{width:g} m" if width == height else f"{width:g} x {height:g} m"


def _copied(x: int, y: int, height: int, width: int, image_width: int) -> tuple[Needs, Image]:
    """Return `needs` and `image` of a scene whose pixels are the grid's, its first at (x, y) of the image."""

    def needs(first: int, last: int) -> tuple[int, int]:
        low = min(max(first - y, 0), height)
        return low, max(min(last - y, height), low)

    def image(first: int, last: int, read: Rows) -> NDArray[Any]:
        pixels = np.zeros((BAND_COUNT, last - first, image_width), np.uint8)
        low, high = needs(first, last)
        if low < high:
            pixels[:, low + y - first : high + y - first, x : x + width] = read(low, high)
        return pixels

    return needs, image


def _touched(low: float, high: float, chip: int) -> range:
    """Return the cells that an extent [low, high], in pixels of the grid, touches along one axis."""
    return range(math.floor((low + POSITION_TOLERANCE_PX) / chip), math.ceil((high - POSITION_TOLERANCE_PX) / chip))


def _cells(cols: range, rows: range, chip: int) -> list[Cell]:
    """Return the cells of rows and columns, north to south, west to east."""
    return [Cell(y * chip, x * chip, col, row) for y, row in enumerate(reversed(rows)) for x, col in enumerate(cols)]


def _corner(cols: range, rows: range, grid: UtmGrid) -> Affine:
    """Return the transform of an image of complete cells."""
    return Affine(grid.gsd, 0, grid.x0(cols.start), 0, -grid.gsd, grid.y0(rows.stop - 1))


def _taps(kernel: Kernel, count: int, start: float, step: float, size: int) -> Taps:
    """Return the source pixels of each of `count` pixels along an axis, of `size` ones, and their weights.

    Pixel i of the grid spans [start + i * step, start + (i + 1) * step] in source pixels. `average` weighs pixels by
    their overlap with that, `bilinear` the two nearest by their distance. Outside the scene the weight is 0.
    """
    edges = round(start, 6) + step * np.arange(count + 1)  # rounded, so that a shift of 0.5 is exact
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


def _stripe(pixels: NDArray[Any], down: Taps, across: Taps) -> NDArray[np.float32]:
    """Return weighted sums [bands and weight, rows, cols] of a scene's pixels: first down the columns, then across."""
    planes: NDArray[np.float32] = _planes(pixels).astype(np.float32)
    for axis, (at, weights) in ((1, down), (2, across)):
        along = (-1, 1) if axis == 1 else (1, -1)
        total = np.take(planes, at[:, 0], axis) * weights[:, 0].reshape(along)
        for tap in range(1, at.shape[1]):
            part = np.take(planes, at[:, tap], axis)
            part *= weights[:, tap].reshape(along)
            total += part
        planes = total
    return planes


def _planes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bands and, as one more, 1 where a pixel is valid; a nodata pixel is 0 in all of them."""
    return np.concatenate([pixels, pixels.any(axis=0, keepdims=True).astype(np.uint8)])


def _stretches(first: int, last: int, row_px: float) -> list[tuple[int, int]]:
    """Return rows [first, last) in stretches of about STRIPE_BYTES; a row needs `row_px` pixels at once."""
    step = max(1, int(STRIPE_BYTES / (4 * (BAND_COUNT + 1) * row_px)))
    return [(a, min(a + step, last)) for a in range(first, last, step)]


def _filled(stripe: Stripe, first: int, last: int, width: int, row_px: float) -> NDArray[np.uint8]:
    """Return rows [first, last) of the image, uint8 [4, rows, width], from stripes.

    A pixel is the mean of the valid ones under its kernel where they have half its weight, else nodata. A valid pixel
    that rounds to 0 in all bands becomes 1 in the first.
    """
    image = np.zeros((BAND_COUNT, last - first, width), np.uint8)
    for a, b in _stretches(first, last, row_px):
        sums = stripe(a, b)
        valid = sums[-1] >= MIN_VALID_WEIGHT
        values = np.divide(sums[:-1], sums[-1], out=np.zeros_like(sums[:-1]), where=valid)
        np.rint(values, out=values)
        rows = image[:, a - first : b - first]
        rows[...] = np.clip(values, 0, 255)
        rows[0][valid & ~rows.any(axis=0)] = 1
    return image


def _warped(height: int, width: int, transform: Affine, crs: str, grid: UtmGrid) -> Aligned:
    """Return a scene in another CRS on the grid, pixel by pixel through PROJ."""
    metre = pyproj.CRS.from_user_input(crs).axis_info[0].unit_conversion_factor
    side_x, side_y = _pixel_sides(transform, metre)
    scale_x, scale_y = side_x / grid.gsd, side_y / grid.gsd
    kernel = _kernel(scale_x, scale_y)
    window = Window(0, 0, width, height)
    east = _outline(window, transform, crs, "EPSG:4326")[:, 0] - (6 * grid.zone - 183)  # degrees from its middle
    if not (np.abs((east + 180) % 360 - 180) < MAX_ZONE_DISTANCE_DEG).all():
        raise SourceError(
            f"expected a scene near UTM zone {grid.zone}, got one more than {MAX_ZONE_DISTANCE_DEG} degrees off."
        )
    # GDAL is given the scales. It would take the ratio of a stretch's sides, which differs where the scene is rotated.
    extent = shapely.Polygon(_outline(window, transform, crs, grid.crs))
    shapely.prepare(extent)
    west, south, east, north = np.array(extent.bounds) / grid.gsd
    cols, rows = _touched(west, east, grid.chip), _touched(south, north, grid.chip)
    cells = _cells(cols, rows, grid.chip)
    corners, side = np.array([(c.col, c.row) for c in cells]), grid.chip * grid.gsd
    squares = shapely.box(*(corners * side).T, *((corners + 1) * side).T)
    min_area = POSITION_TOLERANCE_PX * grid.gsd * side  # square metres; a cell is touched if more of it is covered
    touched = shapely.area(shapely.intersection(extent, squares)) > min_area
    corner = _corner(cols, rows, grid)
    shape = (len(rows) * grid.chip, len(cols) * grid.chip)

    row_px = max(width * max(height / shape[0], 1), shape[1])

    def source(first: int, last: int) -> tuple[int, int, int, int]:
        """Return west, north, east, south pixel of the scene that rows of the image can need."""
        stretch = corner * Affine.translation(0, first)
        outline = _outline(Window(0, 0, shape[1], last - first), stretch, grid.crs, crs)
        return _source(outline, transform, (width, height), 1 / min(scale_x, scale_y))

    def needs(first: int, last: int) -> tuple[int, int]:
        windows = [source(a, b) for a, b in _stretches(first, last, row_px)]
        spans = [(y0, y1) for x0, y0, x1, y1 in windows if x0 < x1 and y0 < y1]
        return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else (0, 0)

    def image(first: int, last: int, read: Rows) -> NDArray[Any]:
        def stripe(a: int, b: int) -> NDArray[np.float32]:
            sums = np.zeros((BAND_COUNT + 1, b - a, shape[1]), np.float32)
            x0, y0, x1, y1 = source(a, b)
            if x0 >= x1 or y0 >= y1:
                return sums
            planes = _planes(read(y0, y1)[:, :, x0:x1])
            rasterio.warp.reproject(
                np.pad(planes, ((0, 0), (2, 2), (2, 2))),  # so that pixels outside have no weight
                sums,
                src_transform=transform * Affine.translation(x0 - 2, y0 - 2),
                src_crs=crs,
                dst_transform=corner * Affine.translation(0, a),
                dst_crs=grid.crs,
                resampling=Resampling[kernel],
                tolerance=WARP_TOLERANCE_PX,
                XSCALE=scale_x,
                YSCALE=scale_y,
            )
            return sums

        return _filled(stripe, first, last, shape[1], row_px)

    name = crs if crs.startswith("EPSG:") else pyproj.CRS.from_user_input(crs).name
    resampling = f"resampled from {_size_text(side_x, side_y)} in {name} ({kernel})"
    return Aligned(*shape, corner, list(itertools.compress(cells, touched)), resampling, needs, image)


def _outline(window: Window, transform: Affine, crs: str, to: str) -> NDArray[np.float64]:
    """Return a window's outline [points, 2] in another CRS, each side as several points."""
    t = np.arange(OUTLINE_POINTS) / OUTLINE_POINTS
    zero, one = np.zeros(OUTLINE_POINTS), np.ones(OUTLINE_POINTS)
    x = np.concatenate([t, one, 1 - t, zero]) * window.width
    y = np.concatenate([zero, t, one, 1 - t]) * window.height
    return np.stack(rasterio.warp.transform(crs, to, *(transform * (x, y))), axis=1)


def _source(
    outline: NDArray[np.float64], transform: Affine, size: tuple[int, int], ratio: float
) -> tuple[int, int, int, int]:
    """Return west, north, east, south pixel of a scene that an outline can need, with a margin for the kernel."""
    x, y = ~transform * (outline[:, 0], outline[:, 1])
    margin = 4 + 2 * max(ratio, 1)
    west, east = np.clip([x.min() - margin, x.max() + margin], 0, size[0])
    north, south = np.clip([y.min() - margin, y.max() + margin], 0, size[1])
    return math.floor(west), math.floor(north), math.ceil(east), math.ceil(south)
