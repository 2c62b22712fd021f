"""Pictures of chips: from the dataset's image service by the chip's box, else from the chip's own source.

What a WMS answers is looked at: an XML error with status 200, a swapped box that gives a blank image, a picture of
another size are recognised and said, and the source is read instead.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import rasterio
import requests
from PIL import Image, UnidentifiedImageError
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from kiln.archives.sentinel2.item import read_item
from kiln.archives.sentinel2.layout import OFFSET_MAX_DARK_FRACTION
from kiln.archives.sentinel2.scene import OFFSET, offset_rule, subtract
from kiln.errors import KilnError, SourceError
from kiln.io import gdal, storage
from kiln.io.storage import TIMEOUT

log = logging.getLogger(__name__)
SIZE = 256  # pixels of a picture's side
MOST_BYTES = 16 << 20  # of a service's answer
STRETCH = {
    "worldcover": ((1, 2, 3), 0.0, 4000.0, 0.6),
    "naip": ((1, 2, 3), 0.0, 255.0, 1.0),
    "sentinel2": (("B04", "B03", "B02"), 0.0, 4000.0, 0.6),
}  # bands of R G B, or names of their files beside the first; black, white (digital numbers), gamma


@dataclass(frozen=True)
class Picture:
    """RGB [SIZE, SIZE, 3] uint8 and where it came from: `wms` or `source`, and why not the service; None if neither."""

    pixels: np.ndarray | None
    origin: str
    why: str = ""

    @property
    def detail(self) -> float:
        """How much there is to see: the standard deviation of its greys; 0 without a picture."""
        return 0.0 if self.pixels is None else float(self.pixels.mean(axis=2).std())


def wms_request(wms: dict[str, Any], bbox: tuple[float, float, float, float], width: int = SIZE) -> dict[str, str]:
    """GetMap's parameters for a box [west, south, east, north] in degrees, as a picture [SIZE, width].

    1.3.0 calls the CRS `CRS` and writes EPSG:4326 boxes latitude first; STYLES is mandatory even when empty.
    """
    crs, version = wms.get("crs", "EPSG:3857"), wms["version"]
    if crs == "EPSG:4326":
        box = bbox if version == "1.1.1" else (bbox[1], bbox[0], bbox[3], bbox[2])
    else:
        project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
        box = (*project(bbox[0], bbox[1]), *project(bbox[2], bbox[3]))
    return {
        "SERVICE": "WMS",
        "REQUEST": "GetMap",
        "VERSION": version,
        "LAYERS": wms["layers"],
        "STYLES": wms.get("styles", ""),
        "CRS" if version == "1.3.0" else "SRS": crs,
        "BBOX": ",".join(f"{v:.10g}" for v in box),
        "WIDTH": str(width),
        "HEIGHT": str(SIZE),
        "FORMAT": wms.get("format", "image/png"),
        **({"TIME": wms["time"]} if wms.get("time") else {}),
    }


def from_wms(wms: dict[str, Any], bbox: tuple[float, float, float, float]) -> np.ndarray:
    """RGB [SIZE, SIZE, 3] of a box. Raises SourceError that says what the service answered instead of a picture.

    No service knows a box over the antimeridian, west > east: it is asked for its two parts.
    """
    west, south, east, north = bbox
    if west <= east:
        return _asked(wms, bbox, SIZE)
    left = min(max(round(SIZE * (180 - west) / (east - west + 360)), 1), SIZE - 1)
    parts = (((west, south, 180.0, north), left), ((-180.0, south, east, north), SIZE - left))
    return np.concatenate([_asked(wms, box, width) for box, width in parts], axis=1)


def _asked(wms: dict[str, Any], bbox: tuple[float, float, float, float], width: int) -> np.ndarray:
    """RGB [SIZE, width, 3] of one request."""
    try:
        with requests.get(wms["url"], params=wms_request(wms, bbox, width), timeout=TIMEOUT, stream=True) as response:
            kind = response.headers.get("Content-Type", "").partition(";")[0]
            body = bytearray()
            for chunk in response.iter_content(1 << 16):
                body += chunk
                if len(body) > MOST_BYTES:
                    raise SourceError(f"the service sends more than {MOST_BYTES >> 20} MB for a picture")
    except requests.RequestException as e:
        raise SourceError(f"the service does not answer ({type(e).__name__})") from e
    if response.status_code != 200:
        raise SourceError(f"the service answers {response.status_code} {response.reason}")
    if not kind.startswith("image/"):
        said = _plain(bytes(body[:4000]).decode("utf-8", "replace"))
        raise SourceError(f"the service sends {kind or 'something unnamed'}, no picture: {said}")
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.size != (width, SIZE):  # asked before it is unpacked, however large it says it is
                raise SourceError(f"the service sends {image.width} x {image.height} px, not {width} x {SIZE}")
            pixels = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as e:
        raise SourceError("the service sends a picture that cannot be read") from e
    if not pixels[..., 3].any() or np.ptp(pixels[..., :3].reshape(-1, 3), axis=0).max() == 0:
        raise SourceError("the service sends a blank picture: no data there, or its axes are swapped")
    return np.ascontiguousarray(pixels[..., :3])


def from_source(dataset: str, source: str, bbox: tuple[float, float, float, float]) -> np.ndarray:
    """RGB [SIZE, SIZE, 3] of a box read from the chip's main source; nodata is grey. Raises SourceError."""
    if dataset not in STRETCH:
        raise SourceError(f"{dataset}: no way is known to draw its sources")
    bands, black, white, gamma = STRETCH[dataset]
    if isinstance(bands[0], str):
        folder, _, name = source.rpartition("/")
        files = [(f"{folder}/{name.replace(bands[0], band)}", (1,)) for band in bands]
    else:
        files = [(source, bands)]
    values = np.concatenate([_read(uri, wanted, bbox) for uri, wanted in files])
    if dataset == "sentinel2" and _offset_told(source.rpartition("/")[0]):
        seen = values.any(axis=0)
        dark = seen & (values < OFFSET).all(axis=0)
        if np.count_nonzero(dark) <= OFFSET_MAX_DARK_FRACTION * np.count_nonzero(seen):
            values = subtract(values)
    shown = np.clip((values.astype(np.float32) - black) / (white - black), 0, 1) ** gamma * 255
    shown[:, ~values.any(axis=0)] = 128
    return shown.astype(np.uint8).transpose(1, 2, 0)


@lru_cache(1024)
def _offset_told(folder: str) -> bool:
    """Whether the item beside a Sentinel-2 scene's files says that 1000 was added to its numbers.

    No where there is none, or it does not tell: such a picture is pale, and better than none.
    """
    uri = f"{folder}/{folder.rpartition('/')[2]}.json"
    try:
        return offset_rule(read_item(storage.read_bytes(uri), uri))[0]
    except SourceError as e:
        log.debug("no offset is known: %s", e)
        return False


@contextmanager
def _opened(uri: str) -> Iterator[rasterio.DatasetReader]:
    """A file, open. Raises SourceError if it cannot be read, also for what is done with it meanwhile."""
    try:
        with gdal.environment(uri), rasterio.open(uri) as file:
            yield file
    except (RasterioError, OSError) as e:
        raise SourceError(f"{uri} cannot be read: {e}") from e


def _read(uri: str, bands: Sequence[int], bbox: tuple[float, float, float, float]) -> np.ndarray:
    """Bands [n, SIZE, SIZE] of a file in a box of degrees; 0 where it has none."""
    with _opened(uri) as file:
        window = from_bounds(*transform_bounds("EPSG:4326", file.crs, *bbox), transform=file.transform)
        return file.read(list(bands), window=window, out_shape=(len(bands), SIZE, SIZE), boundless=True, fill_value=0)


def picture(row: dict[str, Any], services: dict[str, Any]) -> Picture:
    """The picture of a row of the explorer table; `services` is `pictures` of the config."""
    bbox = (row["xmin"], row["ymin"], row["xmax"], row["ymax"])
    why = "no service configured"
    if wms := (services.get(row["dataset"]) or {}).get("wms"):
        try:
            return Picture(from_wms(wms, bbox), "wms")
        except SourceError as e:
            why = str(e)
    try:
        return Picture(from_source(row["dataset"], row["source"], bbox), "source", why)
    except KilnError as e:
        return Picture(None, "none", f"{why}; {e}")


def _plain(text: str) -> str:
    """The words of an XML or HTML answer, shortened."""
    words, tag = [], False
    for c in text[:4000]:
        tag = c == "<" or (tag and c != ">")
        words.append(" " if tag or c == ">" else c)
    return " ".join("".join(words).split())[:160]
