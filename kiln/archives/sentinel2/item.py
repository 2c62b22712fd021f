"""STAC items of Sentinel-2 L2A, as Earth Search spells them: v0, v1 and Collection 1; and which of them are versions.

Read by the plan and by the source, hence without numpy or rasterio. What an item lacks of its assets is told when it
is embedded: it keeps nobody from planning the rest.
"""

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kiln.errors import SourceError

BANDS = {  # the model's ten bands in its order, then the scene classification; and the names of v0
    **{"blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07"},
    **{"nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12", "scl": "SCL"},
}
TILE = re.compile(r"(?:MGRS-|^T?|_T?)(\d{1,2})([C-HJ-NP-X])([A-Z]{2})(?=_|$)", re.ASCII)
BASELINE = re.compile(r"(\d{2})\.(\d{2})", re.ASCII)
PRODUCT = re.compile(r"_N(\d{2})(\d{2})_R\d{3}_T\w{5}_(\d{8}T\d{6})", re.ASCII)  # of a product's name: made by, made at
SENSING = re.compile(r"_S(\d{8}T\d{6})_", re.ASCII)


@dataclass(frozen=True)
class Item:
    """What Kiln asks of an item; `href` is where it was found, and texts are empty where the item is silent.

    `offset_applied` is the archive's flag, None where there is none; `raster_offset` of the blue asset is kept for
    the record, since it says -0.1 whether or not the offset was applied. `sensing` is when the datastrip began.
    `assets` are hrefs by band, absolute, as far as the item has them.
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
        """`29RKH`."""
        return f"{self.zone:02d}{self.band}{self.square}"

    @property
    def partition(self) -> str:
        """What it is merged with, MGRS grid zone and month: `29R-2020-02`."""
        return f"{self.zone:02d}{self.band}-{self.datetime:%Y-%m}"

    @property
    def unit_id(self) -> str:
        """`sentinel2:S2A_29RKH_20200219_0_L2A`."""
        return f"sentinel2:{self.item_id}"

    @property
    def product(self) -> tuple[str, str, str]:
        """Tile, platform and day: what versions and halves of an acquisition share."""
        return self.tile, self.platform, f"{self.datetime:%Y-%m-%d}"

    @property
    def version(self) -> tuple[tuple[int, int], str]:
        """Baseline and time of processing: the larger is the newer version."""
        return baseline_number(self.baseline), self.generation_time


def baseline_number(baseline: str) -> tuple[int, int]:
    """`04.00` as (4, 0); (0, 0) if it is unknown."""
    found = BASELINE.fullmatch(baseline)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_item(data: bytes | dict[str, Any], href: str) -> Item:
    """The item of a STAC document, by bytes or already parsed.

    Raises SourceError, naming `href`, for what is no JSON, no STAC item, or does not say what, when and where it is.
    """
    item = _feature(data, href)
    said = item["properties"]
    name = item["id"]
    zone, band, square = _tile(said, name, href)
    product = PRODUCT.search(_text(said, "s2:product_uri", "sentinel:product_id"))
    made = _text(said, "s2:generation_time")
    return Item(
        item_id=name,
        href=href,
        datetime=_when(said.get("datetime"), name, href),
        platform=_platform(said, name, href),
        zone=zone,
        band=band,
        square=square,
        baseline=_baseline(said, product),
        offset_applied=_flag(said, "earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"),
        raster_offset=_raster_offset(item["assets"]),
        generation_time=_instant(made) or (_instant(product[3]) if product else ""),
        sensing=found[1] if (found := SENSING.search(_text(said, "s2:datastrip_id"))) else "",
        cloud_cover=_number(said, "eo:cloud_cover"),
        sun_elevation=_number(said, "view:sun_elevation"),
        epsg=_epsg(said, item["assets"]),
        assets=_assets(item["assets"], href),
    )


def newest(items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, Item]]]:
    """The items to keep, in the order given, and those superseded, each with what supersedes it.

    Versions of one product have equal tile, platform, day and sensing time of the datastrip; of these the highest
    baseline stays, then the latest processed, then the first by name. Other sensing times are the halves of a scene
    that two datastrips share, and an item that does not tell its own is dropped for nobody. `_0_`, `_1_` in the name
    say nothing. An item that is given twice stays once.
    """
    by_id: dict[str, Item] = {}
    for item in items:
        by_id[item.item_id] = _better(by_id.get(item.item_id, item), item)
    best: dict[tuple[str, ...], Item] = {}
    for item in by_id.values():
        best[_same(item)] = _better(best.get(_same(item), item), item)
    kept: list[Item] = []
    superseded: list[tuple[Item, Item]] = []
    done: set[str] = set()
    for item in items:
        winner = best[_same(by_id[item.item_id])]
        if item == winner and item.item_id not in done:
            kept.append(item)
            done.add(item.item_id)
        else:
            superseded.append((item, winner))
    return kept, superseded


def _same(item: Item) -> tuple[str, ...]:
    """What the versions of one product share; without a sensing time nothing shows that another item is one."""
    return (*item.product, item.sensing or item.item_id)


def _better(a: Item, b: Item) -> Item:
    """The one to keep of two versions, whichever comes first."""
    if a.version != b.version:
        return max(a, b, key=lambda i: i.version)
    return min(a, b, key=lambda i: (i.item_id, i.href))


# ------------------------------------------------------------------------------------------------- what is said where


def _feature(data: bytes | dict[str, Any], href: str) -> dict[str, Any]:
    """The document as a STAC item: a Feature with id, properties and assets."""
    if isinstance(data, bytes):
        if data.lstrip()[:1] == b"<":
            raise SourceError(f"{href}: a web page or XML, not a STAC item")
        try:
            data = json.loads(data)
        except ValueError as e:  # UnicodeDecodeError is one
            raise SourceError(f"{href}: not JSON ({e}), hence no STAC item") from e
    if not isinstance(data, dict) or data.get("type") != "Feature":
        kind = data.get("type", "no type") if isinstance(data, dict) else type(data).__name__
        raise SourceError(f"{href}: not a STAC item ({kind}), want a Feature")
    for name, kind in {"id": str, "properties": dict, "assets": dict}.items():
        if not isinstance(data.get(name), kind) or (name == "id" and not data["id"]):
            raise SourceError(f"{href}: not a STAC item: it has no {name}")
    return data


def _text(said: dict[str, Any], *names: str) -> str:
    return next((str(said[n]) for n in names if said.get(n) is not None), "")


def _flag(said: dict[str, Any], *names: str) -> bool | None:
    return next((said[n] for n in names if isinstance(said.get(n), bool)), None)


def _number(said: dict[str, Any], name: str) -> float | None:
    value = said.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _when(text: Any, name: str, href: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError) as e:
        raise SourceError(f"{href}: {name} has no datetime, or none that can be read ({text!r})") from e
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _instant(text: str) -> str:
    """A time in one spelling, so that the later one is the larger; empty if it is no time."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return ""
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="microseconds")


def _platform(said: dict[str, Any], name: str, href: str) -> str:
    if told := _text(said, "platform"):
        return told.lower()
    if found := re.match(r"S2([A-D])_", name):
        return f"sentinel-2{found[1].lower()}"
    raise SourceError(f"{href}: {name} does not say its platform")


def _tile(said: dict[str, Any], name: str, href: str) -> tuple[int, str, str]:
    """Zone, band and square of the MGRS tile: its own properties, else a code of all three, else the item's name."""
    for prefix in ("mgrs", "sentinel"):
        parts = [_text(said, f"{prefix}:{n}") for n in ("utm_zone", "latitude_band", "grid_square")]
        if all(parts) and (found := TILE.match("".join(parts))):
            break
    else:
        found = TILE.match(_text(said, "grid:code", "s2:mgrs_tile")) or TILE.search(name)
    if not found or not 1 <= int(found[1]) <= 60:
        raise SourceError(f"{href}: {name} does not say its MGRS tile")
    return int(found[1]), found[2], found[3]


def _baseline(said: dict[str, Any], product: re.Match[str] | None) -> str:
    """`04.00`: as a property, else from the product's name (`..._N0400_...`), which early items of v0 have alone."""
    told = _text(said, "s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
    if BASELINE.fullmatch(told):
        return told
    return f"{product[1]}.{product[2]}" if product else ""


def _raster_offset(assets: dict[str, Any]) -> float | None:
    """Of the blue asset: `raster:bands[0].offset`, or `raster:offset` as of STAC 1.1."""
    blue = next((a for k in ("blue", "B02") if isinstance(a := assets.get(k), dict)), {})
    lists = [blue[k] for k in ("raster:bands", "bands") if isinstance(blue.get(k), list)]
    places = [blue, *(bands[0] for bands in lists if bands and isinstance(bands[0], dict))]
    found = [_number(where, key) for where in places for key in ("offset", "raster:offset")]
    return next((v for v in found if v is not None), None)


def _epsg(said: dict[str, Any], assets: dict[str, Any]) -> int | None:
    """`proj:epsg`, or `proj:code` ("EPSG:32629") as of version 2 of the extension, of the item or of an asset."""
    for where in (said, *(assets[k] for k in ("red", "B04") if isinstance(assets.get(k), dict))):
        code = re.fullmatch(r"(?:EPSG:)?(\d+)", _text(where, "proj:epsg", "proj:code"))
        if code:
            return int(code[1])
    return None


def _assets(assets: dict[str, Any], href: str) -> dict[str, str]:
    """href by band, as far as they are there; JPEG 2000 (`blue-jp2`) where there is no other."""
    found = {}
    for band, old in BANDS.items():
        for key in (band, old, f"{band}-jp2", f"{old}-jp2"):
            asset = assets.get(key)
            if isinstance(asset, dict) and isinstance(asset.get("href"), str) and asset["href"]:
                found[band] = _absolute(asset["href"], href)
                break
    return found


def _absolute(asset: str, href: str) -> str:
    """An asset's href; a relative one begins in the item's folder."""
    if "://" in asset or asset.startswith("/"):
        return asset
    scheme, mark, path = href.rpartition("://")
    return scheme + mark + posixpath.normpath(posixpath.join(posixpath.dirname(path), asset))
