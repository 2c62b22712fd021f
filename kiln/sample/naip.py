"""A small synthetic NAIP archive: aerial photographs of the landscape in the layout of its bucket.

Pixels of 6 m, which paths and files agree on: three neighbouring quarter quadrangles in two years.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyproj
from rasterio.enums import ColorInterp

from kiln.sample import landscape as land
from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.sample.files import utm_grid, write_cog, write_text
from kiln.archives.sensors import NAIP

# Quarter quadrangles from west to east, and the days they were flown in each year; one file name has no date.
QUARTERS = ("4309635_ne", "4309636_nw", "4309636_ne")
FLOWN = {2018: ("20180712", "20180712", ""), 2021: ("20210706", "20210706", "20210722")}
FRAMED = 2021  # the year whose scenes end with the quadrangle's own, turned, frame: the rest of the file is 0
ALPHA = "4309636_nw"  # whose near infrared is tagged alpha, in both years
SCENE = "sd/{year}/600cm/rgbir_cog/43096/m_{quarter}_14_1{flown}.tif"
# What else the bucket holds and its manifest lists.
OTHERS = (
    "manifest.txt",
    "readme.html",
    "sd/2018/600cm/fgdc/43096/m_4309635_ne_14_1_20180712.txt",
    "sd/2018/600cm/index/naip_3_18_3_1_sd.dbf",
    "sd/2018/600cm/index/naip_3_18_3_1_sd.shp",
    "sd/2021/600cm/fgdc/43096/m_4309635_ne_14_1_20210706.txt",
    "sd/2021/600cm/index/naip_3_21_1_1_sd.shp",
    "sd/2021/600cm/rgb/43096/m_4309636_nw_14_1_20210706.tif",
    "sd/2021/600cm/rgbir/43096/m_4309636_nw_14_1_20210706.mrf",
)
# Mean and deviation of the square roots of the landscape's numbers here: they become those of real photographs.
ROOTS = ((29.0, 30.4, 23.6, 52.2), (9.9, 7.4, 7.0, 8.0))
EXPOSURE = {2018: (1.0, 1.0, 1.0, 1.0), 2021: (1.04, 1.03, 1.06, 0.95)}


def keys() -> list[str]:
    """Keys of the scenes, year by year."""
    return [_key(year, n) for year in FLOWN for n in range(len(QUARTERS))]


def _key(year: int, n: int) -> str:
    flown = FLOWN[year][n]
    return SCENE.format(year=year, quarter=QUARTERS[n], flown=f"_{flown}" if flown else "")


def _photograph(key: SceneKey, years: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A NAIP scene's place in some years.

    Returns uint8 [years, 4, h, w], which pixels lie inside the frame [h, w], and west and north edge in UTM.
    """
    west, south, east, north = key.bounds
    size = key.cm / 100
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:326{key.zone}", always_xy=True)
    left, bottom, right, top = (size * round(edge / size) for edge in to_utm.transform_bounds(west, south, east, north))
    shape = round((top - bottom) / size), round((right - left) / size)
    columns, rows = (round(edge / size) + np.arange(n) for edge, n in ((left, shape[1]), (-top, shape[0])))
    grain = 2 * land.rand(columns[None], rows[:, None], seed * 1009 + 300) - 1
    for axis in (0, 1, 0, 1):
        grain = (2 * grain + np.roll(grain, 1, axis) + np.roll(grain, -1, axis)) / 3.2
    grid = utm_grid(key.zone, left, top, size, shape, seed)._replace(grain=np.clip(grain, -1, 1))
    images, _ = land.draw(grid, years)
    inside = (grid.x > west) & (grid.x < east) & (grid.y > south) & (grid.y < north)
    return images, inside, left, top


def _develop(image: np.ndarray, exposure: Sequence[float]) -> np.ndarray:
    """Digital numbers [4, h, w] as uint8 with about the mean and deviation of NAIP's bands, at least 1."""
    mean, std, middle, spread, gain = (
        np.array(values, np.float32)[:, None, None] for values in (NAIP.mean, NAIP.std, *ROOTS, exposure)
    )
    return np.clip(np.rint((mean + std * (np.sqrt(image) - middle) / spread) * gain), 1, 255).astype(np.uint8)


def make_naip(out: Path, *, seed: int) -> list[Path]:
    """Write the scenes and manifest.txt, which lists them among other files, under `out`; returns their paths."""
    written = []
    for n, quarter in enumerate(QUARTERS):
        place = parse_key(_key(min(FLOWN), n))
        images, inside, west, north = _photograph(place, list(FLOWN), seed)
        for year, image in zip(FLOWN, images, strict=True):
            pixels = _develop(image, EXPOSURE[year])
            if year == FRAMED:
                pixels *= inside
            last = ColorInterp.alpha if quarter == ALPHA else ColorInterp.undefined
            colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, last)
            path = out / _key(year, n)
            crs = f"EPSG:269{place.zone}"
            written.append(write_cog(path, pixels, crs, west, north, place.cm / 100, colours=colours))
    manifest = write_text(out / "manifest.txt", "".join(f"{key}\n" for key in sorted([*keys(), *OTHERS])))
    return [*sorted(written), manifest]
