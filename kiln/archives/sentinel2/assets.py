"""The assets of Sentinel-2 items before and while they are read, as one type per stage.

`inspect` takes a shard's items through the stages: `Candidate` (id and address), `LocatedItem` (document and addresses
of its assets), `AvailableItem` (the assets exist), `MeasuredScene` (grid and blocks). An item that fails at one stage
becomes a `FailedItem`. `BandFiles` holds the open files of a scene.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kiln.archives.failed_read import LocalCopies, confirmed_stat, fault_of_file
from kiln.archives.raster_reading import open_raster, read_pixels, read_with_retry, sidecar_versions
from kiln.archives.sentinel2.item import Item, read_item
from kiln.archives.sentinel2.layout import TILE_SIDE_PX
from kiln.archives.sentinel2.scene import SceneGrid, offset_rule, read_grid, read_ratio
from kiln.archives.sentinel2.spellings import ASSET_NAMES
from kiln.errors import AccessError, AddressError, ConfigError, SourceError, TransientError
from kiln.formats.fingerprint import digest
from kiln.formats.records import Unit
from kiln.io import gdal, storage

MASK_BAND, GRID_BAND = "scl", "red"  # the grid of a scene is the red band's
REQUEST_THREADS = 16


@dataclass(frozen=True)
class Candidate:
    """An item of the plan: its id, and the address of its document."""

    item_id: str
    href: str

    def unit(self, chip: int) -> Unit:
        """Return the ledger's unit, with the chips of a full tile."""
        return Unit(f"sentinel2:{self.item_id}", _full_tile_chips(chip), self.href, "", False, version="")

    @property
    def stats_by_uri(self) -> Mapping[str, storage.Stat]:
        """Sizes and ETags by address: none before the assets are requested."""
        return {}


@dataclass(frozen=True)
class FailedItem:
    """An item from which nothing can be embedded.

    Attributes:
        item_id: Its id.
        error: The reason.
        source: Address of its red band, or of its document if that has none.
        uris: Addresses of its assets by band, of those that the document has.
        stats: Sizes and ETags by band, of the assets that exist.
        refused: Whether the store denied access.
    """

    item_id: str
    error: str
    source: str
    uris: Mapping[str, str] = field(default_factory=dict)
    stats: Mapping[str, storage.Stat] = field(default_factory=dict)
    refused: bool = False

    def unit(self, chip: int) -> Unit:
        """Return the ledger's unit, with the chips of a full tile."""
        expected = _full_tile_chips(chip)
        return Unit(f"sentinel2:{self.item_id}", expected, self.source, _etag(self.stats), False, version="")

    @property
    def stats_by_uri(self) -> Mapping[str, storage.Stat]:
        """Sizes and ETags by address."""
        return {self.uris[band]: stat for band, stat in self.stats.items()}

    def raise_error(self) -> None:
        """Raise SourceError with the reason."""
        raise SourceError(self.error)


@dataclass(frozen=True)
class LocatedItem:
    """An item whose document was read, with the addresses of its eleven assets by band."""

    item: Item
    uris: Mapping[str, str]


@dataclass(frozen=True)
class AvailableItem:
    """An item whose assets exist, with their sizes and ETags by band."""

    item: Item
    uris: Mapping[str, str]
    stats: Mapping[str, storage.Stat]


@dataclass(frozen=True)
class MeasuredScene:
    """A scene that can be read.

    Attributes:
        item: Its item.
        uris: Addresses of its assets by band.
        stats: Their sizes and ETags by band.
        grid: Its grid of chips.
        mask_ratio: Grid pixels that a pixel of SCL spans.
        block_rows: Rows of a block, of the red band and of SCL.
    """

    item: Item
    uris: Mapping[str, str]
    stats: Mapping[str, storage.Stat]
    grid: SceneGrid
    mask_ratio: int
    block_rows: Mapping[str, int]

    @property
    def unit_id(self) -> str:
        """The unit's id in the ledger."""
        return self.item.unit_id

    @property
    def expected(self) -> int:
        """Number of its chips."""
        return self.grid.rows * self.grid.cols

    @property
    def etag(self) -> str:
        """Digest of the sizes and ETags of its assets."""
        return _etag(self.stats)

    @property
    def version(self) -> str:
        """Digest of item and assets: equal versions give equal rows. Empty if a store gives neither ETag nor time."""
        states = [stat.etag or stat.modified for _, stat in sorted(self.stats.items())]
        sidecars = [version for _, uri in sorted(self.uris.items()) for version in sidecar_versions(uri)]
        facts = [repr(self.item), sorted(self.uris.items()), self.etag, states + sidecars]
        return digest(facts) if all(states) else ""

    @property
    def stats_by_uri(self) -> Mapping[str, storage.Stat]:
        """Sizes and ETags by address."""
        return {self.uris[band]: stat for band, stat in self.stats.items()}

    def unit(self, chip: int) -> Unit:
        """Return the ledger's unit."""
        return Unit(self.unit_id, self.expected, self.uris[GRID_BAND], self.etag, True, version=self.version)


InspectedItem = MeasuredScene | FailedItem


def _full_tile_chips(chip: int) -> int:
    return (TILE_SIDE_PX // chip) ** 2


def _etag(stats: Mapping[str, storage.Stat]) -> str:
    """Return the digest of sizes and ETags; empty without assets."""
    return digest([[band, stat.size, stat.etag] for band, stat in sorted(stats.items())])[:16] if stats else ""


# ------------------------------------------------------------------------------------------------------- the stages


def inspect(candidates: Sequence[Candidate], rewrite: Callable[[str], str], chip: int) -> list[InspectedItem]:
    """Read the items' documents, request every asset, and measure the scenes.

    Args:
        candidates: The items of the plan.
        rewrite: Returns the address to read instead of an asset's.
        chip: Side of a chip in pixels.

    Returns:
        A scene for each item, or its failure, in the order given.

    Raises:
        ConfigError: If the store denies access to everything.
        TransientError: If a store may answer later.
    """
    with ThreadPoolExecutor(REQUEST_THREADS) as pool:
        located = list(pool.map(lambda candidate: locate_item(candidate, rewrite), candidates))
        requests = [(n, band, uri) for n, entry in enumerate(located) for band, uri in entry.uris.items()]
        answers: list[dict[str, storage.Stat | SourceError]] = [{} for _ in located]
        for (n, band, _), answer in zip(requests, pool.map(lambda r: _request(*r[1:]), requests), strict=True):
            answers[n][band] = answer
        available = [_check_answers(entry, answers[n]) for n, entry in enumerate(located)]
        _raise_if_all_denied(available)
        return list(pool.map(lambda entry: measure_scene(entry, chip), available))


def locate_item(candidate: Candidate, rewrite: Callable[[str], str]) -> LocatedItem | FailedItem:
    """Return a candidate's item with the addresses of its assets, or its failure."""
    href, uris = candidate.href, {}
    try:
        item = _read_document(href)
        if item.item_id != candidate.item_id:
            raise SourceError(f"{href}: expected item {candidate.item_id} of the plan, got {item.item_id}.")
        if item.refusal:
            raise SourceError(item.refusal)
        offset_rule(item)
        uris = {band: rewrite(item.assets[band]) for band in ASSET_NAMES if band in item.assets}
        if missing := [f"{band} ({name})" for band, name in ASSET_NAMES.items() if band not in item.assets]:
            raise SourceError(f"{href}: expected an asset for {', '.join(missing)}, got none.")
    except (SourceError, AddressError) as e:
        refused = isinstance(e, AccessError)
        return FailedItem(candidate.item_id, str(e), uris.get(GRID_BAND, href), uris, refused=refused)
    return LocatedItem(item, uris)


def _read_document(href: str) -> Item:
    """Return the item of a document. One that cannot be read is fetched again: what came may be a part of it.

    Raises:
        SourceError: If the document is not an item of Sentinel-2.
        TransientError: If two answers differ.
    """
    data = storage.read_bytes(href)
    try:
        return read_item(data, href)
    except SourceError:
        if storage.is_remote(href) and storage.read_bytes(href) != data:
            raise TransientError(f"{href}: two answers of the server differ. Try again.") from None
        raise


def _request(band: str, uri: str) -> storage.Stat | SourceError:
    """Return size and ETag of an asset, or the reason that it cannot be read."""
    try:
        stat = storage.stat(uri)
    except AddressError as e:
        return SourceError(f"{band} cannot be read: {e}")
    except SourceError as e:
        return type(e)(f"{band} cannot be read: {e}")
    if stat is None or not stat.size:
        return SourceError(f"{band} is missing: {uri}: {'empty, 0 bytes' if stat else 'does not exist'}")
    return stat


def _check_answers(
    entry: LocatedItem | FailedItem, answers: Mapping[str, storage.Stat | SourceError]
) -> AvailableItem | FailedItem:
    """Return an item with the sizes and ETags of its assets, or its failure."""
    stats = {band: answer for band, answer in answers.items() if isinstance(answer, storage.Stat)}
    errors = [answer for answer in answers.values() if isinstance(answer, SourceError)]
    refused = any(isinstance(error, AccessError) for error in errors)
    if isinstance(entry, FailedItem):
        return FailedItem(entry.item_id, entry.error, entry.source, entry.uris, stats, entry.refused or refused)
    if errors:
        source = entry.uris[GRID_BAND]
        return FailedItem(entry.item.item_id, str(errors[0]), source, entry.uris, stats, refused)
    return AvailableItem(entry.item, entry.uris, stats)


def _raise_if_all_denied(entries: Sequence[AvailableItem | FailedItem]) -> None:
    """Raise ConfigError if access was denied and no asset of the shard can be read."""
    denied = [entry for entry in entries if isinstance(entry, FailedItem) and entry.refused]
    if denied and not any(entry.stats for entry in entries):
        error = denied[0].error.rstrip(".")
        raise ConfigError(f"{error}. No asset of this shard can be read: set credentials, or read from a mirror.")


def measure_scene(entry: AvailableItem | FailedItem, chip: int) -> InspectedItem:
    """Return a scene, measured from the headers of its red band and of SCL, or its failure."""
    if isinstance(entry, FailedItem):
        return entry
    files = BandFiles(entry)
    try:
        with files.opened(GRID_BAND) as file:
            grid = read_grid(entry.uris[GRID_BAND], file, entry.item, chip)
            files.check_fit(GRID_BAND, file, grid)
            grid_block_rows = int(file.block_shapes[0][0])
        with files.opened(MASK_BAND) as file:
            ratio = files.check_fit(MASK_BAND, file, grid)
            block_rows = {GRID_BAND: grid_block_rows, MASK_BAND: int(file.block_shapes[0][0])}
    except SourceError as e:
        return FailedItem(entry.item.item_id, str(e), entry.uris[GRID_BAND], entry.uris, entry.stats)
    finally:
        files.close()
    return MeasuredScene(entry.item, entry.uris, entry.stats, grid, ratio, block_rows)


# -------------------------------------------------------------------------------------------------------- open files


class BandFiles:
    """The open files of an item's bands. Each file is read by one thread at a time."""

    def __init__(self, entry: AvailableItem | MeasuredScene) -> None:
        self.item_id = entry.item.item_id
        self._uris, self._stats = entry.uris, entry.stats
        self._copies = LocalCopies()
        self._files: dict[str, rasterio.DatasetReader] = {}
        self._locks = {band: threading.Lock() for band in entry.uris}

    @contextmanager
    def opened(self, band: str) -> Iterator[rasterio.DatasetReader]:
        """Open a band for a `with` block. Raises SourceError, TransientError."""
        with gdal.environment(self._uris[band]), self._open(band) as file:
            yield file

    def check_fit(self, band: str, file: rasterio.DatasetReader, grid: SceneGrid) -> int:
        """Return the grid pixels that a pixel of an open band spans. Raises SourceError if it does not fit the grid."""
        return read_ratio(self._uris[band], file, band, grid, (GRID_BAND, self._uris[GRID_BAND]))

    def open_band(self, band: str, grid: SceneGrid) -> int:
        """Open a band for reading; return the grid pixels that its pixel spans. Raises SourceError, TransientError."""
        with self._locks[band], gdal.environment(self._uris[band]):
            return self.check_fit(band, self._file(band), grid)

    def read(self, band: str, window: Window | None = None, shape: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read pixels of a band, once more after a remote failure.

        Args:
            band: The band.
            window: The part to read; all by default.
            shape: Rows and columns to return, where fewer are wanted than there are.

        Returns:
            Pixels [rows, cols].

        Raises:
            SourceError: If the file cannot be read or was replaced.
            TransientError: If its store may answer later.
        """
        uri = self._uris[band]

        def pixels(file: rasterio.DatasetReader) -> NDArray[Any]:
            own: NDArray[Any] = read_pixels(file, (1,), window, shape)[0]
            return own

        with self._locks[band], gdal.environment(uri):
            return read_with_retry(
                uri,
                lambda: pixels(self._file(band)),
                lambda: self._close(band),
                lambda error: self._error_of(band, "unreadable", error, pixels),
            )

    def close(self) -> None:
        """Close all files; no thread may read from them."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, band: str) -> rasterio.DatasetReader:
        """Return the one open file of a band; the caller holds its lock."""
        if band not in self._files:
            self._files[band] = self._open(band)
        return self._files[band]

    def _close(self, band: str) -> None:
        if file := self._files.pop(band, None):
            file.close()

    def _open(self, band: str) -> rasterio.DatasetReader:
        uri = self._uris[band]
        return read_with_retry(
            uri,
            lambda: open_raster(uri, self._stats[band]),
            lambda: None,
            lambda error: self._error_of(band, "not a readable raster", error, lambda file: None),
        )

    def _error_of(
        self, band: str, problem: str, error: RasterioError, read: Callable[[rasterio.DatasetReader], Any]
    ) -> SourceError:
        """Return the error for a failure of GDAL. Raises TransientError if the network or the store is at fault."""
        uri = self._uris[band]
        stat = confirmed_stat(uri, self._stats[band])
        if stat is None:
            return SourceError(f"{uri}: {band} was removed while it was read.")
        if stat != self._stats[band]:
            raise TransientError(f"{uri}: {band} was replaced while it was read. Try again.")
        return fault_of_file(uri, stat, error, f"{band} is {problem}", self._copies, read)
