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
SEMI_MAJOR_M, ECCENTRICITY_2 = 6_378_137.0, 0.00669438  # of GRS 80; the eccentricity squared
UTM_SCALE = 0.9996  # on the central meridian
MAX_CONVERGENCE = 0.1  # radians; in its own zone a scene is turned by up to 0.04, and a key may state a wrong zone
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
        """West and north edge of the quarter quadrangle in degrees."""
        return corner_of(self.quad, self.quarter)

    @property
    def bounds(self) -> Bounds:
        """West, south, east, north in degrees, with the 300 m by which a scene extends beyond its quadrangle."""
        return bounds_of(self.quad, self.quarter)

    @property
    def extent_m(self) -> tuple[float, float]:
        """Width and height in metres of the scene: the box of its padded quarter quadrangle in its UTM zone."""
        return _extent_m(self.quad, self.quarter, self.zone)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of its four uint8 bands, by estimate."""
        width, height = self.extent_m
        return int(width * height * 4 * (100 / self.cm) ** 2)


def corner_of(quad: str, quarter: str) -> tuple[float, float]:
    """Return the west and north edge of a quarter quadrangle in degrees.

    Quad `DDdddNN`: the NN-th of 8 x 8 eighths of the degree that begins at DD + 1 north, ddd + 1 west, row by row.
    """
    n = int(quad[5:]) - 1
    west = -(int(quad[2:5]) + 1) + n % 8 / 8 + (QUARTER_DEG if quarter[1] == "e" else 0)
    return west, int(quad[:2]) + 1 - n // 8 / 8 - (QUARTER_DEG if quarter[0] == "s" else 0)


def bounds_of(quad: str, quarter: str) -> Bounds:
    """Return west, south, east, north in degrees of a scene, which extends 300 m beyond its quarter quadrangle."""
    west, north = corner_of(quad, quarter)
    up = PAD_M / METRES_PER_DEGREE
    side = up / math.cos(math.radians(north))
    return west - side, north - QUARTER_DEG - up, west + QUARTER_DEG + side, north + up


@cache
def _extent_m(quad: str, quarter: str, zone: int) -> tuple[float, float]:
    """Return width and height of a scene.

    The quadrangle is a rectangle of parallels and meridians on GRS 80. In UTM it is scaled, and turned by the meridian
    convergence, about the distance from the central meridian times the sine of the latitude. Formulas: Snyder, Map
    Projections, 1987, pages 24, 25 and 61. They agree with PROJ to 0.1 percent.
    """
    west, south, east, north = bounds_of(quad, quarter)
    latitude = math.radians((south + north) / 2)
    from_meridian = math.radians((west + east) / 2 - (6 * zone - 183))
    sin, cos = math.sin(latitude), math.cos(latitude)
    curvature = 1 - ECCENTRICITY_2 * sin * sin
    scale = UTM_SCALE * (1 + min(abs(from_meridian * cos), MAX_CONVERGENCE) ** 2 / 2)
    width = math.radians(east - west) * SEMI_MAJOR_M / math.sqrt(curvature) * math.cos(math.radians(south)) * scale
    height = math.radians(north - south) * SEMI_MAJOR_M * (1 - ECCENTRICITY_2) / curvature**1.5 * scale
    turn = min(abs(from_meridian * sin), MAX_CONVERGENCE)
    return width * math.cos(turn) + height * math.sin(turn), height * math.cos(turn) + width * math.sin(turn)


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
