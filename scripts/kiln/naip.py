"""NAIP: scenes of four uint8 bands R G B NIR in UTM, known by the keys of their bucket, cut into chips.

`{state}/{year}/{60cm|100cm|...}/rgbir_cog/{block}/m_{quad}_{quarter}_{zone}_{res}[_{acquired}][_{released}].tif`. The
path's year is the partition, even where a scene was acquired in the next one; two whole state-years have no dates.
"""

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import rasterio
import shapely
from rasterio.errors import RasterioError
from rasterio.windows import Window

from scripts.kiln import raster, storage
from scripts.kiln.chips import Chip, Dropped, Loaded, Opened, Read, Unit
from scripts.kiln.errors import AccessError, ConfigError, SourceError, TransientError
from scripts.kiln.naip_layout import Edge, Lattice, layout
from scripts.kiln.naip_scene import Place, Scene, Strip, Strips, degrees, on_grid, opened, own_lattice
from scripts.kiln.sensors import NAIP

RECIPE = 1  # raised whenever the same scenes would give other vectors

BUCKET = "s3://naip-analytic"
STATS = 16  # scenes asked for at a time
OPEN_SCENES = 2  # that a reading thread keeps open: one ends where the next begins
MAKERS = 2  # threads that make rows of chips from strips, which on the common lattice takes a while
DISAGREE = 0.2  # share by which a file's resolution may differ from its key's before it is noted
KEY = re.compile(
    r"(?P<state>[a-z]{2})/(?P<year>\d{4})/(?P<cm>\d{2,3})cm/rgbir_cog/\d{5}/"
    r"(?P<stem>(?:m_)?(?P<quad>\d{7})_(?P<quarter>[ns][ew])_(?P<zone>\d{2})_(?P<res>1|060|030|h)"
    r"(?:_(?P<acquired>\d{8}))?(?:_(?P<released>\d{8}))?)\.tif",
    re.ASCII,
)
QUARTER = 1 / 16  # degrees of a quarter quadrangle's side
PAD = 300.0  # metres that a scene reaches over its quarter quadrangle
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # of a chip, in chips from its first pixel: NW, SW, SE, NE
METRES = 111_195  # of a degree of latitude, on a sphere of 6371 km


class SceneKey(NamedTuple):  # made much faster than a frozen dataclass, and a plan makes a million
    """A scene of the archive by its key."""

    key: str
    state: str
    year: int
    cm: int
    stem: str
    quad: str
    quarter: str
    zone: int
    acquired: str
    released: str

    @property
    def partition(self) -> str:
        """What it is merged with: `nd-2019`."""
        return f"{self.state}-{self.year}"

    @property
    def when(self) -> datetime | None:
        """Acquisition, midnight UTC; None if the name has no date."""
        return datetime.strptime(self.acquired, "%Y%m%d").replace(tzinfo=UTC) if self.acquired else None

    @property
    def unit_id(self) -> str:
        """`naip:nd:2019:m_4709963_se_14_1_20190904`: stems alone occur twice in the archive."""
        return f"naip:{self.state}:{self.year}:{self.stem}"

    @property
    def scene(self) -> str:
        """What several releases, or copies in several folders, share: the unit's id without its release."""
        return self.unit_id.removesuffix(f"_{self.released}") if self.released else self.unit_id

    @property
    def at_home(self) -> bool:
        """Whether it lies in the folder of its own block; one of the archive's does not."""
        return f"/{self.quad[:5]}/" in self.key

    @property
    def corner(self) -> tuple[float, float]:
        """West and north edge, degrees, of the quarter quadrangle.

        Quad `DDdddNN`: the NN-th of 8 x 8 eighths of the degree that begins at DD + 1 north, ddd + 1 west, row by row.
        """
        lon, n = int(self.quad[2:5]), int(self.quad[5:]) - 1
        west = -(lon + 1) + n % 8 / 8 + (QUARTER if self.quarter[1] == "e" else 0)
        return west, _north(self.quad[:2], n, self.quarter[0])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees, with the 300 m that a scene reaches over."""
        west, north = self.corner
        up = PAD / METRES
        side = up / math.cos(math.radians(north))
        return west - side, north - QUARTER - up, west + QUARTER + side, north + up

    def estimate(self, chip: int) -> tuple[int, int]:
        """Whole chips of `chip` pixels, and bytes of four uint8 bands, that a scene of this place should have."""
        return _estimate(self.quad[:2], self.quad[5:], self.quarter[0], self.cm, chip)


def _north(lat: str, n: int, half: str) -> float:
    """North edge, degrees, of the half `n` or `s` of the n-th eighth, from 0, of a degree that ends at `lat`."""
    return int(lat) + 1 - n // 8 / 8 - (QUARTER if half == "s" else 0)


@cache
def _estimate(lat: str, eighth: str, half: str, cm: int, chip: int) -> tuple[int, int]:
    """Of a scene of `cm` centimetres a pixel; the longitude does not matter, so that there are some thousand cases."""
    north = _north(lat, int(eighth) - 1, half)
    width = (QUARTER * METRES * math.cos(math.radians(north)) + 2 * PAD) * 100 / cm
    height = (QUARTER * METRES + 2 * PAD) * 100 / cm
    return int(width // chip) * int(height // chip), int(width * height * 4)


def parse_key(key: str) -> SceneKey | None:
    """The scene of a key; None if it is not spelled as a scene or its dates are no dates."""
    found = KEY.fullmatch(key)
    if not found:
        return None
    state, year, cm, stem, quad, quarter, zone, _, acquired, released = found.groups("")
    if not "01" <= quad[5:] <= "64" or quad[:2] > "89" or quad[2:5] > "179":
        return None
    if (acquired and not _is_date(acquired)) or (released and not _is_date(released)):
        return None
    return SceneKey(key, state, int(year), int(cm), stem, quad, quarter, int(zone), acquired, released)


_DATES: dict[str, bool] = {}


def _is_date(text: str) -> bool:
    """Whether eight digits are a day; the archive has some thousands of days, each asked of once."""
    if text not in _DATES:
        try:
            datetime.strptime(text, "%Y%m%d")
        except ValueError:
            _DATES[text] = False
        else:
            _DATES[text] = 1990 <= int(text[:4]) <= 2100
    return _DATES[text]


class NaipSource:
    """The scenes of one shard, each cut into chips.

    `lattice`: `scene` cuts from each scene's top left; `edge` `drop` leaves out what is less than a chip at the right
    and bottom, `flush` adds a last column and row that end with the scene. `utm` cuts every cell that a scene touches
    of its zone's grid of `lattice_gsd` metres (scripts/kiln/utm.py), resampled where its pixels do not fall on that.
    Nodata is 0 in all four bands: band 4 is near infrared, also where it is tagged alpha.
    """

    sensor = NAIP
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
    ) -> None:
        self.layout = layout(chip, lattice, lattice_gsd, edge)
        self.chip, self.edge, self.max_nodata, self.archive = chip, edge, max_nodata, archive
        self.lattice_gsd = lattice_gsd if lattice == "utm" else None
        self.scenes = []
        for key in keys:
            scene = parse_key(key)
            if scene is None:
                raise ConfigError(f"{key!r} is no key of a NAIP scene; make the plan again")
            self.scenes.append(scene)
        self._handles = raster.Handles(OPEN_SCENES)
        self._check_whole = cache(storage.check_whole)
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
        with raster.environment(uri):
            scene = opened(uri, self._handle(key))
        if self.lattice_gsd:
            return on_grid(uri, scene, self.chip, self.lattice_gsd, key.zone)
        return own_lattice(scene, self.chip, self.edge)

    def _load(self, key: SceneKey, strip: Strip) -> np.ndarray:
        """Pixels [4, rows, width] of a strip; one more try after a remote failure, since GDAL hides its kind."""
        uri = self.uri(key)
        with raster.environment(uri):
            for last in (not storage.is_remote(uri), True):
                file = self._handle(key)
                try:
                    return file.read(window=Window(0, strip.first, file.width, strip.last - strip.first))
                except RasterioError as e:
                    self._handles.forget(uri)
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
        return SourceError(f"{uri}: not a readable GeoTIFF ({raster.reason(e)})")

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
            why = f"{self.uri(key)}: cannot be brought to {scene.crs} ({raster.reason(e)})"
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
