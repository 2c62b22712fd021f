"""Settings of the server, and the base map in them."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from kiln.formats.validation import validate

PAGE_FOLDER = Path(__file__).parent / "page"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Rate:
    """A limit of requests: so many per second, and a burst of them."""

    per_second: float
    burst: float


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        hosts: Host names of requests that are answered; empty: any.
        base_map: A raster source for the page's map, from `parse_base_map`.
        rate: Limit of requests per client.
        search_rate: Limit of searches and exports per client.
        page: Folder of the page's files.
        threads: Threads for each kind of work. Each kind has its own, so that slow pictures never delay a search.
    """

    hosts: tuple[str, ...] = LOCAL_HOSTS
    base_map: Mapping[str, Any] | None = None
    rate: Rate = Rate(200.0, 2000.0)
    search_rate: Rate = Rate(10.0, 30.0)
    page: Path = PAGE_FOLDER
    threads: Mapping[str, int] = field(default_factory=lambda: {"search": 2, "tile": 4, "picture": 8, "other": 4})


def _check_http_url(url: str) -> str:
    """Return the URL. Raises ValueError for another scheme, and for a host that would change a security header."""
    scheme, host = urlsplit(url)[:2]
    if scheme not in ("http", "https") or not host or re.search(r"[\s;,'\"]", host):
        raise ValueError("expected an http or https address")
    return url


def _check_tile_template(url: str) -> str:
    """Return the URL. Raises ValueError unless it has the place holders of a tile."""
    if not all(f"{{{name}}}" in url for name in "zxy"):
        raise ValueError("expected {z}, {x} and {y} in the address")
    return url


HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
TileTemplate = Annotated[HttpUrl, AfterValidator(_check_tile_template)]


class _BaseMap(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attribution: str = ""
    tile_size: int = 256
    max_zoom: int = 19


class _TileBaseMap(_BaseMap):
    url: TileTemplate


class _Wms(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: HttpUrl
    version: str = "1.3.0"
    layers: str = ""
    styles: str = ""
    format: str = "image/png"


class _WmsBaseMap(_BaseMap):
    wms: _Wms


def parse_base_map(value: Any) -> dict[str, Any] | None:
    """Return the base map as a raster source of MapLibre.

    Args:
        value: `{url, attribution, tile_size, max_zoom}`, its URL a template with {z}, {x} and {y} (XYZ, or WMTS with
            these as TileMatrix, TileCol and TileRow); or `{wms: {url, version, layers, styles, format}, ...}`; or
            nothing.

    Returns:
        The source, or None for no base map.

    Raises:
        ConfigError: The value is neither.
    """
    if not value:
        return None
    base_map: _BaseMap
    if isinstance(value, Mapping) and value.get("wms"):
        base_map = validate(_WmsBaseMap, value, "base map")
        tiles = _wms_template(base_map.wms)
    else:
        base_map = validate(_TileBaseMap, value, "base map")
        tiles = base_map.url
    return {
        "type": "raster",
        "tiles": [tiles],
        "tileSize": base_map.tile_size,
        "maxzoom": base_map.max_zoom,
        "attribution": html.escape(base_map.attribution),
    }


def _wms_template(wms: _Wms) -> str:
    """Return the GetMap address of a tile, with MapLibre's place holder for its bounding box."""
    parameters = {
        "SERVICE": "WMS",
        "REQUEST": "GetMap",
        "VERSION": wms.version,
        "LAYERS": wms.layers,
        "STYLES": wms.styles,
        "CRS" if wms.version == "1.3.0" else "SRS": "EPSG:3857",
        "WIDTH": "256",
        "HEIGHT": "256",
        "FORMAT": wms.format,
    }
    return f"{wms.url}{'&' if '?' in wms.url else '?'}{urlencode(parameters)}&BBOX={{bbox-epsg-3857}}"
