"""ESA WorldCover's Sentinel-2 composites: annual mosaics in tiles of one degree."""

from kiln.archives.registry import Archive, Provenance, Provider
from kiln.archives.sensors import WORLDCOVER
from kiln.archives.worldcover.layout import chip_lattice
from kiln.io.buckets import Bucket

ARCHIVE = Archive(
    name="worldcover",
    title="WorldCover",
    recipe=1,
    sensor=WORLDCOVER,
    module="kiln.archives.worldcover",
    lattice=chip_lattice,
    provenance=Provenance(
        title="ESA WorldCover Sentinel-2 annual composites",
        href="https://registry.opendata.aws/esa-worldcover-vito-composites/",
        license="CC-BY-4.0",
        license_href="https://creativecommons.org/licenses/by/4.0/",
        license_title="Creative Commons Attribution 4.0 International",
        attribution="Made from ESA WorldCover composites, which contain modified Copernicus Sentinel data.",
        providers=(
            Provider("ESA WorldCover consortium", ("producer", "licensor"), "https://esa-worldcover.org/"),
            Provider("VITO", ("processor",), "https://vito.be/"),
            Provider(
                "Registry of Open Data on AWS",
                ("host",),
                "https://registry.opendata.aws/esa-worldcover-vito-composites/",
            ),
        ),
        keywords=("Sentinel-2", "ESA WorldCover", "annual composite"),
        temporal_resolution="annual",
    ),
    plan_keys=("archive", "years", "region", "pixels_per_degree", "chip_size", "encode", "columns_per_shard"),
    embed_keys=("pixels_per_degree", "encode", "max_nodata", "metadata", "gsd"),
    path_keys=("archive",),
    buckets=(Bucket("esa-worldcover-s2", "eu-central-1"),),
    composite=True,
    sample={
        "archive": "sample/worldcover/rgbnir",
        "region": [-97, 43, -95, 45],
        "pixels_per_degree": 1200,
        "chip_size": 128,
        "columns_per_shard": 4,
    },
    checkpointed=False,
)
