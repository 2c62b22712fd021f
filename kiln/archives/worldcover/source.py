"""ESA WorldCover's Sentinel-2 composites: tiles of one degree, stitched to columns of the world lattice.

Archive layout: `{root}/{year}/{N37}/ESA_WorldCover_10m_{version}_{N37W122}_S2RGBNIR.tif`, named after the tile's
south-west corner; uint16 R G B NIR, EPSG:4326, nodata 0. A tile that does not exist is open sea: nodata.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import rasterio
import shapely
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kiln.archives.worldcover import ARCHIVE
from kiln.archives.worldcover.config import Config
from kiln.archives.worldcover.lattice import Column, Lattice, chip_id, unit_id
from kiln.archives.worldcover.layout import chip_lattice
from kiln.errors import ConfigError, SourceError
from kiln.formats.fingerprint import digest
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Read, SourceInfo, Unit
from kiln.io import gdal, storage

VERSIONS = {2020: "2020_v100", 2021: "2021_v200"}
BANDS = 4
STRIP = 256  # least rows of a read, so that an untiled file is not read line by line
OPEN_TILES = 4  # datasets a reading thread keeps open


@dataclass(frozen=True)
class Tile:
    """A tile that exists, as the plan recorded it."""

    name: str
    uri: str
    size: int
    etag: str = ""

    @property
    def corner(self) -> tuple[int, int]:
        """West and north edges, degrees."""
        west, south = tile_corner(self.name)
        return west, south + 1


def tile_name(west: int, south: int) -> str:
    """`N37W122` of a south-west corner in degrees."""
    return f"{'NS'[south < 0]}{abs(south):02d}{'EW'[west < 0]}{abs(west):03d}"


def tile_corner(name: str) -> tuple[int, int]:
    """South-west corner (west, south) in degrees of a tile's name."""
    south, west = int(name[1:3]), int(name[4:7])
    return (-west if name[3] == "W" else west), (-south if name[0] == "S" else south)


def tile_uri(root: str, year: int, name: str) -> str:
    """Where the archive keeps a tile. Raises ConfigError for a year that it lacks."""
    if year not in VERSIONS:
        raise ConfigError(f"worldcover has no composite of {year}: the archive holds {', '.join(map(str, VERSIONS))}")
    return storage.join(root, str(year), name[:3], f"ESA_WorldCover_10m_{VERSIONS[year]}_{name}_S2RGBNIR.tif")


def touched_tiles(lattice: Lattice, columns: Sequence[Column]) -> list[str]:
    """Names of the tiles that the columns' chips touch, north-west first, whether they exist or not."""
    degrees: set[tuple[int, int]] = set()
    for c in columns:
        x, y = lattice.x(c.col), lattice.y(c.row)
        wests = range(x // lattice.ppd, (x + lattice.chip - 1) // lattice.ppd + 1)
        norths = range(y // lattice.ppd, (y + c.rows * lattice.chip - 1) // lattice.ppd + 1)
        degrees.update(itertools.product(norths, wests))
    return [tile_name(w - 180, 89 - n) for n, w in sorted(degrees)]


def find_tiles(root: str, year: int, names: Sequence[str]) -> list[Tile]:
    """Those of the named tiles that exist: one listing of a bucket or folder, one question each over http.

    Raises ConfigError for a year that the archive lacks, or a root where it is not.
    """
    uris = {tile_uri(root, year, n): n for n in names}
    folder = storage.join(root, str(year))
    if storage.is_http(root):
        with ThreadPoolExecutor(16) as pool:
            found = dict(zip(uris, pool.map(storage.stat, uris), strict=True))
    else:
        try:
            found = storage.listing(folder)
        except SourceError as e:
            raise ConfigError(f"no WorldCover archive for {year}: {e}") from e
        if not found:
            raise ConfigError(f"{folder}: nothing there; is `archive` the folder that holds the years?")
    return [Tile(n, u, s.size, s.etag) for u, n in uris.items() if (s := found.get(u))]


@dataclass(frozen=True)
class Strip:
    """A window of one tile, in world pixels."""

    tile: Tile
    y0: int
    y1: int
    x0: int
    x1: int


METRES_PER_DEGREE = 111_195  # of latitude, on a sphere of 6371 km


def open_source(shard: ShardPlan, config: Config) -> "WorldCoverSource":
    """Return the source of a shard's columns. Raises ConfigError for a plan that does not fit the config."""
    try:
        columns = [Column(*values) for values in shard.details["columns"]]
        tiles = [Tile(*values) for values in shard.details["tiles"]]
        year = int(shard.details["year"])
    except (KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"shard {shard.name}: expected columns, tiles and year ({e}). Make the plan again.") from e
    return WorldCoverSource(
        Lattice(shard.chip_size, config.pixels_per_degree),
        year,
        columns,
        tiles,
        root=shard.archive,
        max_nodata=config.max_nodata,
        encode=config.encode,
        metadata=config.metadata,
        gsd=config.gsd,
    )


class WorldCoverSource:
    """The columns of one shard. Strips of tile blocks are read once, row by row, and stitched to chips."""

    columns = [pa.field("year", pa.int16())]  # noqa: RUF012 (never changed)

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
            raise ConfigError("a shard's columns must share their rows")
        self.lattice, self.year, self.encode, self.max_nodata = lattice, year, encode, max_nodata
        self.units_of = sorted(columns)
        self.row0, self.rows = rows.pop()
        self.tiles = {t.name: t for t in tiles}
        self.root = root
        self._why_nodata = {
            c: "more nodata than max_nodata" if self._tiles_of(c) else "no tile: open sea" for c in self.units_of
        }
        self.span = (lattice.x(self.units_of[0].col), lattice.x(self.units_of[-1].col) + lattice.chip)
        self._handles = gdal.OpenRasters(OPEN_TILES)
        self._check_whole = cache(storage.check_readable)

    @property
    def per_chip(self) -> int:
        """Rows a chip gives: one, or four quarters."""
        return 4 if self.encode == "quarters" else 1

    def units(self) -> list[Unit]:
        """One per column; its ETag is the digest of those of its tiles."""
        made = []
        for c in self.units_of:
            tiles = self._tiles_of(c)
            etag = digest([[t.name, t.size, t.etag] for t in tiles])[:16] if tiles else ""
            source = storage.join(self.root, str(self.year))
            made.append(Unit(unit_id(self.lattice, self.year, c), c.rows * self.per_chip, source, etag))
        return made

    def _tiles_of(self, column: Column) -> list[Tile]:
        return [self.tiles[n] for n in touched_tiles(self.lattice, [column]) if n in self.tiles]

    def provenance(self) -> dict[str, dict[str, Any]]:
        """URI of every tile with its size, and its ETag where the store has one."""
        return {t.uri: {"size": t.size, **({"etag": t.etag} if t.etag else {})} for t in self.tiles.values()}

    def check(self) -> None:
        """Open tiles until one fits: if none does, and their size is why, `pixels_per_degree` is wrong."""
        wrong = ""
        for tile in self.tiles.values():
            try:
                with gdal.environment(self.root):
                    self._open(tile)
                return
            except SourceError as e:
                wrong = wrong or (str(e) if "pixels per degree" in str(e) else "")
        if wrong:
            raise ConfigError(wrong)

    # ------------------------------------------------------------------------------------------- reading

    def reads(self) -> Iterator[Read]:
        """Strips, north to south and west to east, cut where the tiles' blocks end: no block is read twice."""
        ppd, (x0, x1) = self.lattice.ppd, self.span
        y0, y1 = self.lattice.y(self.row0), self.lattice.y(self.row0 + self.rows)
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
                    strip = Strip(tile, a, b, max(x0, w * ppd), min(x1, (w + 1) * ppd))
                    nbytes = BANDS * 2 * (b - a) * (strip.x1 - strip.x0)
                    yield Read(nbytes, lambda s=strip: self._load(s), strip)

    def _strip_height(self) -> int:
        """Rows of a read: the block height of the first tile that opens, or a multiple that is not tiny."""
        for tile in self.tiles.values():
            try:
                with gdal.environment(self.root):
                    block = self._open(tile).block_shapes[0][0]
            except SourceError:
                continue
            return block * max(1, STRIP // block)
        return STRIP

    def _load(self, strip: Strip) -> np.ndarray:
        """Pixels [4, rows, cols] of a strip; one more try after a remote failure, since GDAL hides its kind."""
        left, north = strip.tile.corner
        ppd = self.lattice.ppd
        window = Window(
            strip.x0 - (left + 180) * ppd, strip.y0 - (90 - north) * ppd, strip.x1 - strip.x0, strip.y1 - strip.y0
        )
        for last in (False, True):
            with gdal.environment(self.root):
                dataset = self._open(strip.tile)
                try:
                    return dataset.read(window=window)
                except RasterioError as e:
                    self._handles.close(strip.tile.uri)
                    if last or not storage.is_remote(strip.tile.uri):
                        self._same(strip.tile)
                        if storage.is_remote(strip.tile.uri):
                            self._check_whole(strip.tile.uri, storage.Stat(strip.tile.size, strip.tile.etag))
                        gdal.raise_if_transient(e)
                        raise SourceError(f"{strip.tile.uri}: unreadable ({gdal.gdal_message(e)})") from e
        raise AssertionError

    def _open(self, tile: Tile) -> rasterio.DatasetReader:
        """The thread's own handle of a tile, checked when first opened."""

        def opened() -> rasterio.DatasetReader:
            self._same(tile)
            try:
                file = rasterio.open(tile.uri)
            except RasterioError as e:
                self._same(tile)
                gdal.raise_if_transient(e)
                raise SourceError(f"{tile.uri}: not a readable GeoTIFF ({gdal.gdal_message(e)})") from e
            try:
                self._fits(tile, file)
            except SourceError:
                file.close()
                raise
            return file

        return self._handles.get(tile.uri, opened)

    def _same(self, tile: Tile) -> None:
        """Raise unless the tile is there, reachable and the one that was planned."""
        now = storage.stat(tile.uri)
        if now is None:
            raise SourceError(f"{tile.uri}: gone since the plan was made; delete the plan to look again")
        if (now.size, now.etag) != (tile.size, tile.etag):
            raise SourceError(f"{tile.uri}: changed since the plan was made; delete the plan to look again")
        if now.size == 0:
            raise SourceError(f"{tile.uri}: empty, 0 bytes")

    def _fits(self, tile: Tile, dataset: rasterio.DatasetReader) -> None:
        """Raise SourceError unless the file is the tile that its name says."""
        ppd, (west, north) = self.lattice.ppd, tile.corner
        if dataset.count != BANDS:
            raise SourceError(f"{tile.uri}: {dataset.count} bands, want the {BANDS} of R G B NIR")
        if set(dataset.dtypes) != {"uint16"}:
            raise SourceError(f"{tile.uri}: pixels are {'/'.join(sorted(set(dataset.dtypes)))}, want uint16")
        if dataset.crs is None or dataset.crs.to_epsg() != 4326:
            raise SourceError(f"{tile.uri}: CRS is {dataset.crs}, want EPSG:4326")
        if dataset.shape != (ppd, ppd):
            raise SourceError(
                f"{tile.uri}: {dataset.width} x {dataset.height} px, want {ppd} x {ppd}; "
                f"pixels per degree is set to {ppd}"
            )
        t = dataset.transform
        off = max(abs(t.c - west), abs(t.f - north), abs(t.a * ppd - 1), abs(t.e * ppd + 1), abs(t.b), abs(t.d)) * ppd
        if off > 0.01:  # of a pixel, at its corner or over its degree
            raise SourceError(
                f"{tile.uri}: off the 1/{ppd} degree lattice by up to {off:.2f} px (corner at {t.c:.6f}, {t.f:.6f})"
            )

    # ---------------------------------------------------------------------------------------- stitching

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped]:
        """Chips, row by row southwards and west to east within a row."""
        chip, (x0, x1) = self.lattice.chip, self.span
        near: deque[Loaded] = deque()  # strips that reach into the row at hand or below it
        ahead = next(loaded, None)
        for row in range(self.row0, self.row0 + self.rows):
            top, bottom = self.lattice.y(row), self.lattice.y(row + 1)
            while ahead is not None and ahead.read.key.y0 < bottom:
                near.append(ahead)
                ahead = next(loaded, None)
            canvas = np.zeros((BANDS, chip, x1 - x0), np.uint16) if near else None
            broken: list[tuple[Strip, str]] = []
            for piece in near:
                s: Strip = piece.read.key
                if piece.error is not None:
                    broken.append((s, str(piece.error)))
                    continue
                a, b = max(s.y0, top), min(s.y1, bottom)
                canvas[:, a - top : b - top, s.x0 - x0 : s.x1 - x0] = piece.value[:, a - s.y0 : b - s.y0]
            near = deque(p for p in near if p.read.key.y1 > bottom)
            yield from self._cut(row, canvas, broken)
        if ahead is not None:
            raise AssertionError("strips left over")

    def _cut(self, row: int, canvas: np.ndarray | None, broken: list[tuple[Strip, str]]) -> Iterator[Chip | Dropped]:
        """The chips of one lattice row from its canvas [4, chip, width]."""
        valid = None if canvas is None else canvas.any(axis=0)  # nodata is 0 in all four bands
        side = self.lattice.chip // (2 if self.encode == "quarters" else 1)
        x0, top = self.span[0], self.lattice.y(row)
        for column in self.units_of:
            unit = unit_id(self.lattice, self.year, column)
            west = self.lattice.x(column.col)
            if valid is None:
                yield Dropped(unit, "nodata", self.per_chip, self._why_nodata[column])
                continue
            for q, (dy, dx) in enumerate(itertools.product(range(0, self.lattice.chip, side), repeat=2)):
                x, y = west + dx, top + dy
                why = next((m for s, m in broken if s.x0 < x + side and s.x1 > x and s.y0 < y + side and s.y1 > y), "")
                if why:
                    yield Dropped(unit, "failed", 1, why)
                    continue
                here = (slice(y - top, y - top + side), slice(x - x0, x - x0 + side))
                count = int(np.count_nonzero(valid[here]))
                nodata = (side**2 - count) / side**2
                if count == 0 or nodata > self.max_nodata:
                    yield Dropped(unit, "nodata", 1, self._why_nodata[column])
                    continue
                tiles = self._contributors(x, y, side, valid[here])
                name = chip_id(self.lattice, self.year, west, top)
                lon, lat = self.lattice.lon, self.lattice.lat
                yield Chip(
                    unit_id=unit,
                    chip_id=f"{name}:q{q}" if self.encode == "quarters" else name,
                    pixels=canvas[(slice(None), *here)],
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

    def _contributors(self, x: int, y: int, side: int, valid: np.ndarray) -> list[Tile]:
        """Tiles that gave valid pixels to a chip, the one that gave most first (ties: the north-western)."""
        ppd = self.lattice.ppd
        shares = []
        for north in range(y // ppd, (y + side - 1) // ppd + 1):
            for west in range(x // ppd, (x + side - 1) // ppd + 1):
                rows = slice(max(0, north * ppd - y), min(side, (north + 1) * ppd - y))
                cols = slice(max(0, west * ppd - x), min(side, (west + 1) * ppd - x))
                if count := int(np.count_nonzero(valid[rows, cols])):
                    shares.append((count, self.tiles[tile_name(west - 180, 89 - north)]))
        return [tile for _, tile in sorted(shares, key=lambda s: -s[0])]
