"""Records that flow from a source to the engine: reads, chips, and the account of chips that are not embedded."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import shapely
from numpy.typing import NDArray

from kiln.errors import SourceError
from kiln.formats.columns import ColumnSpec
from kiln.formats.sensor import Sensor


@dataclass(frozen=True)
class Unit:
    """The smallest piece of work: a scene, an item or a column of chips. It has one row of the ledger.

    Attributes:
        unit_id: Unique id, the beginning of its chips' ids.
        expected: Number of its chips, an estimate where `expected_known` is false.
        source: URI of its file or folder.
        etag: ETag of its files, empty where the store has none.
        expected_known: Whether `expected` is exact.
        version: Identifies the state of the unit's files (sizes, ETags); known after `Source.check`. A source whose
            chips come unit by unit sets it, and finished units of an unfinished shard then become checkpoints.
    """

    unit_id: str
    expected: int
    source: str
    etag: str = ""
    expected_known: bool = True
    version: str = ""


@dataclass(frozen=True)
class Read:
    """One read, to be done ahead of its use.

    Attributes:
        nbytes: Memory in bytes that its value takes.
        load: Returns the value; it runs in a thread. Raises SourceError or TransientError.
        key: Anything by which the source recognises the read.
        unit_id: The unit that the read is for, if it is for one alone; units with a checkpoint are not read.
        then: Returns the reads that follow from the value; they are done right after it.
    """

    nbytes: int
    load: Callable[[], Any]
    key: Any = None
    unit_id: str = ""
    then: Callable[[Any], Iterable["Read"]] | None = None


@dataclass(frozen=True)
class Loaded:
    """A finished read: its value, or the SourceError that `load` raised."""

    read: Read
    value: Any
    error: SourceError | None = None


@dataclass(slots=True)
class Chip:
    """A square of pixels and the values of its row.

    Attributes:
        pixels: [C, H, W], digital numbers as in the archive's files.
        footprint: In EPSG:4326.
        center: Longitude and latitude of the centre in the chip's CRS.
        x0: West edge in units of `crs`.
        y0: North edge in units of `crs`.
        pixel_size: Side of a pixel in units of `crs`; metres where `SourceInfo.native_gsd` is None.
        extra: Values of the archive's own columns, by column.
    """

    unit_id: str
    chip_id: str
    pixels: NDArray[Any]
    footprint: shapely.Geometry
    center: tuple[float, float]
    crs: str
    x0: float
    y0: float
    pixel_size: float
    col: int
    row: int
    datetime: datetime | None
    item_id: str
    source: str
    sources: tuple[str, ...]
    nodata_fraction: float
    cloud_fraction: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Chips of a unit that get no row: their number and the reason."""

    unit_id: str
    kind: Literal["nodata", "cloud", "failed"]
    count: int = 1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A unit's exact number of chips, where the plan has an estimate, and notes for the ledger."""

    unit_id: str
    expected: int
    etag: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceInfo:
    """The facts about a source that the fingerprint and the metadata of its embeddings file hold.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition, the product that the shard goes into.
        sensor: The bands as the model sees them.
        recipe: The archive's recipe, an integer that is raised whenever the same pixels would give other vectors.
        lattice: The lattice of chips, JSON values only; `chip_size` in pixels is always there.
        metadata: Date and place that the model is given: `as_trained` (of each chip), `zeros` (none) or
            `as_published` (those of the published composite).
        gsd: Pixel size that the model is given: `as_trained` (that of the sensor) or `actual`.
        native_gsd: Metres a pixel of every chip. None: each chip has its own.
        max_nodata: Largest fraction of nodata in an embedded chip, 0 to 1.
        max_cloud: Largest fraction of cloud in an embedded chip, 0 to 1. None: the archive has no cloud filter.
    """

    dataset: str
    partition: str
    sensor: Sensor
    recipe: int
    lattice: Mapping[str, Any]
    metadata: str
    gsd: str
    native_gsd: float | None
    max_nodata: float
    max_cloud: float | None = None


class Source(Protocol):
    """The pixels of one shard: the only part of an embedding job that differs between archives.

    Attributes:
        info: The facts that the fingerprint and the file's metadata hold.
        columns: The archive's own columns of the embeddings file, after the common ones.
    """

    info: SourceInfo
    columns: Sequence[ColumnSpec]

    def units(self) -> list[Unit]:
        """Return the units of the shard in ledger order."""
        ...

    def check(self) -> None:
        """Raise ConfigError or SourceError, before weights are loaded, for what would fail again on a retry."""
        ...

    def reads(self) -> Iterable[Read]:
        """Yield what to read, in order; every byte of the archive once."""
        ...

    def chips(self, loaded: Iterator[Loaded]) -> "Iterator[Chip | Dropped | Opened]":
        """Yield the chips cut from what was read, and an account of those that are not embedded.

        Args:
            loaded: The finished reads, in the order of `reads`.
        """
        ...

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return each source file's URI with its size and ETag, which are known after `check`."""
        ...
