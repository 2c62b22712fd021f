"""STAC of a product: a collection and an item per part, with the embedding extension's fields.

The extension (fields `emb:*`, links `emb:model` and `emb:source-data`, asset `embeddings`) is a proposal of the
cloud-native geospatial sprint of March 2026, https://github.com/stac-extensions/embeddings.
"""

import calendar
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pystac

from kiln.archives.registry import Provenance, get_archive
from kiln.formats import vectors
from kiln.io import storage

EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
TABLE = "https://stac-extensions.github.io/table/v1.2.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
COSTS = "kiln:costs"  # relation of the link to the record of what the jobs took
MODEL = "https://huggingface.co/made-with-clay/Clay"
WORLD = [-180.0, -90.0, 180.0, 90.0]
SHA256_MULTIHASH = "1220"  # prefix of a sha2-256 digest of 32 bytes
VECTOR_TITLES = {  # by `embedding` of the config
    "class": "class token",
    "mean": "mean of the patch tokens",
    "both": "class token and mean of the patch tokens",
}
RUNTIME_KEYS = (  # of the `kiln` metadata
    *("fingerprint", "weights_sha256", "untrained", "precision"),
    *("embedding", "metadata", "lattice", "limits"),
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A Parquet file of a product.

    Attributes:
        name: Name below the product's folder.
        size: Bytes.
        sha256: Digest in hex.
        rows: Rows.
        bbox: Bounding box of the footprints [west, south, east, north] in degrees.
        times: First and last acquisition; None where no row has one.
    """

    name: str
    size: int
    sha256: str
    rows: int
    bbox: list[float]
    times: tuple[datetime | None, datetime | None]


def time_range(metadata: Mapping[str, Any], parts: Sequence[Part]) -> tuple[datetime, datetime]:
    """Return the start and end of a product.

    These are the first and last acquisition. A composite and scenes without dates get the month or year in the name of
    their partition: `29R-2020-02`, `2021` or `id-2015`.
    """
    times = [time for part in parts for time in part.times if time is not None]
    if times and not get_archive(metadata["dataset"]).composite:
        return min(times), max(times)
    partition = metadata["partition"]
    if match := re.fullmatch(r"\w+-(\d{4})-(\d\d)", partition):
        year, month = map(int, match.groups())
        last_day = calendar.monthrange(year, month)[1]
        return datetime(year, month, 1, tzinfo=UTC), datetime(year, month, last_day, 23, 59, 59, tzinfo=UTC)
    year = int(partition.rpartition("-")[2])
    return datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)


def describe(
    parts: Sequence[Part], metadata: Mapping[str, Any], counts: Mapping[str, int], costs: str | None = None
) -> tuple[Json, dict[str, Json]]:
    """Return the STAC of a product as JSON objects with relative links.

    Args:
        parts: The product's files.
        metadata: Their `kiln` metadata.
        counts: Chips of the ledger, by count.
        costs: Address of the record of what the jobs took, relative to the product's folder.

    Returns:
        The collection, and the items by id; a part without rows has no item.
    """
    provenance = get_archive(metadata["dataset"]).provenance
    filled = [part for part in parts if part.rows]
    collection = _collection(filled, time_range(metadata, parts), metadata, counts, provenance)
    links = [
        pystac.Link("emb:model", MODEL, title=metadata["model"]),
        pystac.Link("emb:source-data", provenance.href, title=provenance.title),
    ]
    collection.add_links(links)
    if costs:
        collection.add_link(pystac.Link(COSTS, costs, "application/json", title="What the jobs took"))
    collection.add_asset(
        "ledger",
        pystac.Asset("ledger.parquet", title="What became of every unit", media_type=PARQUET, roles=["metadata"]),
    )
    items = []
    for part in filled:
        item = _item(part, collection, metadata)
        item.add_links([link.clone() for link in links])
        items.append(item)
    return _with_relative_links(collection, items)


def _chip_size(metadata: Mapping[str, Any]) -> int:
    """Return the side in pixels of the square that a row stands for."""
    return int(metadata["chip_size"]) // (2 if metadata["lattice"].get("encode") == "quarters" else 1)


def _fields(metadata: Mapping[str, Any], provenance: Provenance) -> Json:
    """Return the fields that the collection and its items share."""
    chip = _chip_size(metadata)
    return {
        "emb:type": "chip",
        "emb:dimensions": metadata["dimensions"],
        "emb:chip_layout": {"layout_type": "regular_grid", "chip_size": [chip, chip], "stride": [chip, chip]},
        "emb:temporal_resolution": provenance.temporal_resolution,
        "data_type": metadata["vector_dtype"],
        **({} if metadata["gsd"] == "actual" else {"gsd": metadata["gsd"]}),
    }


def _quantization(metadata: Mapping[str, Any]) -> Json:
    """Return how numbers are stored; int8 rows have a scale each, while the extension's `scale` is one of all rows."""
    vector_dtype = metadata["vector_dtype"]
    quantization: Json = {"method": "none", "original_dtype": "float32", "quantized_dtype": vector_dtype}
    if vector_dtype == "int8":
        columns = {name: vectors.SCALES[name] for name in vectors.KINDS[metadata["embedding"]]}
        quantization |= {"method": "linear", "scale_columns": columns}
    return quantization


def _collection(
    filled: Sequence[Part],
    times: tuple[datetime, datetime],
    metadata: Mapping[str, Any],
    counts: Mapping[str, int],
    provenance: Provenance,
) -> pystac.Collection:
    """Return the collection without links and assets; `filled` are the parts that have rows."""
    boxes = [part.bbox for part in filled] or [WORLD]
    bounds = [*(min(box[i] for box in boxes) for i in (0, 1)), *(max(box[i] for box in boxes) for i in (2, 3))]
    warning = " UNTRAINED weights: for demonstration only." if metadata["untrained"] else ""
    return pystac.Collection(
        id=f"{metadata['dataset']}-{metadata['partition']}-{metadata['fingerprint'][:8]}",
        title=f"{provenance.title}, {metadata['partition']}",
        description=f"One {metadata['model']} {VECTOR_TITLES[metadata['embedding']]} per chip of "
        f"{_chip_size(metadata)} pixels; {counts['embedded']} chips.{warning}",
        license=provenance.license,
        extent=pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([list(times)])),
        providers=[pystac.Provider(provenance.provider, roles=[pystac.ProviderRole.PRODUCER], url=provenance.href)],
        stac_extensions=[EXTENSION],
        extra_fields=_fields(metadata, provenance),
    )


def _item(part: Part, collection: pystac.Collection, metadata: Mapping[str, Any]) -> pystac.Item:
    """Return the item of a part, without links."""
    west, south, east, north = part.bbox
    start, end = collection.extent.temporal.intervals[0]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        id=f"{collection.id}-{part.name.removesuffix('.parquet')}",
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=part.bbox,
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties={
            **collection.extra_fields,
            "emb:quantization": _quantization(metadata),
            "emb:runtime_parameters": {key: metadata[key] for key in RUNTIME_KEYS},
            "table:row_count": part.rows,
        },
        stac_extensions=[EXTENSION, FILE, TABLE],
    )
    item.add_asset(
        "embeddings",
        pystac.Asset(
            f"../{part.name}",
            title=f"GeoParquet of chips: {VECTOR_TITLES[metadata['embedding']]}",
            media_type=PARQUET,
            roles=["data"],
            extra_fields={"file:size": part.size, "file:checksum": f"{SHA256_MULTIHASH}{part.sha256}"},
        ),
    )
    return item


def _with_relative_links(collection: pystac.Collection, items: Sequence[pystac.Item]) -> tuple[Json, dict[str, Json]]:
    """Return self-contained JSON: items lie in `items/`, and links between collection and items are relative."""
    top: Json = collection.to_dict(include_self_link=False)
    top["links"] = [link for link in top["links"] if link["rel"] not in ("root", "self")]
    top["links"] += [
        {"rel": "item", "href": f"./items/{item.id}.json", "type": "application/geo+json"} for item in items
    ]
    features: dict[str, Json] = {}
    for item in items:
        feature: Json = item.to_dict(include_self_link=False)
        feature["collection"] = collection.id
        feature["links"] = [link for link in feature["links"] if link["rel"] not in ("root", "self")]
        feature["links"] += [
            {"rel": rel, "href": "../collection.json", "type": "application/json"} for rel in ("collection", "parent")
        ]
        features[item.id] = feature
    return top, features


def _relative(uri: str, folder: str) -> str:
    """Return an address relative to a folder, if both are on one store."""
    stores = ["/".join(place.split("/")[:3]) if storage.is_remote(place) else "" for place in (uri, folder)]
    return posixpath.relpath(uri, folder) if stores[0] == stores[1] else uri


def write_stac(
    product: str,
    parts: Sequence[Part],
    metadata: Mapping[str, Any],
    counts: Mapping[str, int],
    costs: str | None = None,
) -> list[str]:
    """Write collection.json and items/*.json below a product.

    Args:
        product: Path or s3:// of the product's folder.
        parts: The product's files.
        metadata: Their `kiln` metadata.
        counts: Chips of the ledger, by count.
        costs: Path or s3:// of the record of what the jobs took.

    Returns:
        The names of the written files, the collection first.
    """
    collection, items = describe(parts, metadata, counts, _relative(costs, product) if costs else None)
    files = {"collection.json": collection} | {f"items/{name}.json": item for name, item in items.items()}
    for name, value in files.items():
        storage.write_bytes(storage.join(product, name), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    return list(files)
