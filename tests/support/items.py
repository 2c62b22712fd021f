"""Small Sentinel-2 archives with known pixels, in the layout of `sentinel-cogs`, with items of every STAC version."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

BUCKET = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"
FILES = {
    "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07",
    "nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12",
}  # fmt: skip
COARSE = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")
NAME = "S2A_29RKH_20200219_0_L2A"
CORNER = (199_980.0, 2_800_020.0)


@dataclass
class WrittenItem:
    """A written item: its plan entry, its folder, and the bands and the SCL that a reader should return at 10 m."""

    entry: dict[str, str]
    folder: Path
    bands: np.ndarray
    scl: np.ndarray

    @property
    def unit_id(self) -> str:
        """The unit of the item in the ledger."""
        return f"sentinel2:{self.entry['id']}"

    def json(self) -> dict[str, Any]:
        """Return the item."""
        return json.loads((self.folder / f"{self.entry['id']}.json").read_text())

    @property
    def key(self) -> str:
        """The key of the item in the bucket."""
        return self.entry["href"].removeprefix(f"{BUCKET}/")

    def as_api_item(self, collection: str) -> dict[str, Any]:
        """Return the item as an API returns it: in a collection, with its S3 address as the canonical link."""
        links = [{"rel": "canonical", "href": f"s3://sentinel-cogs/{self.key}", "type": "application/json"}]
        return {**self.json(), "collection": collection, "links": links}

    def change(self, **properties: Any) -> None:
        """Set properties of the item. The value None removes a property."""
        item = self.json()
        item["properties"] |= properties
        item["properties"] = {k: v for k, v in item["properties"].items() if v is not None}
        self.write(item)

    def write(self, item: Any) -> None:
        """Replace the item's document."""
        (self.folder / f"{self.entry['id']}.json").write_text(json.dumps(item))


def plane(side: int, seed: int, low: int = 1, high: int = 9000) -> np.ndarray:
    """Return random uint16 [side, side], from `low` to below `high`."""
    return np.random.default_rng(seed).integers(low, high, (side, side)).astype(np.uint16)


def write_item(
    root: Path,
    name: str = NAME,
    *,
    side: int = 64,
    seed: int = 1,
    bands: dict[str, np.ndarray] | None = None,
    scl: np.ndarray | None = None,
    style: str = "v1",
    corner: tuple[float, float] = CORNER,
    epsg: int = 32629,
    suffix: str = "tif",
    low: int = 1,
    high: int = 9000,
    properties: dict[str, Any] | None = None,
    **profile: Any,
) -> WrittenItem:
    """Write an item and its eleven files. `bands` and `scl` replace random pixels, each in its own resolution."""
    _, tile, day, _, _ = name.split("_")
    zone, square = int(tile[:-3]), tile[-2:]
    key = f"sentinel-s2-l2a-cogs/{zone}/{tile[-3]}/{square}/{day[:4]}/{int(day[4:6])}/{name}"
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {b: plane(side // 2 if b in COARSE else side, seed * 100 + n, low, high) for n, b in enumerate(FILES)} | (
        bands or {}
    )
    mask = np.full((side // 2, side // 2), 5, np.uint8) if scl is None else scl
    for band, pixels in (drawn | {"scl": mask}).items():
        write_raster(folder / f"{FILES.get(band, 'SCL')}.{suffix}", pixels, side, corner, epsg, **profile)
    hrefs = {b: f"{BUCKET}/{key}/{FILES.get(b, 'SCL')}.{suffix}" for b in (*FILES, "scl")}
    item = stac_item(name, hrefs, style, epsg, f"{zone}", tile[-3], square, day)
    item["properties"] |= properties or {}
    (folder / f"{name}.json").write_text(json.dumps(item))
    whole = np.stack([np.kron(drawn[b], np.ones((side // len(drawn[b]),) * 2, np.uint16)) for b in FILES])
    at_10_m = np.kron(mask, np.ones((side // len(mask),) * 2, np.uint8))
    return WrittenItem({"id": name, "href": f"{BUCKET}/{key}/{name}.json"}, folder, whole, at_10_m)


def write_raster(
    path: Path, pixels: np.ndarray, side: int, corner: tuple[float, float], epsg: int | None, **profile: Any
) -> None:
    """Write one band [rows, cols] that covers `side` pixels of 10 m from a corner.

    `profile` overrides the options of rasterio.
    """
    size = 10 * side / pixels.shape[1]
    options = {
        "driver": "JP2OpenJPEG" if path.suffix == ".jp2" else "GTiff",
        "count": 1,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "dtype": pixels.dtype,
        "crs": f"EPSG:{epsg}" if epsg else None,
        "transform": from_origin(*corner, size, size),
        **({"QUALITY": "100", "REVERSIBLE": "YES"} if path.suffix == ".jp2" else {"nodata": 0}),
        **profile,
    }
    with rasterio.open(path, "w", **options) as file:
        file.write(pixels, 1)


def stac_item(
    name: str, hrefs: dict[str, str], style: str, epsg: int, zone: str, band: str, square: str, day: str
) -> dict[str, Any]:
    """Return a STAC item in the style of Earth Search v0, v1 or Collection 1, processed before baseline 04.00."""
    date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    properties: dict[str, Any] = {
        "datetime": f"{date}T11:34:25.405000Z",
        "platform": f"sentinel-2{name[2].lower()}",
        "eo:cloud_cover": 4.05,
    }
    product = f"{name[:3]}_MSIL2A_{day}T112111_N0214_R037_T{zone:0>2}{band}{square}_{day}T123947"
    if style == "v0":
        properties |= {"proj:epsg": epsg, "sentinel:utm_zone": int(zone), "sentinel:latitude_band": band}
        properties |= {"sentinel:grid_square": square, "sentinel:sequence": "0", "sentinel:product_id": product}
        assets = {(FILES.get(b) or "SCL"): {"href": h} for b, h in hrefs.items()}
    else:
        properties |= {"mgrs:utm_zone": int(zone), "mgrs:latitude_band": band, "mgrs:grid_square": square}
        properties |= {"grid:code": f"MGRS-{zone}{band}{square}", "view:sun_elevation": 48.25}
        properties |= {"s2:processing_baseline": "02.14", "s2:product_uri": f"{product}.SAFE"}
        properties |= {"s2:generation_time": f"{date}T12:39:47.000000Z"}
        properties |= {"s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_MPS__{day}T123947_S{day}T113105_N02.14"}
        properties |= {"proj:epsg": epsg, "earthsearch:boa_offset_applied": False} if style == "v1" else {}
        properties |= {"proj:code": f"EPSG:{epsg}"} if style == "c1" else {}
        assets = {b: {"href": h} for b, h in hrefs.items()}
        for asset in assets.values():
            asset["raster:bands"] = [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": 0}]
            asset["proj:shape"] = [10_980, 10_980]  # that of a full tile, so wrong for these files
            asset["proj:transform"] = [60, 0, 199_980, 0, -60, 2_800_020]  # that of a band that Kiln does not read
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": assets,
    }
