"""The source of Sentinel-2 L2A: scenes of ten bands, listed by their STAC items, cut into chips of 10 m pixels.

Bands of 20 m are brought to 10 m by repetition, as the model was trained. SCL, the scene classification, decides about
nodata and cloud. It is read first, and of the bands only the pixels of chips that pass it.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from kiln.archives.raster_reading import strip_rows, valid_pixels
from kiln.archives.sentinel2 import ARCHIVE
from kiln.archives.sentinel2 import scene as rules
from kiln.archives.sentinel2.assets import (
    GRID_BAND,
    MASK_BAND,
    BandFiles,
    Candidate,
    InspectedItem,
    MeasuredScene,
    inspect,
)
from kiln.archives.sentinel2.columns import COLUMNS
from kiln.archives.sentinel2.config import Config
from kiln.archives.sentinel2.layout import OFFSET_MAX_DARK_FRACTION, chip_layout, rewrites
from kiln.errors import ConfigError, SourceError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, SourceInfo, Unit
from kiln.io.gdal_variables import check_gdal

VISIBLE_BANDS = ("blue", "green", "red")
FINE_BANDS = (*VISIBLE_BANDS, "nir")  # of 10 m; the other bands are of 20 m, as SCL is


@dataclass(frozen=True)
class PreparedScene:
    """The facts about a scene that precede the reading of its bands.

    Attributes:
        scl: SCL [height, width].
        verdict: Verdict of SCL on every chip, [rows, cols].
        footprints: Footprints of the chips, [rows, cols].
        centers: Their centres [rows, cols, 2], longitude and latitude.
        ratios: Grid pixels that a pixel of each band spans; empty if no chip passes.
        subtract: Whether the offset is subtracted.
        notes: Notes for the ledger.
    """

    scl: NDArray[np.uint8]
    verdict: NDArray[np.uint8]
    footprints: NDArray[np.object_]
    centers: NDArray[np.float64]
    ratios: Mapping[str, int]
    subtract: bool
    notes: tuple[str, ...]


class OpenScene:
    """A scene while it is read: its files, and its preparation by the first thread that needs it."""

    def __init__(self, scene: MeasuredScene, max_nodata: float, max_cloud: float, max_dark_fraction: float) -> None:
        self.scene = scene
        self.files = BandFiles(scene)
        self._limits = (max_nodata, max_cloud)
        self._max_dark_fraction = max_dark_fraction
        self._lock = threading.Lock()
        self._prepared: PreparedScene | SourceError | None = None

    def prepare(self) -> PreparedScene:
        """Return the scene's preparation. Raises SourceError if nothing can be embedded from it, TransientError."""
        with self._lock:
            if self._prepared is None:
                try:
                    self._prepared = self._prepare()
                except SourceError as e:
                    self._prepared = e
            if isinstance(self._prepared, SourceError):
                raise SourceError(str(self._prepared))
            return self._prepared

    def _prepare(self) -> PreparedScene:
        """Read SCL; if a chip passes, open every band and decide about the offset."""
        scene, files = self.scene, self.files
        try:
            footprints, centers = scene.grid.footprints()
        except SourceError as e:
            raise SourceError(f"{scene.uris[GRID_BAND]}: {e}") from e
        scl = files.read(MASK_BAND)
        verdict = rules.judge_chips(scl, scene.mask_ratio, scene.grid, *self._limits)
        unknown = rules.count_unknown_classes(scl)
        last_notes = (f"scl_impossible ({unknown} px)",) if unknown else ()
        if not (verdict == rules.PASSES).any():
            return PreparedScene(scl, verdict, footprints, centers, {}, False, (*last_notes, "bands_not_read"))
        bands = ARCHIVE.sensor.bands
        with ThreadPoolExecutor(len(bands)) as pool:  # opening takes two requests, one after the other
            ratios = dict(zip(bands, pool.map(partial(files.open_band, grid=scene.grid), bands), strict=True))
        subtract, notes = rules.offset_rule(scene.item)
        if subtract:
            step = rules.sample_step(scene.grid)
            shape = (-(-scene.grid.height // step), -(-scene.grid.width // step))
            visible = np.stack([files.read(band, shape=shape) for band in VISIBLE_BANDS])
            subtract = rules.dark_fraction(visible, scl, scene.mask_ratio, step) <= self._max_dark_fraction
            notes = (*notes, "offset_subtracted" if subtract else "offset_flag_contradicted")
        return PreparedScene(scl, verdict, footprints, centers, ratios, subtract, (*notes, *last_notes))

    def close(self) -> None:
        """Free files and memory; no thread may read from the scene any more."""
        self.files.close()
        self._prepared = None


class BandStrip(NamedTuple):
    """Rows [y0, y1) of one band, in grid pixels."""

    y0: int
    band: int
    y1: int


class StripKey(NamedTuple):
    """The key of a strip's read."""

    scene: OpenScene
    strip: BandStrip


class StripPixels(NamedTuple):
    """A strip as it was read: pixels [rows, cols] of its band, from grid column `x0` on."""

    x0: int
    pixels: NDArray[np.uint16]


def open_source(shard: ShardPlan, config: Config) -> "Sentinel2Source":
    """Return the source of a shard's items.

    Args:
        shard: A shard of the archive's plan.
        config: The archive's section of the config.

    Returns:
        The source; nothing is read before its `check`.

    Raises:
        ConfigError: If the plan does not hold the addresses of the shard's items.
    """
    items = shard.details.get("items")
    if not isinstance(items, dict) or set(items) != set(shard.units) or not {*map(type, items.values())} <= {str}:
        raise ConfigError(f"shard {shard.name}: expected the addresses of its items, got others. Make the plan again.")
    return Sentinel2Source(
        [Candidate(unit, items[unit]) for unit in shard.units],
        chip=shard.chip_size,
        max_nodata=config.max_nodata,
        max_cloud=config.max_cloud,
        rewrite=[
            (old, new) for old, _, new in (pair.partition("=") for pair in rewrites(shard.archive, config.rewrite))
        ],
        offset_max_dark_fraction=config.offset_max_dark_fraction,
        partition=shard.partition,
        metadata=config.metadata,
        gsd=config.gsd,
    )


class Sentinel2Source:
    """The items of one shard, each cut into complete chips from its top left.

    In the rows, `source` is the red band, whose grid the chips have, `sources` are the ten bands in the model's order,
    and `offset_applied` is whether Kiln subtracted 1000 from the files' numbers.
    """

    columns = COLUMNS

    def __init__(
        self,
        candidates: Sequence[Candidate],
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
        """Describe the shard; nothing is read.

        Args:
            candidates: The items.
            chip: Side of a chip in pixels of 10 m.
            max_nodata: Maximum fraction of nodata in a chip.
            max_cloud: Maximum fraction of cloud among a chip's valid pixels.
            rewrite: Pairs of prefixes, old and new. In addresses of items and assets the first that fits is replaced.
            offset_max_dark_fraction: Fraction of clear pixels below 1000 in blue, green and red alike above which the
                offset counts as removed, even if the item states otherwise. It is measured only where the offset
                would be subtracted, in samples as coarse as the files' overviews.
            partition: Merge partition.
            metadata: Date and place that the model is given.
            gsd: Pixel size that the model is given.

        Raises:
            ConfigError: If an item is in the shard twice, or a setting is out of range.
        """
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
        if len({c.item_id for c in candidates}) < len(candidates):
            raise ConfigError("shard: expected every item once, got one twice. Make the plan again.")
        self._candidates = [Candidate(c.item_id, self._rewritten(c.href)) for c in candidates]
        self._inspected: list[InspectedItem] = []  # of `check`

    def _rewritten(self, href: str) -> str:
        """Return the address to read instead of `href`."""
        return next((new + href.removeprefix(old) for old, new in self.rewrite if href.startswith(old)), href)

    def units(self) -> list[Unit]:
        """Return one unit per item; its number of chips is an estimate before `check`."""
        return [entry.unit(self.chip) for entry in self._inspected or self._candidates]

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the address of every asset that exists, with its size, and its ETag where the store has one."""
        return {
            uri: {"size": stat.size, **({"etag": stat.etag} if stat.etag else {})}
            for entry in self._inspected
            for uri, stat in entry.stats_by_uri.items()
        }

    def check(self) -> None:
        """Inspect every item and asset; missing or wrong ones fail later, item by item.

        Raises:
            ConfigError: If the store denies access to everything, or GDAL or PROJ cannot be used.
            TransientError: If a store may answer later.
        """
        check_gdal()
        self._inspected = inspect(self._candidates, self._rewritten, self.chip)

    # ------------------------------------------------------------------------------------------------------ reading

    def reads(self) -> Iterator[Read]:
        """Yield the reads: of every item first SCL, then strips of the bands from the north, cut where blocks end.

        Strips of 20 m bands are cut at SCL's blocks; where a band has other blocks, some are decoded twice.
        """
        for entry in self._inspected:
            if isinstance(entry, MeasuredScene):
                yield from self._scene_reads(entry)
            else:
                yield Read(0, entry.raise_error, None, entry.unit(self.chip).unit_id)

    def _scene_reads(self, scene: MeasuredScene) -> Iterator[Read]:
        grid = scene.grid
        opened = OpenScene(scene, self.max_nodata, self.max_cloud, self.offset_max_dark_fraction)
        scl_bytes = grid.height * grid.width // scene.mask_ratio**2
        yield Read(scl_bytes, opened.prepare, opened, scene.unit_id)
        for strip in self._strips(scene):
            nbytes = 2 * (strip.y1 - strip.y0) * grid.width // self._likely_ratio(scene, strip.band) ** 2
            yield Read(nbytes, partial(self._load, opened, strip), StripKey(opened, strip), scene.unit_id)

    def _likely_ratio(self, scene: MeasuredScene, band: int) -> int:
        """Return the grid pixels that a pixel of a band spans in the archive."""
        return 1 if self.info.sensor.bands[band] in FINE_BANDS else scene.mask_ratio

    def _strips(self, scene: MeasuredScene) -> list[BandStrip]:
        """Return strips of complete blocks of all bands, down to the last row of chips, northernmost first."""
        bottom = scene.grid.rows * self.chip
        strips = []
        for n, band in enumerate(self.info.sensor.bands):
            block_rows = scene.block_rows[GRID_BAND if band in FINE_BANDS else MASK_BAND]
            height = strip_rows(block_rows) * self._likely_ratio(scene, n)
            height += -height % rules.PATCH_PX
            strips += [BandStrip(y, n, min(y + height, bottom)) for y in range(0, bottom, height)]
        return sorted(strips)

    def _load(self, scene: OpenScene, strip: BandStrip) -> StripPixels | None:
        """Return the columns of a strip that chips need, without the offset; None if no chip that passes needs any."""
        prepared = scene.prepare()
        rows = prepared.verdict[strip.y0 // self.chip : -(-strip.y1 // self.chip)]
        cols = np.flatnonzero((rows == rules.PASSES).any(axis=0))
        if not cols.size:
            return None
        band = self.info.sensor.bands[strip.band]
        ratio = prepared.ratios[band]
        x0, x1 = int(cols[0]) * self.chip, (int(cols[-1]) + 1) * self.chip
        window = Window(x0 // ratio, strip.y0 // ratio, (x1 - x0) // ratio, (strip.y1 - strip.y0) // ratio)
        pixels = scene.files.read(band, window=window)
        return StripPixels(x0, rules.subtract(pixels) if prepared.subtract else pixels)

    # ------------------------------------------------------------------------------------------------------ cutting

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        """Yield the chips, item by item, row by row."""
        expected = {unit.unit_id: unit.expected for unit in self.units()}
        for unit_id, group in itertools.groupby(loaded, key=lambda piece: piece.read.unit_id):
            pieces = iter(group)
            first = next(pieces)
            if first.error is None:
                yield from self._cut(first.read.key, first.value, pieces)
            else:
                yield Dropped(unit_id, "failed", expected[unit_id], str(first.error))
            for _ in pieces:  # strips that no chip needed; after these no thread reads from the scene
                pass
            if isinstance(first.read.key, OpenScene):
                first.read.key.close()

    def _cut(
        self, opened: OpenScene, prepared: PreparedScene, pieces: Iterator[Loaded]
    ) -> Iterator[Chip | Dropped | Opened]:
        """Yield the chips of a scene, and its account."""
        scene, verdict = opened.scene, prepared.verdict
        grid, unit_id = scene.grid, scene.unit_id
        yield Opened(unit_id, scene.expected, scene.etag, prepared.notes)
        if not verdict.size:
            yield Dropped(unit_id, "nodata", 0, f"{grid.width} x {grid.height} px: smaller than a chip")
        if count := int(np.count_nonzero(verdict == rules.TOO_EMPTY)):
            yield Dropped(unit_id, "nodata", count, rules.REASON_EMPTY)
        if count := int(np.count_nonzero(verdict == rules.TOO_CLOUDY)):
            yield Dropped(unit_id, "cloud", count, rules.REASON_CLOUDY)
        strips: list[Loaded] = []  # that reach into the current row or below it
        ahead = next(pieces, None)
        for row in range(grid.rows):
            bottom = (row + 1) * self.chip
            while ahead is not None and ahead.read.key.strip.y0 < bottom:
                strips.append(ahead)
                ahead = next(pieces, None)
            error = next((str(piece.error) for piece in strips if piece.error is not None), "")
            for col in np.flatnonzero(verdict[row] == rules.PASSES).tolist():
                if error:
                    yield Dropped(unit_id, "failed", 1, error)
                else:
                    pixels = self._pixels(prepared, strips, row, col)
                    yield self._chip(scene, prepared, pixels, row, col)
            strips = [piece for piece in strips if piece.read.key.strip.y1 > bottom]

    def _pixels(self, prepared: PreparedScene, strips: Sequence[Loaded], row: int, col: int) -> NDArray[np.uint16]:
        """Return pixels [10, chip, chip] of a row and column of the grid; coarse bands by repetition."""
        y, x = row * self.chip, col * self.chip
        chip = np.empty((len(self.info.sensor.bands), self.chip, self.chip), np.uint16)
        for piece in strips:
            strip: BandStrip = piece.read.key.strip
            read: StripPixels = piece.value
            ratio = prepared.ratios[self.info.sensor.bands[strip.band]]
            top, bottom = max(strip.y0, y), min(strip.y1, y + self.chip)
            rows = slice((top - strip.y0) // ratio, (bottom - strip.y0) // ratio)
            cols = slice((x - read.x0) // ratio, (x - read.x0 + self.chip) // ratio)
            rules.repeat_pixels(read.pixels[rows, cols], ratio, chip[strip.band, top - y : bottom - y])
        return chip

    def _chip(
        self, scene: MeasuredScene, prepared: PreparedScene, pixels: NDArray[np.uint16], row: int, col: int
    ) -> Chip | Dropped:
        """Return a chip, or Dropped if a limit is exceeded once pixels that are 0 in all bands count as nodata too."""
        grid, item, ratio = scene.grid, scene.item, scene.mask_ratio
        y, x, side = row * self.chip // ratio, col * self.chip // ratio, self.chip // ratio
        scl = prepared.scl[y : y + side, x : x + side]
        valid = rules.count_in_blocks(valid_pixels(pixels), ratio)  # valid pixels in each pixel of SCL
        count = int(valid[scl != rules.SCL_NODATA].sum())
        nodata = (self.chip**2 - count) / self.chip**2
        if count == 0 or nodata > self.max_nodata:
            return Dropped(scene.unit_id, "nodata", 1, rules.REASON_EMPTY)
        cloud = int(valid[rules.cloud_mask(scl)].sum()) / count
        if cloud > self.max_cloud:
            return Dropped(scene.unit_id, "cloud", 1, rules.REASON_CLOUDY)
        x0, y0 = grid.transform * (col * self.chip, row * self.chip)
        footprint: shapely.Geometry = prepared.footprints[row, col]
        lon, lat = prepared.centers[row, col].tolist()
        return Chip(
            unit_id=scene.unit_id,
            chip_id=f"{scene.unit_id}:{col}:{row}",
            pixels=pixels,
            footprint=footprint,
            center=(lon, lat),
            crs=grid.crs,
            x0=x0,
            y0=y0,
            pixel_size=grid.pixel_size,
            col=col,
            row=row,
            datetime=item.datetime,
            item_id=item.item_id,
            source=scene.uris[GRID_BAND],
            sources=tuple(scene.uris[band] for band in self.info.sensor.bands),
            nodata_fraction=nodata,
            cloud_fraction=cloud,
            extra={
                "platform": item.platform,
                "mgrs_tile": item.tile,
                "processing_baseline": item.baseline,
                "offset_applied": prepared.subtract,
                "sun_elevation": item.sun_elevation,
            },
        )
