"""Sentinel-2 L2A: scenes of ten bands, known by their STAC items, cut into chips of 10 m pixels.

Bands of 20 m are brought to 10 m by repetition, as the model was trained. SCL, the scene classification, says what is
nodata and cloud; it is read first, and of the bands only what chips need that pass it.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from rasterio.windows import Window

from kiln.archives.sentinel2 import ARCHIVE
from kiln.archives.sentinel2 import scene as rules
from kiln.archives.sentinel2.config import Config
from kiln.archives.sentinel2.files import FIRST, MASK, Files, look
from kiln.archives.sentinel2.layout import OFFSET_MAX_DARK_FRACTION, chip_layout
from kiln.errors import ConfigError, SourceError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, SourceInfo, Unit

VISIBLE = ("blue", "green", "red")
FINE = (*VISIBLE, "nir")  # of 10 m; the other bands are of 20 m, as SCL is
STRIP = 256  # least rows of a read, so that an untiled file is not read line by line


@dataclass(frozen=True)
class Ready:
    """What is known of a scene before its bands are read: SCL [height, width], and what it says of every chip.

    `verdict` [rows, cols]; footprints [rows, cols] and centres [rows, cols, 2] as `Grid.footprints` gives them.
    """

    scl: np.ndarray
    verdict: np.ndarray
    footprints: np.ndarray
    centers: np.ndarray
    subtract: bool
    notes: tuple[str, ...]


@dataclass(eq=False)
class Scene:
    """An item's files and, once somebody reads from it, what comes before its bands."""

    files: Files
    ready: Ready | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Strip(NamedTuple):
    """Rows of one band, in grid pixels."""

    y0: int
    band: int
    y1: int


class Key(NamedTuple):
    """What a read is for: a strip of a scene, or what comes before its strips."""

    scene: Scene
    strip: Strip | None = None


class Piece(NamedTuple):
    """A strip as it was read: pixels [rows, cols] of the band, from grid column `x0` on."""

    x0: int
    pixels: np.ndarray


def open_source(shard: ShardPlan, config: Config) -> "Sentinel2Source":
    """Return the source of a shard's items. Raises ConfigError for a plan that does not fit."""
    items = shard.details.get("items")
    if not isinstance(items, dict) or set(items) != set(shard.units):
        raise ConfigError(f"shard {shard.name}: expected the addresses of its items. Make the plan again.")
    return Sentinel2Source(
        [{"id": unit, "href": items[unit]} for unit in shard.units],
        chip=shard.chip_size,
        max_nodata=config.max_nodata,
        max_cloud=config.max_cloud,
        rewrite=[(old, new) for old, _, new in (pair.partition("=") for pair in config.rewrite)],
        offset_max_dark_fraction=config.offset_max_dark_fraction,
        partition=shard.partition,
        metadata=config.metadata,
        gsd=config.gsd,
    )


class Sentinel2Source:
    """The items of one shard, each cut into whole chips from its top left.

    `rewrite`: pairs of prefixes, old and new; of the hrefs of items and assets the first that fits is replaced (another
    bucket, a mirror, a folder). `offset_max_dark_fraction`: the fraction of clear pixels below 1000 in blue, green and red alike above
    which the offset is taken as gone whatever the item says; asked only where it would be subtracted, of samples as
    coarse as the files' overviews are. In the rows, `source` is the red band, whose grid the chips have, `sources` are
    the ten bands in the model's order, and `offset_applied` is whether Kiln subtracted 1000 from the files' numbers.
    """

    columns = [  # noqa: RUF012 (never changed)
        pa.field("platform", pa.dictionary(pa.int32(), pa.string())),
        pa.field("mgrs_tile", pa.dictionary(pa.int32(), pa.string())),
        pa.field("processing_baseline", pa.dictionary(pa.int32(), pa.string())),
        pa.field("offset_applied", pa.bool_()),
        pa.field("sun_elevation", pa.float32()),
    ]

    def __init__(
        self,
        items: Sequence[Mapping[str, str]],
        *,
        chip: int,
        max_nodata: float,
        max_cloud: float,
        rewrite: Sequence[tuple[str, str]] = (),
        offset_max_dark_fraction: float = OFFSET_MAX_DARK_FRACTION,
        partition: str = "",
        metadata: str = "as_trained",
        gsd: str = "as_trained",
    ) -> None:
        self.info = SourceInfo(
            dataset=ARCHIVE.name,
            partition=partition,
            sensor=ARCHIVE.sensor,
            recipe=ARCHIVE.recipe,
            lattice=chip_layout(chip, offset_max_dark_fraction),
            metadata=metadata,
            gsd=gsd,
            native_gsd=None,
            max_nodata=max_nodata,
            max_cloud=max_cloud,
        )
        self.chip, self.max_nodata, self.max_cloud = chip, max_nodata, max_cloud
        self.offset_max_dark_fraction = offset_max_dark_fraction
        self.rewrite = list(rewrite)
        try:
            self.scenes = [Scene(Files(i["id"], self._rewritten(i["href"]))) for i in items]
        except (KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"a unit of the plan is no item with id and href ({e}); make the plan again") from e
        if len({s.files.item_id for s in self.scenes}) < len(self.scenes):
            raise ConfigError("an item is in the shard twice; make the plan again")

    def _rewritten(self, href: str) -> str:
        """Where to read what lies at `href`."""
        return next((new + href.removeprefix(old) for old, new in self.rewrite if href.startswith(old)), href)

    def units(self) -> list[Unit]:
        """One per item; how many chips it has is an estimate until its files were looked at."""
        return [
            Unit(f.unit_id, self._expected(f), f.uris.get(FIRST, f.href), f.etag, f.grid is not None, version=f.version)
            for f in (s.files for s in self.scenes)
        ]

    def _expected(self, files: Files) -> int:
        """Chips of an item: of its own grid, or of a full tile."""
        return files.grid.rows * files.grid.cols if files.grid else (rules.FULL // self.chip) ** 2

    def provenance(self) -> dict[str, dict[str, Any]]:
        """URI of every asset that is there, with its size, and its ETag where the store has one."""
        return {
            f.uris[b]: {"size": found.size, **({"etag": found.etag} if found.etag else {})}
            for f in (s.files for s in self.scenes)
            for b, found in f.stats.items()
        }

    def check(self) -> None:
        """Look at every item, asset and scene; what is missing or wrong fails later, item by item.

        Raises ConfigError if whatever was asked for is refused, TransientError for a store that may answer later.
        """
        look([s.files for s in self.scenes], self._rewritten, self.chip)

    # ------------------------------------------------------------------------------------------------------ reading

    def reads(self) -> Iterator[Read]:
        """Of every item first SCL, then strips of the bands as chips need them, cut where blocks end.

        Strips of the 20 m bands are taken to have SCL's blocks; where they have not, blocks may be decoded twice.
        """
        for scene in self.scenes:
            files = scene.files
            known = files.grid is not None and not files.error
            area = files.grid.height * files.grid.width if known else 0
            yield Read(
                area // files.ratios[MASK] ** 2 if known else 0,
                lambda s=scene: self._prepared(s),
                Key(scene),
                files.unit_id,
            )
            for strip in self._strips(files) if known else ():
                size = 2 * (strip.y1 - strip.y0) * files.grid.width // self._coarse(files, strip.band) ** 2
                yield Read(size, lambda s=scene, t=strip: self._load(s, t), Key(scene, strip), files.unit_id)

    def _coarse(self, files: Files, band: int) -> int:
        """Grid pixels that a pixel of a band should span."""
        return 1 if self.info.sensor.bands[band] in FINE else files.ratios[MASK]

    def _strips(self, files: Files) -> list[Strip]:
        """Strips of whole blocks of all bands, as far down as chips go, northernmost first."""
        bottom = files.grid.rows * self.chip
        strips = []
        for n, band in enumerate(self.info.sensor.bands):
            block = files.blocks[FIRST if band in FINE else MASK]
            height = block * max(1, STRIP // block) * self._coarse(files, n)
            height += -height % rules.PATCH
            strips += [Strip(y, n, min(y + height, bottom)) for y in range(0, bottom, height)]
        return sorted(strips)

    def _prepared(self, scene: Scene) -> Ready:
        """SCL and what follows from it, by the first read that asks; SourceError if nothing can come of the scene."""
        with scene.lock:
            if scene.files.error:
                raise SourceError(scene.files.error)
            if scene.ready is None:
                try:
                    scene.ready = self._prepare(scene.files)
                except SourceError as e:
                    scene.files.error = str(e)
                    raise
            return scene.ready

    def _prepare(self, files: Files) -> Ready:
        """Read SCL, and if a chip passes it, see that every band fits and whether the offset is to be subtracted."""
        try:
            footprints = files.grid.footprints()
        except SourceError as e:
            raise SourceError(f"{files.uris[FIRST]}: {e}") from e
        ratio = files.ratios[MASK]
        scl = files.read(MASK)
        verdict = rules.judge(scl, ratio, files.grid, self.max_nodata, self.max_cloud)
        odd = (f"scl_impossible ({count} px)",) if (count := rules.impossible(scl)) else ()
        if not (verdict == rules.PASSES).any():
            return Ready(scl, verdict, *footprints, False, (*odd, "bands_not_read"))
        with ThreadPoolExecutor(
            len(self.info.sensor.bands)
        ) as pool:  # a file asks its store twice, one after the other
            list(pool.map(files.fit, self.info.sensor.bands))
        subtract, notes = rules.offset_rule(files.item)
        if subtract:
            step = rules.step_of(files.grid)
            shape = tuple(-(-side // step) for side in (files.grid.height, files.grid.width))
            visible = np.stack([files.read(band, out_shape=shape) for band in VISIBLE])
            subtract = rules.share_below(visible, scl, ratio, step) <= self.offset_max_dark_fraction
            notes = (*notes, "offset_subtracted" if subtract else "offset_flag_contradicted")
        return Ready(scl, verdict, *footprints, subtract, (*notes, *odd))

    def _load(self, scene: Scene, strip: Strip) -> Piece | None:
        """A strip's columns that chips need, without the offset; None if no chip that passes SCL reaches into it."""
        ready = self._prepared(scene)
        rows = ready.verdict[strip.y0 // self.chip : -(-strip.y1 // self.chip)]
        cols = np.flatnonzero((rows == rules.PASSES).any(axis=0))
        if not cols.size:
            return None
        band = self.info.sensor.bands[strip.band]
        ratio = scene.files.ratios[band]
        x0, x1 = int(cols[0]) * self.chip, (int(cols[-1]) + 1) * self.chip
        window = Window(x0 // ratio, strip.y0 // ratio, (x1 - x0) // ratio, (strip.y1 - strip.y0) // ratio)
        pixels = scene.files.read(band, window=window)
        return Piece(x0, rules.subtract(pixels) if ready.subtract else pixels)

    # ------------------------------------------------------------------------------------------------------ cutting

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Chips, item by item, row by row."""
        for _, group in itertools.groupby(loaded, key=lambda p: p.read.unit_id):
            pieces = iter(group)
            first = next(pieces)
            scene: Scene = first.read.key.scene
            if first.error is None:
                yield from self._cut(scene, first.value, pieces)
            else:
                yield Dropped(scene.files.unit_id, "failed", self._expected(scene.files), str(first.error))
            for _ in pieces:  # what no chip needed: after these nobody reads from the scene
                pass
            scene.files.close()
            scene.ready = None

    def _cut(self, scene: Scene, ready: Ready, pieces: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        grid, unit_id = scene.files.grid, scene.files.unit_id
        yield Opened(unit_id, grid.rows * grid.cols, scene.files.etag, ready.notes)
        if not ready.verdict.size:
            yield Dropped(unit_id, "nodata", 0, f"{grid.width} x {grid.height} px: smaller than a chip")
        if count := int(np.count_nonzero(ready.verdict == rules.TOO_EMPTY)):
            yield Dropped(unit_id, "nodata", count, rules.EMPTY)
        if count := int(np.count_nonzero(ready.verdict == rules.TOO_CLOUDY)):
            yield Dropped(unit_id, "cloud", count, rules.CLOUDY)
        near: list[Loaded] = []  # strips that reach into the row at hand or below it
        ahead = next(pieces, None)
        for row in range(grid.rows):
            bottom = (row + 1) * self.chip
            while ahead is not None and ahead.read.key.strip.y0 < bottom:
                near.append(ahead)
                ahead = next(pieces, None)
            broken = next((str(p.error) for p in near if p.error is not None), "")
            for col in np.flatnonzero(ready.verdict[row] == rules.PASSES).tolist():
                if broken:
                    yield Dropped(unit_id, "failed", 1, broken)
                else:
                    yield self._chip(scene.files, ready, self._pixels(scene.files, near, row, col), row, col)
            near = [p for p in near if p.read.key.strip.y1 > bottom]

    def _pixels(self, files: Files, near: Sequence[Loaded], row: int, col: int) -> np.ndarray:
        """Pixels [10, chip, chip] at a row and column of the grid, from strips; coarse bands by repetition."""
        y, x = row * self.chip, col * self.chip
        chip = np.empty((len(self.info.sensor.bands), self.chip, self.chip), np.uint16)
        for loaded in near:
            strip, piece = loaded.read.key.strip, loaded.value
            ratio = files.ratios[self.info.sensor.bands[strip.band]]
            top, bottom = max(strip.y0, y), min(strip.y1, y + self.chip)
            rows = slice((top - strip.y0) // ratio, (bottom - strip.y0) // ratio)
            cols = slice((x - piece.x0) // ratio, (x - piece.x0 + self.chip) // ratio)
            rules.repeated(piece.pixels[rows, cols], ratio, chip[strip.band, top - y : bottom - y])
        return chip

    def _chip(self, files: Files, ready: Ready, pixels: np.ndarray, row: int, col: int) -> Chip | Dropped:
        """The chip at a row and column of the grid; Dropped if a limit is passed once zeros in all bands count too."""
        grid, item, ratio = files.grid, files.item, files.ratios[MASK]
        y, x, side = row * self.chip // ratio, col * self.chip // ratio, self.chip // ratio
        scl = ready.scl[y : y + side, x : x + side]
        seen = rules.summed(pixels.any(axis=0), ratio)  # pixels with a number, of those that each of SCL's spans
        count = int(seen[scl != rules.NODATA].sum())
        nodata = (self.chip**2 - count) / self.chip**2
        if count == 0 or nodata > self.max_nodata:
            return Dropped(files.unit_id, "nodata", 1, rules.EMPTY)
        cloud = int(seen[rules.cloudy(scl)].sum()) / count
        if cloud > self.max_cloud:
            return Dropped(files.unit_id, "cloud", 1, rules.CLOUDY)
        x0, y0 = grid.transform * (col * self.chip, row * self.chip)
        footprint: shapely.Geometry = ready.footprints[row, col]
        lon, lat = ready.centers[row, col].tolist()
        return Chip(
            unit_id=files.unit_id,
            chip_id=f"{files.unit_id}:{col}:{row}",
            pixels=pixels,
            footprint=footprint,
            center=(lon, lat),
            crs=grid.crs,
            x0=x0,
            y0=y0,
            pixel_size=grid.pixel,
            col=col,
            row=row,
            datetime=item.datetime,
            item_id=item.item_id,
            source=files.uris[FIRST],
            sources=tuple(files.uris[b] for b in self.info.sensor.bands),
            nodata_fraction=nodata,
            cloud_fraction=cloud,
            extra={
                "platform": item.platform,
                "mgrs_tile": item.tile,
                "processing_baseline": item.baseline,
                "offset_applied": ready.subtract,
                "sun_elevation": item.sun_elevation,
            },
        )
