"""STAC of a product: a collection, and an item per part."""

import calendar
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pystac

from kiln.archives.registry import get_archive
from kiln.formats.bounding_box import BoundingBox
from kiln.formats.columns import LEDGER, ColumnSpec, described_columns, type_text
from kiln.formats.extent import Extent
from kiln.io import storage
from kiln.product.description import stac_fields
from kiln.product.description.stac_fields import Json
from kiln.product.facts import ProductFacts
from kiln.product.part_writer import Part
from kiln.product.record import LedgerFile

COLLECTION = "collection.json"
PARQUET = "application/vnd.apache.parquet"
COSTS = "kiln:costs"  # relation of the link to the record of what the jobs took
WORLD = BoundingBox(-180.0, -90.0, 180.0, 90.0)
SHA256_MULTIHASH = "1220"  # prefix of a sha2-256 digest of 32 bytes
GSD_DIGITS = 3  # decimals of metres


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


def bounds(parts: Sequence[Part]) -> BoundingBox:
    """Return the bounding box of a product, west > east across the antimeridian; that of the world without rows."""
    extent = Extent()
    for part in parts:
        if part.extent.bbox:
            extent = extent.union(part.extent)
    return extent.bbox or WORLD


def describe(facts: ProductFacts, costs: str | None = None) -> tuple[Json, dict[str, Json]]:
    """Return the STAC of a product as JSON objects with relative links.

    Args:
        facts: The product.
        costs: Address of the record of what the jobs took, relative to the product's folder.

    Returns:
        The collection, and the items by id; a part without rows has no item.
    """
    metadata = facts.metadata
    columns = table_columns(described_columns(facts.schema))
    collection = _collection(facts, columns)
    links = [_link(stac_fields.model_link(metadata)), _link(stac_fields.source_link(metadata))]
    collection.add_links([*links, _link(stac_fields.licence_link(metadata))])
    if costs:
        collection.add_link(pystac.Link(COSTS, costs, "application/json", title="What the jobs took"))
    collection.add_asset("ledger", _ledger_asset(facts.ledger))
    readme = pystac.Asset(f"./{stac_fields.README}", "Data card", media_type="text/markdown", roles=["metadata"])
    collection.add_asset("readme", readme)
    items = []
    for part in facts.parts:
        if part.rows:
            item = _item(part, columns, collection, metadata)
            item.add_links([link.clone() for link in links])
            items.append(item)
    return _with_relative_links(collection, items)


def table_columns(columns: Sequence[ColumnSpec]) -> list[Json]:
    """Return columns as the table extension describes them. A unit stands at the end of the description."""
    return [
        {
            "name": column.name,
            "type": type_text(column.dtype),
            "description": f"{column.meaning} [{column.unit}]" if column.unit else column.meaning,
        }
        for column in columns
    ]


def _link(link: Mapping[str, str]) -> pystac.Link:
    return pystac.Link(link["rel"], link["href"], title=link["title"])


def _ledger_asset(ledger: LedgerFile) -> pystac.Asset:
    return pystac.Asset(
        f"./{ledger.name}",
        title="What became of every unit",
        media_type=PARQUET,
        roles=["metadata"],
        extra_fields={
            "file:size": ledger.size,
            "file:checksum": f"{SHA256_MULTIHASH}{ledger.sha256}",
            "table:columns": table_columns(LEDGER),
        },
    )


def pixel_sizes(parts: Sequence[Part]) -> tuple[float, float] | None:
    """Return the smallest and largest pixel of a product in metres; None without rows."""
    sizes = [size for part in parts for size in part.gsd or ()]
    return (round(min(sizes), GSD_DIGITS), round(max(sizes), GSD_DIGITS)) if sizes else None


def _collection(facts: ProductFacts, columns: Sequence[Json]) -> pystac.Collection:
    """Return the collection without links and assets."""
    parts, metadata, counts = facts.parts, facts.metadata, facts.counts
    source, gsd = stac_fields.provenance(metadata), pixel_sizes(parts)
    vector, chip = stac_fields.VECTOR_TITLES[metadata["embedding"]], stac_fields.encoded_chip_size(metadata)
    warning = " UNTRAINED weights: for demonstration only." if metadata["untrained"] else ""
    summaries: Json = {"gsd": {"minimum": gsd[0], "maximum": gsd[1]}} if gsd else {}
    return pystac.Collection(
        id=stac_fields.collection_id(metadata),
        title=stac_fields.title(metadata),
        description=f"One {metadata['model']} {vector} per chip of {chip} pixels; {counts['embedded']} chips."
        f"{warning} {source.attribution}",
        license=source.license,
        keywords=["embeddings", "Clay", *source.keywords],
        extent=pystac.Extent(
            pystac.SpatialExtent([list(bounds(parts))]), pystac.TemporalExtent([list(time_range(metadata, parts))])
        ),
        providers=[pystac.Provider.from_dict(provider) for provider in stac_fields.providers(metadata)],
        summaries=pystac.Summaries(summaries),
        stac_extensions=[stac_fields.EMBEDDINGS, stac_fields.FILE, stac_fields.TABLE],
        extra_fields={
            **stac_fields.collection_fields(metadata),
            **({"gsd": gsd[0]} if gsd else {}),
            "table:columns": columns,
            "table:primary_geometry": "geometry",
            "table:row_count": counts["embedded"],
            "item_assets": {"embeddings": {"title": _part_title(metadata), "type": PARQUET, "roles": ["data"]}},
        },
    )


def _part_title(metadata: Mapping[str, Any]) -> str:
    return f"GeoParquet of chips: {stac_fields.VECTOR_TITLES[metadata['embedding']]}"


def _item(
    part: Part, columns: Sequence[Json], collection: pystac.Collection, metadata: Mapping[str, Any]
) -> pystac.Item:
    """Return the item of a part that has rows, without links."""
    bbox, gsd = bounds([part]), pixel_sizes([part])
    start, end = collection.extent.temporal.intervals[0]
    item = pystac.Item(
        id=stac_fields.item_id(part.name, metadata),
        geometry=bbox.to_geojson(),
        bbox=list(bbox),
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties={
            **stac_fields.item_fields(metadata),
            **({"gsd": gsd[0]} if gsd else {}),
            "proj:code": "EPSG:4326",
            "table:columns": columns,
            "table:primary_geometry": "geometry",
            "table:row_count": part.rows,
        },
        stac_extensions=[
            stac_fields.EMBEDDINGS,
            stac_fields.FILE,
            stac_fields.PROCESSING,
            stac_fields.PROJECTION,
            stac_fields.TABLE,
        ],
    )
    item.add_asset(
        "embeddings",
        pystac.Asset(
            f"../{part.name}",
            title=_part_title(metadata),
            media_type=PARQUET,
            roles=["data"],
            extra_fields={"file:size": part.size, "file:checksum": f"{SHA256_MULTIHASH}{part.sha256}"},
        ),
    )
    return item


def _with_relative_links(collection: pystac.Collection, items: Sequence[pystac.Item]) -> tuple[Json, dict[str, Json]]:
    """Return self-contained JSON: items lie in `items/`, and links between collection and items are relative.

    Nothing leads out of the product's folder but the links to other places, so a copy of the folder is complete.
    """
    top: Json = collection.to_dict(include_self_link=False) | {"stac_version": stac_fields.STAC_VERSION}
    top["links"] = [link for link in top["links"] if link["rel"] not in ("root", "self")]
    top["links"] += [
        {"rel": "item", "href": f"./items/{item.id}.json", "type": "application/geo+json"} for item in items
    ]
    features: dict[str, Json] = {}
    for item in items:
        feature: Json = item.to_dict(include_self_link=False) | {"stac_version": stac_fields.STAC_VERSION}
        feature["collection"] = collection.id
        feature["links"] = [link for link in feature["links"] if link["rel"] not in ("root", "self")]
        feature["links"] += [
            {"rel": rel, "href": f"../{COLLECTION}", "type": "application/json"} for rel in ("collection", "parent")
        ]
        features[item.id] = feature
    return top, features


def relative_address(uri: str, folder: str) -> str:
    """Return an address relative to a folder, if both are on one store."""
    stores = ["/".join(place.split("/")[:3]) if storage.is_remote(place) else "" for place in (uri, folder)]
    return posixpath.relpath(uri, folder) if stores[0] == stores[1] else uri


def stac_documents(product: str, facts: ProductFacts, costs: str | None = None) -> dict[str, str]:
    """Return the content of collection.json and items/*.json of a product.

    Args:
        product: Path or s3:// of the product's folder.
        facts: The product.
        costs: Path or s3:// of the record of what the jobs took.

    Returns:
        The texts by the files' names, the collection first.
    """
    collection, items = describe(facts, relative_address(costs, product) if costs else None)
    files = {COLLECTION: collection} | {f"items/{name}.json": item for name, item in items.items()}
    return {name: json.dumps(value, indent=1, sort_keys=True) + "\n" for name, value in files.items()}
