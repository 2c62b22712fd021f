"""The spellings of Sentinel-2 items: keys of assets and names of properties, by the catalogues that use them.

docs/archives/sentinel2.md lists them; a test holds the page against this module.
"""

ASSET_NAMES = {  # the model's ten bands in its order, then the scene classification; the values are the names of v0
    **{"blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07"},
    **{"nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12", "scl": "SCL"},
}
COARSE_BANDS = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22", "scl")  # of 20 m; others have 10 m
ASSET_KEYS = {  # pattern of an asset's key -> the catalogues that use it; the first that an item has is taken
    "{band}": "Earth Search v1, Collection 1",
    "{name}": "Earth Search v0, Planetary Computer, exports of Sentinel Hub",
    "{name}_{metres}m": "Copernicus Data Space, in the band's own resolution",
    "{band}-jp2": "JPEG 2000 of Earth Search v1",
    "{name}-jp2": "JPEG 2000 of others",
}
PROPERTIES = {  # fact -> names of its property; the first that has a value is taken
    "baseline": ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"),
    "product name": (
        *("s2:product_uri", "s2:product_id", "sentinel:product_id", "productIdentifier"),
        *("title", "name"),
    ),
    "generation time": ("s2:generation_time",),
    "datastrip": ("s2:datastrip_id", "eopf:datastrip_id"),
    "offset flag": ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"),
    "grid code": ("grid:code", "s2:mgrs_tile"),
    "platform": ("platform",),
    "product type": (
        *("s2:product_type", "product:type", "productType"),
        *("processing:level", "processingLevel", "s2:processing_level"),
    ),
    "CRS": ("proj:epsg", "proj:code"),
}


def asset_keys(band: str) -> list[str]:
    """Return the keys that a band's asset may have, the first choice first."""
    names = {"band": band, "name": ASSET_NAMES[band], "metres": 20 if band in COARSE_BANDS else 10}
    return [pattern.format(**names) for pattern in ASSET_KEYS]
