"""The world lattice of chips, its columns and its shards: integers only, so that every machine agrees.

One lattice per chip size passes through (-125, 50), where the published WorldCover run began: column k starts
`chip * k` pixels east of -125, row r `chip * r` pixels south of 50. Pixel offsets count from (-180, 90).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest

ORIGIN = (-125, 50)  # longitude, latitude the lattice passes through
NATIVE = 12000  # pixels per degree of the real archive; chip ids count in its pixels
SOUTH, NORTH = -60, 84  # latitudes the archive spans
CONUS = (-125, 24, -67, 50)  # west, south, east, north of the published run


@dataclass(frozen=True)
class Lattice:
    """Square chips of `chip` pixels at `ppd` pixels per degree."""

    chip: int
    ppd: int = NATIVE

    def __post_init__(self) -> None:
        if self.chip < 1 or self.ppd < 1:
            raise ConfigError(f"chips of {self.chip} px at {self.ppd} px per degree: both must be 1 or more")
        if NATIVE % self.ppd:
            raise ConfigError(f"pixels_per_degree {self.ppd} does not divide {NATIVE}: chip ids would not be whole")

    @property
    def origin(self) -> tuple[int, int]:
        """Pixel offsets of the lattice's origin from (-180, 90)."""
        return (ORIGIN[0] + 180) * self.ppd, (90 - ORIGIN[1]) * self.ppd

    def x(self, col: int) -> int:
        """First pixel of column `col`."""
        return self.origin[0] + col * self.chip

    def y(self, row: int) -> int:
        """First pixel of row `row`."""
        return self.origin[1] + row * self.chip

    def lon(self, x: int) -> float:
        """Longitude in degrees of pixel edge x: one rounding, so that neighbours share their edge to the bit."""
        return (x - 180 * self.ppd) / self.ppd

    def lat(self, y: int) -> float:
        """Latitude in degrees of pixel edge y."""
        return (90 * self.ppd - y) / self.ppd

    def native(self, pixels: int) -> int:
        """Pixels of this lattice as pixels of the 1/12000 degree grid."""
        return pixels * (NATIVE // self.ppd)


@dataclass(frozen=True, order=True)
class Column:
    """One lattice column `col` of `rows` chips, from row `row` southwards: the unit of WorldCover."""

    col: int
    row: int
    rows: int


def region_columns(lattice: Lattice, region: str | Sequence[float]) -> list[Column]:
    """The columns of a region, west to east.

    `conus` is the published run's 1359 columns of 609 rows (whole chips inside its box). A bounding box [west,
    south, east, north] in degrees takes every lattice chip that intersects it; west > east crosses the
    antimeridian, which no chip does. Raises ConfigError for a region that is empty or not on the Earth.
    """
    if region == "conus":
        west, south, east, north = CONUS
        rows = (north - south) * lattice.ppd // lattice.chip
        if not rows:
            raise ConfigError(f"region conus holds no whole chip of {lattice.chip} px")
        return [Column(k, 0, rows) for k in range((east - west) * lattice.ppd // lattice.chip)]
    if isinstance(region, str) or len(region) != 4:
        raise ConfigError(f"region {region!r}: write 'conus' or [west, south, east, north] in degrees")
    west, south, east, north = (float(v) for v in region)
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= 90 and -90 <= north <= 90):
        raise ConfigError(f"region {list(region)}: longitudes are -180 to 180, latitudes -90 to 90")
    south, north = max(south, SOUTH), min(north, NORTH)
    if south >= north or west == east:
        raise ConfigError(
            f"region {list(region)} is empty: [west, south, east, north], within latitudes {SOUTH} to {NORTH}"
        )
    x0, y0 = lattice.origin
    chip, world = lattice.chip, 360 * lattice.ppd
    first_row = _floor((90 - north) * lattice.ppd - y0, chip)
    last_row = _ceil((90 - south) * lattice.ppd - y0, chip)
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    columns = []
    for left, right in spans:
        first = max(_floor((left + 180) * lattice.ppd - x0, chip), -(x0 // chip))
        last = min(_ceil((right + 180) * lattice.ppd - x0, chip), (world - x0) // chip)
        columns += [Column(k, first_row, last_row - first_row) for k in range(first, last)]
    if not columns:
        raise ConfigError(f"region {list(region)} holds no whole chip of {chip} px")
    return sorted(set(columns))


def _floor(pixels: float, chip: int) -> int:
    return int(round(pixels, 6) // chip)  # a millionth of a pixel absorbs the rounding of decimal degrees


def _ceil(pixels: float, chip: int) -> int:
    return int(-(-round(pixels, 6) // chip))


@dataclass(frozen=True)
class Shard:
    """The units one job does; `name` ends in a digest of their ids, so a changed list is another file."""

    name: str
    year: int
    columns: tuple[Column, ...]


def unit_id(lattice: Lattice, year: int, column: Column) -> str:
    """`worldcover:2021:512:x0660000:y0480000:r609`: year, chip, north-west corner on the 1/12000 grid, chips."""
    x, y = lattice.native(lattice.x(column.col)), lattice.native(lattice.y(column.row))
    return f"worldcover:{year}:{lattice.chip}:x{x:07d}:y{y:07d}:r{column.rows}"


def chip_id(lattice: Lattice, year: int, x: int, y: int) -> str:
    """`worldcover:2021:512:x0660000:y0480000` of the chip whose first pixel is (x, y) of this lattice."""
    return f"worldcover:{year}:{lattice.chip}:x{lattice.native(x):07d}:y{lattice.native(y):07d}"


def shards(lattice: Lattice, year: int, columns: Sequence[Column], per_shard: int) -> list[Shard]:
    """Neighbouring columns, cut where the column number divides by `per_shard`: a wider region changes its edges."""
    groups: dict[int, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.col // per_shard, []).append(column)
    made = []
    for group in groups.values():
        ids = [unit_id(lattice, year, c) for c in group]
        x = lattice.native(lattice.x(group[0].col))
        made.append(Shard(f"x{x:07d}-{len(group):03d}-{digest(ids)[:8]}", year, tuple(group)))
    return made
