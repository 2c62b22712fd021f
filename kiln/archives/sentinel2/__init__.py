"""Sentinel-2 L2A: scenes of the bucket sentinel-cogs, or of any STAC API with the same assets."""

from kiln.archives.registry import Archive, Provenance, Provider
from kiln.archives.sensors import SENTINEL2
from kiln.archives.sentinel2.layout import chip_lattice
from kiln.io.buckets import Bucket

ARCHIVE = Archive(
    name="sentinel2",
    title="Sentinel-2",
    recipe=1,
    sensor=SENTINEL2,
    module="kiln.archives.sentinel2",
    lattice=chip_lattice,
    provenance=Provenance(
        title="Sentinel-2 L2A scenes",
        href="https://registry.opendata.aws/sentinel-2-l2a-cogs/",
        license="other",
        license_href="https://sentinel.esa.int/documents/247904/690755/Sentinel_Data_Legal_Notice",
        license_title="Legal notice on the use of Copernicus Sentinel data and service information",
        attribution="Contains modified Copernicus Sentinel data.",
        providers=(
            Provider("ESA", ("producer", "licensor"), "https://sentinels.copernicus.eu/"),
            Provider("Element 84", ("processor",), "https://element84.com/earth-search/"),
            Provider("Registry of Open Data on AWS", ("host",), "https://registry.opendata.aws/sentinel-2-l2a-cogs/"),
        ),
        keywords=("Sentinel-2", "Copernicus", "L2A", "surface reflectance"),
        temporal_resolution="single_acquisition",
    ),
    plan_keys=(
        *("inventory", "inventory_root", "search", "collection", "items", "archive"),
        *("area", "bbox", "dates", "years", "months", "tiles", "max_cloud_cover", "items_per_shard", "chip_size"),
    ),
    embed_keys=("max_nodata", "max_cloud", "offset_max_dark_fraction", "metadata", "gsd", "rewrite"),
    path_keys=("items", "inventory", "inventory_root", "archive", "area", "rewrite"),
    buckets=(
        Bucket("sentinel-cogs", "us-west-2"),
        Bucket("e84-earth-search-sentinel-data", "us-west-2"),
        Bucket("sentinel-s2-l2a", "eu-central-1", requester_pays=True),
    ),
    plan_threads=2,
    notes={
        "no_offset": "processed before baseline 04.00, without the offset",
        "offset_applied_by_producer": "the archive removed the offset",
        "offset_flag_missing": "no flag states whether the offset was removed",
        "raster_offset_contradicts": "the item's raster:bands contradict its baseline, and were ignored",
        "offset_subtracted": "the offset of 1000 was subtracted",
        "offset_flag_contradicted": "dark pixels show that the offset was removed, against the flag",
        "scl_impossible": "SCL has classes that it does not define",
        "bands_not_read": "no chip passed, so no band was read",
    },
    sample={
        "items": "sample/sentinel2/items.txt",
        "archive": "sample/sentinel2",
        "items_per_shard": 2,
        "chip_size": 128,
    },
)
