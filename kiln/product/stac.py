"""STAC of a product: a collection and an item per part, with the embedding extension's fields.

The extension (fields `emb:*`, links `emb:model` and `emb:source-data`, asset `embeddings`) is a proposal of the
cloud-native geospatial sprint of March 2026, https://github.com/stac-extensions/embeddings.
"""

import calendar
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pystac

from kiln.formats import vectors
from kiln.io import storage

EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
TABLE = "https://stac-extensions.github.io/table/v1.2.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
MODEL = "https://huggingface.co/made-with-clay/Clay"
SOURCES: dict[str, dict[str, Any]] = {
    "worldcover": {
        "title": "ESA WorldCover Sentinel-2 annual composites, Clay embeddings",
        "href": "https://registry.opendata.aws/esa-worldcover-vito-composites/",
        "license": "CC-BY-4.0",
        "provider": "VITO / ESA WorldCover, contains modified Copernicus Sentinel data",
        "temporal_resolution": "annual",
    },
    "naip": {
        "title": "NAIP aerial imagery, Clay embeddings",
        "href": "https://registry.opendata.aws/naip/",
        "license": "CC-PDDC",
        "provider": "USDA Farm Service Agency",
        "temporal_resolution": "single_acquisition",
    },
    "sentinel2": {
        "title": "Sentinel-2 L2A scenes, Clay embeddings",
        "href": "https://registry.opendata.aws/sentinel-2-l2a-cogs/",
        "license": "proprietary",
        "provider": "ESA, contains modified Copernicus Sentinel data",
        "temporal_resolution": "single_acquisition",
    },
}


WHAT = {  # a row's vectors are, by the `embedding` of the config
    "class": "class token",
    "mean": "mean of the patch tokens",
    "both": "class token and mean of the patch tokens",
}


@dataclass(frozen=True)
class Part:
    """A file of a product: bytes, digest, rows, bounds [west, south, east, north], first and last datetime."""

    name: str
    size: int
    sha256: str
    rows: int
    bbox: list[float]
    span: tuple[datetime | None, datetime | None]


def period(about: dict[str, Any], parts: Sequence[Part]) -> tuple[datetime, datetime]:
    """What a partition covers in time: first and last acquisition, or its year, as of composites and undated scenes."""
    times = [t for p in parts for t in p.span if t is not None]
    if times and about["dataset"] != "worldcover":
        return min(times), max(times)
    if found := re.fullmatch(r"\w+-(\d{4})-(\d\d)", about["partition"]):  # `29R-2020-02`
        year, month = map(int, found.groups())
        last = calendar.monthrange(year, month)[1]
        return datetime(year, month, 1, tzinfo=UTC), datetime(year, month, last, 23, 59, 59, tzinfo=UTC)
    year = int(about["partition"].rpartition("-")[2])  # `2021`, or `id-2015`, whose scenes have no dates
    return datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)


def describe(parts: Sequence[Part], about: dict[str, Any], counts: dict[str, int]) -> tuple[dict, list[dict]]:
    """Collection and items as JSON objects with relative links."""
    source = SOURCES[about["dataset"]]
    start, end = period(about, parts)
    filled = [p for p in parts if p.rows]
    world = [-180.0, -90.0, 180.0, 90.0]
    boxes = [p.bbox for p in filled] or [world]
    whole = [*(min(b[i] for b in boxes) for i in (0, 1)), *(max(b[i] for b in boxes) for i in (2, 3))]
    warning = " UNTRAINED weights: for demonstration only." if about["untrained"] else ""
    chip = about["chip_size"] // (2 if about["lattice"].get("encode") == "quarters" else 1)
    kind = about["embedding"]
    fields = {
        "emb:type": "chip",
        "emb:dimensions": about["dimensions"],
        "emb:chip_layout": {"layout_type": "regular_grid", "chip_size": [chip, chip], "stride": [chip, chip]},
        "emb:temporal_resolution": source["temporal_resolution"],
        "data_type": about["storage"],
        **({} if about["gsd"] == "actual" else {"gsd": about["gsd"]}),
    }
    quantization = {"method": "none", "original_dtype": "float32", "quantized_dtype": about["storage"]}
    if about["storage"] == "int8":  # the extension's `scale` is one of all rows; these have one each
        quantization |= {"method": "linear", "scale_columns": {n: vectors.SCALES[n] for n in vectors.KINDS[kind]}}
    collection = pystac.Collection(
        id=f"{about['dataset']}-{about['partition']}-{about['fingerprint'][:8]}",
        title=f"{source['title']}, {about['partition']}",
        description=f"One {about['model']} {WHAT[kind]} per chip of {chip} pixels; "
        f"{counts['embedded']} chips.{warning}",
        license=source["license"],
        extent=pystac.Extent(pystac.SpatialExtent([whole]), pystac.TemporalExtent([[start, end]])),
        providers=[pystac.Provider(source["provider"], roles=[pystac.ProviderRole.PRODUCER], url=source["href"])],
        stac_extensions=[EXTENSION],
        extra_fields=fields,
    )
    links = [
        pystac.Link("emb:model", MODEL, title=about["model"]),
        pystac.Link("emb:source-data", source["href"], title=source["title"]),
    ]
    collection.add_links(links)
    collection.add_asset(
        "ledger",
        pystac.Asset("ledger.parquet", title="What became of every unit", media_type=PARQUET, roles=["metadata"]),
    )
    items = []
    for part in filled:
        w, s, e, n = part.bbox
        item = pystac.Item(
            id=f"{collection.id}-{part.name.removesuffix('.parquet')}",
            geometry={"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]},
            bbox=part.bbox,
            datetime=None,
            start_datetime=start,
            end_datetime=end,
            properties={
                **fields,
                "emb:quantization": quantization,
                "emb:runtime_parameters": {
                    k: about[k]
                    for k in (
                        "fingerprint",
                        "weights_sha256",
                        "untrained",
                        "precision",
                        "embedding",
                        "metadata",
                        "lattice",
                        "limits",
                    )
                },
                "table:row_count": part.rows,
            },
            stac_extensions=[EXTENSION, FILE, TABLE],
        )
        item.add_links([link.clone() for link in links])
        item.add_asset(
            "embeddings",
            pystac.Asset(
                f"../{part.name}",
                title=f"GeoParquet of chips: {WHAT[kind]}",
                media_type=PARQUET,
                roles=["data"],
                extra_fields={"file:size": part.size, "file:checksum": f"1220{part.sha256}"},
            ),
        )
        items.append(item)
    return _plain(collection, items)


def _plain(collection: pystac.Collection, items: list[pystac.Item]) -> tuple[dict, list[dict]]:
    """Self-contained JSON: items in `items/`, linked both ways by relative hrefs."""
    top = collection.to_dict(include_self_link=False)
    top["links"] = [x for x in top["links"] if x["rel"] not in ("root", "self")]
    top["links"] += [{"rel": "item", "href": f"./items/{i.id}.json", "type": "application/geo+json"} for i in items]
    plain = []
    for item in items:
        one = item.to_dict(include_self_link=False)
        one["collection"] = collection.id
        one["links"] = [x for x in one["links"] if x["rel"] not in ("root", "self")]
        one["links"] += [
            {"rel": r, "href": "../collection.json", "type": "application/json"} for r in ("collection", "parent")
        ]
        plain.append(one)
    return top, plain


def write(product: str, parts: Sequence[Part], about: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """Write collection.json and items/*.json below a product; returns their names."""
    collection, items = describe(parts, about, counts)
    named = {"collection.json": collection} | {f"items/{i['id']}.json": i for i in items}
    for name, value in named.items():
        storage.write_bytes(storage.join(product, name), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    return list(named)
