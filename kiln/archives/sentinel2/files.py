"""The files of a Sentinel-2 item: whether they are there, how large they are, and reading from them."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from kiln.archives.sentinel2.item import BANDS, Item, read_item
from kiln.archives.sentinel2.scene import Grid, grid_of, offset_rule, ratio_of
from kiln.errors import AccessError, ConfigError, SourceError
from kiln.formats.fingerprint import digest
from kiln.io import gdal, storage

MASK, FIRST = "scl", "red"  # the grid is FIRST's
ASKED = 16  # items and assets asked for at a time


@dataclass(eq=False)
class Files:
    """An item of a shard and its eleven assets: what `look` found, and, while they are read, their handles.

    `error` says why nothing can come of it; all else may then be missing. By band: `uris`, `stats`, `ratios` (grid
    pixels that a pixel spans), and `blocks` (rows of a block, of FIRST and MASK alone).
    """

    item_id: str
    href: str
    item: Item | None = None
    error: str = ""
    refused: bool = False  # whether the store said that this may not be read
    uris: dict[str, str] = field(default_factory=dict)
    stats: dict[str, storage.Stat] = field(default_factory=dict)
    grid: Grid | None = None
    ratios: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    _check_whole: Callable = field(default_factory=lambda: cache(storage.check_readable))
    _handles: dict[str, rasterio.DatasetReader] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: {b: threading.Lock() for b in BANDS})

    @property
    def unit_id(self) -> str:
        """As in the ledger."""
        return f"sentinel2:{self.item_id}"

    @property
    def etag(self) -> str:
        """Digest of the sizes and ETags of the assets; empty until they are known."""
        return digest([[b, s.size, s.etag] for b, s in sorted(self.stats.items())])[:16] if self.stats else ""

    @property
    def version(self) -> str:
        """Digest of item and assets: what would give the same rows has the same; empty if nothing can come of them."""
        known = self.grid is not None and not self.error
        states = [s.etag or s.modified for _, s in sorted(self.stats.items())]  # neither: a server that tells nothing
        return digest([repr(self.item), sorted(self.uris.items()), self.etag, states]) if known and all(states) else ""

    # ------------------------------------------------------------------------------------------ before any is read

    def find(self, where: Callable[[str], str]) -> None:
        """Read the item and take from it where its assets are (`where` of their hrefs)."""
        try:
            item = read_item(storage.read_bytes(self.href), self.href)
            if item.item_id != self.item_id:
                raise SourceError(f"{self.href}: is item {item.item_id}, but the plan says {self.item_id}")
            offset_rule(item)
            self.item = item
            self.uris = {b: where(item.assets[b]) for b in BANDS if b in item.assets}
            if lacks := [f"{b} ({BANDS[b]})" for b in BANDS if b not in item.assets]:
                raise SourceError(f"{self.href}: no asset for {', '.join(lacks)}")
        except SourceError as e:
            self.refused = isinstance(e, AccessError)
            self.error = str(e)

    def ask(self, band: str) -> str:
        """Take size and ETag of an asset. Returns why it cannot be read, if so."""
        uri = self.uris[band]
        try:
            found = storage.stat(uri)
        except SourceError as e:
            self.refused = self.refused or isinstance(e, AccessError)
            return f"{band} cannot be read: {e}"
        if found is None or not found.size:
            return f"{band} is missing: {uri}: {'empty, 0 bytes' if found else 'does not exist'}"
        self.stats[band] = found
        return ""

    def measure(self, chip: int) -> None:
        """Take size, place and blocks of the scene from the headers of the red band and of SCL."""
        try:
            for band in (FIRST, MASK):
                with gdal.environment(self.uris[band]), self._opened(band) as file:
                    if band == FIRST:
                        self.grid = grid_of(self.uris[band], file, self.item, chip)
                    self.blocks[band] = file.block_shapes[0][0]
                    self._fit(band, file)
        except SourceError as e:
            self.error = str(e)

    def _fit(self, band: str, file: rasterio.DatasetReader) -> None:
        self.ratios[band] = ratio_of(self.uris[band], file, band, self.grid, (FIRST, self.uris[FIRST]))

    # ------------------------------------------------------------------------------------------------------ reading

    def fit(self, band: str) -> None:
        """Open a band and see that it covers the grid. Raises SourceError, naming the band, if it does not."""
        with self._locks[band], gdal.environment(self.uris[band]):
            self._fit(band, self._handle(band))

    def read(self, band: str, **how: Any) -> np.ndarray:
        """Pixels [rows, cols] of a band, `how` as rasterio has it; one file is read by one thread at a time.

        Raises SourceError, TransientError. One more try after a remote failure, since GDAL hides its kind.
        """
        uri = self.uris[band]
        with self._locks[band], gdal.environment(uri):
            for last in (not storage.is_remote(uri), True):
                file = self._handle(band)
                try:
                    return file.read(1, **how)
                except RasterioError as e:
                    self._handles.pop(band).close()
                    if last:
                        raise self._why(band, "unreadable", e) from e
        raise AssertionError

    def close(self) -> None:
        """Let go of the handles; nobody is reading."""
        for file in self._handles.values():
            file.close()
        self._handles.clear()

    def _handle(self, band: str) -> rasterio.DatasetReader:
        """The one handle of a band; its lock is held by who asks."""
        if band not in self._handles:
            self._handles[band] = self._opened(band)
        return self._handles[band]

    def _opened(self, band: str) -> rasterio.DatasetReader:
        try:
            return rasterio.open(self.uris[band])
        except RasterioError as e:
            raise self._why(band, "not a readable raster", e) from e

    def _why(self, band: str, what: str, e: RasterioError) -> SourceError:
        """The error to raise for what GDAL said; TransientError, raised here, if the store itself does not answer."""
        uri = self.uris[band]
        now = storage.stat(uri)
        if now != self.stats[band]:
            return SourceError(f"{uri}: {band} was {'replaced' if now else 'removed'} while it was read")
        if storage.is_remote(uri):
            self._check_whole(uri, now)
        gdal.raise_if_transient(e)
        return SourceError(f"{uri}: {band} is {what} ({gdal.gdal_message(e)})")


def look(shard: Sequence[Files], where: Callable[[str], str], chip: int) -> None:
    """Read the items, ask for every asset, and measure the scenes; what is wrong with one is left in its `error`.

    Raises ConfigError if whatever was asked for is refused, TransientError for a store that may answer another time.
    """
    with ThreadPoolExecutor(ASKED) as pool:
        list(pool.map(lambda f: f.find(where), shard))
        assets = [(f, b) for f in shard for b in f.uris]
        for (files, _), why in zip(assets, pool.map(lambda a: a[0].ask(a[1]), assets), strict=True):
            files.error = files.error or why
        refused = [f for f in shard if f.refused]
        if refused and not any(f.stats for f in shard):
            why = f"{refused[0].error}. Nothing of this shard may be read: credentials are needed, or a mirror"
            raise ConfigError(why)
        list(pool.map(lambda f: f.measure(chip), [f for f in shard if not f.error]))
