"""The source of ESA WorldCover's composites: tiles of one degree, stitched to columns of the world lattice."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kiln.archives.failed_read import LocalCopies, confirmed_stat, fault_of_file
from kiln.archives.raster_reading import (
    MIN_STRIP_ROWS,
    check_crs,
    check_transform,
    horizontal,
    open_raster,
    read_pixels,
    read_with_retry,
    strip_rows,
    valid_pixels,
)
from kiln.archives.worldcover import ARCHIVE
from kiln.archives.worldcover.columns import COLUMNS
from kiln.archives.worldcover.config import Config
from kiln.archives.worldcover.lattice import Column, Lattice, chip_id, unit_id
from kiln.archives.worldcover.layout import chip_lattice
from kiln.archives.worldcover.tiles import TILE_NAME, Tile, tile_name, touched_tiles
from kiln.errors import AccessError, ConfigError, SourceError
from kiln.formats.fingerprint import digest
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Read, SourceInfo, Unit
from kiln.formats.validation import first_problem
from kiln.io import gdal, storage
from kiln.io.gdal_variables import check_gdal

BAND_COUNT = len(ARCHIVE.sensor.bands)
OPEN_TILES = 4  # of a reading thread
MAX_OFFSET_PX = 0.01  # of a tile from the lattice, at its corner or over its degree
METRES_PER_DEGREE = 111_195  # of latitude, on a sphere of 6371 km
T = TypeVar("T")


@dataclass(frozen=True)
class TileStrip:
    """A window of one tile, in world pixels."""

    tile: Tile
    y0: int
    y1: int
    x0: int
    x1: int


class PlanDetails(BaseModel):
    """The details of a shard's plan."""

    model_config = ConfigDict(extra="forbid")
    year: StrictInt
    columns: list[tuple[StrictInt, StrictInt, Annotated[StrictInt, Field(ge=1)]]] = Field(min_length=1)
    tiles: list[
        tuple[Annotated[str, Field(pattern=TILE_NAME)], StrictStr, Annotated[StrictInt, Field(ge=0)], StrictStr]
    ]


def open_source(shard: ShardPlan, config: Config) -> "WorldCoverSource":
    """Return the source of a shard's columns.

    Args:
        shard: A shard of the archive's plan.
        config: The archive's section of the config.

    Returns:
        The source; nothing is read before its `check`.

    Raises:
        ConfigError: If the plan is not one of columns and tiles, or settings contradict each other.
    """
    try:
        details = PlanDetails.model_validate(shard.details)
    except ValidationError as e:
        raise ConfigError(f"shard {shard.name}: details: {first_problem(e)}. Make the plan again.") from e
    lattice = Lattice(shard.chip_size, config.pixels_per_degree)
    columns = [Column(*values) for values in details.columns]
    if [unit_id(lattice, details.year, column) for column in columns] != list(shard.units):
        raise ConfigError(
            f"shard {shard.name}: expected the columns of its units at {lattice.ppd} pixels per degree, got others. "
            "Make the plan again."
        )
    return WorldCoverSource(
        lattice,
        details.year,
        columns,
        [Tile(*values) for values in details.tiles],
        root=shard.archive,
        max_nodata=config.max_nodata,
        encode=config.encode,
        metadata=config.metadata,
        gsd=config.gsd,
    )


class WorldCoverSource:
    """The columns of one shard. Strips of tile blocks are read once, row by row, and stitched to chips."""

    columns = COLUMNS

    def __init__(
        self,
        lattice: Lattice,
        year: int,
        columns: Sequence[Column],
        tiles: Sequence[Tile],
        *,
        root: str,
        max_nodata: float,
        encode: Literal["whole", "quarters"] = "whole",
        metadata: str = "zeros",
        gsd: str = "as_trained",
    ) -> None:
        """Describe the shard; nothing is read.

        Args:
            lattice: The lattice of chips.
            year: Year of the composite.
            columns: Columns of equal rows.
            tiles: The tiles that exist.
            root: Root of the archive.
            max_nodata: Maximum fraction of nodata in a row's pixels.
            encode: `whole`: a chip is one row of the file. `quarters`: it is four.
            metadata: Date and place that the model is given.
            gsd: Pixel size that the model is given.

        Raises:
            ConfigError: If the columns have different rows, or chips are not multiples of the model's patch.
        """
        layout = {"chip_size": lattice.chip, "pixels_per_degree": lattice.ppd, "encode": encode}
        self.info = SourceInfo(
            dataset=ARCHIVE.name,
            partition=str(year),
            sensor=ARCHIVE.sensor,
            recipe=ARCHIVE.recipe,
            lattice=chip_lattice(layout),
            metadata=metadata,
            gsd=gsd,
            native_gsd=METRES_PER_DEGREE / lattice.ppd,
            max_nodata=max_nodata,
            max_cloud=None,
        )
        rows = {(c.row, c.rows) for c in columns}
        if len(rows) != 1:
            raise ConfigError(f"shard: expected columns of the same rows, got {len(rows)} kinds. Make the plan again.")
        self.lattice, self.year, self.encode, self.max_nodata = lattice, year, encode, max_nodata
        self.columns_of_shard = sorted(columns)
        self.first_row, self.rows = rows.pop()
        self.tiles = {t.name: t for t in tiles}
        self.root = root
        self._nodata_reasons = {
            c: "more nodata than max_nodata" if self._tiles_of(c) else "no tile: open sea"
            for c in self.columns_of_shard
        }
        first, last = self.columns_of_shard[0], self.columns_of_shard[-1]
        self.x_range = (lattice.x(first.col), lattice.x(last.col) + lattice.chip)
        self._rasters = gdal.OpenRasters(OPEN_TILES)
        self._copies = LocalCopies()

    @property
    def rows_per_chip(self) -> int:
        """Rows of the file that a chip gives: one, or four quarters."""
        return 4 if self.encode == "quarters" else 1

    def units(self) -> list[Unit]:
        """Return one unit per column; its ETag is the digest of its tiles' ETags."""
        units = []
        folder = storage.join(self.root, str(self.year))
        for c in self.columns_of_shard:
            tiles = self._tiles_of(c)
            etag = digest([[t.name, t.size, t.etag] for t in tiles])[:16] if tiles else ""
            units.append(Unit(unit_id(self.lattice, self.year, c), c.rows * self.rows_per_chip, folder, etag))
        return units

    def _tiles_of(self, column: Column) -> list[Tile]:
        return [self.tiles[n] for n in touched_tiles(self.lattice, [column]) if n in self.tiles]

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the address of every tile with its size, and its ETag where the store has one."""
        return {t.uri: {"size": t.size, **({"etag": t.etag} if t.etag else {})} for t in self.tiles.values()}

    def check(self) -> None:
        """Open tiles until one fits.

        Raises:
            ConfigError: None does, and `pixels_per_degree` is the reason, or access is denied to all. Or GDAL or PROJ
                cannot be used.
        """
        check_gdal()
        error, denied = "", []
        for tile in self.tiles.values():
            try:
                self._read(tile, lambda file: None)
                return
            except AccessError as e:
                denied.append(e)
            except SourceError as e:
                error = error or (str(e) if "pixels_per_degree" in str(e) else "")
        if error:
            raise ConfigError(error)
        if denied and len(denied) == len(self.tiles):
            message = str(denied[0]).rstrip(".")
            raise ConfigError(f"{message}. No tile of this shard can be read: set credentials, or read a copy.")

    # ------------------------------------------------------------------------------------------- reading

    def reads(self) -> Iterator[Read]:
        """Yield the reads: strips, north to south and west to east, cut where blocks end: none is read twice."""
        ppd, (x0, x1) = self.lattice.ppd, self.x_range
        y0, y1 = self.lattice.y(self.first_row), self.lattice.y(self.first_row + self.rows)
        height = self._strip_height()
        for north in range(y0 // ppd, (y1 - 1) // ppd + 1):
            wests = range(x0 // ppd, (x1 - 1) // ppd + 1)
            tiles = [(w, t) for w in wests if (t := self.tiles.get(tile_name(w - 180, 89 - north)))]
            if not tiles:
                continue
            top, bottom = max(y0, north * ppd), min(y1, (north + 1) * ppd)
            cuts = [top, *range(north * ppd + ((top - north * ppd) // height + 1) * height, bottom, height), bottom]
            for a, b in itertools.pairwise(cuts):
                for w, tile in tiles:
                    strip = TileStrip(tile, a, b, max(x0, w * ppd), min(x1, (w + 1) * ppd))
                    nbytes = BAND_COUNT * 2 * (b - a) * (strip.x1 - strip.x0)
                    yield Read(nbytes, partial(self._load, strip), strip)

    def _strip_height(self) -> int:
        """Return the rows of a read, from the blocks of the first tile that opens."""
        for tile in self.tiles.values():
            try:
                return strip_rows(self._read(tile, lambda file: int(file.block_shapes[0][0])))
            except SourceError:
                continue
        return MIN_STRIP_ROWS

    def _load(self, strip: TileStrip) -> NDArray[np.uint16]:
        """Return pixels [4, rows, cols] of a strip."""
        tile, ppd = strip.tile, self.lattice.ppd
        left, north = tile.corner
        window = Window(
            strip.x0 - (left + 180) * ppd, strip.y0 - (90 - north) * ppd, strip.x1 - strip.x0, strip.y1 - strip.y0
        )
        return self._read(tile, lambda file: read_pixels(file, window=window))

    def _read(self, tile: Tile, read: Callable[[rasterio.DatasetReader], T]) -> T:
        """Return what `read` reads from the thread's own open file of a tile, checked when it is opened."""

        def open_tile() -> rasterio.DatasetReader:
            self._raise_if_changed(tile)
            file = open_raster(tile.uri, storage.Stat(tile.size, tile.etag))
            try:
                self._check_tile(tile, file)
            except SourceError:
                file.close()
                raise
            return file

        def error_of(error: RasterioError) -> SourceError:
            self._raise_if_changed(tile)
            version = storage.Stat(tile.size, tile.etag)
            return fault_of_file(tile.uri, version, error, "not a readable GeoTIFF", self._copies, read)

        with gdal.environment(self.root):
            return read_with_retry(
                tile.uri,
                lambda: read(self._rasters.get(tile.uri, open_tile)),
                partial(self._rasters.close, tile.uri),
                error_of,
            )

    def _raise_if_changed(self, tile: Tile) -> None:
        """Raise SourceError unless the tile exists and is the one that was planned; TransientError."""
        stat = confirmed_stat(tile.uri, storage.Stat(tile.size, tile.etag))
        if stat is None:
            raise SourceError(
                f"{tile.uri}: removed since the archive was listed. Delete the plan to list the archive again."
            )
        if (stat.size, stat.etag) != (tile.size, tile.etag):
            raise SourceError(
                f"{tile.uri}: changed since the archive was listed. Delete the plan to list the archive again."
            )
        if stat.size == 0:
            raise SourceError(f"{tile.uri}: empty, 0 bytes")

    def _check_tile(self, tile: Tile, file: rasterio.DatasetReader) -> None:
        """Raise SourceError unless the file is the tile of its name."""
        ppd, (west, north) = self.lattice.ppd, tile.corner
        if file.count != BAND_COUNT:
            raise SourceError(f"{tile.uri}: expected the {BAND_COUNT} bands R G B NIR, got {file.count} bands.")
        if set(file.dtypes) != {"uint16"}:
            raise SourceError(f"{tile.uri}: expected pixels of uint16, got {'/'.join(sorted(set(file.dtypes)))}.")
        check_crs(tile.uri, file)
        check_transform(tile.uri, file)
        if horizontal(file.crs).to_epsg() != 4326:
            raise SourceError(f"{tile.uri}: expected the CRS EPSG:4326, got {file.crs}.")
        if file.shape != (ppd, ppd):
            raise SourceError(
                f"{tile.uri}: expected {ppd} x {ppd} px, got {file.width} x {file.height}. "
                f"Check pixels_per_degree, which is {ppd}."
            )
        t = file.transform
        offset_px = ppd * max(
            abs(t.c - west), abs(t.f - north), abs(t.a * ppd - 1), abs(t.e * ppd + 1), abs(t.b), abs(t.d)
        )
        if offset_px > MAX_OFFSET_PX:
            raise SourceError(
                f"{tile.uri}: expected a tile on the 1/{ppd} degree lattice, got one that is off by up to "
                f"{offset_px:.2f} px (corner at {t.c:.6f}, {t.f:.6f})."
            )

    # ---------------------------------------------------------------------------------------- stitching

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped]:
        """Yield the chips, row by row southwards and west to east within a row."""
        chip, (x0, x1) = self.lattice.chip, self.x_range
        strips: deque[Loaded] = deque()  # that reach into the current row or below it
        ahead = next(loaded, None)
        for row in range(self.first_row, self.first_row + self.rows):
            top, bottom = self.lattice.y(row), self.lattice.y(row + 1)
            while ahead is not None and ahead.read.key.y0 < bottom:
                strips.append(ahead)
                ahead = next(loaded, None)
            if strips:
                canvas = np.zeros((BAND_COUNT, chip, x1 - x0), np.uint16)
                yield from self._cut(row, canvas, self._stitch(canvas, strips, top, bottom))
            else:
                for column in self.columns_of_shard:
                    reason = self._nodata_reasons[column]
                    yield Dropped(unit_id(self.lattice, self.year, column), "nodata", self.rows_per_chip, reason)
            strips = deque(piece for piece in strips if piece.read.key.y1 > bottom)
        if ahead is not None:
            raise AssertionError("strips left over")

    def _stitch(
        self, canvas: NDArray[np.uint16], strips: Iterable[Loaded], top: int, bottom: int
    ) -> list[tuple[TileStrip, str]]:
        """Fill the canvas of rows [top, bottom) from strips. Return the strips that failed, with their errors."""
        failed: list[tuple[TileStrip, str]] = []
        x0 = self.x_range[0]
        for piece in strips:
            s: TileStrip = piece.read.key
            if piece.error is not None:
                failed.append((s, str(piece.error)))
                continue
            a, b = max(s.y0, top), min(s.y1, bottom)
            canvas[:, a - top : b - top, s.x0 - x0 : s.x1 - x0] = piece.value[:, a - s.y0 : b - s.y0]
        return failed

    def _cut(
        self, row: int, canvas: NDArray[np.uint16], failed: list[tuple[TileStrip, str]]
    ) -> Iterator[Chip | Dropped]:
        """Yield the chips of one lattice row from its canvas [4, chip, width]."""
        valid = valid_pixels(canvas)
        side = self.lattice.chip // (2 if self.encode == "quarters" else 1)
        x0, top = self.x_range[0], self.lattice.y(row)
        for column in self.columns_of_shard:
            unit = unit_id(self.lattice, self.year, column)
            west = self.lattice.x(column.col)
            for q, (dy, dx) in enumerate(itertools.product(range(0, self.lattice.chip, side), repeat=2)):
                x, y = west + dx, top + dy
                error = next(
                    (e for s, e in failed if s.x0 < x + side and s.x1 > x and s.y0 < y + side and s.y1 > y), ""
                )
                if error:
                    yield Dropped(unit, "failed", 1, error)
                    continue
                window = (slice(y - top, y - top + side), slice(x - x0, x - x0 + side))
                count = int(np.count_nonzero(valid[window]))
                nodata = (side**2 - count) / side**2
                if count == 0 or nodata > self.max_nodata:
                    yield Dropped(unit, "nodata", 1, self._nodata_reasons[column])
                    continue
                tiles = self._contributors(x, y, side, valid[window])
                name = chip_id(self.lattice, self.year, west, top)
                lon, lat = self.lattice.lon, self.lattice.lat
                yield Chip(
                    unit_id=unit,
                    chip_id=f"{name}:q{q}" if self.encode == "quarters" else name,
                    pixels=canvas[(slice(None), *window)],
                    footprint=shapely.box(lon(x), lat(y + side), lon(x + side), lat(y)),
                    center=((lon(x) + lon(x + side)) / 2, (lat(y) + lat(y + side)) / 2),
                    crs="EPSG:4326",
                    x0=lon(x),
                    y0=lat(y),
                    pixel_size=1 / self.lattice.ppd,
                    col=column.col,
                    row=row,
                    datetime=datetime(self.year, 6, 1, tzinfo=UTC),
                    item_id=Path(tiles[0].uri).stem,
                    source=tiles[0].uri,
                    sources=tuple(t.uri for t in sorted(tiles, key=lambda t: (-t.corner[1], t.corner[0]))),
                    nodata_fraction=nodata,
                    extra={"year": self.year},
                )

    def _contributors(self, x: int, y: int, side: int, valid: NDArray[np.bool_]) -> list[Tile]:
        """Return the tiles that gave valid pixels to a chip, the one that gave most first (ties: the north-western)."""
        ppd = self.lattice.ppd
        counts = []
        for north in range(y // ppd, (y + side - 1) // ppd + 1):
            for west in range(x // ppd, (x + side - 1) // ppd + 1):
                rows = slice(max(0, north * ppd - y), min(side, (north + 1) * ppd - y))
                cols = slice(max(0, west * ppd - x), min(side, (west + 1) * ppd - x))
                if count := int(np.count_nonzero(valid[rows, cols])):
                    counts.append((count, self.tiles[tile_name(west - 180, 89 - north)]))
        return [tile for _, tile in sorted(counts, key=lambda entry: -entry[0])]
