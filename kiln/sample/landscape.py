"""The landscape of the sample archives: one function of longitude, latitude, year and seed, drawn at any points.

Pictures of it fit together without seams, and the same arguments give the same numbers. Its broad shape repeats every
five degrees (a gulf with rivers running into it, mountains between the gulfs); everything smaller follows the seed and
does not repeat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiln.sample.grid import SPARSE_STEPS, Array, PointGrid, interpolate, sparse_grid, sparse_step
from kiln.sample.noise import floor_int, fractal, mix, ramp, rand

FIRST_YEAR = 2020  # in every other year, two fields in five have another crop than in this one
GULF = (-2.0, 45.0)  # degrees east and north: the middle of one gulf
GULF_RADIUS = 1.34  # degrees
PERIOD = 5  # degrees from one gulf to the next
DEEP_SEA = -0.05  # degrees inland of the shore: further out the composite has no data
RIVERS = 16  # per gulf
RIDGES = 11  # waves per degree of the mountains, in five octaves
STRIP_ROWS = 128  # rows drawn at a time, so that they fit the processor's cache
EDGE_ROWS = 2  # rows drawn above and below a strip, so that slopes do not end at its border
HOUSES = 9  # rows and columns of buildings in a block of streets

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
# Kinds of farmland: field length and width in degrees, fraction of hedges, and eight equally likely crops.
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
# Cosines and sines as fractions: a maths library would round them, and field borders would differ between machines.
TURNS = np.array([(1, 0), (4 / 5, 3 / 5), (3 / 5, 4 / 5), (12 / 13, 5 / 13), (5 / 13, 12 / 13),
                  (15 / 17, 8 / 17), (8 / 17, 15 / 17), (24 / 25, 7 / 25)]).T  # fmt: skip


class _Ground(NamedTuple):
    """The shape of the land; every field is float32 [height, width].

    Attributes:
        coast: Degrees inland of the shore, negative at sea.
        height: 0 at the sea, about 1 for peaks.
        shade: Factor of brightness.
        river: Degrees from the nearest river's bank, negative in the water.
        flow: 0 at a river's source, 1 at its mouth.
    """

    coast: Array
    height: Array
    shade: Array
    river: Array
    flow: Array


def _paint(image: Array, colour: str | Array, alpha: Array) -> None:
    """Paint a colour, a name or [4, ...], onto the image [4, seasons, h, w] with opacity alpha [h, w], in place."""
    if not alpha.any():
        return
    for layer, tone in zip(image, COLOURS[colour] if isinstance(colour, str) else colour, strict=True):
        layer += alpha * (tone - layer)


def _ground(grid: PointGrid) -> _Ground:
    """Shape the land: shore, relief and rivers."""
    step = sparse_step(grid, RIDGES * 16)  # the shortest wave of all
    if step > 1:  # all of it is interpolated: the slopes of interpolated values would have steps
        few, rows, columns = sparse_grid(grid, step)
        return _Ground(*(interpolate(part, rows, columns) for part in _ground(few)))
    cx, cy = (np.mod(c - g + PERIOD / 2, PERIOD) - PERIOD / 2 for c, g in zip(grid[:2], GULF, strict=True))
    reach = np.sqrt(np.sqrt(cx**4 + cy**4))  # a rounded square reaches into the corners of its four tiles
    bays = 2.5 * fractal(grid, 2.3, 10, 3) + 0.9 * fractal(grid, 11, 14, 5)
    coast = reach - GULF_RADIUS + 0.1 * bays / np.sqrt(1 + bays * bays)

    # Rivers are lines of one bearing from the gulf, bent by noise; dividing by the slope makes it a distance.
    bearing = np.arctan2(cy, cx) * (RIVERS / (2 * np.pi)) + 0.2 * fractal(grid, 6, 20, 3)
    steps, ratio = (2 * step for step in np.gradient(bearing)), grid.ppd[1] / grid.ppd[0]
    squares: list[Array] = [((s - np.rint(s)) * r) ** 2 for s, r in zip(steps, (1, ratio), strict=True)]
    slope = np.sqrt(squares[0] + squares[1])
    slope *= grid.ppd[0] / 2
    flow = ramp(reach, 1.95, 1.5)
    river = np.abs(bearing - np.floor(bearing) - 0.5) / (slope + 1e-3)
    river += 0.06 * ramp(flow, 0.1, 0) - 0.0034 * flow  # bearings of two gulfs meet where nothing flows

    massif = ramp(np.sqrt(cx * cx + cy * cy) + 0.35 * fractal(grid, 3, 30, 2), 1.95, 2.5)
    hills = ramp(fractal(grid, 2.6, 40, 2), -0.1, 0.5)
    bent_x, bent_y = (c + 0.03 * fractal(grid, 9, salt, 2) for c, salt in ((grid.x, 45), (grid.y, 47)))
    ridges = fractal(grid._replace(x=bent_x, y=bent_y), RIDGES, 50, 5, ridged=True)
    height = 0.03 + 0.35 * hills * (0.4 + 0.7 * ridges) + massif * (0.26 + 0.60 * ridges)
    height = height * ramp(coast, 0, 0.12) * (0.3 + 0.7 * ramp(river, 0, 0.06))
    south, east = (step * np.float32(ppd) for step, ppd in zip(np.gradient(height), grid.ppd, strict=True))
    shade = np.clip(1 - 0.05 * (0.4 * south + east), 0.4, 1.6)
    return _Ground(*(a.astype(np.float32) for a in (coast, height, shade, river, flow)))


def _farmland(grid: PointGrid, seasons: Array) -> Array:
    """Draw fields [4, seasons, h, w]: regions of one kind and direction, each with a brick lattice of plots."""
    seed = grid.seed * 1009
    bend_x, bend_y = (0.08 * fractal(grid, 4, salt, 4).astype(np.float64) for salt in (60, 70))
    row = floor_int((grid.y + bend_y) * 6)
    column = floor_int((grid.x + bend_x) * 6 + 0.5 * (row & 1))
    region = mix(column, row, seed + 80)
    kind = region % len(FARMLAND)
    length, width, hedges = (np.array(values).take(kind) for values in list(zip(*FARMLAND, strict=True))[:3])
    cos, sin = (part.take(region >> 8 & 7) for part in TURNS)
    x, y = grid.x + 0.08 * bend_x, grid.y + 0.08 * bend_y

    v = (y * cos - x * sin) / width
    row = floor_int(v)
    u = (x * cos + y * sin) / length + rand(row, row, seed + 81)
    column = floor_int(u)
    u, v = (u - column).astype(np.float32), (v - row).astype(np.float32)
    parts = np.where(kind == PIVOTS, 1, 1 + floor_int(rand(column, row, seed + 82) * 2.7))
    part = floor_int(u * parts)
    plot = mix(column * 4 + part, row, seed + 83)
    crop = (plot >> 8) + seasons[:, None, None] * ((plot % 5 < 2) * (1 + (plot >> 16) % 7))

    palette = np.array([[COLOURS[crop] for crop in crops.split()] for *_, crops in FARMLAND], np.float32)
    vigour = 0.88 + 0.24 * (plot >> 24).astype(np.float32) / 256
    vigour *= 1 + 0.12 * fractal(grid, 15, 90, 3)
    if grid.grain is not None:
        vigour *= 1 + 0.05 * grid.grain + _furrows(v * width, plot)
    image = np.stack([band.take(kind * 8 + crop % 8) * vigour for band in np.moveaxis(palette, 2, 0)])
    across, along = np.minimum(v, 1 - v) * width, np.abs(u * parts - np.rint(u * parts)) * length / parts
    _paint(image, "broadleaf", ramp(np.minimum(across, along), 0.0010 * grid.line, 0.0003 * grid.line) * hedges)
    _paint(image, "ochre", (kind == PIVOTS) * ramp(np.hypot(u - 0.5, v - 0.5), 0.44, 0.48))
    return image


def _furrows(across: Array, plot: Array) -> Array:
    """Return stripes along a field, `across` degrees from its side, as factors about 0; some fields have none."""
    pitch = 0.00022 + 0.00004 * (plot >> 4 & 7).astype(np.float32)
    depth = 0.10 * np.maximum((plot >> 12 & 15).astype(np.float32) / 15 - 0.3, 0)
    wave = across / pitch
    stripes: Array = depth * (4 * np.abs(wave - np.rint(wave)) - 1)
    return stripes


def _clothe(image: Array, grid: PointGrid, ground: _Ground) -> None:
    """Draw forest, alps, rock and snow by height, woods along rivers and heath along the shore."""
    height = ground.height + 0.06 * fractal(grid, 30, 150, 3)
    woods = ramp(fractal(grid, 9, 160, 6) + 1.6 * np.minimum(height, 0.5), 0.29, 0.34)
    banks = ramp(ground.river, 0.010, 0.002) * ground.flow * ramp(fractal(grid, 25, 170, 2), -0.1, 0.1)
    forest = np.maximum(woods, 0.8 * banks)
    _paint(image, "pasture", ramp(height, 0.28, 0.36))
    _paint(image, "broadleaf", forest)
    _paint(image, "conifer", forest * ramp(fractal(grid, 20, 180, 5) + height, 0.1, 0.4))
    image *= 1 + 0.5 * forest * fractal(grid, 90, 185, 2)
    if grid.grain is not None:  # crowns and their shadows
        image *= 1 + (0.1 + 0.5 * forest) * grid.grain
    _paint(image, "heath", ramp(ground.coast, 0.03, 0.0) * ramp(fractal(grid, 10, 190, 3), -0.2, 0.3))
    _paint(image, "alp", ramp(height, 0.50, 0.60))
    _paint(image, "rock", ramp(height, 0.62, 0.78))
    image *= ground.shade
    snow = ramp(height - 0.40 * np.abs(ground.shade - 1), 0.76, 0.90)
    _paint(image, "snow", snow)
    _paint(image, "ice", snow * ramp(ground.shade, 1.0, 0.7))


def _settle(image: Array, grid: PointGrid, ground: _Ground) -> None:
    """Draw roads on two bent grids, and at their crossings villages and towns with a lattice of streets."""
    seed = grid.seed * 1009
    bent_x, bent_y = (c + 0.09 * fractal(grid, 3, salt, 4) for c, salt in ((grid.x, 100), (grid.y, 110)))
    dry = ramp(ground.coast, 0.001, 0.004) * ramp(ground.river, 0, 0.001) * ramp(ground.height, 0.5, 0.3)
    ragged = 0.5 * fractal(grid, 40, 130, 2)
    for pitch, min_size, max_size, fraction, road in ((0.25 / 3, 0.002, 0.005, 0.6, 0.4), (0.25, 0.01, 0.03, 0.8, 0.8)):
        column, row = (np.rint(bent / pitch).astype(np.int64) for bent in (bent_x, bent_y))
        dx, dy = ((b - n * pitch).astype(np.float32) for b, n in ((bent_x, column), (bent_y, row)))
        verge, edge = 0.0007 * grid.line, 0.0003 * grid.line
        _paint(image, "road", road * ramp(np.minimum(np.abs(dx), np.abs(dy)), verge, edge) * dry)
        town = mix(column, row, seed + 120)
        chance, size = ((town >> n & 0xFF).astype(np.float32) / 256 for n in (0, 8))
        size = np.where(chance < fraction, min_size + (max_size - min_size) * size * size, np.float32(1e-4))
        away = np.hypot(dx, dy) / size + ragged  # 1 at the edge of the town
        cos, sin = (part.take(town >> 16 & 7) for part in TURNS)
        u, v = (dx * cos + dy * sin) / 0.0050, (dy * cos - dx * sin) / 0.0042
        luck = rand(floor_int(u) + column * 64, floor_int(v) + row * 64, seed + 140) + 0.3 * (1 - away)
        bounds = (-9, 0.45, 0.8, 1.1, 9)
        for colour, low, high in zip(("garden", "town", "roof", "works"), bounds, bounds[1:], strict=False):
            _paint(image, colour, ramp(away, 1.05, 0.9) * dry * ((luck >= low) & (luck < high)))
        built = ramp(away, 1, 0.9) * dry
        if grid.grain is not None and built.any():
            image *= 1 + 0.15 * built * grid.grain
            _build(image, u, v, built, town)
        street = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v)))
        _paint(image, "street", ramp(street, 0.16 * grid.line, 0.08 * grid.line) * ramp(away, 1, 0.85) * dry)


def _build(image: Array, u: Array, v: Array, where: Array, town: Array) -> None:
    """Draw houses and trees between the streets of a town; streets are where u or v [h, w] are integers."""
    u, v = u * HOUSES, v * HOUSES
    column, row = floor_int(u), floor_int(v)
    house = mix(column, row, 0) ^ town
    width, depth = (0.2 + 0.25 * (house >> n & 0xFF).astype(np.float32) / 256 for n in (0, 8))
    inside = np.minimum(width - np.abs(u - column - 0.5), depth - np.abs(v - row - 0.5))
    kind = house >> 16 & 7
    _paint(image, "garden", 0.6 * where)
    for colour, kinds in (("roof", kind < 2), ("works", kind == 2), ("street", kind == 3), ("broadleaf", kind > 5)):
        _paint(image, colour, 0.9 * ramp(inside, 0, 0.1) * where * kinds)


def _flood(image: Array, grid: PointGrid, ground: _Ground) -> None:
    """Draw lakes, rivers with gravel banks, beaches and the sea."""
    lakes = fractal(grid, 5, 200, 6) - 1.2 * np.maximum(ground.height - 0.25, 0)
    _paint(image, "lake", ramp(lakes, 0.50, 0.51))
    gravel = ramp(ground.river, 0.0022, 0.0008) * ramp(fractal(grid, 22, 210, 2), 0.1, 0.3)
    _paint(image, "beach", 0.7 * gravel * ground.flow)
    wide = 0.0045 * ramp(fractal(grid, 4, 220, 2), -0.4, 0.3)
    _paint(image, "beach", ramp(ground.coast, wide + 0.0008, wide))
    _paint(image, "river", ramp(ground.river, 0.0002, -0.0004))
    sea = np.empty_like(image)
    sea[:] = np.array(COLOURS["sea"])[:, None, None, None]
    drift = ground.coast + 0.012 * fractal(grid, 12, 230, 4)
    _paint(sea, "shallow", ramp(drift, -0.022, 0.0))
    _paint(sea, "silt", 0.8 * ramp(ground.river, 0.05, 0.0) * ramp(drift, -0.04, 0))
    _paint(image, sea, ramp(ground.coast, 0.0004, -0.0004))


def _draw_strip(grid: PointGrid, seasons: Array) -> tuple[Array, Array]:
    """Draw a few rows: image [4, seasons, h, w] and coast [h, w]."""
    ground = _ground(grid)
    if ground.coast.max() < 2 * DEEP_SEA:  # too far out for anything else
        image = np.empty((4, seasons.size, *ground.coast.shape), np.float32)
        image[:] = np.array(COLOURS["sea"])[:, None, None, None]
        return image, ground.coast
    image = _farmland(grid, seasons)
    _clothe(image, grid, ground)
    _settle(image, grid, ground)
    _flood(image, grid, ground)
    return image, ground.coast


def draw(grid: PointGrid, years: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the landscape at the points of a grid, in some years.

    Neighbouring straight grids fit to the last bit. On smooth grids, the same point of two grids may differ by the
    error of interpolation. Crops repeat after 8 years.

    Args:
        grid: The points.
        years: The years.

    Returns:
        Digital numbers of red, green, blue and near infrared [years, 4, height, width], and how many degrees each
        point lies inland of the shore [height, width].
    """
    seasons = np.array([(year - FIRST_YEAR) % 8 for year in years], np.uint32)
    height, width = np.broadcast_shapes(grid.x.shape, grid.y.shape)
    edge = max(SPARSE_STEPS) if grid.smooth else EDGE_ROWS  # so that all strips have the same sparse points
    image = np.empty((seasons.size, 4, height, width), np.float32)
    coast = np.empty((height, width), np.float32)
    for top in range(0, height, STRIP_ROWS):
        first, last = max(top - edge, 0), min(top + STRIP_ROWS + edge + 1, height)
        drawn_rows, rows = slice(first, last), slice(top, min(top + STRIP_ROWS, height))
        x = grid.x if len(grid.x) == 1 else grid.x[drawn_rows]
        grain = None if grid.grain is None else grid.grain[drawn_rows]
        strip, shore = _draw_strip(grid._replace(x=x, y=grid.y[drawn_rows], grain=grain), seasons)
        inner = slice(top - first, rows.stop - first)
        image[..., rows, :] = np.moveaxis(strip[..., inner, :], 0, 1)
        coast[rows] = shore[inner]
    return image, coast
