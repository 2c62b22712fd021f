"""The keys of NAIP's scenes: state, year, place, size and day. A plan reads a million, so nothing heavy is imported.

`{state}/{year}/{60cm|100cm|...}/rgbir_cog/{block}/m_{quad}_{quarter}_{zone}_{res}[_{acquired}][_{released}].tif`. The
path's year is the partition, even where a scene was acquired in the next one; all scenes of two state-years have no
date.
"""

import math
import re
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

from kiln.formats.bounding_box import Bounds

BUCKET = "s3://naip-analytic"
KEY = re.compile(
    r"(?P<state>[a-z]{2})/(?P<year>\d{4})/(?P<cm>\d{2,3})cm/rgbir_cog/\d{5}/"
    r"(?P<stem>(?:m_)?(?P<quad>\d{7})_(?P<quarter>[ns][ew])_(?P<zone>\d{2})_(?P<res>1|060|030|h)"
    r"(?:_(?P<acquired>\d{8}))?(?:_(?P<released>\d{8}))?)\.tif",
    re.ASCII,
)
QUARTER_DEG = 1 / 16  # side of a quarter quadrangle
PAD_M = 300.0  # by which a scene extends beyond its quarter quadrangle
METRES_PER_DEGREE = 111_195  # of latitude, on a sphere of 6371 km
FIRST_YEAR, LAST_YEAR = 1990, 2100  # of dates


class SceneKey(NamedTuple):  # created much faster than a frozen dataclass
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
        """The merge partition, as `nd-2019`."""
        return f"{self.state}-{self.year}"

    @property
    def when(self) -> datetime | None:
        """The day of acquisition, midnight UTC; None if the name has no date."""
        return datetime.strptime(self.acquired, "%Y%m%d").replace(tzinfo=UTC) if self.acquired else None

    @property
    def unit_id(self) -> str:
        """The unit's id, as `naip:nd:2019:m_4709963_se_14_1_20190904`; stems alone occur twice in the archive."""
        return f"naip:{self.state}:{self.year}:{self.stem}"

    @property
    def scene(self) -> str:
        """The unit's id without its release, which several releases, or copies in several folders, have in common."""
        return self.unit_id.removesuffix(f"_{self.released}") if self.released else self.unit_id

    @property
    def is_in_own_block(self) -> bool:
        """Whether its folder is that of its block; one scene of the archive lies in another block's."""
        return f"/{self.quad[:5]}/" in self.key

    @property
    def corner(self) -> tuple[float, float]:
        """West and north edge of the quarter quadrangle in degrees.

        Quad `DDdddNN`: the NN-th of 8 x 8 eighths of the degree that begins at DD + 1 north, ddd + 1 west, row by row.
        """
        lon, n = int(self.quad[2:5]), int(self.quad[5:]) - 1
        west = -(lon + 1) + n % 8 / 8 + (QUARTER_DEG if self.quarter[1] == "e" else 0)
        return west, _north(self.quad[:2], n, self.quarter[0])

    @property
    def bounds(self) -> Bounds:
        """West, south, east, north in degrees, with the 300 m by which a scene extends beyond its quadrangle."""
        west, north = self.corner
        up = PAD_M / METRES_PER_DEGREE
        side = up / math.cos(math.radians(north))
        return west - side, north - QUARTER_DEG - up, west + QUARTER_DEG + side, north + up

    def estimate(self, chip: int) -> tuple[int, int]:
        """Return the complete chips of `chip` pixels, and the bytes of four uint8 bands, of a scene of this place."""
        return _estimate(self.quad[:2], self.quad[5:], self.quarter[0], self.cm, chip)


def _north(lat: str, n: int, half: str) -> float:
    """Return the north edge in degrees of the half `n` or `s` of the n-th eighth, from 0, of a degree of latitude."""
    return int(lat) + 1 - n // 8 / 8 - (QUARTER_DEG if half == "s" else 0)


@cache
def _estimate(lat: str, eighth: str, half: str, cm: int, chip: int) -> tuple[int, int]:
    """Return the estimate of a scene. The longitude does not matter, so there are some thousand cases."""
    north = _north(lat, int(eighth) - 1, half)
    width = (QUARTER_DEG * METRES_PER_DEGREE * math.cos(math.radians(north)) + 2 * PAD_M) * 100 / cm
    height = (QUARTER_DEG * METRES_PER_DEGREE + 2 * PAD_M) * 100 / cm
    return int(width // chip) * int(height // chip), int(width * height * 4)


def parse_key(key: str) -> SceneKey | None:
    """Return the scene of a key; None if the key does not follow the layout, or its dates are no days."""
    match = KEY.fullmatch(key)
    if not match:
        return None
    state, year, cm, stem, quad, quarter, zone, _, acquired, released = match.groups("")
    if not "01" <= quad[5:] <= "64" or quad[:2] > "89" or quad[2:5] > "179":
        return None
    if (acquired and not _is_date(acquired)) or (released and not _is_date(released)):
        return None
    return SceneKey(key, state, int(year), int(cm), stem, quad, quarter, int(zone), acquired, released)


_DATES: dict[str, bool] = {}


def _is_date(text: str) -> bool:
    """Return whether eight digits are a day. The archive has some thousand days, so each is checked once."""
    if text not in _DATES:
        try:
            datetime.strptime(text, "%Y%m%d")
        except ValueError:
            _DATES[text] = False
        else:
            _DATES[text] = FIRST_YEAR <= int(text[:4]) <= LAST_YEAR
    return _DATES[text]
