"""The way of the published run, written again from its description. Kiln is measured against it.

Each chip is one read, and the file is opened for each read. All chips of a job are read before the first is encoded.
The encoder uses float32, computes kernels and positions for every batch, and returns all tokens. malloc has its default
settings. Nothing overlaps. Normalisation and model are Kiln's, so that the vectors can be compared. The code that reads
is independent of Kiln.
"""

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
from rasterio.windows import Window, bounds

from kiln.archives.worldcover.lattice import Lattice
from kiln.formats.sensor import Sensor
from kiln.model import clay
from kiln.model import weights as encoders
from kiln.model.embedder import keep_memory
from tests.bench.workload import CHIP, Workload
from tests.support import items

BATCH = 8
# glibc's default limit (mallopt(3)): larger blocks are returned to the system when they are freed. In bytes.
MALLOC_DEFAULT = 32 << 20


def windows(width: int, height: int) -> Iterator[Window]:
    """Yield the windows of whole chips from the top left corner, row by row."""
    for row in range(height // CHIP):
        for col in range(width // CHIP):
            yield Window(col * CHIP, row * CHIP, CHIP, CHIP)


def naip_chips(load: Workload) -> list[np.ndarray]:
    """Read the scene once for each chip."""
    chips = []
    for path in (load.folder / key for key in load.shard.units):
        with rasterio.open(path) as scene:
            places = list(windows(scene.width, scene.height))
        for window in places:
            with rasterio.open(path) as scene:
                chips.append(scene.read(window=window))
    return chips


def sentinel2_chips(load: Workload) -> list[np.ndarray]:
    """Read ten bands and the SCL once for each chip. Repeat 20 m pixels; leave out cloudy chips."""
    chips = []
    for item in load.shard.units:
        (folder,) = load.folder.glob(f"sentinel-s2-l2a-cogs/*/*/*/*/*/{item}")
        with rasterio.open(folder / "B04.tif") as red:
            places = list(windows(red.width, red.height))
        for window in places:
            bands = []
            for name in (*items.FILES, "scl"):
                with rasterio.open(folder / f"{items.FILES.get(name, 'SCL')}.tif") as band:
                    fine = name not in items.COARSE and name != "scl"
                    at = window if fine else Window(*(v / 2 for v in window.flatten()))
                    pixels = band.read(1, window=at)
                    bands.append(pixels if fine else pixels.repeat(2, 0).repeat(2, 1))
            if np.isin(bands.pop(), (1, 3, 8, 9, 10)).mean() <= 0.5:
                chips.append(np.stack(bands))
    return chips


def worldcover_chips(load: Workload) -> list[np.ndarray]:
    """Read each chip, column by column. Leave out chips with more nodata than the limit."""
    (path,) = load.folder.glob("2021/*/*.tif")
    lattice = Lattice(load.shard.chip_size, load.settings["pixels_per_degree"])
    with rasterio.open(path) as tile:
        west, north = (round(v * lattice.ppd) for v in (tile.bounds.left + 180, 90 - tile.bounds.top))
    chips = []
    for col, first, rows in load.shard.details["columns"]:
        for row in range(first, first + rows):
            window = Window(lattice.x(col) - west, lattice.y(row) - north, CHIP, CHIP)
            with rasterio.open(path) as tile:
                pixels = tile.read(window=window, boundless=True, fill_value=0)
            if (pixels == 0).all(axis=0).mean() <= 0.05:
                chips.append(pixels)
    return chips


ORDER = {"naip": ("item_id", "row", "col"), "sentinel2": ("item_id", "row", "col"), "worldcover": ("col", "row")}
CHIPS = {"naip": naip_chips, "sentinel2": sentinel2_chips, "worldcover": worldcover_chips}


def vectors(encoder: clay.ClayEncoder, sensor: Sensor, chips: list[np.ndarray]) -> np.ndarray:
    """Return class tokens [n, D] float32, at an unknown time and place."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (sensor.mean, sensor.std))
    tokens = []
    for first in range(0, len(chips), BATCH):
        x = torch.from_numpy(np.stack(chips[first : first + BATCH]).astype(np.float32))
        unknown = torch.zeros(len(x), 4)
        sensor_inputs = {"wavelengths": torch.tensor(sensor.wavelengths), "gsd": sensor.gsd}
        encoder._kernels.clear(), encoder._positions.clear()
        tokens.append(encoder((x - mean) / std, time=unknown, latlon=unknown, **sensor_inputs)[:, 0])
    return torch.cat(tokens).numpy()


def embed(load: Workload, weights: Path, output: Path) -> np.ndarray:
    """Run a whole job: write a GeoParquet file with geopandas and return its vectors."""
    keep_memory(MALLOC_DEFAULT)
    encoder = encoders.load_encoder(weights)
    chips = CHIPS[load.dataset](load)
    found = vectors(encoder, load.source().info.sensor, chips)
    boxes = [shapely.box(*bounds(Window(n, 0, 1, 1), rasterio.Affine.identity())) for n in range(len(found))]
    frame = gpd.GeoDataFrame({"embeddings": list(found)}, geometry=boxes, crs="EPSG:4326")
    frame.to_parquet(output)
    return found
