"""A NAIP scene without its reading: its header, the places of its chips, and their rows from strips of the file.

`read_header` gives a `SceneHeader`. `cut_own_lattice` or `cut_on_grid` makes a `Scene` of it, which has chips.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kiln.archives import utm_grid
from kiln.archives.naip import ARCHIVE
from kiln.archives.naip.layout import Edge, Lattice
from kiln.archives.raster_reading import (
    SQUARE_TOLERANCE,
    check_crs,
    check_on_earth,
    check_square_pixels,
    check_transform,
    horizontal,
    off_square,
    strip_rows,
    to_degrees,
)
from kiln.errors import SourceError
from kiln.formats.records import Loaded
from kiln.io import gdal

BAND_COUNT = len(ARCHIVE.sensor.bands)
MAX_OFF_SQUARE = 0.01 + SQUARE_TOLERANCE  # relative difference of a pixel's sides that lattice `utm` resamples
RESAMPLE = "Set naip.lattice to utm, which resamples the scene."


class Place(NamedTuple):
    """A chip: its first pixel in the scene's image, its place in the lattice, its corner in the image's CRS."""

    y: int
    x: int
    col: int
    row: int
    x0: float
    y0: float


class SceneStrip(NamedTuple):
    """Rows [first, last) of a scene's file."""

    first: int
    last: int


class ChipRow(NamedTuple):
    """A row of chips, its rows [first, last) of the file, and the first row that this or a later one needs."""

    places: list[Place]
    first: int
    last: int
    first_needed: int


@dataclass(frozen=True)
class SceneHeader:
    """The header of a scene's file.

    Attributes:
        height: Rows.
        width: Columns.
        block_rows: Rows of a block.
        transform: From pixels to the CRS.
        crs: As EPSG code or WKT. It is projected, on lattice `scene` in metres.
        gsd: Side of a pixel in metres; of one that is not square, of the square of its area.
    """

    height: int
    width: int
    block_rows: int
    transform: Affine
    crs: str
    gsd: float


@dataclass(frozen=True)
class Scene:
    """A scene cut into chips. They lie in an image: the file's own pixels, or complete cells of a common grid.

    Attributes:
        header: The header of its file.
        chip: Side of a chip in pixels of the image.
        places: The chips, row by row from the north.
        transform: From pixels of the image to its CRS.
        crs: The image's CRS.
        pixel_size: Side of a pixel of the image in units of its CRS.
        grid_name: Name of the common grid; None: the scene has its own lattice.
        notes: Notes for the ledger.
        needs: Returns the rows [first, last) of the file that rows [first, last) of the image need.
        image: Returns rows [first, last) of the image, given a function that returns rows of the file.
    """

    header: SceneHeader
    chip: int
    places: Sequence[Place]
    transform: Affine
    crs: str
    pixel_size: float
    grid_name: str | None
    notes: tuple[str, ...]
    needs: utm_grid.Needs
    image: utm_grid.Image

    def chip_rows(self) -> list[ChipRow]:
        """Return the rows of chips, from the north."""
        rows = [list(group) for _, group in itertools.groupby(self.places, key=lambda place: place.y)]
        needs = [self.needs(row[0].y, row[0].y + self.chip) for row in rows]
        first_needed = list(itertools.accumulate((first for first, _ in reversed(needs)), min))[::-1]
        return [ChipRow(row, *need, low) for row, need, low in zip(rows, needs, first_needed, strict=True)]

    def strips(self) -> list[SceneStrip]:
        """Return strips of complete blocks that hold all rows that chips need."""
        needs = [(row.first, row.last) for row in self.chip_rows() if row.first < row.last]
        if not needs:
            return []
        top, bottom = min(first for first, _ in needs), max(last for _, last in needs)
        height = strip_rows(self.header.block_rows)
        top -= top % height
        return [SceneStrip(y, min(y + height, bottom)) for y in range(top, bottom, height)]

    def strip_bytes(self, strip: SceneStrip) -> int:
        """Return the memory of a strip's pixels."""
        return BAND_COUNT * (strip.last - strip.first) * self.header.width


def read_header(uri: str, file: rasterio.DatasetReader, lattice: Lattice = "scene") -> SceneHeader:
    """Return the header of an open file.

    Args:
        uri: The file's address, for errors.
        file: The open file.
        lattice: `scene` cuts the file's own pixels, which must be square, in metres. `utm` resamples others.

    Returns:
        The header.

    Raises:
        SourceError: Unless it is four bands of uint8 on a north-up grid of a projected CRS.
    """
    if file.count != BAND_COUNT:
        raise SourceError(f"{uri}: expected the {BAND_COUNT} bands R G B NIR, got {file.count} bands.")
    if set(file.dtypes) != {"uint8"}:
        raise SourceError(f"{uri}: expected pixels of uint8, got {'/'.join(sorted(set(file.dtypes)))}.")
    check_crs(uri, file)
    check_transform(uri, file)
    own = horizontal(file.crs)
    if not own.is_projected:
        unit = " in degrees" if own.is_geographic else ""
        raise SourceError(f"{uri}: expected a projected CRS in metres, got {str(own)[:60]}{unit}.")
    check_square_pixels(uri, file.transform, MAX_OFF_SQUARE)
    epsg = own.to_epsg()
    crs = f"EPSG:{epsg}" if epsg else own.to_wkt()
    check_on_earth(uri, file.width, file.height, file.transform, crs)
    unit, metres = own.linear_units_factor
    gsd = math.sqrt(abs(file.transform.determinant)) * metres
    if lattice == "scene":
        difference = off_square(file.transform)
        problem = f"pixels of {file.transform.a:.6g} x {-file.transform.e:.6g} {unit}"
        if difference > SQUARE_TOLERANCE:
            raise SourceError(f"{uri}: expected square pixels, got {problem}, {difference:.2%} off square. {RESAMPLE}")
        if metres != 1:
            raise SourceError(f"{uri}: expected a CRS in metres, got {problem}, which are {gsd:.6g} m. {RESAMPLE}")
    return SceneHeader(file.height, file.width, int(file.block_shapes[0][0]), file.transform, crs, gsd)


def cut_own_lattice(header: SceneHeader, chip: int, edge: Edge) -> Scene:
    """Cut a scene into chips from its top left.

    Args:
        header: The scene's header.
        chip: Side of a chip in pixels.
        edge: `drop` leaves out less than a chip at the right and bottom; `align` adds chips that end with the scene.

    Returns:
        The scene.
    """

    def starts(length: int) -> list[int]:
        """Return the first pixels of the chips along a side."""
        firsts = list(range(0, length - chip + 1, chip))
        if edge == "align" and firsts and firsts[-1] + chip < length:
            firsts.append(length - chip)
        return firsts

    places = [
        Place(y, x, -(-x // chip), -(-y // chip), *(header.transform * (x, y)))
        for y, x in itertools.product(starts(header.height), starts(header.width))
    ]
    return Scene(
        header=header,
        chip=chip,
        places=places,
        transform=header.transform,
        crs=header.crs,
        pixel_size=header.gsd,
        grid_name=None,
        notes=(),
        needs=lambda first, last: (first, last),
        image=lambda first, last, read: read(first, last),
    )


def cut_on_grid(uri: str, header: SceneHeader, chip: int, gsd: float, key_zone: int) -> Scene:
    """Cut a scene into the cells that it touches of its UTM zone's grid.

    Args:
        uri: The scene's address, for errors.
        header: The scene's header.
        chip: Side of a chip in pixels of the grid.
        gsd: Metres of the grid's pixels.
        key_zone: The zone of the scene's key, for a scene whose CRS is not UTM.

    Returns:
        The scene.

    Raises:
        SourceError: If the scene is in no zone of the grid, or cannot be brought there.
    """
    crs_zone = utm_grid.zone_of(header.crs)
    zone = crs_zone or key_zone
    if zone not in utm_grid.ZONES:
        raise SourceError(
            f"{uri}: expected a UTM zone of NAD83, {utm_grid.ZONES[0]} to {utm_grid.ZONES[-1]}, got zone {zone}."
        )
    grid = utm_grid.UtmGrid(zone, chip, gsd)
    try:
        aligned = utm_grid.align(header.height, header.width, header.transform, header.crs, grid)
    except RasterioError as e:
        raise SourceError(f"{uri}: cannot be brought to {grid.crs} ({gdal.shorten(gdal.gdal_message(e))}).") from e
    except SourceError as e:
        raise SourceError(f"{uri}: {e}") from e
    # corners come from the grid, not from the transform, so that they are equal in every scene to the last bit
    places = [Place(*cell, grid.x0(cell.col), grid.y0(cell.row)) for cell in aligned.cells]
    notes = [f"in UTM zone {crs_zone}, expected {key_zone} from the key"] if crs_zone not in (None, key_zone) else []
    notes += [aligned.resampling] if aligned.resampling else []
    return Scene(
        header=header,
        chip=chip,
        places=places,
        transform=aligned.transform,
        crs=grid.crs,
        pixel_size=grid.gsd,
        grid_name=grid.name,
        notes=tuple(notes),
        needs=aligned.needs,
        image=aligned.image,
    )


class StripWindow(NamedTuple):
    """Consecutive strips without a gap."""

    strips: list[Loaded]

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Return rows [first, last) of the file. Raises SourceError if one of their strips could not be read."""
        parts = []
        for piece in self.strips:
            strip: SceneStrip = piece.read.key
            a, b = max(first, strip.first), min(last, strip.last)
            if a < b:
                if piece.error is not None:
                    raise piece.error
                parts.append(piece.value[:, a - strip.first : b - strip.first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class StripQueue:
    """The strips of a scene as they are read; those that no further row of chips needs are freed."""

    def __init__(self, pieces: Iterator[Loaded]) -> None:
        self._pieces = pieces
        self._strips: deque[Loaded] = deque()

    def window(self, first_needed: int, last: int) -> StripWindow:
        """Return the strips that hold rows [first_needed, last) of the file; earlier rows are not needed any more."""
        while self._strips and self._strips[0].read.key.last <= first_needed:
            self._strips.popleft()
        while not self._strips or self._strips[-1].read.key.last < last:
            piece = next(self._pieces, None)
            if piece is None:
                break
            if piece.read.key.last > first_needed:
                self._strips.append(piece)
        return StripWindow(list(self._strips))


def pixels_to_degrees(pixels: NDArray[Any], transform: Affine, crs: str) -> NDArray[np.float64]:
    """Return longitudes and latitudes [..., 2] of pixel coordinates [..., 2] (x, y) of an image."""
    flat = pixels.reshape(-1, 2)
    east, north = transform.c + flat[:, 0] * transform.a, transform.f + flat[:, 1] * transform.e
    degrees: NDArray[np.float64] = np.stack(to_degrees(crs).transform(east, north), axis=1)
    return degrees.reshape(pixels.shape)
