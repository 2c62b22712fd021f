"""A synthetic Sentinel-2 L2A archive: the landscape as two scenes in the layout of the bucket of COGs.

The scenes show one MGRS tile on two days. Pixels are ten times as wide as real ones: 100 m instead of 10 m. The earlier
scene has no offset. The later one has the offset of baseline 04.00, and its swath ends within the tile.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kiln.sample.files import write_cog, write_text
from kiln.sample.grid import Array, PointGrid, utm_grid
from kiln.sample.landscape import draw
from kiln.sample.noise import fractal, ramp, rand

HTTPS = "https://sentinel-cogs.s3.us-west-2.amazonaws.com"
S3 = "s3://sentinel-cogs"
ZONE, BAND, SQUARE = 14, "T", "QP"
WEST, NORTH = 699960, 4900020  # metres: the tile's north-west corner
SIDE = 109_800  # metres
PIXEL_SCALE = 10  # width of a pixel, in real pixels
OFFSET = 1000  # added to digital numbers since baseline 04.00
FOLDER = "sentinel-s2-l2a-cogs/{zone}/{band}/{square}/{year}/{month}/{id}"
SWIR_OF_SNOW = (900, 650)

# By band: key of the asset, metres per real pixel, description, centre and width in micrometres.
BANDS = {
    "B02": ("blue", 10, "Blue (band 2)", 0.49, 0.098),
    "B03": ("green", 10, "Green (band 3)", 0.56, 0.045),
    "B04": ("red", 10, "Red (band 4)", 0.665, 0.038),
    "B05": ("rededge1", 20, "Red edge 1 (band 5)", 0.704, 0.019),
    "B06": ("rededge2", 20, "Red edge 2 (band 6)", 0.74, 0.018),
    "B07": ("rededge3", 20, "Red edge 3 (band 7)", 0.783, 0.028),
    "B08": ("nir", 10, "NIR 1 (band 8)", 0.842, 0.145),
    "B8A": ("nir08", 20, "NIR 2 (band 8A)", 0.865, 0.033),
    "B11": ("swir16", 20, "SWIR 1 (band 11)", 1.61, 0.143),
    "B12": ("swir22", 20, "SWIR 2 (band 12)", 2.19, 0.242),
}
COMMON = {
    "rededge1": "rededge",
    "rededge2": "rededge",
    "rededge3": "rededge",
}  # where it is not the key
SHADOW, PLANTS, BARE, WATER, CLOUD_MEDIUM, CLOUD_HIGH, SNOW = 3, 4, 5, 6, 8, 9, 11  # classes of SCL
CLASSES = {
    "s2:cloud_shadow_percentage": SHADOW,
    "s2:vegetation_percentage": PLANTS,
    "s2:not_vegetated_percentage": BARE,
    "s2:water_percentage": WATER,
    "s2:medium_proba_clouds_percentage": CLOUD_MEDIUM,
    "s2:high_proba_clouds_percentage": CLOUD_HIGH,
    "s2:snow_ice_percentage": SNOW,
}
EXTENSIONS = (
    *("mgrs/v1.0.0", "view/v1.0.0", "raster/v1.1.0", "eo/v1.0.0", "grid/v1.0.0"),
    *("processing/v1.1.0", "projection/v1.0.0"),
)


class Pass(NamedTuple):
    """One scene: when and how it was taken and processed."""

    platform: str  # a or b
    day: str  # such as 2020-07-14
    sensed: str  # start of the datastrip, such as 171901
    processed: str  # time of processing, as product names spell it
    relative_orbit: int
    absolute_orbit: int
    baseline: str
    sun_azimuth: float
    sun_elevation: float
    outside_km: float  # how much of the tile's north edge lies outside the swath

    @property
    def id(self) -> str:
        """Return the item's id, such as `S2A_14TQP_20200714_0_L2A`."""
        return f"S2{self.platform.upper()}_{ZONE}{BAND}{SQUARE}_{self.day.replace('-', '')}_0_L2A"

    @property
    def folder(self) -> str:
        """Return the key of the scene's folder; its month has no leading zero."""
        year, month, _ = map(int, self.day.split("-"))
        return FOLDER.format(zone=ZONE, band=BAND, square=SQUARE, year=year, month=month, id=self.id)

    @property
    def offset(self) -> int:
        """Return what was added to the digital numbers of valid pixels."""
        return OFFSET if self.baseline >= "04.00" else 0


PASSES = (
    Pass("a", "2020-07-14", "171901", "20200714T215342", 12, 26440, "02.14", 138.21, 63.94, 0),
    Pass("b", "2022-08-13", "172129", "20220813T220518", 12, 28376, "04.00", 145.37, 57.42, 45),
)


def keys() -> list[str]:
    """Return the keys of the items."""
    return [f"{taken.folder}/{taken.id}.json" for taken in PASSES]


def _halve(image: Array) -> Array:
    """Return the means of two by two pixels of an image [..., h, w]."""
    *rest, height, width = image.shape
    means: Array = image.reshape(*rest, height // 2, 2, width // 2, 2).mean(axis=(-3, -1))
    return means


def _inside(taken: Pass, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels [h, w] of the tile lie in the swath; its western edge follows the orbit's inclination."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    edge = taken.outside_km * 1000 / SIDE - 0.25 * rows[:, None]
    return columns[None] > edge if taken.outside_km else np.ones(shape, bool)


def _sky(size: int, seed: int) -> tuple[Array, Array]:
    """Return the density of clouds and the depth of their shadows to the north-west [size, size], both from 0 to 1."""
    distance = size // 40  # pixels from a cloud to its shadow
    x, y = (np.arange(-distance, size + distance) / size)[None], (np.arange(-distance, size + distance) / size)[:, None]
    grid = PointGrid(x, y, (size, size), seed)
    clouds = ramp(fractal(grid, 5, 400, 6) + 0.5 * fractal(grid, 1.5, 410, 2), 0.42, 0.62)
    middle, behind = slice(distance, -distance), slice(2 * distance, None)
    return clouds[middle, middle], clouds[behind, behind]


def _spectrum(image: Array) -> dict[str, Array]:
    """Return the ten bands of an image [4, h, w] of red, green, blue and near infrared.

    Bands with wider pixels are [h / 2, w / 2], the others [h, w]. The red edge rises from red to near infrared; short
    wave infrared is bright over dry soil, and dark over plants, water and snow.
    """
    red, green, blue, nir = _halve(image)
    plants = np.clip((nir - red) / (nir + red), 0, 1)
    wet = ramp(green / nir, 0.9, 1.5)
    snow = ramp(blue, 3000, 7000)
    swir16 = nir * (1.25 - 0.85 * plants) * (1 - 0.8 * wet)
    swir22 = swir16 * (0.85 - 0.45 * plants)
    return {
        "B02": image[2],
        "B03": image[1],
        "B04": image[0],
        "B05": red + (0.08 + 0.14 * plants) * (nir - red),
        "B06": red + 0.70 * (nir - red),
        "B07": red + 0.92 * (nir - red),
        "B08": image[3],
        "B8A": 1.03 * nir,
        "B11": swir16 + snow * (SWIR_OF_SNOW[0] - swir16),
        "B12": swir22 + snow * (SWIR_OF_SNOW[1] - swir22),
    }


def _classes(image: Array, clouds: Array, shadows: Array) -> Array:
    """Return the scene classification [h, w] of a clear image [4, h, w] under clouds and shadows [h, w]."""
    red, green, blue, nir = image
    conditions = [clouds > 0.6, clouds > 0.15, shadows > 0.3, blue > 3500, nir < green, nir - red > 0.4 * (nir + red)]
    return np.select(conditions, [CLOUD_HIGH, CLOUD_MEDIUM, SHADOW, SNOW, WATER, PLANTS], BARE).astype(np.uint8)


def _scene(taken: Pass, image: Array, seed: int) -> tuple[dict[str, Array], Array]:
    """Return the bands, uint16 and 0 outside the swath, and the classes, uint8, of a clear image [4, h, w]."""
    size = image.shape[-1]
    noise = rand(np.arange(size)[None], np.arange(size)[:, None], seed * 1009 + taken.absolute_orbit)
    image = image * (0.96 + 0.08 * noise)
    clouds, shadows = _sky(size, seed + taken.absolute_orbit)
    classes = _classes(_halve(image), _halve(clouds), _halve(shadows * (1 - clouds)))
    classes *= _halve(_inside(taken, image.shape[1:]).astype(np.float32)) == 1
    bands = {}
    for name, band in _spectrum(image).items():
        dense, dark = (part if len(band) == size else _halve(part) for part in (clouds, shadows))
        band = band * (1 - 0.6 * dark * (1 - dense))
        band += 0.95 * dense * (5200 + 2400 * dense - band)
        valid = _inside(taken, band.shape)
        bands[name] = (np.clip(np.rint(band), 1, 20_000) + taken.offset).astype(np.uint16) * valid
    return bands, classes


def _footprint(taken: Pass) -> shapely.Polygon:
    """Return the part of the tile within the swath, in degrees."""
    corner, length = taken.outside_km * 1000, 0.25 * SIDE
    left = [(corner, 0), (corner - length, SIDE)] if taken.outside_km > length / 1000 else [(0, 0), (0, SIDE)]
    ring = [left[0], left[1], (SIDE, SIDE), (SIDE, 0), left[0]]
    to_degrees = pyproj.Transformer.from_crs(f"EPSG:326{ZONE}", "EPSG:4326", always_xy=True)
    return shapely.Polygon([to_degrees.transform(WEST + x, NORTH - y) for x, y in ring])


def _asset(taken: Pass, name: str, size: int) -> dict[str, Any]:
    """Return the asset of a band or of SCL; its shape and transform are those of the file."""
    metres = SIDE / size
    projection = {"proj:shape": [size, size], "proj:transform": [metres, 0, WEST, 0, -metres, NORTH]}
    asset: dict[str, Any] = {
        "href": f"{HTTPS}/{taken.folder}/{name}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
    }
    if name == "SCL":
        bands = [{"nodata": 0, "data_type": "uint8", "spatial_resolution": metres}]
        title = {"title": "Scene classification map (SCL)"}
        return {**asset, **title, **projection, "raster:bands": bands, "roles": ["data", "reflectance"]}
    key, gsd, description, centre, width = BANDS[name]
    band = {
        "name": key,
        "common_name": COMMON.get(key, key),
        "description": description,
        "center_wavelength": centre,
        "full_width_half_max": width,
    }
    # As in real items, the offset is that of the baseline, even where the digital numbers have none.
    numbers = {"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "spatial_resolution": metres}
    numbers |= {"scale": 0.0001, "offset": -0.1 if taken.offset else 0}
    asset |= {"title": f"{description} - {gsd}m", "eo:bands": [band], "gsd": gsd, **projection}
    return {**asset, "raster:bands": [numbers], "roles": ["data", "reflectance"]}


def _links(taken: Pass) -> list[dict[str, str]]:
    """Return the links to the item itself, its licence and its level-1C product."""
    href = f"{S3}/{taken.folder}/{taken.id}.json"
    level1 = "https://earth-search.aws.element84.com/v1/collections/sentinel-2-l1c/items/"
    return [
        {"rel": "self", "href": href, "type": "application/json"},
        {"rel": "canonical", "href": href, "type": "application/json"},
        {"rel": "license", "href": "https://sentinel.esa.int/documents/247904/690755/Sentinel_Data_Legal_Notice"},
        {"rel": "derived_from", "href": f"{level1}{taken.id.replace('L2A', 'L1C')}", "type": "application/geo+json"},
    ]


def _item(taken: Pass, bands: dict[str, Array], classes: Array) -> dict[str, Any]:
    """Return the scene's STAC item as version 1 of the Earth Search catalogue writes it."""
    sensed = f"{taken.day.replace('-', '')}T{taken.sensed}"
    clock = ":".join(taken.sensed[n : n + 2] for n in (0, 2, 4))
    satellite, version = f"S2{taken.platform.upper()}", f"N{taken.baseline.replace('.', '')}"
    granule = f"T{ZONE}{BAND}{SQUARE}"
    created = datetime.strptime(taken.processed, "%Y%m%dT%H%M%S").strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    product = f"{satellite}_MSIL2A_{sensed}_{version}_R{taken.relative_orbit:03d}_{granule}_{taken.processed}.SAFE"
    valid = max(int(np.count_nonzero(classes)), 1)
    percentages = {name: round(100 * np.count_nonzero(classes == n) / valid, 6) for name, n in CLASSES.items()}
    cloudy = percentages["s2:medium_proba_clouds_percentage"] + percentages["s2:high_proba_clouds_percentage"]
    id_template = f"{satellite}_OPER_MSI_L2A_{{}}_MPS__{taken.processed}_{{}}_N{taken.baseline}"
    footprint = _footprint(taken)
    properties = {
        "created": created,
        "platform": f"sentinel-2{taken.platform}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(cloudy, 6),
        "proj:epsg": 32600 + ZONE,
        "mgrs:utm_zone": ZONE,
        "mgrs:latitude_band": BAND,
        "mgrs:grid_square": SQUARE,
        "grid:code": f"MGRS-{ZONE}{BAND}{SQUARE}",
        "view:sun_azimuth": taken.sun_azimuth,
        "view:sun_elevation": taken.sun_elevation,
        "s2:nodata_pixel_percentage": round(100 * (1 - valid / classes.size), 6),
        **percentages,
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": taken.baseline,
        "s2:product_uri": product,
        "s2:generation_time": created,
        "s2:datatake_id": f"G{satellite}_{sensed}_{taken.absolute_orbit:06d}_N{taken.baseline}",
        "s2:datatake_type": "INS-NOBS",
        "s2:datastrip_id": id_template.format("DS", f"S{sensed}"),
        "s2:granule_id": id_template.format("TL", f"A{taken.absolute_orbit:06d}_{granule}"),
        "datetime": f"{taken.day}T{clock}.024000Z",
        "s2:sequence": "0",
        "earthsearch:s3_path": f"{S3}/{taken.folder}",
        "earthsearch:boa_offset_applied": False,
        "processing:software": {"sentinel2-to-stac": "0.1.0"},
        "updated": created,
    }
    sizes = {name: len(band) for name, band in bands.items()} | {"SCL": len(classes)}
    assets = {name: _asset(taken, name, size) for name, size in sizes.items()}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": taken.id,
        "properties": properties,
        "geometry": shapely.geometry.mapping(footprint),
        "links": _links(taken),
        "assets": {BANDS[name][0] if name in BANDS else name.lower(): asset for name, asset in assets.items()},
        "bbox": list(footprint.bounds),
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in EXTENSIONS],
        "collection": "sentinel-2-l2a",
    }


def make_sentinel2(out: Path, *, seed: int) -> list[Path]:
    """Write the bands, the classes and the item of each scene, and items.txt with the items' keys.

    Args:
        out: The archive's folder.
        seed: Another seed gives another landscape.

    Returns:
        The paths; that of items.txt is the last.
    """
    metres = 10 * PIXEL_SCALE
    size = SIDE // metres
    grid = utm_grid(ZONE, WEST, NORTH, metres, (size, size), seed)
    images, _ = draw(grid, [int(taken.day[:4]) for taken in PASSES])
    crs, written = f"EPSG:326{ZONE}", []
    for taken, image in zip(PASSES, images, strict=True):
        bands, classes = _scene(taken, image, seed)
        folder = out / taken.folder
        for name, band in bands.items():
            written.append(write_cog(folder / f"{name}.tif", band[None], crs, WEST, NORTH, SIDE / len(band), nodata=0))
        scl = folder / "SCL.tif"
        written.append(write_cog(scl, classes[None], crs, WEST, NORTH, 2 * metres, nodata=0, resampling="nearest"))
        item = json.dumps(_item(taken, bands, classes), indent=1)
        written.append(write_text(folder / f"{taken.id}.json", f"{item}\n"))
    return [*written, write_text(out / "items.txt", "".join(f"{key}\n" for key in keys()))]
