"""A NAIP scene but for its reading: what its header tells, where its chips lie, and their rows made from strips."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pyproj
import rasterio
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError

from kiln.archives import utm_grid
from kiln.archives.naip.layout import Edge
from kiln.errors import SourceError
from kiln.formats.records import Loaded
from kiln.io import gdal

BANDS = 4
STRIP = 256  # least rows of a read, so that an untiled file is not read line by line


class Place(NamedTuple):
    """A chip: its first pixel in the scene's image, its place in the lattice, its corner in the CRS."""

    y: int
    x: int
    col: int
    row: int
    x0: float
    y0: float


class Strip(NamedTuple):
    """Rows [first, last) of a scene's file."""

    first: int
    last: int

    def nbytes(self, scene: "Scene") -> int:
        """What its pixels take."""
        return BANDS * (self.last - self.first) * scene.width


def _all_of(first: int, last: int) -> tuple[int, int]:
    return first, last


def _as_read(first: int, last: int, read: utm_grid.Rows) -> np.ndarray:
    return read(first, last)


@dataclass(frozen=True)
class Scene:
    """What is known of a scene before its pixels are read: `height` and `width` of its file, `block` rows of a block.

    Chips lie at `places`, row by row from the north, in an image of the scene: the file's own pixels, or on a common
    lattice whole cells of `grid`. `transform` and `crs` are the image's; `gsd` is of the file's pixels in its CRS. Rows
    of the image are made by `image(first, last, read)` from the file's rows that `needs(first, last)` tells.
    """

    height: int
    width: int
    block: int
    transform: Affine
    crs: str
    gsd: float
    chip: int = 0
    places: Sequence[Place] = ()
    grid: utm_grid.Grid | None = None
    notes: tuple[str, ...] = ()
    needs: Callable[[int, int], tuple[int, int]] = _all_of
    image: Callable[[int, int, utm_grid.Rows], np.ndarray] = _as_read

    @property
    def pixel_size(self) -> float:
        """Of the chips."""
        return self.grid.gsd if self.grid else self.gsd

    def rows(self) -> list[tuple[list[Place], int, int, int]]:
        """Rows of chips: their places, rows [first, last) of the file they need, and the first one still needed."""
        rows = [list(group) for _, group in itertools.groupby(self.places, key=lambda p: p.y)]
        needs = [self.needs(r[0].y, r[0].y + self.chip) for r in rows]
        still = list(itertools.accumulate((first for first, _ in reversed(needs)), min))[::-1]
        return [(r, *need, low) for r, need, low in zip(rows, needs, still, strict=True)]

    def strips(self) -> list[Strip]:
        """Strips of whole blocks that hold all rows that chips need."""
        needs = [(first, last) for _, first, last, _ in self.rows() if first < last]
        if not needs:
            return []
        top, bottom = min(n[0] for n in needs), max(n[1] for n in needs)
        height = self.block * max(1, STRIP // self.block)
        top -= top % height
        return [Strip(y, min(y + height, bottom)) for y in range(top, bottom, height)]


def opened(uri: str, file: rasterio.DatasetReader) -> Scene:
    """Size and place of an open file. Raises SourceError unless it is four bands of uint8 on a north-up grid."""
    if file.count != BANDS:
        raise SourceError(f"{uri}: {file.count} bands, want the {BANDS} of R G B NIR")
    if set(file.dtypes) != {"uint8"}:
        raise SourceError(f"{uri}: pixels are {'/'.join(sorted(set(file.dtypes)))}, want uint8")
    if file.crs is None or file.transform.is_identity:
        raise SourceError(f"{uri}: no CRS or no transform: its place is unknown")
    if file.crs.is_geographic:
        raise SourceError(f"{uri}: in degrees ({file.crs}), want a projected CRS in metres")
    t = file.transform
    if t.b or t.d or t.a <= 0 or abs(t.a + t.e) > 1e-6 * t.a:
        raise SourceError(f"{uri}: pixels are not square and north-up: {tuple(t)[:6]}")
    epsg = file.crs.to_epsg()
    crs = f"EPSG:{epsg}" if epsg else file.crs.to_wkt()
    ends = np.array([(0, 0), (file.width, 0), (0, file.height), (file.width, file.height)])
    try:
        here = degrees(ends, t, crs)
    except ProjError as e:
        raise SourceError(f"{uri}: its CRS is of no use: {e}") from e
    if not np.isfinite(here).all():
        raise SourceError(f"{uri}: its corners lie nowhere on the Earth in {crs[:60]}")
    return Scene(file.height, file.width, file.block_shapes[0][0], t, crs, math.sqrt(abs(t.determinant)))


def own_lattice(scene: Scene, chip: int, edge: Edge) -> Scene:
    """The scene with the chips that begin at its top left."""

    def starts(length: int) -> list[int]:
        """First pixels of the chips along a side of `length` pixels."""
        firsts = list(range(0, length - chip + 1, chip))
        if edge == "align" and firsts and firsts[-1] + chip < length:
            firsts.append(length - chip)
        return firsts

    places = [
        Place(y, x, -(-x // chip), -(-y // chip), *(scene.transform * (x, y)))
        for y, x in itertools.product(starts(scene.height), starts(scene.width))
    ]
    return replace(scene, chip=chip, places=places)


def on_grid(uri: str, scene: Scene, chip: int, gsd: float, zone: int) -> Scene:
    """The scene with every cell that it touches of the grid of its CRS's zone; of `zone` where that is not UTM.

    Raises SourceError if no grid holds it.
    """
    told = utm_grid.zone_of(scene.crs)
    if (told or zone) not in utm_grid.ZONES:
        raise SourceError(f"{uri}: in UTM zone {told or zone}; NAD83 has {utm_grid.ZONES[0]} to {utm_grid.ZONES[-1]}")
    grid = utm_grid.Grid(told or zone, chip, gsd)
    try:
        on = utm_grid.align(scene.height, scene.width, scene.transform, scene.crs, grid)
    except RasterioError as e:
        gdal.raise_if_transient(e)
        raise SourceError(f"{uri}: cannot be brought to {grid.crs} ({gdal.gdal_message(e)})") from e
    except SourceError as e:
        raise SourceError(f"{uri}: {e}") from e
    # corners are not by the transform: they are equal in every scene, to the last bit
    places = [Place(*cell, grid.x0(cell.col), grid.y0(cell.row)) for cell in on.cells]
    notes = [f"in UTM zone {told}, where the key says {zone}"] if told not in (None, zone) else []
    notes += [on.how] if on.how else []
    return replace(
        scene,
        chip=chip,
        places=places,
        transform=on.transform,
        crs=grid.crs,
        grid=grid,
        notes=tuple(notes),
        needs=on.needs,
        image=on.image,
    )


class Near(NamedTuple):
    """Strips that follow one another without a gap."""

    strips: list[Loaded]

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of the file. Raises SourceError if one of their strips could not be read."""
        parts = []
        for piece in self.strips:
            strip: Strip = piece.read.key
            a, b = max(first, strip.first), min(last, strip.last)
            if a < b:
                if piece.error is not None:
                    raise piece.error
                parts.append(piece.value[:, a - strip.first : b - strip.first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class Strips:
    """The strips of a scene as they come, let go as soon as no row of chips needs them any more."""

    def __init__(self, pieces: Iterator[Loaded]) -> None:
        self._pieces = pieces
        self._near: deque[Loaded] = deque()

    def between(self, last: int, low: int) -> Near:
        """Those that hold rows [low, last) of the file; rows before `low` are asked for no more."""
        while self._near and self._near[0].read.key.last <= low:
            self._near.popleft()
        while not self._near or self._near[-1].read.key.last < last:
            piece = next(self._pieces, None)
            if piece is None:
                break
            if piece.read.key.last > low:
                self._near.append(piece)
        return Near(list(self._near))


def degrees(pixels: np.ndarray, transform: Affine, crs: str) -> np.ndarray:
    """Pixel coordinates [..., 2] (x, y) of an image as longitudes and latitudes [..., 2]."""
    flat = pixels.reshape(-1, 2)
    east, north = transform.c + flat[:, 0] * transform.a, transform.f + flat[:, 1] * transform.e
    return np.stack(_to_degrees(crs).transform(east, north), axis=1).reshape(pixels.shape)


@cache
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
