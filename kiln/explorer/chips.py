"""Chips as the explorer shows them: facts, search hits, bounding boxes in degrees."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kiln.errors import ConfigError
from kiln.formats.bounding_box import Bounds

FRACTION_DIGITS = 6  # decimals of fractions, which the table stores in float32


class UnknownChipError(ConfigError):
    """A chip id that the database does not have, or a place that no chip covers."""


@dataclass(frozen=True)
class ChipFacts:
    """What the explorer knows of a chip, without its vector.

    Attributes:
        chip_id: The chip's id, unique in the database.
        dataset: The archive, or the name of a set of published files.
        year: The year of the product or of the acquisition.
        datetime: Acquisition time, UTC.
        item_id: The STAC item or file that the pixels come from.
        source: URI of that file.
        nodata_fraction: Fraction of pixels without data; None: unknown.
        cloud_fraction: Fraction of cloudy pixels; None: unknown.
        lon: Longitude of the centre in degrees.
        lat: Latitude of the centre in degrees.
        bbox: West, south, east, north in degrees; west > east across the antimeridian.
    """

    chip_id: str
    dataset: str
    year: int | None
    datetime: datetime | None
    item_id: str
    source: str
    nodata_fraction: float | None
    cloud_fraction: float | None
    lon: float
    lat: float
    bbox: Bounds

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ChipFacts":
        """Return the facts of a row of the explorer table."""
        return cls(
            row["chip_id"], row["dataset"], row["year"], row["datetime"], row["item_id"], row["source"],
            _rounded(row["nodata_fraction"]), _rounded(row["cloud_fraction"]), row["lon"], row["lat"],
            (row["xmin"], row["ymin"], row["xmax"], row["ymax"]),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values; times are ISO 8601 in UTC, with seconds."""
        return {
            "chip_id": self.chip_id,
            "dataset": self.dataset,
            "year": self.year,
            "datetime": time_text(self.datetime),
            "item_id": self.item_id,
            "source": self.source,
            "nodata_fraction": self.nodata_fraction,
            "cloud_fraction": self.cloud_fraction,
            "lon": self.lon,
            "lat": self.lat,
            "bbox": list(self.bbox),
        }


@dataclass(frozen=True)
class Hit:
    """A chip of a search's result and its similarity.

    Attributes:
        chip: The chip.
        similarity: Method `mean`: the cosine to the direction of the marks. Method `linear`: about 1 for a like and -1
            for a dislike.
    """

    chip: ChipFacts
    similarity: float

    def to_json(self) -> dict[str, Any]:
        """Return facts and similarity as JSON values."""
        return {**self.chip.to_json(), "similarity": round(self.similarity, 6)}


def _rounded(fraction: float | None) -> float | None:
    return None if fraction is None or math.isnan(fraction) else round(fraction, FRACTION_DIGITS)


def time_text(moment: datetime | None) -> str | None:
    """Return a UTC time as ISO 8601 with seconds."""
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
