"""Filters of a product's rows: as row groups that may have some, by their statistics, and as a mask of rows."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from kiln.errors import ConfigError
from kiln.formats.arrays import BoolArray
from kiln.formats.bounding_box import MAX_CROSSING_WIDTH, BoundingBox, Bounds
from kiln.formats.columns import BBOX_SIDES
from kiln.formats.days import day_bounds

HALF_TURN = 180.0  # degrees: no chip is wider


@dataclass(frozen=True)
class RowFilter:
    """Conditions that a row must meet: every field that is set.

    Attributes:
        bbox: West, south, east, north in degrees; the chip's bounding box meets it. West > east crosses the
            antimeridian.
        area: Polygon or MultiPolygon in EPSG:4326; the chip's footprint intersects it.
        first_day: Acquired on this day (UTC) or later; a chip without a date does not pass.
        last_day: Acquired on this day or earlier; a chip without a date does not pass.
        years: Years, by the column `year`, or by `datetime` where a file has no such column.
        max_nodata: Maximum fraction of pixels without data; an unknown fraction passes.
        max_cloud: Maximum fraction of cloudy pixels; an unknown fraction, of a chip without a mask, passes.
        chip_ids: The chips themselves; None is no condition.
    """

    bbox: tuple[float, ...] | None = None
    area: shapely.Geometry | None = None
    first_day: date | None = None
    last_day: date | None = None
    years: tuple[int, ...] = ()
    max_nodata: float | None = None
    max_cloud: float | None = None
    chip_ids: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values of another type, and for those that no chip can have."""
        if self.bbox is not None:
            _check_box(self.bbox)
        if self.area is not None and not (
            isinstance(self.area, shapely.Polygon | shapely.MultiPolygon) and not self.area.is_empty
        ):
            raise ConfigError(f"area: expected a polygon in degrees, got {self.area!r}. Correct it.")
        for name, day in (("first_day", self.first_day), ("last_day", self.last_day)):
            if day is not None and not isinstance(day, date):
                raise ConfigError(f"{name}: expected a datetime.date, got {day!r}. Correct it.")
        if self.first_day and self.last_day and self.first_day > self.last_day:
            raise ConfigError(f"days: expected first <= last, got {self.first_day} and {self.last_day}. Swap them.")
        if not isinstance(self.years, tuple) or not all(isinstance(year, int) for year in self.years):
            raise ConfigError(f"years: expected a tuple of numbers, got {self.years!r}. Correct it.")
        for name, fraction in (("max_nodata", self.max_nodata), ("max_cloud", self.max_cloud)):
            if fraction is not None and not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
                raise ConfigError(f"{name}: expected a fraction from 0 to 1, got {fraction!r}. Correct it.")
        if self.chip_ids is not None and not isinstance(self.chip_ids, frozenset):
            raise ConfigError(f"chip_ids: expected a frozenset of ids, got {self.chip_ids!r:.80}. Correct it.")

    @cached_property
    def places(self) -> list[list[Bounds]]:
        """Lists of boxes with west <= east: a chip's bounding box must meet one box of each list."""
        places: list[list[Bounds]] = []
        if self.bbox is not None:
            places.append([*BoundingBox(*map(float, self.bbox)).parts()])
        if self.area is not None:
            places.append(_boxes_around(self.area))
        return places

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Return the columns that the filter reads.

        Args:
            names: The columns of the file.
            where: Name of the file, for the error.

        Raises:
            ConfigError: If the file lacks one of them.
        """
        year = "year" if "year" in names else "datetime"
        by_flag = {  # flag of the command, its value, the columns
            "bbox": (self.bbox is not None, ("bbox",)),
            "area": (self.area is not None, ("bbox", "geometry")),
            "from": (self.first_day is not None, ("datetime",)),
            "to": (self.last_day is not None, ("datetime",)),
            "year": (bool(self.years), (year,)),
            "max_nodata": (self.max_nodata is not None, ("nodata_fraction",)),
            "max_cloud": (self.max_cloud is not None, ("cloud_fraction",)),
            "ids": (self.chip_ids is not None, ("chip_id",)),
        }
        needed: dict[str, None] = {}
        for flag, (is_set, columns) in by_flag.items():
            for column in columns if is_set else ():
                if column not in names:
                    raise ConfigError(
                        f"{where}: expected a column {column} for the filter {flag}, got {', '.join(names)}. "
                        "Leave that filter out."
                    )
                needed[column] = None
        return list(needed)

    def may_pass(self, footer: pq.FileMetaData, group: int) -> bool:
        """Return whether rows of a row group may pass, by the statistics of their bounding boxes."""
        return all(any(_may_meet(footer, group, box) for box in boxes) for boxes in self.places)

    def mask(self, rows: pa.Table) -> BoolArray:
        """Return which rows [n] pass.

        Args:
            rows: n rows with the columns that the filter reads.
        """
        passes = np.ones(len(rows), bool)
        for boxes in self.places:
            passes &= _meets(rows["bbox"], boxes)
        if self.chip_ids is not None:
            passes &= _as_bools(pc.is_in(rows["chip_id"], pa.array(sorted(self.chip_ids), pa.string())))
        first, too_late = day_bounds(self.first_day, self.last_day)
        if first is not None:
            passes &= _as_bools(pc.greater_equal(rows["datetime"], pa.scalar(first, rows["datetime"].type)))
        if too_late is not None:
            passes &= _as_bools(pc.less(rows["datetime"], pa.scalar(too_late, rows["datetime"].type)))
        if self.years:
            years = rows["year"] if "year" in rows.column_names else pc.year(rows["datetime"])
            passes &= _as_bools(pc.is_in(years.cast(pa.int64()), pa.array(self.years, pa.int64())))
        for column, limit in (("nodata_fraction", self.max_nodata), ("cloud_fraction", self.max_cloud)):
            if limit is not None:
                above = pc.greater(rows[column], pa.scalar(limit, pa.float32()))
                passes &= ~_as_bools(above)
        if self.area is not None:
            candidates = np.flatnonzero(passes)
            footprints = shapely.from_wkb(np.asarray(rows["geometry"].take(pa.array(candidates)), dtype=object))
            shapely.prepare(self.area)
            passes[candidates] = shapely.intersects(self.area, footprints)
        return passes

    def as_json(self) -> dict[str, Any]:
        """Return the conditions that are set, for the metadata of a file: areas and ids by digest and number."""
        values: dict[str, Any] = {
            "bbox": None if self.bbox is None else [float(side) for side in self.bbox],
            "area": None if self.area is None else {"bounds": list(self.area.bounds), "sha256": _sha256(self.area.wkb)},
            "from": None if self.first_day is None else self.first_day.isoformat(),
            "to": None if self.last_day is None else self.last_day.isoformat(),
            "years": sorted(self.years) or None,
            "max_nodata": self.max_nodata,
            "max_cloud": self.max_cloud,
        }
        if self.chip_ids is not None:
            ids = "\n".join(sorted(self.chip_ids))
            values["chip_ids"] = {"count": len(self.chip_ids), "sha256": _sha256(ids.encode())}
        return {name: value for name, value in values.items() if value is not None}


EVERY_ROW = RowFilter()


def _check_box(bbox: Sequence[float]) -> None:
    """Raise ConfigError unless the values are a box of any size, and not one with west and east swapped."""
    if len(bbox) != 4 or not all(map(math.isfinite, bbox)) or bbox[1] > bbox[3]:
        raise ConfigError(f"bbox: expected west, south, east, north in degrees, got {bbox}. Correct it.")
    box = BoundingBox(*map(float, bbox))
    if box.crosses_antimeridian and box.width > MAX_CROSSING_WIDTH:
        raise ConfigError(
            f"bbox: expected west, south, east, north in degrees, got {bbox}, which crosses the antimeridian and is "
            f"{box.width:g} degrees wide. Swap west and east."
        )


def _boxes_around(area: shapely.Geometry) -> list[Bounds]:
    """Return the box of an area's polygons in each hemisphere, so that one cut at the antimeridian has two."""
    bounds = shapely.bounds(shapely.get_parts(area))
    eastern = bounds[:, 0] + bounds[:, 2] > 0
    halves = [half for half in (bounds[eastern], bounds[~eastern]) if len(half)]
    return [BoundingBox(*map(float, [*half[:, :2].min(axis=0), *half[:, 2:].max(axis=0)])) for half in halves]


def _may_meet(footer: pq.FileMetaData, group: int, box: Bounds) -> bool:
    """Return whether chips of a row group may meet a box with west <= east, by the statistics of its bounding boxes.

    A chip over the antimeridian has xmin > xmax. A row group may have one if they lie half a turn apart.
    """
    row_group = footer.row_group(group)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    statistics = {c.path_in_schema.removeprefix("bbox."): c.statistics for c in columns}
    if any(statistics.get(side) is None or not statistics[side].has_min_max for side in BBOX_SIDES):
        return True
    low, high = ({side: getattr(statistics[side], end) for side in BBOX_SIDES} for end in ("min", "max"))
    west, south, east, north = box
    if low["ymin"] > north or high["ymax"] < south:
        return False
    return bool((low["xmin"] <= east and high["xmax"] >= west) or high["xmin"] - low["xmax"] > HALF_TURN)


def _meets(column: pa.ChunkedArray, boxes: Sequence[Bounds]) -> BoolArray:
    """Return which chips [n] meet any of the boxes, by their `bbox` values."""
    values = column.combine_chunks()
    xmin, ymin, xmax, ymax = (np.asarray(values.field(side)) for side in BBOX_SIDES)
    meets = np.zeros(len(values), bool)
    for west, south, east, north in boxes:
        in_longitude = np.where(xmin > xmax, (xmin <= east) | (xmax >= west), (xmin <= east) & (xmax >= west))
        meets |= in_longitude & (ymin <= north) & (ymax >= south)
    return meets


def _as_bools(column: pa.ChunkedArray) -> BoolArray:
    """Return a column of booleans [n], with null as false."""
    bools: BoolArray = np.asarray(column.fill_null(False))
    return bools


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
