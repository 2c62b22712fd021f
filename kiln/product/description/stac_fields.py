"""What STAC states of a product before its files exist: ids, the fields of the embedding extension, links, providers.

The collection, the items and the entry `emb` in the footer of the parts share them. The extension (fields `emb:*`,
links `emb:model` and `emb:source-data`, asset `embeddings`) is a proposal of the cloud-native geospatial sprint of
March 2026, https://github.com/geo-embeddings/embeddings-stac-specification.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from kiln.archives.registry import Provenance, get_archive

STAC_VERSION = "1.0.0"  # the version that the embedding extension's schema refers to
EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
TABLE = "https://stac-extensions.github.io/table/v1.2.0/schema.json"
MODEL = "https://huggingface.co/made-with-clay/Clay"
README = "README.md"
VECTOR_TITLES = {  # by `embedding` of the config
    "class": "class token",
    "mean": "mean of the patch tokens",
    "both": "class token and mean of the patch tokens",
}
RUNTIME_KEYS = (  # of the `kiln` metadata
    *("fingerprint", "weights_sha256", "untrained", "precision", "embedding", "gsd", "metadata", "chip_size"),
    *("lattice", "limits"),
)

Json = dict[str, Any]


def collection_id(metadata: Mapping[str, Any]) -> str:
    """Return the id of the collection of a product with this `kiln` metadata."""
    return f"{metadata['dataset']}-{metadata['partition']}-{metadata['fingerprint'][:8]}"


def item_id(part: str, metadata: Mapping[str, Any]) -> str:
    """Return the id of the item of a part, by the part's name below the product's folder."""
    return f"{collection_id(metadata)}-{posixpath.basename(part).removesuffix('.parquet')}"


def provenance(metadata: Mapping[str, Any]) -> Provenance:
    """Return the facts about the archive that a product was made from."""
    return get_archive(metadata["dataset"]).provenance


def encoded_chip_size(metadata: Mapping[str, Any]) -> int:
    """Return the side in pixels of the square that a row stands for."""
    return int(metadata["chip_size"]) // (2 if metadata["lattice"].get("encode") == "quarters" else 1)


def collection_fields(metadata: Mapping[str, Any]) -> Json:
    """Return the fields of the embedding extension that belong to the collection."""
    chip = encoded_chip_size(metadata)
    return {
        "emb:type": "chip",
        "emb:dimensions": metadata["dimensions"],
        "emb:chip_layout": {"layout_type": "regular_grid", "chip_size": [chip, chip], "stride": [chip, chip]},
        "emb:temporal_resolution": provenance(metadata).temporal_resolution,
        "data_type": metadata["vector_dtype"],
    }


def item_fields(metadata: Mapping[str, Any]) -> Json:
    """Return the properties of an item that state how its embeddings were made."""
    normalisation = {"operation": "(x - mean) / std", **metadata["normalisation"]}
    fields: Json = {
        "emb:preprocessing": {"format": "json", "expression": normalisation},
        "emb:runtime_parameters": {key: metadata[key] for key in RUNTIME_KEYS},
        "processing:lineage": lineage(metadata),
        "processing:software": software_versions(metadata),
    }
    if metadata["vector_dtype"] != "float32":
        fields["emb:quantization"] = quantization(metadata)
    return fields


def lineage(metadata: Mapping[str, Any]) -> str:
    """Return in a sentence what the embeddings were made from."""
    vector, chip = VECTOR_TITLES[metadata["embedding"]], encoded_chip_size(metadata)
    return f"{metadata['model']} {vector} of each chip of {chip} x {chip} pixels of {provenance(metadata).title}"


def title(metadata: Mapping[str, Any]) -> str:
    """Return the title of a product."""
    return f"Clay embeddings of {provenance(metadata).title}, {metadata['partition']}"


def software_versions(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the software, with commas where shards were made with several."""
    software = metadata["software"]
    used = software if isinstance(software, list) else [software]
    names = sorted({name for versions in used for name in versions})
    return {name: ", ".join(dict.fromkeys(v[name] for v in used if name in v)) for name in names}


def quantization(metadata: Mapping[str, Any]) -> Json:
    """Return how numbers are stored.

    int8 rows have a scale each. The extension's `scale` is one for all rows, so the method is described by a link. Its
    address is relative to the items and to the parts, whose folders lie side by side.
    """
    dtype = metadata["vector_dtype"]
    link = {
        "rel": "about",
        "href": f"../{README}",
        "type": "text/markdown",
        "title": "How to read the vectors",
    }
    method = "linear, one scale for each row" if dtype == "int8" else "rounded to the nearest"
    return {"method": method, "original_dtype": "float32", "quantized_dtype": dtype, "link": link}


def model_link(metadata: Mapping[str, Any]) -> Json:
    """Return the link to the model."""
    return {"rel": "emb:model", "href": MODEL, "title": metadata["model"]}


def source_link(metadata: Mapping[str, Any]) -> Json:
    """Return the link to the archive that the embeddings were made from."""
    source = provenance(metadata)
    return {"rel": "emb:source-data", "href": source.href, "title": source.title}


def licence_link(metadata: Mapping[str, Any]) -> Json:
    """Return the link to the archive's licence."""
    source = provenance(metadata)
    return {"rel": "license", "href": source.license_href, "title": source.license_title}


def providers(metadata: Mapping[str, Any]) -> list[Json]:
    """Return the providers of the archive with their roles."""
    return [{"name": p.name, "roles": list(p.roles), "url": p.url} for p in provenance(metadata).providers]


def footer_entry(part: str, metadata: Mapping[str, Any]) -> Json:
    """Return the entry `emb` in the footer of a part: what its STAC item and collection state about the embeddings.

    The best practices of https://geoembeddings.org recommend the entry. `id` is the id of the item.

    Args:
        part: Name of the part below the product's folder.
        metadata: The `kiln` metadata of the product.
    """
    return {
        "stac_version": STAC_VERSION,
        "stac_extensions": [EMBEDDINGS, PROCESSING],
        "id": item_id(part, metadata),
        "collection": collection_id(metadata),
        "license": provenance(metadata).license,
        "providers": providers(metadata),
        **collection_fields(metadata),
        **item_fields(metadata),
        "links": [
            {"rel": "item", "href": f"../items/{item_id(part, metadata)}.json", "type": "application/geo+json"},
            model_link(metadata),
            source_link(metadata),
            licence_link(metadata),
        ],
    }
