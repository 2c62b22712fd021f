"""Chips and a source in memory, for tests of the steps after reading."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shapely

from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats.columns import ColumnSpec
from kiln.formats.records import Chip, Dropped, Loaded, Read, SourceInfo, Unit
from kiln.formats.sensor import Sensor

PLAIN = Sensor("plain", ("a", "b"), (0.0, 0.0), (1.0, 1.0), (0.5, 0.6), 10.0)  # its normalisation changes no pixel


def make_info(**changes: Any) -> SourceInfo:
    """Return the facts about a source of `PLAIN` chips of 8 px."""
    facts: dict[str, Any] = {
        "dataset": "plain",
        "partition": "2021",
        "sensor": PLAIN,
        "recipe": 1,
        "lattice": {"chip_size": 8},
        "metadata": "zeros",
        "gsd": "as_trained",
        "native_gsd": None,
        "max_nodata": 0.05,
    }
    return SourceInfo(**(facts | changes))


def make_chip(n: int, unit: str = "u", pixels: np.ndarray | None = None, **changes: Any) -> Chip:
    """Return a chip of one degree, the n-th eastwards from 180° W, with two bands of 8 x 8 px."""
    west = -180 + (n % 360)
    facts: dict[str, Any] = {
        "unit_id": unit,
        "chip_id": f"{unit}:{n}",
        "pixels": np.full((2, 8, 8), n % 1000, np.uint16) if pixels is None else pixels,
        "footprint": shapely.box(west, 10, west + 1, 11),
        "center": (west + 0.5, 10.5),
        "crs": "EPSG:4326",
        "x0": float(west),
        "y0": 11.0,
        "pixel_size": 0.125,
        "col": n,
        "row": -n,
        "datetime": datetime(2021, 6, 1, tzinfo=UTC),
        "item_id": f"item{n}",
        "source": f"s3://b/item{n}.tif",
        "sources": (f"s3://b/item{n}.tif", "s3://b/other.tif"),
        "nodata_fraction": 0.25,
        "extra": {"year": 2021},
    }
    return Chip(**(facts | changes))


@dataclass
class ListSource:
    """A source of given events. A reader thread loads each event before `chips` yields it."""

    events: list[Chip | Dropped]
    expected: dict[str, int]
    info: SourceInfo = field(default_factory=make_info)
    columns: tuple[ColumnSpec, ...] = COLUMNS
    broken: Exception | None = None  # raised when the last event is read

    def units(self) -> list[Unit]:
        return [Unit(u, n, f"s3://b/{u}", f"etag-{u}", expected_known=n > 0) for u, n in self.expected.items()]

    def check(self) -> None:
        pass

    def reads(self) -> Iterable[Read]:
        for n, event in enumerate(self.events):
            yield Read(100, lambda e=event, n=n: self._load(e, n))

    def _load(self, event: Chip | Dropped, n: int) -> Chip | Dropped:
        if self.broken is not None and n == len(self.events) - 1:
            raise self.broken
        return event

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped]:
        for piece in loaded:
            yield piece.value

    def provenance(self) -> dict[str, dict[str, Any]]:
        return {}
