"""A synthetic NAIP archive: aerial photographs of the landscape in the layout of the bucket.

It has three neighbouring quarter quadrangles in two years, with pixels of 6 m, as paths and files state.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.archives.sensors import NAIP
from kiln.sample.files import write_cog, write_text
from kiln.sample.grid import Array, utm_grid
from kiln.sample.landscape import draw
from kiln.sample.noise import rand

# Quarter quadrangles from west to east, and the day of each flight; one file name has no date.
QUARTERS = ("4309635_ne", "4309636_nw", "4309636_ne")
FLOWN = {2018: ("20180712", "20180712", ""), 2021: ("20210706", "20210706", "20210722")}
FRAMED_YEAR = 2021  # scenes of this year are 0 outside the quadrangle's rotated frame
ALPHA_QUARTER = "4309636_nw"  # its near infrared is tagged alpha, in both years
SCENE = "sd/{year}/600cm/rgbir_cog/43096/m_{quarter}_14_1{flown}.tif"
# Files of the bucket that are no scenes; the manifest lists them too.
OTHER_KEYS = (
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
# Mean and standard deviation of the square roots of the landscape's numbers; `_develop` maps them to NAIP's.
ROOT_STATISTICS = ((29.0, 30.4, 23.6, 52.2), (9.9, 7.4, 7.0, 8.0))
EXPOSURE = {2018: (1.0, 1.0, 1.0, 1.0), 2021: (1.04, 1.03, 1.06, 0.95)}


def keys() -> list[str]:
    """Return the keys of the scenes, year by year."""
    return [_key(year, n) for year in FLOWN for n in range(len(QUARTERS))]


def _key(year: int, n: int) -> str:
    """Return the key of quarter quadrangle `n` in a year."""
    flown = FLOWN[year][n]
    return SCENE.format(year=year, quarter=QUARTERS[n], flown=f"_{flown}" if flown else "")


def _photograph(key: SceneKey, years: Sequence[int], seed: int) -> tuple[Array, Array, float, float]:
    """Draw the area of a scene in some years.

    Returns digital numbers [years, 4, h, w], which pixels lie inside the frame [h, w], and the west and north edge in
    metres.
    """
    west, south, east, north = key.bounds
    size = key.cm / 100
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:326{key.zone}", always_xy=True)
    left, bottom, right, top = (size * round(edge / size) for edge in to_utm.transform_bounds(west, south, east, north))
    shape = round((top - bottom) / size), round((right - left) / size)
    columns, rows = (round(edge / size) + np.arange(n) for edge, n in ((left, shape[1]), (-top, shape[0])))
    grain = 2 * rand(columns[None], rows[:, None], seed * 1009 + 300) - 1
    for axis in (0, 1, 0, 1):
        grain = (2 * grain + np.roll(grain, 1, axis) + np.roll(grain, -1, axis)) / 3.2
    grid = utm_grid(key.zone, left, top, size, shape, seed)._replace(grain=np.clip(grain, -1, 1))
    images, _ = draw(grid, years)
    inside = (grid.x > west) & (grid.x < east) & (grid.y > south) & (grid.y < north)
    return images, inside, left, top


def _develop(image: Array, exposure: Sequence[float]) -> NDArray[np.uint8]:
    """Return digital numbers [4, h, w] of 1 or more with about the mean and standard deviation of NAIP's bands."""
    mean, std, middle, spread, gain = (
        np.array(values, np.float32)[:, None, None] for values in (NAIP.mean, NAIP.std, *ROOT_STATISTICS, exposure)
    )
    brightness = (mean + std * (np.sqrt(image) - middle) / spread) * gain
    numbers: NDArray[np.uint8] = np.clip(np.rint(brightness), 1, 255).astype(np.uint8)
    return numbers


def make_naip(out: Path, *, seed: int) -> list[Path]:
    """Write the scenes, and manifest.txt, which lists them and other keys.

    Args:
        out: The archive's folder.
        seed: Another seed gives another landscape.

    Returns:
        The paths; the manifest's is the last.
    """
    written = []
    for n, quarter in enumerate(QUARTERS):
        scene = parse_key(_key(min(FLOWN), n))
        assert scene, "SCENE spells keys as the bucket does"
        images, inside, west, north = _photograph(scene, list(FLOWN), seed)
        for year, image in zip(FLOWN, images, strict=True):
            pixels = _develop(image, EXPOSURE[year])
            if year == FRAMED_YEAR:
                pixels *= inside
            last = ColorInterp.alpha if quarter == ALPHA_QUARTER else ColorInterp.undefined
            colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, last)
            path = out / _key(year, n)
            crs = f"EPSG:269{scene.zone}"
            written.append(write_cog(path, pixels, crs, west, north, scene.cm / 100, colours=colours))
    manifest = write_text(out / "manifest.txt", "".join(f"{key}\n" for key in sorted([*keys(), *OTHER_KEYS])))
    return [*sorted(written), manifest]
