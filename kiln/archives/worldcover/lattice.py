"""The world lattice of chips, its columns and its shards: integers only, so that all machines agree.

One lattice per chip size passes through (-125, 50), where the published WorldCover run began: column k starts
`chip * k` pixels east of -125, row r `chip * r` pixels south of 50. Pixel offsets count from (-180, 90).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kiln.errors import ConfigError
from kiln.formats.bounding_box import BoundingBox, check_bounding_box
from kiln.formats.fingerprint import shard_name

ORIGIN = (-125, 50)  # longitude and latitude that the lattice passes through
NATIVE_PPD = 12000  # pixels per degree of the real archive; chip ids count in its pixels
SOUTH, NORTH = -60, 84  # latitudes of the archive
CONUS = BoundingBox(-125, 24, -67, 50)  # of the published run


@dataclass(frozen=True)
class Lattice:
    """Square chips of `chip` pixels at `ppd` pixels per degree."""

    chip: int
    ppd: int = NATIVE_PPD

    def __post_init__(self) -> None:
        if self.chip < 1 or self.ppd < 1:
            raise ConfigError(
                f"chip_size and pixels_per_degree: expected 1 or more, got {self.chip} and {self.ppd}. Correct them."
            )
        if NATIVE_PPD % self.ppd:
            raise ConfigError(f"pixels_per_degree: expected a divisor of {NATIVE_PPD}, got {self.ppd}. Correct it.")

    @property
    def origin(self) -> tuple[int, int]:
        """The pixel offsets of the lattice's origin from (-180, 90)."""
        return (ORIGIN[0] + 180) * self.ppd, (90 - ORIGIN[1]) * self.ppd

    def x(self, col: int) -> int:
        """Return the first pixel of a column."""
        return self.origin[0] + col * self.chip

    def y(self, row: int) -> int:
        """Return the first pixel of a row."""
        return self.origin[1] + row * self.chip

    def lon(self, x: int) -> float:
        """Return the longitude of pixel edge x, rounded once, so that neighbours have the same edge to the bit."""
        return (x - 180 * self.ppd) / self.ppd

    def lat(self, y: int) -> float:
        """Return the latitude of pixel edge y in degrees."""
        return (90 * self.ppd - y) / self.ppd

    def native(self, pixels: int) -> int:
        """Return pixels of this lattice as pixels of the 1/12000 degree grid."""
        return pixels * (NATIVE_PPD // self.ppd)


@dataclass(frozen=True, order=True)
class Column:
    """One lattice column `col` of `rows` chips, from row `row` southwards: the unit of WorldCover."""

    col: int
    row: int
    rows: int


def region_columns(lattice: Lattice, region: str | Sequence[float]) -> list[Column]:
    """Return the columns of a region, west to east.

    Args:
        lattice: The lattice.
        region: `conus`, the published run's 1359 columns of 609 rows (complete chips inside its box), or a bounding box
            [west, south, east, north] in degrees, with every chip that intersects it; no chip crosses the antimeridian.

    Returns:
        The columns.

    Raises:
        ConfigError: If the region holds no chip, or is not on the Earth.
    """
    if region == "conus":
        rows = int(CONUS.north - CONUS.south) * lattice.ppd // lattice.chip
        if not rows:
            raise ConfigError(f"region: expected a chip size that fits into conus, got {lattice.chip} px. Correct it.")
        return [Column(k, 0, rows) for k in range(int(CONUS.east - CONUS.west) * lattice.ppd // lattice.chip)]
    if isinstance(region, str):
        raise ConfigError(f"region: expected conus or [west, south, east, north], got {region!r}. Correct it.")
    box = check_bounding_box(
        region,
        "region",
        content=lambda box: f" and holds {sum(column.rows for column in _columns_of(lattice, box)):,} chips",
    )
    if max(box.south, SOUTH) >= min(box.north, NORTH):
        raise ConfigError(f"region: expected latitudes within {SOUTH} to {NORTH}, got {list(region)}. Correct it.")
    if not (columns := _columns_of(lattice, box)):
        raise ConfigError(
            f"region: expected at least one chip of {lattice.chip} px in it, got {list(region)}. Enlarge it."
        )
    return columns


def _columns_of(lattice: Lattice, box: BoundingBox) -> list[Column]:
    """Return the columns of chips that intersect a box, west to east."""
    x0, y0 = lattice.origin
    chip, world = lattice.chip, 360 * lattice.ppd
    first_row = _floor((90 - min(box.north, NORTH)) * lattice.ppd - y0, chip)
    last_row = _ceil((90 - max(box.south, SOUTH)) * lattice.ppd - y0, chip)
    columns = set()
    for part in box.parts():
        first = max(_floor((part.west + 180) * lattice.ppd - x0, chip), -(x0 // chip))
        last = min(_ceil((part.east + 180) * lattice.ppd - x0, chip), (world - x0) // chip)
        columns |= {Column(k, first_row, last_row - first_row) for k in range(first, last)}
    return sorted(columns)


def _floor(pixels: float, chip: int) -> int:
    return int(round(pixels, 6) // chip)  # a millionth of a pixel absorbs the rounding of decimal degrees


def _ceil(pixels: float, chip: int) -> int:
    return int(-(-round(pixels, 6) // chip))


@dataclass(frozen=True)
class Shard:
    """The columns of one job; `name` ends in a digest of their ids, so that a changed list is another file."""

    name: str
    year: int
    columns: tuple[Column, ...]


def unit_id(lattice: Lattice, year: int, column: Column) -> str:
    """Return `worldcover:2021:512:x0660000:y0480000:r609`: year, chip, north-west corner on the 1/12000 grid, rows."""
    x, y = lattice.native(lattice.x(column.col)), lattice.native(lattice.y(column.row))
    return f"worldcover:{year}:{lattice.chip}:x{x:07d}:y{y:07d}:r{column.rows}"


def chip_id(lattice: Lattice, year: int, x: int, y: int) -> str:
    """Return `worldcover:2021:512:x0660000:y0480000` for the chip whose first pixel is (x, y) of this lattice."""
    return f"worldcover:{year}:{lattice.chip}:x{lattice.native(x):07d}:y{lattice.native(y):07d}"


def shards(lattice: Lattice, year: int, columns: Sequence[Column], per_shard: int) -> list[Shard]:
    """Return shards of neighbouring columns, cut at multiples of `per_shard`: a wider region changes edges only."""
    groups: dict[int, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.col // per_shard, []).append(column)
    result = []
    for group in groups.values():
        ids = [unit_id(lattice, year, c) for c in group]
        x = lattice.native(lattice.x(group[0].col))
        result.append(Shard(shard_name(f"x{x:07d}", ids), year, tuple(group)))
    return result
