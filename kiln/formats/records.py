"""What flows from a source to the engine: reads, chips, and the account of what was not embedded."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import shapely

from kiln.errors import SourceError
from kiln.formats.sensor import Sensor


@dataclass(frozen=True)
class Unit:
    """What cannot be split; `expected` rows, an estimate where `expected_known` is false.

    `version` tells this state of the unit's files from any other (sizes, ETags); it is known after `Source.check`. A
    source whose units come one after the other sets it: a finished unit can then be kept while its shard is not.
    """

    unit_id: str
    expected: int
    source: str
    etag: str = ""
    expected_known: bool = True
    version: str = ""


@dataclass(frozen=True)
class Read:
    """A piece of reading: `load` runs in a thread and raises SourceError or TransientError; `nbytes` it will hold.

    `unit_id`: the unit it is for, if it is for one alone; a unit that is kept from an earlier try is not read. `then`:
    what follows from its value, to be read right after it.
    """

    nbytes: int
    load: Callable[[], Any]
    key: Any = None
    unit_id: str = ""
    then: Callable[[Any], Iterable["Read"]] | None = None


@dataclass(frozen=True)
class Loaded:
    """A finished read, in the order asked for: its value, or the SourceError that stands for it."""

    read: Read
    value: Any
    error: SourceError | None = None


@dataclass(slots=True)
class Chip:
    """A square of pixels [C, H, W], raw digital numbers, and the facts of its row."""

    unit_id: str
    chip_id: str
    pixels: np.ndarray
    footprint: shapely.Geometry  # EPSG:4326
    center: tuple[float, float]  # longitude, latitude of the projected centre
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
    """`count` chips of a unit that get no row, and why."""

    unit_id: str
    kind: Literal["nodata", "cloud", "failed"]
    count: int = 1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A unit turned out to hold `expected` chips, where the plan could only estimate; what was noticed on the way."""

    unit_id: str
    expected: int
    etag: str = ""
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A dataset's pixels: the only part that differs between datasets."""

    sensor: Sensor
    columns: list[pa.Field]  # the dataset's own columns, after the common ones

    def units(self) -> list[Unit]:
        """The units of this shard, in ledger order."""

    def check(self) -> None:
        """Fail now, before weights load, on what a second try would not mend. Raises ConfigError or SourceError."""

    def reads(self) -> Iterable[Read]:
        """What to read, in order; every byte of the archive once."""

    def chips(self, loaded: Iterator[Loaded]) -> Iterator["Chip | Dropped | Opened"]:
        """Chips cut from what was read, with an account of those that are not to be encoded."""

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Each source file's URI with its ETag (local files: size); known after `check`."""
