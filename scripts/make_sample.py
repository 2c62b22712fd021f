"""Make a small synthetic ESA WorldCover Sentinel-2 composite archive, so that demo and tests need no network.

The landscape is one function of longitude, latitude, year and seed: tiles fit together without seams, and
the same arguments give the same bytes. Its broad shape repeats every five degrees (a gulf with rivers
running into it, mountains between the gulfs); everything smaller follows the seed and does not repeat.
"""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.transform import from_origin

VERSIONS = {2020: "v100", 2021: "v200"}
# Two by two degrees; N44W002 is open sea, and open sea has no file.
DEFAULT_TILES = ("N43W002", "N43W001", "N44W002", "N44W001")
GULF = (-2.0, 45.0)  # degrees east and north: the middle of one gulf
GULF_RADIUS = 1.34  # degrees
PERIOD = 5  # degrees from one gulf to the next
DEEP_SEA = -0.05  # degrees inland of the shore: further out the composite has no data
RIVERS = 16  # to a gulf
MARGIN = 2  # pixels computed around a tile, so that slopes and blur do not end at its border

# Digital numbers (surface reflectance x 10000) of red, green, blue and near infrared.
COLOURS = {
    "sea": (230, 390, 520, 160), "shallow": (620, 1080, 1120, 320), "silt": (1150, 1200, 860, 420),
    "river": (480, 680, 600, 260), "lake": (240, 450, 480, 160), "beach": (2600, 2300, 1900, 3000),
    "conifer": (230, 370, 235, 2000), "broadleaf": (450, 660, 340, 3000), "heath": (900, 820, 560, 2100),
    "alp": (780, 900, 480, 3000), "rock": (1450, 1350, 1220, 1750), "snow": (8700, 8600, 8500, 7800),
    "ice": (1900, 2150, 2500, 1700), "green": (560, 860, 440, 3900), "lush": (430, 800, 330, 4500),
    "crop": (700, 900, 500, 3500), "pasture": (800, 1030, 560, 3200), "ripe": (1650, 1420, 830, 2900),
    "rape": (1450, 1560, 480, 3700), "fallow": (1800, 1500, 1100, 2300), "stubble": (2250, 1920, 1350, 2800),
    "soil": (1150, 930, 720, 1600), "ochre": (1900, 1350, 880, 2400), "vine": (1150, 1020, 680, 2500),
    "olive": (900, 900, 620, 2300), "town": (1650, 1580, 1470, 2000), "roof": (2100, 1560, 1270, 2300),
    "works": (2900, 2850, 2750, 3100), "garden": (820, 900, 660, 2500), "street": (1080, 1060, 1010, 1350),
    "road": (1700, 1620, 1480, 2000),
}  # fmt: skip
# Kinds of farmland: field length and width in degrees, share of hedges, and eight equally likely crops.
FARMLAND = (
    (0.013, 0.009, 0.8, "green lush pasture pasture crop green ripe soil"),
    (0.021, 0.016, 0.0, "crop ripe fallow stubble green rape soil ripe"),
    (0.022, 0.005, 0.1, "crop fallow ripe green stubble pasture soil rape"),
    (0.019, 0.019, 0.0, "lush green lush crop ripe lush soil green"),
    (0.020, 0.014, 0.3, "conifer conifer conifer conifer heath broadleaf conifer fallow"),
    (0.014, 0.008, 0.1, "lake lush silt lush crop lush green shallow"),
    (0.010, 0.007, 0.2, "vine vine ochre vine olive ochre olive pasture"),
)
PIVOTS = 3  # the kind with round, irrigated fields
# Cosines and sines without rounding by a maths library, so that no field border moves between machines.
TURNS = np.array([(1, 0), (4 / 5, 3 / 5), (3 / 5, 4 / 5), (12 / 13, 5 / 13), (5 / 13, 12 / 13),
                  (15 / 17, 8 / 17), (8 / 17, 15 / 17), (24 / 25, 7 / 25)]).T  # fmt: skip


class _Grid(NamedTuple):
    x: np.ndarray  # degrees east of pixel centres, [1, width] (or bent, [height, width])
    y: np.ndarray  # degrees north, [height, 1] (or bent)
    ppd: int
    seed: int


class _Ground(NamedTuple):
    coast: np.ndarray  # degrees inland of the shore, negative at sea
    height: np.ndarray  # 0 at the sea, about 1 for peaks
    shade: np.ndarray  # factor of brightness
    river: np.ndarray  # degrees from the nearest river's bank, negative in the water
    flow: np.ndarray  # 0 at the source, 1 at the mouth


def _hash(ix: np.ndarray, iy: np.ndarray, seed: int) -> np.ndarray:
    """Mix integer lattice coordinates and a seed into uint32."""
    h = (ix.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (iy.astype(np.uint32) * np.uint32(0x85EBCA77))
    h = h ^ np.uint32((seed * 0x27D4EB2F + 0x165667B1) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def _rand(ix: np.ndarray, iy: np.ndarray, seed: int) -> np.ndarray:
    """Hash to float32 in [0, 1)."""
    return (_hash(ix, iy, seed) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _floor(value: np.ndarray) -> np.ndarray:
    return np.floor(value).astype(np.int64)


def _noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Gradient noise in [-1, 1], one lattice cell to a unit of x and y."""
    ix, iy = _floor(x), _floor(y)
    columns, rows = np.arange(ix.min(), ix.max() + 2), np.arange(iy.min(), iy.max() + 2)
    nodes = _hash(columns[None], rows[:, None], seed).ravel()
    gx, gy = ((half / 32768 - 1).astype(np.float32) for half in (nodes & 0xFFFF, nodes >> 16))
    u, v = (x - ix).astype(np.float32), (y - iy).astype(np.float32)
    at = (iy - rows[0]) * columns.size + (ix - columns[0])
    fu, fv = (t * t * t * (t * (t * 6 - 15) + 10) for t in (u, v))
    edges = []
    for j in (0, 1):
        start = at + j * columns.size
        west, east = (gx.take(start + i) * (u - i) + gy.take(start + i) * (v - j) for i in (0, 1))
        edges.append(west + fu * (east - west))
    return edges[0] + fv * (edges[1] - edges[0])


def _fractal(grid: _Grid, scale: float, salt: int, octaves: int, ridged: bool = False) -> np.ndarray:
    """Sum octaves of noise, the first with scale waves a degree; ridged has sharp crests near 1."""
    total, weight = np.float32(0), np.float32(1)
    for octave in range(octaves):
        waves = scale * 2**octave
        step = _noise(grid.x * waves, grid.y * waves, grid.seed * 1009 + salt + octave)
        if ridged:  # valleys stay smooth, crests grow rough
            step = weight * (0.7 - 1.4 * np.abs(step))
            weight = np.clip(1.6 * step, 0.15, 1)
        total = total + step * np.float32(0.5**octave)
    return total


def _ramp(value: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at low to 1 at high."""
    t = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def _paint(image: np.ndarray, colour: str | np.ndarray, alpha: np.ndarray) -> None:
    """Lay a colour, by name or [4, h, w], over the image with opacity alpha."""
    for layer, tone in zip(image, COLOURS[colour] if isinstance(colour, str) else colour, strict=True):
        layer += alpha * (tone - layer)


def _ground(grid: _Grid) -> _Ground:
    """Shape the land: shore, relief and rivers."""
    cx, cy = (np.mod(c - g + PERIOD / 2, PERIOD) - PERIOD / 2 for c, g in zip(grid[:2], GULF, strict=True))
    reach = np.sqrt(np.sqrt(cx**4 + cy**4))  # a rounded square reaches into the corners of its four tiles
    bays = 2.5 * _fractal(grid, 2.3, 10, 3) + 0.9 * _fractal(grid, 11, 14, 5)
    coast = reach - GULF_RADIUS + 0.1 * bays / np.sqrt(1 + bays * bays)

    # Rivers are lines of one bearing from the gulf, bent by noise; dividing by the slope makes it a distance.
    bearing = np.arctan2(cy, cx) * (RIVERS / (2 * np.pi)) + 0.2 * _fractal(grid, 6, 20, 3)
    steps = (2 * step for step in np.gradient(bearing))
    slope = np.sqrt(sum((step - np.rint(step)) ** 2 for step in steps)) * (grid.ppd / 2)
    flow = _ramp(reach, 1.95, 1.5)
    river = np.abs(bearing - np.floor(bearing) - 0.5) / (slope + 1e-3)
    river += 0.06 * _ramp(flow, 0.1, 0) - 0.0034 * flow  # bearings of two gulfs meet where nothing flows

    massif = _ramp(np.sqrt(cx * cx + cy * cy) + 0.35 * _fractal(grid, 3, 30, 2), 1.95, 2.5)
    hills = _ramp(_fractal(grid, 2.6, 40, 2), -0.1, 0.5)
    bent_x, bent_y = (c + 0.03 * _fractal(grid, 9, salt, 2) for c, salt in ((grid.x, 45), (grid.y, 47)))
    ridges = _fractal(grid._replace(x=bent_x, y=bent_y), 11, 50, 5, ridged=True)
    height = 0.03 + 0.35 * hills * (0.4 + 0.7 * ridges) + massif * (0.26 + 0.60 * ridges)
    height = height * _ramp(coast, 0, 0.12) * (0.3 + 0.7 * _ramp(river, 0, 0.06))
    south, east = (step * np.float32(grid.ppd) for step in np.gradient(height))
    shade = np.clip(1 - 0.05 * (0.4 * south + east), 0.4, 1.6)
    return _Ground(*(a.astype(np.float32) for a in (coast, height, shade, river, flow)))


def _farmland(grid: _Grid, year: int) -> np.ndarray:
    """Draw fields: regions of one kind and direction, in each a brick lattice of plots; [4, h, w]."""
    seed = grid.seed * 1009
    bend_x, bend_y = (0.08 * _fractal(grid, 4, salt, 4).astype(np.float64) for salt in (60, 70))
    row = _floor((grid.y + bend_y) * 6)
    column = _floor((grid.x + bend_x) * 6 + 0.5 * (row & 1))
    region = _hash(column, row, seed + 80)
    kind = region % len(FARMLAND)
    length, width, hedges = (np.array(values).take(kind) for values in list(zip(*FARMLAND, strict=True))[:3])
    cos, sin = (part.take(region >> 8 & 7) for part in TURNS)
    x, y = grid.x + 0.08 * bend_x, grid.y + 0.08 * bend_y

    v = (y * cos - x * sin) / width
    row = _floor(v)
    u = (x * cos + y * sin) / length + _rand(row, row, seed + 81)
    column = _floor(u)
    u, v = (u - column).astype(np.float32), (v - row).astype(np.float32)
    parts = np.where(kind == PIVOTS, 1, 1 + _floor(_rand(column, row, seed + 82) * 2.7))
    part = _floor(u * parts)
    plot = _hash(column * 4 + part, row, seed + 83)
    crop = plot >> 8
    if year != min(VERSIONS):  # two fields in five bear something else
        crop = crop + (plot % 5 < 2) * (1 + (plot >> 16) % 7)

    palette = np.array([[COLOURS[crop] for crop in crops.split()] for *_, crops in FARMLAND], np.float32)
    vigour = 0.88 + 0.24 * (plot >> 24).astype(np.float32) / 256
    vigour *= 1 + 0.12 * _fractal(grid, 15, 90, 3)
    image = np.stack([band.take(kind * 8 + crop % 8) * vigour for band in np.moveaxis(palette, 2, 0)])
    across, along = np.minimum(v, 1 - v) * width, np.abs(u * parts - np.rint(u * parts)) * length / parts
    _paint(image, "broadleaf", _ramp(np.minimum(across, along), 0.0010, 0.0003) * hedges)
    _paint(image, "ochre", (kind == PIVOTS) * _ramp(np.hypot(u - 0.5, v - 0.5), 0.44, 0.48))
    return image


def _clothe(image: np.ndarray, grid: _Grid, ground: _Ground) -> None:
    """Draw forest, alps, rock and snow by height, woods along rivers and heath along the shore."""
    height = ground.height + 0.06 * _fractal(grid, 30, 150, 3)
    woods = _ramp(_fractal(grid, 9, 160, 6) + 1.6 * np.minimum(height, 0.5), 0.29, 0.34)
    banks = _ramp(ground.river, 0.010, 0.002) * ground.flow * _ramp(_fractal(grid, 25, 170, 2), -0.1, 0.1)
    forest = np.maximum(woods, 0.8 * banks)
    _paint(image, "pasture", _ramp(height, 0.28, 0.36))
    _paint(image, "broadleaf", forest)
    _paint(image, "conifer", forest * _ramp(_fractal(grid, 20, 180, 5) + height, 0.1, 0.4))
    image *= 1 + 0.5 * forest * _fractal(grid, 90, 185, 2)
    _paint(image, "heath", _ramp(ground.coast, 0.03, 0.0) * _ramp(_fractal(grid, 10, 190, 3), -0.2, 0.3))
    _paint(image, "alp", _ramp(height, 0.50, 0.60))
    _paint(image, "rock", _ramp(height, 0.62, 0.78))
    image *= ground.shade
    snow = _ramp(height - 0.40 * np.abs(ground.shade - 1), 0.76, 0.90)
    _paint(image, "snow", snow)
    _paint(image, "ice", snow * _ramp(ground.shade, 1.0, 0.7))


def _settle(image: np.ndarray, grid: _Grid, ground: _Ground) -> None:
    """Draw roads on two bent grids, and at their crossings villages and towns with a lattice of streets."""
    seed = grid.seed * 1009
    bent_x, bent_y = (c + 0.09 * _fractal(grid, 3, salt, 4) for c, salt in ((grid.x, 100), (grid.y, 110)))
    dry = _ramp(ground.coast, 0.001, 0.004) * _ramp(ground.river, 0, 0.001) * _ramp(ground.height, 0.5, 0.3)
    ragged = 0.5 * _fractal(grid, 40, 130, 2)
    for pitch, least, most, share, road in ((0.25 / 3, 0.002, 0.005, 0.6, 0.4), (0.25, 0.01, 0.03, 0.8, 0.8)):
        column, row = (np.rint(bent / pitch).astype(np.int64) for bent in (bent_x, bent_y))
        dx, dy = ((b - n * pitch).astype(np.float32) for b, n in ((bent_x, column), (bent_y, row)))
        _paint(image, "road", road * _ramp(np.minimum(np.abs(dx), np.abs(dy)), 0.0007, 0.0003) * dry)
        town = _hash(column, row, seed + 120)
        chance, size = ((town >> n & 0xFF).astype(np.float32) / 256 for n in (0, 8))
        size = np.where(chance < share, least + (most - least) * size * size, np.float32(1e-4))
        away = np.hypot(dx, dy) / size + ragged  # 1 at the edge of the town
        cos, sin = (part.take(town >> 16 & 7) for part in TURNS)
        u, v = (dx * cos + dy * sin) / 0.0050, (dy * cos - dx * sin) / 0.0042
        luck = _rand(_floor(u) + column * 64, _floor(v) + row * 64, seed + 140) + 0.3 * (1 - away)
        bounds = (-9, 0.45, 0.8, 1.1, 9)
        for colour, low, high in zip(("garden", "town", "roof", "works"), bounds, bounds[1:], strict=False):
            _paint(image, colour, _ramp(away, 1.05, 0.9) * dry * ((luck >= low) & (luck < high)))
        street = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v)))
        _paint(image, "street", _ramp(street, 0.16, 0.08) * _ramp(away, 1, 0.85) * dry)


def _flood(image: np.ndarray, grid: _Grid, ground: _Ground) -> None:
    """Draw lakes, rivers with gravel banks, beaches and the sea."""
    lakes = _fractal(grid, 5, 200, 6) - 1.2 * np.maximum(ground.height - 0.25, 0)
    _paint(image, "lake", _ramp(lakes, 0.50, 0.51))
    gravel = _ramp(ground.river, 0.0022, 0.0008) * _ramp(_fractal(grid, 22, 210, 2), 0.1, 0.3)
    _paint(image, "beach", 0.7 * gravel * ground.flow)
    wide = 0.0045 * _ramp(_fractal(grid, 4, 220, 2), -0.4, 0.3)
    _paint(image, "beach", _ramp(ground.coast, wide + 0.0008, wide))
    _paint(image, "river", _ramp(ground.river, 0.0002, -0.0004))
    sea = np.empty_like(image)
    sea[:] = np.array(COLOURS["sea"])[:, None, None]
    drift = ground.coast + 0.012 * _fractal(grid, 12, 230, 4)
    _paint(sea, "shallow", _ramp(drift, -0.022, 0.0))
    _paint(sea, "silt", 0.8 * _ramp(ground.river, 0.05, 0.0) * _ramp(drift, -0.04, 0))
    _paint(image, sea, _ramp(ground.coast, 0.0004, -0.0004))


def _version(year: int) -> str:
    if year not in VERSIONS:
        known = " or ".join(map(str, VERSIONS))
        raise ValueError(f"year {year}: there is no WorldCover composite of it; choose {known}")
    return VERSIONS[year]


def landscape(lon: float, lat: float, ppd: int, year: int, seed: int) -> np.ndarray:
    """Draw the tile whose south-west corner is at lon, lat (degrees), ppd pixels a degree.

    Returns [4, ppd, ppd] uint16: red, green, blue and near infrared digital numbers, north up. Open sea is 0
    in all bands; everything else is at least 1. A year not in VERSIONS or a ppd below 16 is a ValueError.
    """
    _version(year)
    if ppd < 16:
        raise ValueError(f"{ppd} pixels per degree are too few to draw a tile; take 16 or more")
    span = np.arange(-MARGIN, ppd + MARGIN)
    columns, rows = (round(lon * ppd) + span)[None], (round((lat + 1) * ppd) - 1 - span)[:, None]
    grid = _Grid((columns + 0.5) / ppd, (rows + 0.5) / ppd, ppd, seed)
    ground = _ground(grid)
    image = _farmland(grid, year)
    _clothe(image, grid, ground)
    _settle(image, grid, ground)
    _flood(image, grid, ground)
    image *= 0.95 + 0.10 * _rand(columns, rows, seed * 1009 + year)
    for axis in (1, 2):  # the sensor's blur
        image = 0.5 * image + 0.25 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    if year != min(VERSIONS):
        image *= np.array([1.02, 1.0, 0.97, 1.05], np.float32)[:, None, None]
    image = np.where(ground.coast < DEEP_SEA, 0, np.clip(np.rint(image), 1, 65535))
    return image[:, MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.uint16)


def tile_corner(name: str) -> tuple[int, int]:
    """Read the south-west corner, longitude and latitude in degrees, from a tile name such as N43W002."""
    match = re.fullmatch(r"(N|S(?!00))(\d\d)(E|W(?!000))(\d{3})", name)
    if match:
        lat = int(match[2]) if match[1] == "N" else -int(match[2])
        lon = int(match[4]) if match[3] == "E" else -int(match[4])
        if -90 <= lat < 90 and -180 <= lon < 180:
            return lon, lat
    raise ValueError(
        f"tile name {name!r} is malformed; write the south-west corner as N or S with two digits, "
        "then E or W with three, such as N43W002 or S05E006"
    )


def make_archive(out: Path, *, tiles: Iterable[str], years: Iterable[int], ppd: int, seed: int) -> list[Path]:
    """Write a GeoTIFF for each year and tile under out/rgbnir and return their paths.

    As in the real archive, a tile without a valid pixel gets no file. Files are replaced whole, never
    half-written. A malformed tile name or an unknown year is a ValueError before anything is written.
    """
    corners = {name: tile_corner(name) for name in tiles}
    written = []
    for year, version in {year: _version(year) for year in years}.items():
        for name, (lon, lat) in corners.items():
            image = landscape(lon, lat, ppd, year, seed)
            if not image.any():
                continue
            folder = out / "rgbnir" / str(year) / name[:3]
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"ESA_WorldCover_10m_{year}_{version}_{name}_S2RGBNIR.tif"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            profile = {
                "driver": "COG", "width": ppd, "height": ppd, "count": 4, "dtype": "uint16", "nodata": 0,
                "crs": "EPSG:4326", "transform": from_origin(lon, lat + 1, 1 / ppd, 1 / ppd),
                "blocksize": 256, "compress": "deflate", "predictor": "standard",
                "overview_resampling": "average",
            }  # fmt: skip
            try:
                with rasterio.open(temporary, "w", **profile) as target:
                    target.write(image)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            written.append(path)
    return written


def main(argv: list[str] | None = None) -> None:
    """Run the command line; bad input ends in a message on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.make_sample",
        description="Make a small synthetic ESA WorldCover Sentinel-2 composite archive (R, G, B, NIR).",
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--out", type=Path, required=True, metavar="DIR", help="where to put the archive's rgbnir folder")
    add("--seed", type=int, default=7, help=f"another number gives another landscape {default}")
    ppd_help = f"side of a tile in pixels, 12000 in the real archive {default}"
    add("--pixels-per-degree", type=int, default=1200, metavar="N", help=ppd_help)
    years_help = f"which of {', '.join(map(str, VERSIONS))} to make (default: all)"
    add("--years", type=int, nargs="+", default=list(VERSIONS), metavar="YEAR", help=years_help)
    tiles_help = "tiles by south-west corner; those of open sea alone get no file (default: "
    tiles_help += f"{' '.join(DEFAULT_TILES)}, of which N44W002 is open sea)"
    add("--tiles", nargs="+", default=list(DEFAULT_TILES), metavar="TILE", help=tiles_help)
    args = parser.parse_args(argv)
    try:
        written = make_archive(args.out, tiles=args.tiles, years=args.years, ppd=args.pixels_per_degree, seed=args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(written)} tile(s) written under {args.out / 'rgbnir'}")


if __name__ == "__main__":
    main()
