"""NAIP: scenes of four uint8 bands R G B NIR in UTM, known by the keys of their bucket, cut into chips.

`{state}/{year}/{60cm|100cm|...}/rgbir_cog/{block}/m_{quad}_{quarter}_{zone}_{res}[_{acquired}][_{released}].tif`. The
path's year is the partition, even where a scene was acquired in the next one; two whole state-years have no dates.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj
import rasterio
import shapely
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from scripts.kiln import raster, storage, utm
from scripts.kiln.chips import Chip, Dropped, Loaded, Opened, Read, Unit
from scripts.kiln.errors import AccessError, ConfigError, SourceError
from scripts.kiln.naip_layout import Edge, Lattice, layout
from scripts.kiln.sensors import NAIP

RECIPE = 1  # raised whenever the same scenes would give other vectors

BUCKET = "s3://naip-analytic"
BANDS = 4
STATS = 16  # scenes asked for at a time
DISAGREE = 0.2  # share by which a file's resolution may differ from its key's before it is noted
KEY = re.compile(
    r"(?P<state>[a-z]{2})/(?P<year>\d{4})/(?P<cm>\d{2,3})cm/rgbir_cog/\d{5}/"
    r"(?P<stem>(?:m_)?(?P<quad>\d{7})_(?P<quarter>[ns][ew])_(?P<zone>\d{2})_(?P<res>1|060|030|h)"
    r"(?:_(?P<acquired>\d{8}))?(?:_(?P<released>\d{8}))?)\.tif",
    re.ASCII,
)
QUARTER = 1 / 16  # degrees of a quarter quadrangle's side
PAD = 300.0  # metres that a scene reaches over its quarter quadrangle
METRES = 111_195  # of a degree of latitude, on a sphere of 6371 km


@dataclass(frozen=True, slots=True)
class SceneKey:
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
        lat, lon, n = int(self.quad[:2]), int(self.quad[2:5]), int(self.quad[5:]) - 1
        north = lat + 1 - n // 8 / 8 - (QUARTER if self.quarter[0] == "s" else 0)
        west = -(lon + 1) + n % 8 / 8 + (QUARTER if self.quarter[1] == "e" else 0)
        return west, north

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees, with the 300 m that a scene reaches over."""
        west, north = self.corner
        up = PAD / METRES
        side = up / math.cos(math.radians(north))
        return west - side, north - QUARTER - up, west + QUARTER + side, north + up

    def estimate(self, chip: int) -> tuple[int, int]:
        """Whole chips of `chip` pixels, and bytes of four uint8 bands, that a scene of this place should have."""
        return _estimate(self.corner[1], self.cm, chip)


@cache
def _estimate(north: float, cm: int, chip: int) -> tuple[int, int]:
    """Of a scene whose quarter quadrangle begins at `north` degrees, `cm` centimetres a pixel."""
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


@dataclass(frozen=True)
class Scene:
    """A scene as it was read: pixels [4, rows, cols], where they lie, and the pixel size of its file.

    On the common lattice the pixels are whole cells of `grid`, and `cells` are those that the scene touches.
    """

    pixels: np.ndarray
    transform: Affine
    crs: str
    gsd: float
    grid: utm.Grid | None = None
    cells: Sequence[utm.Cell] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chip begins in a scene's pixels, its place in the lattice, and its name."""

    y: int
    x: int
    col: int
    row: int
    chip_id: str


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

    def reads(self) -> Iterator[Read]:
        """Whole scenes, one after the other."""
        for scene in self.scenes:
            found = self._found.get(scene.key)
            size = max(scene.estimate(self.chip)[1], found.size if found else 0)
            if self.lattice_gsd:  # for a while both are there: the file's pixels, and whole cells of the lattice
                side = math.sqrt(scene.estimate(self.chip)[1] / BANDS) * scene.cm / 100
                size += BANDS * int(side / self.lattice_gsd + 2 * self.chip) ** 2
            yield Read(size, lambda s=scene: self._load(s), scene, scene.unit_id)

    def _load(self, scene: SceneKey) -> Scene:
        """The scene's pixels, on the lattice; a remote one comes down once, in parallel ranges.

        Raises SourceError for a broken one.
        """
        uri = self.uri(scene)
        found = self._found.get(scene.key)
        if scene.key in self._refused:
            raise self._refused[scene.key]
        if found is None:
            raise SourceError(f"{uri}: does not exist")
        if found.size == 0:
            raise SourceError(f"{uri}: empty, 0 bytes")
        try:
            with raster.environment(uri):
                if storage.is_remote(uri):
                    with MemoryFile(storage.read_ranges(uri, found)) as memory, memory.open() as file:
                        read = _scene(uri, file)
                else:
                    with rasterio.open(uri) as file:
                        read = _scene(uri, file)
        except RasterioError as e:
            raise SourceError(f"{uri}: not a readable GeoTIFF ({raster.reason(e)})") from e
        return self._aligned(uri, scene, read) if self.lattice_gsd else read

    def _aligned(self, uri: str, key: SceneKey, scene: Scene) -> Scene:
        """The scene on the grid of its file's zone, of its key's where the file is not in UTM."""
        told = utm.zone_of(scene.crs)
        zone = told or key.zone
        if zone not in utm.ZONES:
            raise SourceError(f"{uri}: in UTM zone {zone}; NAD83 has {utm.ZONES[0]} to {utm.ZONES[-1]}")
        grid = utm.Grid(zone, self.chip, self.lattice_gsd)
        try:
            on = utm.align(scene.pixels, scene.transform, scene.crs, grid)
        except RasterioError as e:
            raise SourceError(f"{uri}: cannot be brought to {grid.crs} ({raster.reason(e)})") from e
        except SourceError as e:
            raise SourceError(f"{uri}: {e}") from e
        notes = [f"in UTM zone {zone}, where the key says {key.zone}"] if zone != key.zone else []
        notes += [on.how] if on.how else []
        return Scene(on.pixels, on.transform, grid.crs, scene.gsd, grid, on.cells, tuple(notes))

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Chips, scene by scene, row by row."""
        for piece in loaded:
            key: SceneKey = piece.read.key
            if piece.error is not None:
                yield Dropped(key.unit_id, "failed", key.estimate(self.chip)[0], str(piece.error))
            else:
                yield from self._cut(key, piece.value)

    def _cut(self, key: SceneKey, scene: Scene) -> Iterator[Chip | Dropped | Opened]:
        _, height, width = scene.pixels.shape
        places, told = self._places(key, scene), key.cm / 100
        notes = []
        if abs(scene.gsd / told - 1) > DISAGREE:
            notes.append(f"pixels of {scene.gsd:g} m, where the key says {told:g} m")
        if key.when is None:
            notes.append("no date in the name")
        yield Opened(key.unit_id, len(places), self._etag(key), (*notes, *scene.notes))
        if not places:
            yield Dropped(key.unit_id, "nodata", 0, f"{width} x {height} px: smaller than a chip")
            return
        valid = scene.pixels.any(axis=0)
        firsts = np.array([(p.x, p.y) for p in places])
        corners = firsts[:, None] + self.chip * np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
        middles = firsts + self.chip / 2
        rings, centers = (_degrees(p, scene.transform, scene.crs) for p in (corners, middles))
        footprints = shapely.polygons(rings)
        for n, place in enumerate(places):
            here = (slice(place.y, place.y + self.chip), slice(place.x, place.x + self.chip))
            count = int(np.count_nonzero(valid[here]))
            nodata = (self.chip**2 - count) / self.chip**2
            if count == 0 or nodata > self.max_nodata:
                yield Dropped(key.unit_id, "nodata", 1, "more nodata than max_nodata")
                continue
            x0, y0 = scene.transform * (place.x, place.y)
            if scene.grid:  # not by the scene's transform: equal in every scene, to the last bit
                x0, y0 = scene.grid.x0(place.col), scene.grid.y0(place.row)
            yield Chip(
                unit_id=key.unit_id,
                chip_id=place.chip_id,
                pixels=scene.pixels[(slice(None), *here)],
                footprint=footprints[n],
                center=(float(centers[n, 0]), float(centers[n, 1])),
                crs=scene.crs,
                x0=x0,
                y0=y0,
                pixel_size=scene.grid.gsd if scene.grid else scene.gsd,
                col=place.col,
                row=place.row,
                datetime=key.when,
                item_id=key.stem,
                source=self.uri(key),
                sources=(self.uri(key),),
                nodata_fraction=nodata,
                extra={"state": key.state, "year": key.year},
            )

    def _places(self, key: SceneKey, scene: Scene) -> list[Place]:
        """The chips of a scene, row by row from the north."""
        _, height, width = scene.pixels.shape
        if scene.grid is None:
            return [
                Place(y, x, col := -(-x // self.chip), row := -(-y // self.chip), f"{key.unit_id}:{col}:{row}")
                for y, x in itertools.product(self._starts(height), self._starts(width))
            ]
        lattice, name = f"naip:{scene.grid.name}", key.unit_id.removeprefix("naip:")
        return [Place(*cell, f"{lattice}:{cell.col}:{cell.row}:{name}") for cell in scene.cells]

    def _starts(self, length: int) -> list[int]:
        """First pixels of the chips along a side of `length` pixels."""
        starts = list(range(0, length - self.chip + 1, self.chip))
        if self.edge == "flush" and starts and starts[-1] + self.chip < length:
            starts.append(length - self.chip)
        return starts


def _scene(uri: str, file: rasterio.DatasetReader) -> Scene:
    """Pixels and place of an open file. Raises SourceError unless it is four bands of uint8 on a north-up grid."""
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
        here = _degrees(ends, t, crs)
    except ProjError as e:
        raise SourceError(f"{uri}: its CRS is of no use: {e}") from e
    if not np.isfinite(here).all():
        raise SourceError(f"{uri}: its corners lie nowhere on the Earth in {crs[:60]}")
    return Scene(file.read(), t, crs, math.sqrt(abs(t.determinant)))


def _degrees(pixels: np.ndarray, transform: Affine, crs: str) -> np.ndarray:
    """Pixel coordinates [..., 2] (x, y) of a scene as longitudes and latitudes [..., 2]."""
    flat = pixels.reshape(-1, 2)
    east, north = transform.c + flat[:, 0] * transform.a, transform.f + flat[:, 1] * transform.e
    return np.stack(_to_degrees(crs).transform(east, north), axis=1).reshape(pixels.shape)


@cache
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
