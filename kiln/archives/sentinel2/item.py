"""STAC items of Sentinel-2 L2A, as Earth Search (v0, v1, Collection 1), Planetary Computer and CDSE spell them.

Plan and source read items, so this module imports neither numpy nor rasterio. An item that lacks an asset is read too:
its embedding fails, and the other items of its shard do not.
"""

import json
import posixpath
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kiln.errors import SourceError

ASSET_NAMES = {  # the model's ten bands in its order, then the scene classification; the values are the names of v0
    **{"blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07"},
    **{"nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12", "scl": "SCL"},
}
COARSE_BANDS = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22", "scl")  # of 20 m; others have 10 m
TILE = re.compile(r"(?:MGRS-|^T?|_T?)(\d{1,2})([C-HJ-NP-X])([A-Z]{2})(?=_|$)", re.ASCII)
BASELINE = re.compile(r"(\d{2})\.(\d{2})", re.ASCII)
PRODUCT = re.compile(r"_N(\d{2})(\d{2})_R\d{3}_T\w{5}_(\d{8}T\d{6})", re.ASCII)  # baseline and time of processing
SENSING = re.compile(r"_S(\d{8}T\d{6})_", re.ASCII)


@dataclass(frozen=True)
class Item:
    """The facts of an item. Texts are empty where the item does not state them.

    Attributes:
        item_id: Its id, as `S2A_29RKH_20200219_0_L2A`.
        href: Address that the item was read from.
        datetime: Acquisition, UTC.
        platform: As `sentinel-2a`.
        zone: UTM zone of its MGRS tile.
        band: Latitude band of its MGRS tile.
        square: 100 km square of its MGRS tile.
        baseline: Processing baseline, as `04.00`.
        offset_applied: The archive's flag; None where there is none.
        raster_offset: `raster:offset` of the blue asset. It is -0.1 whether or not the offset was applied, so it
            decides nothing.
        generation_time: Time of processing in one spelling, so that the later one is the larger.
        sensing: Start of the datastrip.
        cloud_cover: Percent.
        sun_elevation: Degrees.
        epsg: CRS of the files.
        assets: Absolute hrefs by band, of those that the item has.
    """

    item_id: str
    href: str
    datetime: datetime
    platform: str
    zone: int
    band: str
    square: str
    baseline: str
    offset_applied: bool | None
    raster_offset: float | None
    generation_time: str
    sensing: str
    cloud_cover: float | None
    sun_elevation: float | None
    epsg: int | None
    assets: dict[str, str] = field(hash=False)

    @property
    def tile(self) -> str:
        """The MGRS tile, as `29RKH`."""
        return f"{self.zone:02d}{self.band}{self.square}"

    @property
    def partition(self) -> str:
        """The merge partition, MGRS grid zone and month, as `29R-2020-02`."""
        return f"{self.zone:02d}{self.band}-{self.datetime:%Y-%m}"

    @property
    def unit_id(self) -> str:
        """The unit's id in the ledger, as `sentinel2:S2A_29RKH_20200219_0_L2A`."""
        return f"sentinel2:{self.item_id}"

    @property
    def product(self) -> tuple[str, str, str]:
        """Tile, platform and day, which versions and halves of an acquisition have in common."""
        return self.tile, self.platform, f"{self.datetime:%Y-%m-%d}"

    @property
    def version(self) -> tuple[tuple[int, int], str]:
        """Baseline and time of processing; the larger is the newer version."""
        return baseline_number(self.baseline), self.generation_time


def baseline_number(baseline: str) -> tuple[int, int]:
    """Return `04.00` as (4, 0), and (0, 0) for an unknown baseline."""
    match = BASELINE.fullmatch(baseline)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def read_item(document: bytes | dict[str, Any], href: str) -> Item:
    """Return the item of a STAC document.

    Args:
        document: Its bytes, or its parsed JSON.
        href: Its address, which errors name and relative assets begin at.

    Returns:
        The item.

    Raises:
        SourceError: If the document is no STAC item, or lacks datetime, platform or tile.
    """
    feature = _parse_feature(document, href)
    properties = feature["properties"]
    item_id = feature["id"]
    zone, band, square = _tile(properties, item_id, href)
    product = PRODUCT.search(_text(properties, "s2:product_uri", "sentinel:product_id")) or PRODUCT.search(item_id)
    generation_time = _instant(_text(properties, "s2:generation_time"))
    sensing = SENSING.search(_text(properties, "s2:datastrip_id"))
    return Item(
        item_id=item_id,
        href=href,
        datetime=_datetime(properties.get("datetime"), item_id, href),
        platform=_platform(properties, item_id, href),
        zone=zone,
        band=band,
        square=square,
        baseline=_baseline(properties, product),
        offset_applied=_flag(properties, "earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"),
        raster_offset=_raster_offset(feature["assets"]),
        generation_time=generation_time or (_instant(product[3]) if product else ""),
        sensing=sensing[1] if sensing else "",
        cloud_cover=_number(properties, "eo:cloud_cover"),
        sun_elevation=_sun_elevation(properties),
        epsg=_epsg(properties, feature["assets"]),
        assets=_assets(feature["assets"], href),
    )


def _parse_feature(document: bytes | dict[str, Any], href: str) -> dict[str, Any]:
    """Return the document as a Feature with id, properties and assets. Raises SourceError for another document."""
    expected = f"{href}: expected a STAC item, got"
    feature: Any = document
    if isinstance(document, bytes):
        if document.lstrip()[:1] == b"<":
            raise SourceError(f"{expected} a web page or XML.")
        try:
            feature = json.loads(document)
        except (ValueError, RecursionError) as e:  # UnicodeDecodeError is a ValueError
            raise SourceError(f"{expected} a file that is not JSON ({e}).") from e
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        kind = feature.get("type", "no type") if isinstance(feature, dict) else type(feature).__name__
        raise SourceError(f"{expected} JSON that is not a Feature ({kind}).")
    for name, kind in {"id": str, "properties": dict, "assets": dict}.items():
        if not isinstance(feature.get(name), kind) or (name == "id" and not feature["id"]):
            raise SourceError(f"{expected} a Feature without {name}.")
    return feature


def _text(properties: dict[str, Any], *names: str) -> str:
    return next((str(properties[n]) for n in names if properties.get(n) is not None), "")


def _flag(properties: dict[str, Any], *names: str) -> bool | None:
    return next((properties[n] for n in names if isinstance(properties.get(n), bool)), None)


def _number(properties: dict[str, Any], name: str) -> float | None:
    value = properties.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _datetime(text: Any, item_id: str, href: str) -> datetime:
    try:
        return _as_utc(datetime.fromisoformat(text))
    except (TypeError, ValueError) as e:
        raise SourceError(f"{href}: {item_id}: expected a datetime, got {text!r}.") from e


def _instant(text: str) -> str:
    """Return a time in one spelling, so that the later one is the larger; empty for a text that is no time."""
    try:
        return _as_utc(datetime.fromisoformat(text)).isoformat(timespec="microseconds")
    except ValueError:
        return ""


def _as_utc(time: datetime) -> datetime:
    """Return a time in UTC; one without a zone is UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _platform(properties: dict[str, Any], item_id: str, href: str) -> str:
    if text := _text(properties, "platform"):
        return text.lower()
    if match := re.match(r"S2([A-D])_", item_id):
        return f"sentinel-2{match[1].lower()}"
    raise SourceError(f"{href}: {item_id}: expected a platform in its properties or name, got none.")


def _tile(properties: dict[str, Any], item_id: str, href: str) -> tuple[int, str, str]:
    """Return zone, band and square of the MGRS tile: from three properties, else from one code, else from the id."""
    for prefix in ("mgrs", "sentinel"):
        parts = [_text(properties, f"{prefix}:{n}") for n in ("utm_zone", "latitude_band", "grid_square")]
        if all(parts) and (match := TILE.match("".join(parts))):
            break
    else:
        match = TILE.match(_text(properties, "grid:code", "s2:mgrs_tile")) or TILE.search(item_id)
    if not match or not 1 <= int(match[1]) <= 60:
        raise SourceError(f"{href}: {item_id}: expected an MGRS tile in its properties or name, got none.")
    return int(match[1]), match[2], match[3]


def _baseline(properties: dict[str, Any], product: re.Match[str] | None) -> str:
    """Return the baseline, as `04.00`: a property, else from the name of the product, which may be the item's id."""
    text = _text(properties, "s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
    if BASELINE.fullmatch(text):
        return text
    return f"{product[1]}.{product[2]}" if product else ""


def _sun_elevation(properties: dict[str, Any]) -> float | None:
    """Return the sun's elevation in degrees: a property, else 90 less the zenith angle."""
    elevation, zenith = _number(properties, "view:sun_elevation"), _number(properties, "s2:mean_solar_zenith")
    return elevation if elevation is not None or zenith is None else 90 - zenith


def _raster_offset(assets: dict[str, Any]) -> float | None:
    """Return the blue asset's `raster:bands[0].offset`, or `raster:offset` as of STAC 1.1."""
    blue = next((a for k in ("blue", "B02", "B02_10m") if isinstance(a := assets.get(k), dict)), {})
    lists = [blue[k] for k in ("raster:bands", "bands") if isinstance(blue.get(k), list)]
    objects = [blue, *(bands[0] for bands in lists if bands and isinstance(bands[0], dict))]
    offsets = [_number(values, key) for values in objects for key in ("offset", "raster:offset")]
    return next((offset for offset in offsets if offset is not None), None)


def _epsg(properties: dict[str, Any], assets: dict[str, Any]) -> int | None:
    """Return `proj:epsg`, or `proj:code` ("EPSG:32629") as of version 2 of the extension, of the item or an asset."""
    for values in (properties, *(assets[k] for k in ("red", "B04", "B04_10m") if isinstance(assets.get(k), dict))):
        code = re.fullmatch(r"(?:EPSG:)?(\d+)", _text(values, "proj:epsg", "proj:code"))
        if code:
            return int(code[1])
    return None


def _assets(assets: dict[str, Any], href: str) -> dict[str, str]:
    """Return the hrefs by band, of those that the item has; JPEG 2000 (`blue-jp2`) where there is no other.

    CDSE has each band in several resolutions, as `B02_10m` and `B02_20m`; its own is taken.
    """
    hrefs = {}
    for band, name in ASSET_NAMES.items():
        own_resolution = f"{name}_{20 if band in COARSE_BANDS else 10}m"
        for key in (band, name, own_resolution, f"{band}-jp2", f"{name}-jp2"):
            asset = assets.get(key)
            if isinstance(asset, dict) and isinstance(asset.get("href"), str) and asset["href"]:
                hrefs[band] = _absolute(asset["href"], href)
                break
    return hrefs


def _absolute(asset: str, href: str) -> str:
    """Return an asset's absolute href; a relative one begins in the item's folder."""
    if "://" in asset or asset.startswith("/"):
        return asset
    scheme, separator, path = href.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), asset))
