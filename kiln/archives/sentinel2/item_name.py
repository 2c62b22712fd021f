"""Names of Sentinel-2 items: tile and day, the item's place in the archive, and the filter that a plan applies."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import pyproj
import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

SQUARE_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # letters of 100 km squares from west to east, by zone modulo 3
SQUARE_ROWS = "ABCDEFGHJKLMNPQRSTUV"  # from the equator northwards, again every 2000 km; even zones begin at F
LATITUDE_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # of 8 degrees of latitude from -80; X has 12
ITEM_NAME = re.compile(
    r"(S2[A-D])_T?(\d{1,2})([C-HJ-NP-X])([A-Z]{2})_(\d{4})(\d{2})(\d{2})(?:T\d{6})?_(?:\d+_)?L2A", re.ASCII
)


class ItemName(NamedTuple):
    """Platform, MGRS tile and day of an item: from its id, or from the item itself where the id has none."""

    item_id: str
    platform: str
    zone: int
    band: str
    square: str
    year: int
    month: int
    day: int

    @property
    def tile(self) -> str:
        """The MGRS tile, as `29RKH`."""
        return f"{self.zone:02d}{self.band}{self.square}"

    @property
    def partition(self) -> str:
        """The merge partition, MGRS grid zone and month, as `29R-2020-02`."""
        return f"{self.zone:02d}{self.band}-{self.year}-{self.month:02d}"

    @property
    def path(self) -> str:
        """Path of the item below the folder of its collection; months have no leading zero."""
        folder = f"{self.zone}/{self.band}/{self.square}/{self.year}/{self.month}"
        return f"{folder}/{self.item_id}/{self.item_id}.json"


def parse_name(item_id: str) -> ItemName | None:
    """Return the name in an id such as `S2A_29RKH_20200219_0_L2A` or `S2B_T38XNF_20230415T084353_L2A`, else None."""
    match = ITEM_NAME.fullmatch(item_id)
    if match is None:
        return None
    platform, zone, band, square, year, month, day = match.groups()
    name = ItemName(item_id, platform, int(zone), band, square, int(year), int(month), int(day))
    is_tile = 1 <= name.zone <= 60 and square[0] in SQUARE_COLUMNS[name.zone % 3] and square[1] in SQUARE_ROWS
    return name if is_tile and 1 <= name.month <= 12 and 1 <= name.day <= 31 else None


def locate(address: str) -> tuple[str, ItemName] | None:
    """Return collection folder and name of an item whose address follows the archive's layout, else None."""
    name = parse_name(address.rpartition("/")[2].removesuffix(".json"))
    if name is None or not address.endswith(name.path):
        return None
    root = address[: -len(name.path)]
    return (root, name) if not root or root.endswith("/") else None


@cache
def _to_degrees(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def footprint(tile: str) -> shapely.Polygon:
    """Return the area that a tile such as `29RKH` can cover, in degrees; longitudes pass 180 in zones 1 and 60.

    A tile is 109.8 km wide and high from the north-west corner of its 100 km square, moved by up to 40 m west and
    north to multiples of 60 m. The hull of that is returned, as items draw straight lines from corner to corner.
    """
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    false_northing = 10_000_000 if band < "N" else 0
    latitude = 78 if band == "X" else 8 * LATITUDE_BANDS.index(band) - 76
    north = ((SQUARE_ROWS.index(row) - 5 * (zone % 2 == 0)) % 20) * 100_000
    middle = latitude * 110_950 + false_northing  # of the band, within a few kilometres; rows repeat every 2000 km
    north += round((middle - north - 50_000) / 2_000_000) * 2_000_000
    east = (SQUARE_COLUMNS[zone % 3].index(column) + 1) * 100_000
    box = shapely.box(east - 40, north - 9_800, east + 109_800, north + 100_040)
    x, y = shapely.segmentize(box, 20_000).exterior.xy
    lons, lats = _to_degrees((32_700 if false_northing else 32_600) + zone).transform(x, y)
    centre = 6 * zone - 183
    corners = [(centre + (lon - centre + 180) % 360 - 180, lat) for lon, lat in zip(lons, lats, strict=True)]
    return shapely.Polygon(corners).convex_hull


@dataclass(frozen=True)
class ItemFilter:
    """A filter on names of items. Every field that is set must match.

    Attributes:
        years: Years of acquisition.
        months: Months of acquisition.
        tiles: Tiles, or what tiles begin with (`29RKH`, `29R`, `29`).
        days: First and last day as numbers, 20200219.
        region: A geometry in degrees that the tile's footprint meets.
    """

    years: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    tiles: tuple[str, ...] = ()
    days: tuple[int, int] | None = None
    region: BaseGeometry | None = None
    _tile_meets_region: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def matches(self, name: ItemName) -> bool:
        """Return whether an item passes."""
        if (self.years and name.year not in self.years) or (self.months and name.month not in self.months):
            return False
        if self.days and not self.days[0] <= name.year * 10_000 + name.month * 100 + name.day <= self.days[1]:
            return False
        tile = name.tile
        if self.tiles and not tile.startswith(self.tiles):
            return False
        if self.region is None:
            return True
        if tile not in self._tile_meets_region:
            shape = footprint(tile)
            self._tile_meets_region[tile] = any(
                self.region.intersects(translate(shape, shift)) for shift in (0, -360, 360)
            )
        return self._tile_meets_region[tile]
