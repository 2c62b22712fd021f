"""NAIP's keys: a scene's name, and what it tells of its place, size and day. Nothing heavy: a plan reads a million.

`{state}/{year}/{60cm|100cm|...}/rgbir_cog/{block}/m_{quad}_{quarter}_{zone}_{res}[_{acquired}][_{released}].tif`. The
path's year is the partition, even where a scene was acquired in the next one; two whole state-years have no dates.
"""

import math
import re
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

BUCKET = "s3://naip-analytic"
KEY = re.compile(
    r"(?P<state>[a-z]{2})/(?P<year>\d{4})/(?P<cm>\d{2,3})cm/rgbir_cog/\d{5}/"
    r"(?P<stem>(?:m_)?(?P<quad>\d{7})_(?P<quarter>[ns][ew])_(?P<zone>\d{2})_(?P<res>1|060|030|h)"
    r"(?:_(?P<acquired>\d{8}))?(?:_(?P<released>\d{8}))?)\.tif",
    re.ASCII,
)
QUARTER = 1 / 16  # degrees of a quarter quadrangle's side
PAD = 300.0  # metres that a scene reaches over its quarter quadrangle
METRES = 111_195  # of a degree of latitude, on a sphere of 6371 km


class SceneKey(NamedTuple):  # made much faster than a frozen dataclass, and a plan makes a million
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
        """What it is merged with: `nd-2019`."""
        return f"{self.state}-{self.year}"

    @property
    def when(self) -> datetime | None:
        """Acquisition, midnight UTC; None if the name has no date."""
        return datetime.strptime(self.acquired, "%Y%m%d").replace(tzinfo=UTC) if self.acquired else None

    @property
    def unit_id(self) -> str:
        """`naip:nd:2019:m_4709963_se_14_1_20190904`: stems alone occur twice in the archive."""
        return f"naip:{self.state}:{self.year}:{self.stem}"

    @property
    def scene(self) -> str:
        """What several releases, or copies in several folders, share: the unit's id without its release."""
        return self.unit_id.removesuffix(f"_{self.released}") if self.released else self.unit_id

    @property
    def at_home(self) -> bool:
        """Whether it lies in the folder of its own block; one of the archive's does not."""
        return f"/{self.quad[:5]}/" in self.key

    @property
    def corner(self) -> tuple[float, float]:
        """West and north edge, degrees, of the quarter quadrangle.

        Quad `DDdddNN`: the NN-th of 8 x 8 eighths of the degree that begins at DD + 1 north, ddd + 1 west, row by row.
        """
        lon, n = int(self.quad[2:5]), int(self.quad[5:]) - 1
        west = -(lon + 1) + n % 8 / 8 + (QUARTER if self.quarter[1] == "e" else 0)
        return west, _north(self.quad[:2], n, self.quarter[0])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees, with the 300 m that a scene reaches over."""
        west, north = self.corner
        up = PAD / METRES
        side = up / math.cos(math.radians(north))
        return west - side, north - QUARTER - up, west + QUARTER + side, north + up

    def estimate(self, chip: int) -> tuple[int, int]:
        """Whole chips of `chip` pixels, and bytes of four uint8 bands, that a scene of this place should have."""
        return _estimate(self.quad[:2], self.quad[5:], self.quarter[0], self.cm, chip)


def _north(lat: str, n: int, half: str) -> float:
    """North edge, degrees, of the half `n` or `s` of the n-th eighth, from 0, of a degree that ends at `lat`."""
    return int(lat) + 1 - n // 8 / 8 - (QUARTER if half == "s" else 0)


@cache
def _estimate(lat: str, eighth: str, half: str, cm: int, chip: int) -> tuple[int, int]:
    """Of a scene of `cm` centimetres a pixel; the longitude does not matter, so that there are some thousand cases."""
    north = _north(lat, int(eighth) - 1, half)
    width = (QUARTER * METRES * math.cos(math.radians(north)) + 2 * PAD) * 100 / cm
    height = (QUARTER * METRES + 2 * PAD) * 100 / cm
    return int(width // chip) * int(height // chip), int(width * height * 4)


def parse_key(key: str) -> SceneKey | None:
    """The scene of a key; None if it is not spelled as a scene or its dates are no dates."""
    found = KEY.fullmatch(key)
    if not found:
        return None
    state, year, cm, stem, quad, quarter, zone, _, acquired, released = found.groups("")
    if not "01" <= quad[5:] <= "64" or quad[:2] > "89" or quad[2:5] > "179":
        return None
    if (acquired and not _is_date(acquired)) or (released and not _is_date(released)):
        return None
    return SceneKey(key, state, int(year), int(cm), stem, quad, quarter, int(zone), acquired, released)


_DATES: dict[str, bool] = {}


def _is_date(text: str) -> bool:
    """Whether eight digits are a day; the archive has some thousands of days, each asked of once."""
    if text not in _DATES:
        try:
            datetime.strptime(text, "%Y%m%d")
        except ValueError:
            _DATES[text] = False
        else:
            _DATES[text] = 1990 <= int(text[:4]) <= 2100
    return _DATES[text]
