"""NAIP: scenes of four uint8 bands R G B NIR in UTM, known by the keys of their bucket, cut into chips."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
import shapely
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kiln.archives.naip import ARCHIVE
from kiln.archives.naip.config import Config
from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.archives.naip.layout import Edge, Lattice, chip_layout
from kiln.archives.naip.scene import Place, Scene, Strip, Strips, degrees, on_grid, opened, own_lattice
from kiln.errors import AccessError, ConfigError, SourceError, TransientError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, SourceInfo, Unit
from kiln.io import gdal, storage

STATS = 16  # scenes asked for at a time
OPEN_SCENES = 2  # that a reading thread keeps open: one ends where the next begins
MAKERS = 2  # threads that make rows of chips from strips, which on the common lattice takes a while
DISAGREE = 0.2  # share by which a file's resolution may differ from its key's before it is noted
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # of a chip, in chips from its first pixel: NW, SW, SE, NE


def open_source(shard: ShardPlan, config: Config) -> "NaipSource":
    """Return the source of a shard's scenes. Raises ConfigError for a plan or config that does not fit."""
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

    `lattice`: `scene` cuts from each scene's top left; `edge` `drop` leaves out what is less than a chip at the right
    and bottom, `flush` adds a last column and row that end with the scene. `utm` cuts every cell that a scene touches
    of its zone's grid of `lattice_gsd` metres (`utm_grid`), resampled where its pixels do not fall on that.
    Nodata is 0 in all four bands: band 4 is near infrared, also where it is tagged alpha.
    """

    columns = [  # noqa: RUF012 (never changed)
        pa.field("state", pa.dictionary(pa.int32(), pa.string())),
        pa.field("year", pa.int16()),
    ]

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
        self.chip, self.edge, self.max_nodata, self.archive = chip, edge, max_nodata, archive
        self.lattice_gsd = lattice_gsd if lattice == "utm" else None
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
                raise ConfigError(f"{key!r} is no key of a NAIP scene; make the plan again")
            self.scenes.append(scene)
        self._handles = gdal.OpenRasters(OPEN_SCENES)
        self._check_whole = cache(storage.check_readable)
        self._found: dict[str, storage.Stat] = {}
        self._refused: dict[str, AccessError] = {}

    def uri(self, scene: SceneKey) -> str:
        """Where a scene lies."""
        return storage.join(self.archive, scene.key)

    def units(self) -> list[Unit]:
        """One per scene, its chips estimated until it is opened."""
        return [
            Unit(s.unit_id, s.estimate(self.chip)[0], self.uri(s), self._etag(s), False, self._version(s))
            for s in self.scenes
        ]

    def _version(self, scene: SceneKey) -> str:
        """Place, size and ETag (local files: when they were written); empty if the store tells too little."""
        found, uri = self._found.get(scene.key), self.uri(scene)
        if not found or found.size <= 0 or (storage.is_remote(uri) and not found.etag):
            return ""
        return f"{uri} {found.size} {found.etag or found.modified}"

    def _etag(self, scene: SceneKey) -> str:
        found = self._found.get(scene.key)
        return found.etag if found else ""

    def provenance(self) -> dict[str, dict[str, Any]]:
        """URI of every scene that is there, with its size, and its ETag where the store has one."""
        return {
            self.uri(s): {"size": f.size, **({"etag": f.etag} if f.etag else {})}
            for s in self.scenes
            if (f := self._found.get(s.key))
        }

    def check(self) -> None:
        """Ask for every scene's size and ETag; scenes that are gone fail later, one by one.

        Raises ConfigError if all are refused, as a bucket does whose readers pay, to one who does not.
        """

        def ask(scene: SceneKey) -> storage.Stat | AccessError | None:
            try:
                return storage.stat(self.uri(scene))
            except AccessError as e:
                return e

        with ThreadPoolExecutor(STATS) as pool:
            for scene, found in zip(self.scenes, pool.map(ask, self.scenes), strict=True):
                if isinstance(found, AccessError):
                    self._refused[scene.key] = found
                elif found:
                    self._found[scene.key] = found
        if self._refused and not self._found:
            e = next(iter(self._refused.values()))
            raise ConfigError(f"{e}. If the bucket is requester-pays: AWS credentials are needed, and pay") from e

    # ------------------------------------------------------------------------------------------------------ reading

    def reads(self) -> Iterator[Read]:
        """Of every scene first its header, then strips of whole blocks as far down as chips go."""
        for key in self.scenes:
            yield Read(
                0,
                lambda k=key: self._open(k),
                key,
                key.unit_id,
                lambda scene, k=key: [
                    Read(s.nbytes(scene), lambda k=k, s=s: self._load(k, s), s, k.unit_id) for s in scene.strips()
                ],
            )

    def _open(self, key: SceneKey) -> Scene:
        """What the scene's header tells, its chips on whichever lattice. Raises SourceError if it is of no use."""
        uri = self.uri(key)
        found = self._found.get(key.key)
        if key.key in self._refused:
            raise self._refused[key.key]
        if found is None:
            raise SourceError(f"{uri}: does not exist")
        if found.size == 0:
            raise SourceError(f"{uri}: empty, 0 bytes")
        with gdal.environment(uri):
            scene = opened(uri, self._handle(key))
        if self.lattice_gsd:
            return on_grid(uri, scene, self.chip, self.lattice_gsd, key.zone)
        return own_lattice(scene, self.chip, self.edge)

    def _load(self, key: SceneKey, strip: Strip) -> np.ndarray:
        """Pixels [4, rows, width] of a strip; one more try after a remote failure, since GDAL hides its kind."""
        uri = self.uri(key)
        with gdal.environment(uri):
            for last in (not storage.is_remote(uri), True):
                file = self._handle(key)
                try:
                    return file.read(window=Window(0, strip.first, file.width, strip.last - strip.first))
                except RasterioError as e:
                    self._handles.close(uri)
                    if last:
                        raise self._why(key, e) from e
        raise AssertionError

    def _handle(self, key: SceneKey) -> rasterio.DatasetReader:
        """The thread's own handle of a scene."""
        uri = self.uri(key)
        try:
            return self._handles.get(uri, lambda: rasterio.open(uri))
        except RasterioError as e:
            raise self._why(key, e) from e

    def _why(self, key: SceneKey, e: RasterioError) -> SourceError:
        """The error to raise for what GDAL said; TransientError, raised here, for what another try may mend."""
        uri = self.uri(key)
        if storage.stat(uri) is None:
            return SourceError(f"{uri}: was removed while it was read")
        self._same(key)
        if storage.is_remote(uri):
            self._check_whole(uri, self._found[key.key])
        gdal.raise_if_transient(e)
        return SourceError(f"{uri}: not a readable GeoTIFF ({gdal.gdal_message(e)})")

    def _same(self, key: SceneKey) -> None:
        """Raise TransientError if it is not the scene that was looked at: another try will be of one version alone."""
        uri, found = self.uri(key), self._found[key.key]
        now = storage.stat(uri)
        if now is None or (now.size, now.etag, now.modified) != (found.size, found.etag, found.modified):
            raise TransientError(f"{uri}: was replaced while it was read; try again")

    # ------------------------------------------------------------------------------------------------------ cutting

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Chips, scene by scene, row by row."""
        with ThreadPoolExecutor(MAKERS, thread_name_prefix="rows") as pool:
            for first in loaded:
                key: SceneKey = first.read.key
                if first.error is not None:
                    yield Dropped(key.unit_id, "failed", key.estimate(self.chip)[0], str(first.error))
                else:
                    yield from self._cut(key, first.value, loaded, pool)

    def _cut(
        self, key: SceneKey, scene: Scene, loaded: Iterator[Loaded], pool: ThreadPoolExecutor
    ) -> Iterator[Chip | Dropped | Opened]:
        notes = []
        if abs(scene.gsd / (told := key.cm / 100) - 1) > DISAGREE:
            notes.append(f"pixels of {scene.gsd:g} m, where the key says {told:g} m")
        if key.when is None:
            notes.append("no date in the name")
        yield Opened(key.unit_id, len(scene.places), self._etag(key), (*notes, *scene.notes))
        if not scene.places:
            yield Dropped(key.unit_id, "nodata", 0, f"{scene.width} x {scene.height} px: smaller than a chip")
        under_way: deque[tuple[list[Place], Future[np.ndarray]]] = deque()
        ahead = MAKERS if scene.grid else 0  # rows of the scene's own pixels are there at once
        for places, row in self._rows(key, scene, loaded):
            under_way.append((places, pool.submit(row)))
            if len(under_way) > ahead:
                yield from self._row(key, scene, *under_way.popleft())
        while under_way:
            yield from self._row(key, scene, *under_way.popleft())

    def _rows(
        self, key: SceneKey, scene: Scene, loaded: Iterator[Loaded]
    ) -> Iterator[tuple[list[Place], Callable[[], np.ndarray]]]:
        """Rows of chips from the north, as soon as their strips are there, and what makes the pixels of each.

        Before the last one the scene is asked for again: what is of two versions never makes a whole scene.
        """
        pieces = itertools.islice(loaded, len(scene.strips()))  # and not one more, for which to wait
        strips, rows = Strips(pieces), scene.rows()
        for places, _, last, low in rows:
            near = strips.between(last, low)
            if places is rows[-1][0]:
                for _ in pieces:  # so that all is read
                    pass
                self._same(key)
            yield places, lambda y=places[0].y, near=near: scene.image(y, y + self.chip, near.read)

    def _row(
        self, key: SceneKey, scene: Scene, places: list[Place], row: Future[np.ndarray]
    ) -> Iterator[Chip | Dropped]:
        """The chips of one row of a scene."""
        try:
            pixels = row.result()
        except SourceError as e:
            yield Dropped(key.unit_id, "failed", len(places), str(e))
            return
        except RasterioError as e:
            gdal.raise_if_transient(e)
            why = f"{self.uri(key)}: cannot be brought to {scene.crs} ({gdal.gdal_message(e)})"
            yield Dropped(key.unit_id, "failed", len(places), why)
            return
        valid = pixels.any(axis=0)
        corners = np.array([(p.x, p.y) for p in places])[:, None] + self.chip * np.array(CORNERS)
        rings, centers = (degrees(p, scene.transform, scene.crs) for p in (corners, corners.mean(axis=1)))
        footprints = shapely.polygons(rings)
        for n, place in enumerate(places):
            here = slice(place.x, place.x + self.chip)
            count = int(np.count_nonzero(valid[:, here]))
            nodata = (self.chip**2 - count) / self.chip**2
            if count == 0 or nodata > self.max_nodata:
                yield Dropped(key.unit_id, "nodata", 1, "more nodata than max_nodata")
                continue
            yield Chip(
                unit_id=key.unit_id,
                chip_id=self._chip_id(key, scene, place),
                pixels=pixels[:, :, here],
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

    @staticmethod
    def _chip_id(key: SceneKey, scene: Scene, place: Place) -> str:
        """`naip:nd:2019:m_4709963_se_14_1_20190904:0:7`; on the common lattice the cell first."""
        if scene.grid is None:
            return f"{key.unit_id}:{place.col}:{place.row}"
        return f"naip:{scene.grid.name}:{place.col}:{place.row}:{key.unit_id.removeprefix('naip:')}"
