"""The source of NAIP: scenes of four uint8 bands R G B NIR in UTM, cut into chips."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kiln.archives.failed_read import LocalCopies, confirmed_stat, fault_of_file
from kiln.archives.naip import ARCHIVE
from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.columns import COLUMNS
from kiln.archives.naip.config import Config
from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.archives.naip.layout import Edge, Lattice, chip_layout
from kiln.archives.naip.scene import (
    Place,
    Scene,
    SceneStrip,
    StripQueue,
    cut_on_grid,
    cut_own_lattice,
    pixels_to_degrees,
    read_header,
)
from kiln.archives.raster_reading import (
    open_raster,
    read_pixels,
    read_with_retry,
    sidecar_versions,
    valid_pixels,
)
from kiln.errors import AccessError, ConfigError, SourceError, TransientError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, SourceInfo, Unit
from kiln.io import gdal, storage
from kiln.io.gdal_variables import check_gdal

REQUEST_THREADS = 16
OPEN_SCENES = 2  # of a reading thread: one ends where the next begins
RESAMPLE_THREADS = 2  # make rows of chips from strips, which on the common lattice takes time
GSD_TOLERANCE = 0.2  # relative difference of a file's resolution and its key's that gets no note
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # of a chip, in chips from its first pixel: NW, SW, SE, NE
T = TypeVar("T")


def open_source(shard: ShardPlan, config: Config) -> "NaipSource":
    """Return the source of a shard's scenes.

    Args:
        shard: A shard of the archive's plan.
        config: The archive's section of the config.

    Returns:
        The source; nothing is read before its `check`.

    Raises:
        ConfigError: If a unit of the plan is no key of a scene, or settings contradict each other.
    """
    return NaipSource(
        shard.units,
        archive=shard.archive,
        chip=shard.chip_size,
        max_nodata=config.max_nodata,
        edge=config.edge,
        lattice=config.lattice,
        lattice_gsd=config.lattice_gsd,
        partition=shard.partition,
        metadata=config.metadata,
        gsd=config.gsd,
    )


class NaipSource:
    """The scenes of one shard, each cut into chips.

    Nodata is 0 in all four bands: band 4 is near infrared, also where it is tagged alpha.
    """

    columns = COLUMNS

    def __init__(
        self,
        keys: Sequence[str],
        *,
        archive: str,
        chip: int,
        max_nodata: float,
        edge: Edge = "drop",
        lattice: Lattice = "scene",
        lattice_gsd: float = 1.0,
        partition: str = "",
        metadata: str = "as_trained",
        gsd: str = "as_trained",
    ) -> None:
        """Describe the shard; nothing is read.

        Args:
            keys: Keys of the scenes.
            archive: Root of the keys.
            chip: Side of a chip in pixels.
            max_nodata: Maximum fraction of nodata in a chip.
            edge: `drop` leaves out less than a chip at the right and bottom of a scene, `align` adds chips that end
                with the scene; for the lattice `scene` only.
            lattice: `scene` cuts from each scene's top left; `utm` cuts every cell that a scene touches of its zone's
                grid, resampled where its pixels do not fall on it.
            lattice_gsd: Metres of the grid's pixels.
            partition: Merge partition.
            metadata: Date and place that the model is given.
            gsd: Pixel size that the model is given.

        Raises:
            ConfigError: If a key is no scene's, or settings contradict each other.
        """
        self.chip, self.edge, self.max_nodata, self.archive = chip, edge, max_nodata, archive
        self.lattice_gsd = lattice_gsd if lattice == "utm" else None
        self._chips = ChipCounts(chip, lattice, lattice_gsd, edge)
        self.info = SourceInfo(
            dataset=ARCHIVE.name,
            partition=partition,
            sensor=ARCHIVE.sensor,
            recipe=ARCHIVE.recipe,
            lattice=chip_layout(chip, lattice, lattice_gsd, edge),
            metadata=metadata,
            gsd=gsd,
            native_gsd=self.lattice_gsd,
            max_nodata=max_nodata,
            max_cloud=None,
        )
        self.scenes = []
        for key in keys:
            scene = parse_key(key)
            if scene is None:
                raise ConfigError(f"shard: expected keys of NAIP scenes, got {key!r}. Make the plan again.")
            self.scenes.append(scene)
        self._rasters = gdal.OpenRasters(OPEN_SCENES)
        self._copies = LocalCopies()
        self._stats: dict[str, storage.Stat] = {}
        self._unavailable: dict[str, SourceError] = {}  # what the check was answered, by key

    def uri(self, scene: SceneKey) -> str:
        """Return a scene's address."""
        return storage.join(self.archive, scene.key)

    def units(self) -> list[Unit]:
        """Return one unit per scene; its number of chips is an estimate until it is opened."""
        return [
            Unit(s.unit_id, self._chips.about(s), self.uri(s), self._etag(s), False, self._version(s))
            for s in self.scenes
        ]

    def _version(self, scene: SceneKey) -> str:
        """Return address, size and ETag (local files: time of writing, and sidecars); empty without any of these."""
        stat, uri = self._stats.get(scene.key), self.uri(scene)
        if not stat or stat.size <= 0 or (storage.is_remote(uri) and not stat.etag):
            return ""
        return " ".join([f"{uri} {stat.size} {stat.etag or stat.modified}", *sidecar_versions(uri)])

    def _etag(self, scene: SceneKey) -> str:
        stat = self._stats.get(scene.key)
        return stat.etag if stat else ""

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the address of every scene that exists, with its size, and its ETag where the store has one."""
        return {
            self.uri(scene): {"size": stat.size, **({"etag": stat.etag} if stat.etag else {})}
            for scene in self.scenes
            if (stat := self._stats.get(scene.key))
        }

    def check(self) -> None:
        """Request every scene's size and ETag; missing scenes fail later, one by one.

        Raises:
            ConfigError: If the store denies access to all of them, or GDAL or PROJ cannot be used.
            TransientError: If it may answer later.
        """

        check_gdal()

        def request(scene: SceneKey) -> storage.Stat | SourceError | None:
            try:
                return storage.stat(self.uri(scene))
            except SourceError as e:
                return e

        with ThreadPoolExecutor(REQUEST_THREADS) as pool:
            for scene, answer in zip(self.scenes, pool.map(request, self.scenes), strict=True):
                if isinstance(answer, SourceError):
                    self._unavailable[scene.key] = answer
                elif answer:
                    self._stats[scene.key] = answer
        refused = [error for error in self._unavailable.values() if isinstance(error, AccessError)]
        if refused and not self._stats:
            e = refused[0]
            message = str(e).rstrip(".")
            raise ConfigError(f"{message}. Set AWS credentials: readers of a requester-pays bucket pay.") from e

    # ------------------------------------------------------------------------------------------------------ reading

    def reads(self) -> Iterator[Read]:
        """Yield the reads: of every scene first its header, then strips of complete blocks down to the last chips."""
        for key in self.scenes:
            yield Read(0, partial(self._open, key), key, key.unit_id, partial(self._strip_reads, key))

    def _strip_reads(self, key: SceneKey, scene: Scene) -> list[Read]:
        return [
            Read(scene.strip_bytes(strip), partial(self._load, key, strip), strip, key.unit_id)
            for strip in scene.strips()
        ]

    def _open(self, key: SceneKey) -> Scene:
        """Return a scene, cut into chips. Raises SourceError if nothing can be embedded from it."""
        uri = self.uri(key)
        stat = self._stats.get(key.key)
        if key.key in self._unavailable:
            raise self._unavailable[key.key]
        if stat is None:
            raise SourceError(f"{uri}: does not exist")
        if stat.size == 0:
            raise SourceError(f"{uri}: empty, 0 bytes")
        with gdal.environment(uri):
            lattice: Lattice = "utm" if self.lattice_gsd else "scene"
            header = self._read(key, lambda file: read_header(uri, file, lattice))
        if self.lattice_gsd:
            return cut_on_grid(uri, header, self.chip, self.lattice_gsd, key.zone)
        return cut_own_lattice(header, self.chip, self.edge)

    def _load(self, key: SceneKey, strip: SceneStrip) -> NDArray[np.uint8]:
        """Return pixels [4, rows, width] of a strip."""

        def pixels(file: rasterio.DatasetReader) -> NDArray[np.uint8]:
            rows = strip.last - strip.first
            return read_pixels(file, window=Window(0, strip.first, file.width, rows))

        with gdal.environment(self.uri(key)):
            return self._read(key, pixels)

    def _read(self, key: SceneKey, read: Callable[[rasterio.DatasetReader], T]) -> T:
        """Return what `read` reads from the thread's own open file of a scene, opened if it is not."""
        uri = self.uri(key)

        def error_of(error: RasterioError) -> SourceError:
            if confirmed_stat(uri, self._stats[key.key]) is None:
                return SourceError(f"{uri}: was removed while it was read")
            self._raise_if_replaced(key)
            return fault_of_file(uri, self._stats[key.key], error, "not a readable GeoTIFF", self._copies, read)

        def try_once() -> T:
            return read(self._rasters.get(uri, lambda: open_raster(uri, self._stats[key.key])))

        return read_with_retry(uri, try_once, partial(self._rasters.close, uri), error_of)

    def _raise_if_replaced(self, key: SceneKey) -> None:
        """Raise TransientError if the file is not the one of `check`: the retry reads one version alone."""
        uri, known = self.uri(key), self._stats[key.key]
        stat = storage.stat(uri)
        if stat is None or (stat.size, stat.etag, stat.modified) != (known.size, known.etag, known.modified):
            raise TransientError(f"{uri}: was replaced while it was read. Try again.")

    # ------------------------------------------------------------------------------------------------------ cutting

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Yield the chips, scene by scene, row by row."""
        with ThreadPoolExecutor(RESAMPLE_THREADS, thread_name_prefix="rows") as pool:
            for first in loaded:
                key: SceneKey = first.read.key
                if first.error is not None:
                    yield Dropped(key.unit_id, "failed", self._chips.about(key), str(first.error))
                else:
                    yield from self._cut(key, first.value, loaded, pool)

    def _cut(
        self, key: SceneKey, scene: Scene, loaded: Iterator[Loaded], pool: ThreadPoolExecutor
    ) -> Iterator[Chip | Dropped | Opened]:
        """Yield the chips of a scene, and its account."""
        header, notes = scene.header, []
        if abs(header.gsd / (key_gsd := key.cm / 100) - 1) > GSD_TOLERANCE:
            notes.append(f"pixels of {header.gsd:g} m, expected {key_gsd:g} m from the key")
        if key.when is None:
            notes.append("no date in the name")
        yield Opened(key.unit_id, len(scene.places), self._etag(key), (*notes, *scene.notes))
        if not scene.places:
            yield Dropped(key.unit_id, "nodata", 0, f"{header.width} x {header.height} px: smaller than a chip")
        pending: deque[tuple[list[Place], Future[NDArray[Any]]]] = deque()
        max_pending = RESAMPLE_THREADS if scene.grid_name else 0  # rows of the scene's own pixels take no time
        for places, make_row in self._rows(key, scene, loaded):
            pending.append((places, pool.submit(make_row)))
            if len(pending) > max_pending:
                yield from self._row_chips(key, scene, *pending.popleft())
        while pending:
            yield from self._row_chips(key, scene, *pending.popleft())

    def _rows(
        self, key: SceneKey, scene: Scene, loaded: Iterator[Loaded]
    ) -> Iterator[tuple[list[Place], Callable[[], NDArray[Any]]]]:
        """Yield rows of chips from the north, as soon as their strips are read, each with a function for its pixels.

        Before the last row the scene is requested again, so that no scene is completed from two versions of its file.
        """
        pieces = itertools.islice(loaded, len(scene.strips()))  # and no further one, which would have to be read
        strips, rows = StripQueue(pieces), scene.chip_rows()
        for row in rows:
            window = strips.window(row.first_needed, row.last)
            if row is rows[-1]:
                for _ in pieces:  # so that all strips are read
                    pass
                self._raise_if_replaced(key)
            y = row.places[0].y
            yield row.places, partial(scene.image, y, y + self.chip, window.read)

    def _row_chips(
        self, key: SceneKey, scene: Scene, places: list[Place], row: Future[NDArray[Any]]
    ) -> Iterator[Chip | Dropped]:
        """Yield the chips of one row of a scene."""
        try:
            pixels = row.result()
        except SourceError as e:
            yield Dropped(key.unit_id, "failed", len(places), str(e))
            return
        except RasterioError as e:
            reason = f"{self.uri(key)}: cannot be brought to {scene.crs} ({gdal.shorten(gdal.gdal_message(e))})"
            yield Dropped(key.unit_id, "failed", len(places), reason)
            return
        valid = valid_pixels(pixels)
        corners = np.array([(p.x, p.y) for p in places])[:, None] + self.chip * np.array(CORNERS)
        rings, centers = (pixels_to_degrees(p, scene.transform, scene.crs) for p in (corners, corners.mean(axis=1)))
        footprints = shapely.polygons(rings)
        for n, place in enumerate(places):
            cols = slice(place.x, place.x + self.chip)
            count = int(np.count_nonzero(valid[:, cols]))
            nodata = (self.chip**2 - count) / self.chip**2
            if count == 0 or nodata > self.max_nodata:
                yield Dropped(key.unit_id, "nodata", 1, "more nodata than max_nodata")
                continue
            yield Chip(
                unit_id=key.unit_id,
                chip_id=_chip_id(key, scene, place),
                pixels=pixels[:, :, cols],
                footprint=footprints[n],
                center=(float(centers[n, 0]), float(centers[n, 1])),
                crs=scene.crs,
                x0=place.x0,
                y0=place.y0,
                pixel_size=scene.pixel_size,
                col=place.col,
                row=place.row,
                datetime=key.when,
                item_id=key.stem,
                source=self.uri(key),
                sources=(self.uri(key),),
                nodata_fraction=nodata,
                extra={"state": key.state, "year": key.year},
            )


def _chip_id(key: SceneKey, scene: Scene, place: Place) -> str:
    """Return `naip:nd:2019:m_4709963_se_14_1_20190904:0:7`; on the common lattice the cell comes first."""
    if scene.grid_name is None:
        return f"{key.unit_id}:{place.col}:{place.row}"
    return f"naip:{scene.grid_name}:{place.col}:{place.row}:{key.unit_id.removeprefix('naip:')}"
