"""NAIP scenes of known pixels, and sources that read them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import boto3
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.source import NaipSource
from kiln.engine.read_ahead import read_ahead
from kiln.formats.records import Chip, Dropped

CHIP_SIZE = 16
KEY = "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif"
OTHER_KEY = "va/2016/100cm/rgbir_cog/37078/m_3707801_ne_17_1_20160620.tif"
UNDATED = "id/2015/100cm/rgbir_cog/48117/m_4811716_se_11_1.tif"
TRANSFORM = from_origin(500_000, 5_209_000, 1, 1)
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
GRID_CORNER = (31_250 * CHIP_SIZE, 325_500 * CHIP_SIZE)  # a corner of four cells of 16 m in zone 14


def scene_pixels(height=40, width=56, seed=1, bands=4, dtype="uint8"):
    """[bands, height, width] above 0."""
    return np.random.default_rng(seed).integers(1, 255, (bands, height, width)).astype(dtype)


def write_scene(root, key, pixels, colours=None, **profile):
    """Write a scene at its key and return its path. `profile` overrides the options of rasterio."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    options = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    options |= {"crs": "EPSG:26914", "transform": TRANSFORM, "compress": "deflate", **profile}
    if colours:
        options |= {"photometric": "RGB", "alpha": "unspecified" if ColorInterp.alpha in colours else "no"}
    with rasterio.open(path, "w", **options) as file:
        if colours:
            file.colorinterp = colours
        file.write(pixels)
    return path


@contextmanager
def requester_pays_bucket(scenes: dict[str, Path]) -> Iterator[None]:
    """Create the bucket `naip-analytic` with scenes by key; delete it afterwards."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="naip-analytic")
    for key, path in scenes.items():
        client.upload_file(str(path), "naip-analytic", key)
    yield
    for key in scenes:
        client.delete_object(Bucket="naip-analytic", Key=key)
    client.delete_bucket(Bucket="naip-analytic")


def make_source(root, *keys, chip=CHIP_SIZE, max_nodata=0.05, **more):
    return NaipSource(keys or [KEY], archive=str(root), chip=chip, max_nodata=max_nodata, **more)


def read_events(source):
    """Check a source and return all its events."""
    source.check()
    return read_checked_source(source, 2)


def read_checked_source(source, threads=1, ahead=1 << 30):
    """Return all events of a source that was checked."""
    with closing(read_ahead(source.reads(), threads, ahead)) as loaded:
        return list(source.chips(loaded))


def read_chips(source):
    return [e for e in read_events(source) if isinstance(e, Chip)]


def read_dropped(source):
    return [(e.unit_id, e.kind, e.count, e.reason) for e in read_events(source) if isinstance(e, Dropped)]


def only_reason(source):
    """Return the reason why the only scene failed before it was opened; there is no other event."""
    (event,) = read_events(source)
    assert isinstance(event, Dropped)
    assert (event.kind, event.count) == ("failed", ChipCounts(CHIP_SIZE).about(parse_key(KEY)))
    return event.reason


def comparable(chip):
    """Return all fields of a chip except the addresses of its scene."""
    names = [n for n in Chip.__dataclass_fields__ if n not in ("pixels", "source", "sources")]
    return [getattr(chip, n) for n in names] + [chip.pixels.tobytes()]
