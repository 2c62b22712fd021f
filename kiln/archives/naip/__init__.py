"""NAIP: aerial scenes of the conterminous United States, known by the keys of their bucket."""

from kiln.archives.naip.layout import chip_lattice
from kiln.archives.registry import Archive, Provenance, Provider
from kiln.archives.sensors import NAIP
from kiln.io.buckets import Bucket

ARCHIVE = Archive(
    name="naip",
    title="NAIP",
    recipe=1,
    sensor=NAIP,
    module="kiln.archives.naip",
    lattice=chip_lattice,
    provenance=Provenance(
        title="NAIP aerial imagery",
        href="https://registry.opendata.aws/naip/",
        license="CC-PDDC",
        license_href="https://creativecommons.org/licenses/publicdomain/",
        license_title="Public domain",
        attribution="Made from NAIP imagery of the USDA Farm Service Agency.",
        providers=(
            Provider("USDA Farm Service Agency", ("producer", "licensor"), "https://naip-usdaonline.hub.arcgis.com/"),
            Provider("Registry of Open Data on AWS", ("host",), "https://registry.opendata.aws/naip/"),
        ),
        keywords=("NAIP", "aerial imagery", "United States"),
        temporal_resolution="single_acquisition",
    ),
    plan_keys=(
        "manifest",
        "archive",
        "states",
        "years",
        "resolutions",
        "bbox",
        "scenes_per_shard",
        "chip_size",
        "lattice",
        "lattice_gsd",
        "edge",
    ),
    embed_keys=("max_nodata", "metadata", "gsd", "lattice", "lattice_gsd", "edge"),
    path_keys=("manifest", "archive"),
    sample={
        "manifest": "sample/naip/manifest.txt",
        "archive": "sample/naip",
        "scenes_per_shard": 4,
        "chip_size": 128,
    },
    buckets=(Bucket("naip-analytic", "us-west-2", requester_pays=True),),
)
