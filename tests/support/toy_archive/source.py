"""Cut the toy archive's tiles into chips."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, SourceInfo, Unit
from kiln.io import storage
from tests.support.toy_archive import ARCHIVE
from tests.support.toy_archive.columns import COLUMNS
from tests.support.toy_archive.config import Config

PIXEL_SIZE_M = 10.0
CRS = "EPSG:32614"
TO_DEGREES = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)


class Tile(NamedTuple):
    """The content of a tile: pixels [3, H, W], the north-west corner in metres, and the day."""

    pixels: NDArray[np.uint8]
    west: float
    north: float
    day: datetime


def open_source(shard: ShardPlan, config: Config) -> "ToySource":
    """Return the source of a shard's tiles."""
    return ToySource(shard, config)


def read_tile(uri: str) -> Tile:
    """Read a tile. Raise SourceError if the file is not a tile."""
    with storage.local_copy(uri) as path:
        try:
            with np.load(path, allow_pickle=False) as file:
                day = datetime.fromisoformat(str(file["day"])).replace(tzinfo=UTC)
                return Tile(file["pixels"], float(file["west"]), float(file["north"]), day)
        except (ValueError, KeyError, OSError) as e:
            raise SourceError(f"{uri}: expected a toy tile ({e}). Replace it.") from e


class ToySource:
    """The tiles of one shard, each cut into whole chips from its top left corner."""

    columns = COLUMNS

    def __init__(self, shard: ShardPlan, config: Config) -> None:
        self.uris = {}
        for unit in shard.units:
            _, year, name = unit.split(":")
            self.uris[unit] = storage.join(shard.archive, year, f"{name}.npz")
        self.chip_size = shard.chip_size
        self.stats: dict[str, storage.Stat] = {}
        self.info = SourceInfo(
            dataset=ARCHIVE.name,
            partition=shard.partition,
            sensor=ARCHIVE.sensor,
            recipe=ARCHIVE.recipe,
            lattice=ARCHIVE.lattice({"chip_size": shard.chip_size}),
            metadata=config.metadata,
            gsd=config.gsd,
            native_gsd=PIXEL_SIZE_M,
            max_nodata=config.max_nodata,
            max_cloud=None,
        )

    def units(self) -> list[Unit]:
        """Return one unit per tile. Its number of chips is an estimate until the tile is opened."""
        return [Unit(unit, 16, uri, self._etag(unit), False, self._version(unit)) for unit, uri in self.uris.items()]

    def _etag(self, unit: str) -> str:
        return self.stats[unit].etag if unit in self.stats else ""

    def _version(self, unit: str) -> str:
        stat = self.stats.get(unit)
        return f"{self.uris[unit]} {stat.size} {stat.etag or stat.modified}" if stat else ""

    def check(self) -> None:
        """Get the size and the ETag of every tile. Raise ConfigError if no tile exists."""
        self.stats = {unit: stat for unit, uri in self.uris.items() if (stat := storage.stat(uri))}
        if not self.stats:
            raise ConfigError(f"{next(iter(self.uris.values()))}: expected the shard's tiles, got none. Plan again.")

    def reads(self) -> Iterable[Read]:
        """Yield one read per tile."""
        for unit, uri in self.uris.items():
            size = self.stats[unit].size if unit in self.stats else 0
            yield Read(size, lambda uri=uri: read_tile(uri), unit, unit)  # type: ignore[misc]  # bound now

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Yield the chips of each tile, row by row."""
        for piece in loaded:
            unit = piece.read.unit_id
            if piece.error is not None:
                yield Dropped(unit, "failed", 16, str(piece.error))
                continue
            tile: Tile = piece.value
            rows, cols = (side // self.chip_size for side in tile.pixels.shape[1:])
            yield Opened(unit, rows * cols, self._etag(unit))
            for row in range(rows):
                for col in range(cols):
                    yield self._chip(unit, tile, row, col)

    def _chip(self, unit: str, tile: Tile, row: int, col: int) -> Chip | Dropped:
        size = self.chip_size
        pixels = tile.pixels[:, row * size : (row + 1) * size, col * size : (col + 1) * size]
        nodata = float((pixels == 0).all(axis=0).mean())
        if nodata > self.info.max_nodata:
            return Dropped(unit, "nodata", 1, "more nodata than max_nodata")
        side = size * PIXEL_SIZE_M
        west, north = tile.west + col * side, tile.north - row * side
        corners = [(west, north), (west, north - side), (west + side, north - side), (west + side, north)]
        return Chip(
            unit_id=unit,
            chip_id=f"{unit}:{row}:{col}",
            pixels=np.ascontiguousarray(pixels),
            footprint=shapely.Polygon([TO_DEGREES.transform(x, y) for x, y in corners]),
            center=TO_DEGREES.transform(west + side / 2, north - side / 2),
            crs=CRS,
            x0=west,
            y0=north,
            pixel_size=PIXEL_SIZE_M,
            col=col,
            row=row,
            datetime=tile.day,
            item_id=unit.rpartition(":")[2],
            source=self.uris[unit],
            sources=(self.uris[unit],),
            nodata_fraction=nodata,
            extra={"year": int(self.info.partition)},
        )

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the URI of every tile with its size and ETag."""
        return {
            self.uris[unit]: {"size": stat.size, **({"etag": stat.etag} if stat.etag else {})}
            for unit, stat in self.stats.items()
        }
