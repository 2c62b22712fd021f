"""STAC items of Sentinel-2 L2A, in the spellings of `kiln.archives.sentinel2.spellings`.

Plan and source read items, so this module imports neither numpy nor rasterio. An item that lacks an asset, or is of
another product, is read too: its embedding fails, and the other items of its shard do not.
"""

import json
import posixpath
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from kiln.archives.sentinel2.other_products import refusal
from kiln.archives.sentinel2.spellings import ASSET_NAMES, PROPERTIES, asset_keys
from kiln.errors import SourceError

TILE = re.compile(r"(?:MGRS-|^T?|_T?)(\d{1,2})([C-HJ-NP-X])([A-Z]{2})(?=_|$)", re.ASCII)
BASELINE = re.compile(r"N?(\d{2})\.?(\d{2})", re.ASCII)
PLATFORM = re.compile(r"s(?:entinel)?[-_ ]?2[-_ ]?([a-d])", re.ASCII | re.IGNORECASE)
MAX_SPAN = timedelta(days=1)  # of an acquisition; a tile is seen in seconds, a composite in weeks
PRODUCT = re.compile(r"_N(\d{2})(\d{2})_R\d{3}_T\w{5}_(\d{8}T\d{6})", re.ASCII)  # baseline and time of processing
SENSING = re.compile(r"_S(\d{8}T\d{6})_", re.ASCII)
DAY_IN_ID = re.compile(r"S2[A-D]_(?:T?\d{1,2}[C-HJ-NP-X][A-Z]{2}|MSIL\d[A-C])_(\d{8})(?!\d)", re.ASCII)


class OtherProductError(SourceError):
    """An item of another product, which has no place in a plan: no tile, no time or no platform."""


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
        refusal: Why the item is of another product than Sentinel-2 L2A; empty if it is not.
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
    refusal: str = field(default="", repr=False)  # checkpoints go by the representation of an item

    @property
    def day(self) -> date:
        """The day that filters, partitions and versions go by: that in the id, else that of `datetime`.

        The two differ near midnight, and an inventory knows the id alone.
        """
        return _day_in_id(self.item_id) or self.datetime.date()

    @property
    def tile(self) -> str:
        """The MGRS tile, as `29RKH`."""
        return f"{self.zone:02d}{self.band}{self.square}"

    @property
    def partition(self) -> str:
        """The merge partition, MGRS grid zone and month, as `29R-2020-02`."""
        return f"{self.zone:02d}{self.band}-{self.day:%Y-%m}"

    @property
    def unit_id(self) -> str:
        """The unit's id in the ledger, as `sentinel2:S2A_29RKH_20200219_0_L2A`."""
        return f"sentinel2:{self.item_id}"

    @property
    def product(self) -> tuple[str, str, str]:
        """Tile, platform and day, which versions and halves of an acquisition have in common."""
        return self.tile, self.platform, f"{self.day:%Y-%m-%d}"

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
        OtherProductError: If an item of another product lacks one of these.
        SourceError: If the document is no STAC item, or lacks datetime, platform or tile.
    """
    feature = _parse_feature(document, href)
    reason = refusal(feature, href)
    try:
        return _read_feature(feature, href, reason)
    except SourceError as e:
        if reason:
            raise OtherProductError(reason) from e
        raise


def _read_feature(feature: dict[str, Any], href: str, reason: str) -> Item:
    """Return the item of a Feature; `reason` is why it is refused."""
    properties = feature["properties"]
    item_id = feature["id"]
    zone, band, square = _tile(properties, item_id, href)
    names = (str(properties.get(name, "")) for name in PROPERTIES["product name"])
    product = next((match for name in (*names, item_id) if (match := PRODUCT.search(name))), None)
    generation_time = _instant(_text(properties, "generation time"))
    sensing = SENSING.search(_text(properties, "datastrip"))
    return Item(
        item_id=item_id,
        href=href,
        datetime=_acquisition(properties, item_id, href),
        platform=_platform(properties, item_id, href),
        zone=zone,
        band=band,
        square=square,
        baseline=_baseline(properties, product),
        offset_applied=_flag(properties, "offset flag"),
        raster_offset=_raster_offset(feature["assets"]),
        generation_time=generation_time or (_instant(product[3]) if product else ""),
        sensing=sensing[1] if sensing else "",
        cloud_cover=_number(properties, "eo:cloud_cover"),
        sun_elevation=_sun_elevation(properties),
        epsg=_epsg(properties, feature["assets"]),
        assets=_assets(feature["assets"], href),
        refusal=reason,
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


def _text(properties: dict[str, Any], fact: str) -> str:
    return next((str(properties[n]) for n in PROPERTIES[fact] if properties.get(n) is not None), "")


def _flag(properties: dict[str, Any], fact: str) -> bool | None:
    return next((properties[n] for n in PROPERTIES[fact] if isinstance(properties.get(n), bool)), None)


def _number(properties: dict[str, Any], name: str) -> float | None:
    value = properties.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # else infinite or NaN


def _acquisition(properties: dict[str, Any], item_id: str, href: str) -> datetime:
    """Return `datetime`. Where that is null, STAC has first and last instant, of which the first is taken.

    Raises:
        SourceError: If there is no time, or the two are so far apart that the item is a composite.
    """
    names = ("start_datetime", "end_datetime")
    if properties.get("datetime") is not None or any(properties.get(name) is None for name in names):
        return _datetime(properties, "datetime", item_id, href)
    first, last = (_datetime(properties, name, item_id, href) for name in names)
    if not timedelta(0) <= last - first <= MAX_SPAN:
        raise SourceError(
            f"{href}: {item_id}: expected the datetime of one acquisition, got none, and a span from {first} to {last}."
        )
    return first


def _datetime(properties: dict[str, Any], name: str, item_id: str, href: str) -> datetime:
    text = properties.get(name)
    try:
        return _parse_time(text if isinstance(text, str) else "")
    except ValueError as e:
        raise SourceError(f"{href}: {item_id}: expected {name}, got {text!r:.100}.") from e


def _day_in_id(item_id: str) -> date | None:
    """Return the day in an id of Earth Search or of ESA's products, that of the start of the datatake; else None."""
    match = DAY_IN_ID.match(item_id)
    try:
        return datetime.strptime(match[1], "%Y%m%d").date() if match else None
    except ValueError:
        return None


def _instant(text: str) -> str:
    """Return a time in one spelling, so that the later one is the larger; empty for a text that is no time."""
    try:
        return _parse_time(text).isoformat(timespec="microseconds")
    except ValueError:
        return ""


def _parse_time(text: str) -> datetime:
    """Return a time in UTC; one without a zone is UTC. Raises ValueError for another text or one before year 1."""
    time = datetime.fromisoformat(text.strip().upper())  # RFC 3339 allows small letters
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as e:
        raise ValueError(str(e)) from e


def _platform(properties: dict[str, Any], item_id: str, href: str) -> str:
    if text := _text(properties, "platform"):
        platform = PLATFORM.fullmatch(text.strip())
        return f"sentinel-2{platform[1].lower()}" if platform else text.lower()
    if match := re.match(r"S2([A-D])_", item_id):
        return f"sentinel-2{match[1].lower()}"
    raise SourceError(f"{href}: {item_id}: expected a platform in its properties or name, got none.")


def _tile(properties: dict[str, Any], item_id: str, href: str) -> tuple[int, str, str]:
    """Return zone, band and square of the MGRS tile: from three properties, else from one code, else from the id."""
    for prefix in ("mgrs", "sentinel"):
        parts = [str(properties.get(f"{prefix}:{n}") or "") for n in ("utm_zone", "latitude_band", "grid_square")]
        if all(parts) and (match := TILE.match("".join(parts))):
            break
    else:
        match = TILE.match(_text(properties, "grid code")) or TILE.search(item_id)
    if not match or not 1 <= int(match[1]) <= 60:
        raise SourceError(f"{href}: {item_id}: expected an MGRS tile in its properties or name, got none.")
    return int(match[1]), match[2], match[3]


def _baseline(properties: dict[str, Any], product: re.Match[str] | None) -> str:
    """Return the baseline, as `04.00`: a property, else from the name of the product, which may be the item's id."""
    for name in PROPERTIES["baseline"]:
        if match := BASELINE.fullmatch(str(properties.get(name, ""))):
            return f"{match[1]}.{match[2]}"
    return f"{product[1]}.{product[2]}" if product else ""


def _sun_elevation(properties: dict[str, Any]) -> float | None:
    """Return the sun's elevation in degrees: a property, else 90 less the zenith angle."""
    elevation, zenith = _number(properties, "view:sun_elevation"), _number(properties, "s2:mean_solar_zenith")
    return elevation if elevation is not None or zenith is None else 90 - zenith


def _raster_offset(assets: dict[str, Any]) -> float | None:
    """Return the blue asset's `raster:bands[0].offset`, or `raster:offset` as of STAC 1.1."""
    blue = _asset(assets, "blue")
    lists = [blue[k] for k in ("raster:bands", "bands") if isinstance(blue.get(k), list)]
    objects = [blue, *(bands[0] for bands in lists if bands and isinstance(bands[0], dict))]
    offsets = [_number(values, key) for values in objects for key in ("offset", "raster:offset")]
    return next((offset for offset in offsets if offset is not None), None)


def _epsg(properties: dict[str, Any], assets: dict[str, Any]) -> int | None:
    """Return `proj:epsg`, or `proj:code` ("EPSG:32629") as of version 2 of the extension, of the item or an asset."""
    for values in (properties, _asset(assets, "red")):
        code = re.fullmatch(r"(?:EPSG:)?(\d+)", _text(values, "CRS"))
        if code:
            return int(code[1])
    return None


def _assets(assets: dict[str, Any], href: str) -> dict[str, str]:
    """Return the absolute hrefs by band, of those that the item has."""
    hrefs = {band: _asset(assets, band).get("href") for band in ASSET_NAMES}
    return {band: _absolute(asset, href) for band, asset in hrefs.items() if asset}


def _asset(assets: dict[str, Any], band: str) -> dict[str, Any]:
    """Return a band's asset under the first key that has an href; empty if there is none.

    CDSE has each band in several resolutions, as `B02_10m` and `B02_20m`; its own is taken.
    """
    found = (assets.get(key) for key in asset_keys(band))
    return next((a for a in found if isinstance(a, dict) and isinstance(a.get("href"), str) and a["href"]), {})


def _absolute(asset: str, href: str) -> str:
    """Return an asset's absolute href; a relative one begins in the item's folder."""
    if "://" in asset or asset.startswith("/"):
        return asset
    scheme, separator, path = href.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), asset))
