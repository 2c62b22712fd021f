"""The landscape of the sample archives: one function of longitude, latitude, year and seed, drawn at any points.

Pictures of it fit together without seams, and the same arguments give the same numbers. Its broad shape repeats every
five degrees (a gulf with rivers running into it, mountains between the gulfs); everything smaller follows the seed and
does not repeat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FIRST_YEAR = 2020  # the year whose crops are drawn as they were sown; in each other, two fields in five bear others
GULF = (-2.0, 45.0)  # degrees east and north: the middle of one gulf
GULF_RADIUS = 1.34  # degrees
PERIOD = 5  # degrees from one gulf to the next
DEEP_SEA = -0.05  # degrees inland of the shore: further out the composite has no data
RIVERS = 16  # to a gulf
RIDGES = 11  # waves a degree of the mountains, in five octaves
STRIP = 128  # rows drawn at a time: they stay in the processor's cache
EDGE = 2  # rows drawn above and below a strip, so that slopes do not end at its border
STEPS = (16, 8, 4, 2)  # pixels from one point to the next at which noise of long waves is computed
POINTS = 8  # such points at least to the shortest wave
THIN = 0.3  # width of roads and hedges where single metres are drawn
HOUSES = 9  # rows and columns of them in a block of streets

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


class Grid(NamedTuple):
    """Points to draw at, rows from north to south, columns from west to east."""

    x: np.ndarray  # degrees east: [1, width] if straight, [height, width] if bent
    y: np.ndarray  # degrees north: [height, 1] or [height, width]
    ppd: tuple[float, float]  # pixels to a degree of latitude down the rows, of longitude along them
    seed: int
    grain: np.ndarray | None = None  # [height, width] in [-1, 1): noise of single pixels, for pixels of a few metres
    smooth: bool = False  # noise of long waves may be interpolated

    @property
    def line(self) -> float:
        """Width of drawn lines, 1 for pixels of a hundred metres."""
        return 1 if self.grain is None else THIN


class _Ground(NamedTuple):
    coast: np.ndarray  # degrees inland of the shore, negative at sea
    height: np.ndarray  # 0 at the sea, about 1 for peaks
    shade: np.ndarray  # factor of brightness
    river: np.ndarray  # degrees from the nearest river's bank, negative in the water
    flow: np.ndarray  # 0 at the source, 1 at the mouth


def mix(ix: np.ndarray, iy: np.ndarray, seed: int) -> np.ndarray:
    """Mix integer lattice coordinates and a seed into uint32."""
    h = (ix.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (iy.astype(np.uint32) * np.uint32(0x85EBCA77))
    h = h ^ np.uint32((seed * 0x27D4EB2F + 0x165667B1) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def rand(ix: np.ndarray, iy: np.ndarray, seed: int) -> np.ndarray:
    """Hash to float32 in [0, 1)."""
    return (mix(ix, iy, seed) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _floor(value: np.ndarray) -> np.ndarray:
    return np.floor(value).astype(np.int64)


def _noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Gradient noise in [-1, 1], one lattice cell to a unit of x and y, which are [1, w] and [h, 1] or both [h, w]."""
    ix, iy = _floor(x), _floor(y)
    columns, rows = np.arange(ix.min(), ix.max() + 2), np.arange(iy.min(), iy.max() + 2)
    nodes = mix(columns[None], rows[:, None], seed)
    slopes = [(half / 32768 - 1).astype(np.float32) for half in (nodes & 0xFFFF, nodes >> 16)]
    u, v = (x - ix).astype(np.float32), (y - iy).astype(np.float32)
    fu, fv = (t * t * t * (t * (t * 6 - 15) + 10) for t in (u, v))
    column, row = ix - columns[0], iy - rows[0]
    straight = len(x) == 1
    edges = []
    for j in (0, 1):
        corners = []
        for i in (0, 1):
            if straight:  # along a line of the lattice first, which many rows share
                gx, gy = (slope.take(column[0] + i, axis=1) for slope in slopes)
                gx, gy = (part.take(row[:, 0] + j, axis=0) for part in (gx * (u - i), gy))
            else:
                gx, gy = (slope.take((row + j) * columns.size + column + i) for slope in slopes)
                gx *= u - i
            gy *= v - j
            gx += gy
            corners.append(gx)
        west, east = corners
        east -= west
        east *= fu
        east += west
        edges.append(east)
    north, south = edges
    south -= north
    south *= fv
    south += north
    return south


def between(count: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every step-th of `count` indices and the last; for each index the points before it, and its share of the next."""
    at = np.append(np.arange(0, count - 1, step), count - 1)
    before = np.minimum(np.arange(count) // step, at.size - 2)
    share = (np.arange(count) - at[before]) / (at[before + 1] - at[before])
    return at, before, share.astype(np.float32)


def enlarge(small: np.ndarray, rows: tuple, columns: tuple) -> np.ndarray:
    """Interpolate values at some rows and columns, each as `between` gave them, to all."""
    for axis, (_, before, share) in ((1, columns), (0, rows)):
        share = share if axis else share[:, None]
        start = small.take(before, axis)
        rest = small.take(before + 1, axis)
        rest -= start
        rest *= share
        rest += start
        small = rest
    return small


def _step(grid: Grid, waves: float) -> int:
    """Pixels from one point to the next that are enough to interpolate so many waves a degree."""
    pixels = min(grid.ppd) / waves
    return next((step for step in STEPS if grid.smooth and step * POINTS <= pixels), 1)


def _thin(grid: Grid, step: int) -> tuple[Grid, tuple, tuple]:
    """Every step-th point and the last of each row and column, and what `between` says of rows and of columns."""
    rows, columns = between(grid.y.shape[0], step), between(grid.x.shape[1], step)
    x, y = grid.x.take(columns[0], 1), grid.y.take(rows[0], 0)
    if len(grid.x) > 1:
        x, y = x.take(rows[0], 0), y.take(columns[0], 1)
    ppd = grid.ppd[0] / step, grid.ppd[1] / step
    return grid._replace(x=x, y=y, ppd=ppd, grain=None, smooth=False), rows, columns


def _octave(grid: Grid, waves: float, seed: int) -> np.ndarray:
    """Noise of so many waves a degree, interpolated where they are long enough."""
    step = _step(grid, waves)
    if step == 1:
        return _noise(grid.x * waves, grid.y * waves, seed)
    few, rows, columns = _thin(grid, step)
    return enlarge(_noise(few.x * waves, few.y * waves, seed), rows, columns)


def fractal(grid: Grid, scale: float, salt: int, octaves: int, ridged: bool = False) -> np.ndarray:
    """Sum octaves of noise, the first with scale waves a degree; ridged has sharp crests near 1. [h, w] float32."""
    step = _step(grid, scale * 2 ** (octaves - 1))
    if step > 1:
        few, rows, columns = _thin(grid, step)
        return enlarge(fractal(few, scale, salt, octaves, ridged), rows, columns)
    total, weight = np.float32(0), np.float32(1)
    for octave in range(octaves):
        waves = scale * 2**octave
        layer = _octave(grid, waves, grid.seed * 1009 + salt + octave)
        if ridged:  # valleys stay smooth, crests grow rough
            layer = weight * (0.7 - 1.4 * np.abs(layer))
            weight = np.clip(1.6 * layer, 0.15, 1)
        total = total + layer * np.float32(0.5**octave)
    return total


def ramp(value: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at low to 1 at high."""
    t = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def paint(image: np.ndarray, colour: str | np.ndarray, alpha: np.ndarray) -> None:
    """Lay a colour, by name or [4, ...], over the image [4, seasons, h, w] with opacity alpha [h, w], in place."""
    if not alpha.any():
        return
    for layer, tone in zip(image, COLOURS[colour] if isinstance(colour, str) else colour, strict=True):
        layer += alpha * (tone - layer)


def _ground(grid: Grid) -> _Ground:
    """Shape the land: shore, relief and rivers."""
    step = _step(grid, RIDGES * 16)  # the shortest wave of all
    if step > 1:  # as a whole, for slopes of what was interpolated would be steps
        few, rows, columns = _thin(grid, step)
        return _Ground(*(enlarge(part, rows, columns) for part in _ground(few)))
    cx, cy = (np.mod(c - g + PERIOD / 2, PERIOD) - PERIOD / 2 for c, g in zip(grid[:2], GULF, strict=True))
    reach = np.sqrt(np.sqrt(cx**4 + cy**4))  # a rounded square reaches into the corners of its four tiles
    bays = 2.5 * fractal(grid, 2.3, 10, 3) + 0.9 * fractal(grid, 11, 14, 5)
    coast = reach - GULF_RADIUS + 0.1 * bays / np.sqrt(1 + bays * bays)

    # Rivers are lines of one bearing from the gulf, bent by noise; dividing by the slope makes it a distance.
    bearing = np.arctan2(cy, cx) * (RIVERS / (2 * np.pi)) + 0.2 * fractal(grid, 6, 20, 3)
    steps, ratio = (2 * step for step in np.gradient(bearing)), grid.ppd[1] / grid.ppd[0]
    slope = np.sqrt(sum(((s - np.rint(s)) * r) ** 2 for s, r in zip(steps, (1, ratio), strict=True)))
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


def _farmland(grid: Grid, seasons: np.ndarray) -> np.ndarray:
    """Draw fields: regions of one kind and direction, in each a brick lattice of plots; [4, seasons, h, w]."""
    seed = grid.seed * 1009
    bend_x, bend_y = (0.08 * fractal(grid, 4, salt, 4).astype(np.float64) for salt in (60, 70))
    row = _floor((grid.y + bend_y) * 6)
    column = _floor((grid.x + bend_x) * 6 + 0.5 * (row & 1))
    region = mix(column, row, seed + 80)
    kind = region % len(FARMLAND)
    length, width, hedges = (np.array(values).take(kind) for values in list(zip(*FARMLAND, strict=True))[:3])
    cos, sin = (part.take(region >> 8 & 7) for part in TURNS)
    x, y = grid.x + 0.08 * bend_x, grid.y + 0.08 * bend_y

    v = (y * cos - x * sin) / width
    row = _floor(v)
    u = (x * cos + y * sin) / length + rand(row, row, seed + 81)
    column = _floor(u)
    u, v = (u - column).astype(np.float32), (v - row).astype(np.float32)
    parts = np.where(kind == PIVOTS, 1, 1 + _floor(rand(column, row, seed + 82) * 2.7))
    part = _floor(u * parts)
    plot = mix(column * 4 + part, row, seed + 83)
    crop = (plot >> 8) + seasons[:, None, None] * ((plot % 5 < 2) * (1 + (plot >> 16) % 7))

    palette = np.array([[COLOURS[crop] for crop in crops.split()] for *_, crops in FARMLAND], np.float32)
    vigour = 0.88 + 0.24 * (plot >> 24).astype(np.float32) / 256
    vigour *= 1 + 0.12 * fractal(grid, 15, 90, 3)
    if grid.grain is not None:
        vigour *= 1 + 0.05 * grid.grain + _furrows(v * width, plot)
    image = np.stack([band.take(kind * 8 + crop % 8) * vigour for band in np.moveaxis(palette, 2, 0)])
    across, along = np.minimum(v, 1 - v) * width, np.abs(u * parts - np.rint(u * parts)) * length / parts
    paint(image, "broadleaf", ramp(np.minimum(across, along), 0.0010 * grid.line, 0.0003 * grid.line) * hedges)
    paint(image, "ochre", (kind == PIVOTS) * ramp(np.hypot(u - 0.5, v - 0.5), 0.44, 0.48))
    return image


def _furrows(across: np.ndarray, plot: np.ndarray) -> np.ndarray:
    """Stripes along a field, `across` degrees from its side; some fields have many, some none; factors about 0."""
    pitch = 0.00022 + 0.00004 * (plot >> 4 & 7).astype(np.float32)
    depth = 0.10 * np.maximum((plot >> 12 & 15).astype(np.float32) / 15 - 0.3, 0)
    wave = across / pitch
    return depth * (4 * np.abs(wave - np.rint(wave)) - 1)


def _clothe(image: np.ndarray, grid: Grid, ground: _Ground) -> None:
    """Draw forest, alps, rock and snow by height, woods along rivers and heath along the shore."""
    height = ground.height + 0.06 * fractal(grid, 30, 150, 3)
    woods = ramp(fractal(grid, 9, 160, 6) + 1.6 * np.minimum(height, 0.5), 0.29, 0.34)
    banks = ramp(ground.river, 0.010, 0.002) * ground.flow * ramp(fractal(grid, 25, 170, 2), -0.1, 0.1)
    forest = np.maximum(woods, 0.8 * banks)
    paint(image, "pasture", ramp(height, 0.28, 0.36))
    paint(image, "broadleaf", forest)
    paint(image, "conifer", forest * ramp(fractal(grid, 20, 180, 5) + height, 0.1, 0.4))
    image *= 1 + 0.5 * forest * fractal(grid, 90, 185, 2)
    if grid.grain is not None:  # crowns and their shadows
        image *= 1 + (0.1 + 0.5 * forest) * grid.grain
    paint(image, "heath", ramp(ground.coast, 0.03, 0.0) * ramp(fractal(grid, 10, 190, 3), -0.2, 0.3))
    paint(image, "alp", ramp(height, 0.50, 0.60))
    paint(image, "rock", ramp(height, 0.62, 0.78))
    image *= ground.shade
    snow = ramp(height - 0.40 * np.abs(ground.shade - 1), 0.76, 0.90)
    paint(image, "snow", snow)
    paint(image, "ice", snow * ramp(ground.shade, 1.0, 0.7))


def _settle(image: np.ndarray, grid: Grid, ground: _Ground) -> None:
    """Draw roads on two bent grids, and at their crossings villages and towns with a lattice of streets."""
    seed = grid.seed * 1009
    bent_x, bent_y = (c + 0.09 * fractal(grid, 3, salt, 4) for c, salt in ((grid.x, 100), (grid.y, 110)))
    dry = ramp(ground.coast, 0.001, 0.004) * ramp(ground.river, 0, 0.001) * ramp(ground.height, 0.5, 0.3)
    ragged = 0.5 * fractal(grid, 40, 130, 2)
    for pitch, least, most, share, road in ((0.25 / 3, 0.002, 0.005, 0.6, 0.4), (0.25, 0.01, 0.03, 0.8, 0.8)):
        column, row = (np.rint(bent / pitch).astype(np.int64) for bent in (bent_x, bent_y))
        dx, dy = ((b - n * pitch).astype(np.float32) for b, n in ((bent_x, column), (bent_y, row)))
        verge, edge = 0.0007 * grid.line, 0.0003 * grid.line
        paint(image, "road", road * ramp(np.minimum(np.abs(dx), np.abs(dy)), verge, edge) * dry)
        town = mix(column, row, seed + 120)
        chance, size = ((town >> n & 0xFF).astype(np.float32) / 256 for n in (0, 8))
        size = np.where(chance < share, least + (most - least) * size * size, np.float32(1e-4))
        away = np.hypot(dx, dy) / size + ragged  # 1 at the edge of the town
        cos, sin = (part.take(town >> 16 & 7) for part in TURNS)
        u, v = (dx * cos + dy * sin) / 0.0050, (dy * cos - dx * sin) / 0.0042
        luck = rand(_floor(u) + column * 64, _floor(v) + row * 64, seed + 140) + 0.3 * (1 - away)
        bounds = (-9, 0.45, 0.8, 1.1, 9)
        for colour, low, high in zip(("garden", "town", "roof", "works"), bounds, bounds[1:], strict=False):
            paint(image, colour, ramp(away, 1.05, 0.9) * dry * ((luck >= low) & (luck < high)))
        built = ramp(away, 1, 0.9) * dry
        if grid.grain is not None and built.any():
            image *= 1 + 0.15 * built * grid.grain
            _build(image, u, v, built, town)
        street = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v)))
        paint(image, "street", ramp(street, 0.16 * grid.line, 0.08 * grid.line) * ramp(away, 1, 0.85) * dry)


def _build(image: np.ndarray, u: np.ndarray, v: np.ndarray, where: np.ndarray, town: np.ndarray) -> None:
    """Draw houses and trees between the streets of a town, which u and v [h, w] count in whole numbers."""
    u, v = u * HOUSES, v * HOUSES
    column, row = _floor(u), _floor(v)
    house = mix(column, row, 0) ^ town
    width, depth = (0.2 + 0.25 * (house >> n & 0xFF).astype(np.float32) / 256 for n in (0, 8))
    inside = np.minimum(width - np.abs(u - column - 0.5), depth - np.abs(v - row - 0.5))
    kind = house >> 16 & 7
    paint(image, "garden", 0.6 * where)
    for colour, kinds in (("roof", kind < 2), ("works", kind == 2), ("street", kind == 3), ("broadleaf", kind > 5)):
        paint(image, colour, 0.9 * ramp(inside, 0, 0.1) * where * kinds)


def _flood(image: np.ndarray, grid: Grid, ground: _Ground) -> None:
    """Draw lakes, rivers with gravel banks, beaches and the sea."""
    lakes = fractal(grid, 5, 200, 6) - 1.2 * np.maximum(ground.height - 0.25, 0)
    paint(image, "lake", ramp(lakes, 0.50, 0.51))
    gravel = ramp(ground.river, 0.0022, 0.0008) * ramp(fractal(grid, 22, 210, 2), 0.1, 0.3)
    paint(image, "beach", 0.7 * gravel * ground.flow)
    wide = 0.0045 * ramp(fractal(grid, 4, 220, 2), -0.4, 0.3)
    paint(image, "beach", ramp(ground.coast, wide + 0.0008, wide))
    paint(image, "river", ramp(ground.river, 0.0002, -0.0004))
    sea = np.empty_like(image)
    sea[:] = np.array(COLOURS["sea"])[:, None, None, None]
    drift = ground.coast + 0.012 * fractal(grid, 12, 230, 4)
    paint(sea, "shallow", ramp(drift, -0.022, 0.0))
    paint(sea, "silt", 0.8 * ramp(ground.river, 0.05, 0.0) * ramp(drift, -0.04, 0))
    paint(image, sea, ramp(ground.coast, 0.0004, -0.0004))


def _strip(grid: Grid, seasons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image [4, seasons, h, w] and coast [h, w] of a few rows."""
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


def draw(grid: Grid, years: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The landscape at the points of a grid, in some years.

    Returns red, green, blue and near infrared digital numbers, float32 [years, 4, h, w], and the degrees that each
    point lies inland of the shore, float32 [h, w]. A straight grid is drawn to the last bit as its neighbours are; on
    a smooth one the same points of two grids may differ by what interpolation leaves. Crops come back after 8 years.
    """
    seasons = np.array([(year - FIRST_YEAR) % 8 for year in years], np.uint32)
    height, width = np.broadcast_shapes(grid.x.shape, grid.y.shape)
    edge = max(STEPS) if grid.smooth else EDGE  # the points of all strips are those of the whole
    image = np.empty((seasons.size, 4, height, width), np.float32)
    coast = np.empty((height, width), np.float32)
    for top in range(0, height, STRIP):
        first, last = max(top - edge, 0), min(top + STRIP + edge + 1, height)
        rows, here = slice(first, last), slice(top, min(top + STRIP, height))
        x = grid.x if len(grid.x) == 1 else grid.x[rows]
        grain = None if grid.grain is None else grid.grain[rows]
        strip, shore = _strip(grid._replace(x=x, y=grid.y[rows], grain=grain), seasons)
        kept = slice(top - first, here.stop - first)
        image[..., here, :] = np.moveaxis(strip[..., kept, :], 0, 1)
        coast[here] = shore[kept]
    return image, coast
