"""Pictures of chips: from the dataset's image service (WMS), else from the chip's own source.

The answer of a WMS is checked. An XML error with status 200, a blank image (as swapped axes give) and an image of
another size count as failures; the source is read instead, and the reason is part of the result.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, Required, TypedDict

import numpy as np
import pyproj
import requests
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kiln.archives.registry import PICTURE_SIZE_PX, archives
from kiln.errors import KilnError, SourceError
from kiln.formats.bounding_box import Bounds
from kiln.io.storage.http import TIMEOUT_S

SIZE = PICTURE_SIZE_PX
MAX_ANSWER_BYTES = 16 << 20
NO_SERVICE = "no service configured"
Pixels = NDArray[np.uint8]


class WmsSettings(TypedDict, total=False):
    """The `wms` of a dataset in the config's `pictures`."""

    url: Required[str]
    version: Required[str]
    layers: Required[str]
    crs: str
    styles: str
    format: str
    time: NotRequired[str | None]


@dataclass(frozen=True)
class Picture:
    """A picture and its origin.

    Attributes:
        pixels: RGB [SIZE, SIZE, 3], or None without a picture.
        origin: `wms`, `source` or `none`.
        why: Why the picture is not from a better origin; empty for `wms`.
    """

    pixels: Pixels | None
    origin: str
    why: str = ""

    @property
    def detail(self) -> float:
        """Return the standard deviation of the picture's greys; 0 without a picture."""
        return 0.0 if self.pixels is None else float(self.pixels.mean(axis=2).std())


def picture(row: Mapping[str, Any], services: Mapping[str, Any]) -> Picture:
    """Return the picture of a chip.

    Args:
        row: A row of the explorer's table: `dataset`, `source`, `xmin`, `ymin`, `xmax`, `ymax`.
        services: The config's `pictures`: by dataset, its image service.

    Returns:
        The service's picture; if there is no service or it fails, the source's; if that fails too, none.
    """
    bbox = (row["xmin"], row["ymin"], row["xmax"], row["ymax"])
    why = NO_SERVICE
    if wms := (services.get(row["dataset"]) or {}).get("wms"):
        try:
            return Picture(from_wms(wms, bbox), "wms")
        except SourceError as e:
            why = str(e)
    try:
        return Picture(from_source(row["dataset"], row["source"], bbox), "source", why)
    except KilnError as e:
        return Picture(None, "none", f"{why}; {e}")


def from_source(dataset: str, source: str, bbox: Bounds) -> Pixels:
    """Read the picture of a bounding box from a chip's source.

    Args:
        dataset: Name of the archive.
        source: The chip's main source, as its row has it.
        bbox: West, south, east, north in degrees.

    Returns:
        RGB [SIZE, SIZE, 3]; nodata is grey.

    Raises:
        SourceError: The source cannot be read, or the dataset's archive is unknown or has no pictures.
    """
    return _picture_reader(dataset)(source, bbox)


def _picture_reader(dataset: str) -> Callable[[str, Bounds], Pixels]:
    """Return the `read_picture` of a dataset's archive. Raises SourceError if there is none."""
    if archive := archives().get(dataset):
        try:
            reader: Callable[[str, Bounds], Pixels] = archive.load("picture", "read_picture")
            return reader
        except ModuleNotFoundError as e:
            if e.name != f"{archive.module}.picture":
                raise
    raise SourceError(f"{dataset}: no way is known to draw its sources")


def from_wms(wms: WmsSettings, bbox: Bounds) -> Pixels:
    """Return the picture of a bounding box from an image service.

    No service accepts a box across the antimeridian (west > east); such a box takes two requests.

    Args:
        wms: The service.
        bbox: West, south, east, north in degrees.

    Returns:
        RGB [SIZE, SIZE, 3].

    Raises:
        SourceError: The service does not answer, or its answer is no valid picture.
    """
    west, south, east, north = bbox
    if west <= east:
        return _get_map(wms, bbox, SIZE)
    left_width = min(max(round(SIZE * (180 - west) / (east - west + 360)), 1), SIZE - 1)
    halves = (((west, south, 180.0, north), left_width), ((-180.0, south, east, north), SIZE - left_width))
    return np.concatenate([_get_map(wms, box, width) for box, width in halves], axis=1)


def wms_request(wms: WmsSettings, bbox: Bounds, width: int = SIZE) -> dict[str, str]:
    """Return the parameters of a GetMap request for a picture [SIZE, width] of a bounding box in degrees.

    WMS 1.3.0 names the CRS parameter `CRS` and writes EPSG:4326 boxes latitude first. STYLES is mandatory even when
    it is empty.
    """
    crs, version = wms.get("crs", "EPSG:3857"), wms["version"]
    if crs == "EPSG:4326":
        box = bbox if version == "1.1.1" else (bbox[1], bbox[0], bbox[3], bbox[2])
    else:
        project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
        box = (*project(bbox[0], bbox[1]), *project(bbox[2], bbox[3]))
    parameters = {
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
    }
    if time := wms.get("time"):
        parameters["TIME"] = time
    return parameters


def _get_map(wms: WmsSettings, bbox: Bounds, width: int) -> Pixels:
    """Return the RGB picture [SIZE, width, 3] of one request. Raises SourceError if the answer is no valid picture."""
    try:
        with requests.get(wms["url"], params=wms_request(wms, bbox, width), timeout=TIMEOUT_S, stream=True) as response:
            content_type = response.headers.get("Content-Type", "").partition(";")[0]
            body = bytearray()
            for chunk in response.iter_content(1 << 16):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise SourceError(f"the service sends more than {MAX_ANSWER_BYTES >> 20} MB for a picture")
    except requests.RequestException as e:
        raise SourceError(f"the service does not answer ({type(e).__name__})") from e
    if response.status_code != 200:
        raise SourceError(f"the service answers {response.status_code} {response.reason}")
    if not content_type.startswith("image/"):
        text = _text_of_markup(bytes(body[:4000]).decode("utf-8", "replace"))
        raise SourceError(f"the service sends {content_type or 'no content type'}, no picture: {text}")
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.size != (width, SIZE):  # checked before decoding, so that a huge image is never decoded
                raise SourceError(f"the service sends {image.width} x {image.height} px, not {width} x {SIZE}")
            pixels = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as e:
        raise SourceError("the service sends a picture that cannot be read") from e
    if not pixels[..., 3].any() or np.ptp(pixels[..., :3].reshape(-1, 3), axis=0).max() == 0:
        raise SourceError("the service sends a blank picture: no data there, or its axes are swapped")
    return np.ascontiguousarray(pixels[..., :3])


def _text_of_markup(text: str) -> str:
    """Return the text of an XML or HTML answer without its tags, at most 160 characters."""
    characters, in_tag = [], False
    for c in text[:4000]:
        in_tag = c == "<" or (in_tag and c != ">")
        characters.append(" " if in_tag or c == ">" else c)
    return " ".join("".join(characters).split())[:160]
