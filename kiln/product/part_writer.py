"""The part files of a product: sorted GeoParquet below `chips/`, each described by one STAC item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyproj

from kiln.errors import ConfigError
from kiln.formats import embeddings_file
from kiln.formats.columns import STAC_ITEM, ColumnSpec
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.parquet import open_file
from kiln.io import storage
from kiln.product import external_sort
from kiln.product.description import stac_fields
from kiln.product.order import ProductOrder

CHIPS = "chips"  # folder of the parts, which holds nothing else
EARTH_RADIUS_M = 6_378_137.0  # semi-major axis of WGS 84

Range = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A Parquet file of a product.

    Attributes:
        name: Name below the product's folder.
        size: Bytes.
        sha256: Digest in hex.
        rows: Rows.
        extent: Extent of the footprints.
        times: First and last acquisition; None where no row has one.
        gsd: Smallest and largest side of a pixel in metres; None without rows.
    """

    name: str
    size: int
    sha256: str
    rows: int
    extent: Extent
    times: tuple[datetime | None, datetime | None]
    gsd: Range | None


class _Ranges:
    """The smallest and largest acquisition and pixel size of the rows so far."""

    def __init__(self) -> None:
        self.times: tuple[datetime | None, datetime | None] = (None, None)
        self.gsd: Range | None = None

    def add(self, rows: pa.Table) -> None:
        """Include rows."""
        for crs, smallest, largest in _pixel_sizes(rows):
            metres = metres_per_unit(crs)
            sizes = (smallest * metres, largest * metres, *(self.gsd or ()))
            self.gsd = min(sizes), max(sizes)
        seen = pc.min_max(rows["datetime"]).as_py()
        known = [time for time in (*self.times, seen["min"], seen["max"]) if time is not None]
        if known:
            self.times = min(known), max(known)


def _pixel_sizes(rows: pa.Table) -> list[tuple[str, float, float]]:
    """Return each CRS of rows with the smallest and largest `pixel_size` in its units."""
    sizes = rows.select(["crs", "pixel_size"]).group_by("crs").aggregate([("pixel_size", "min"), ("pixel_size", "max")])
    return list(zip(*(sizes[name].to_pylist() for name in ("crs", "pixel_size_min", "pixel_size_max")), strict=True))


def metres_per_unit(crs: str) -> float:
    """Return the metres of a unit of a CRS; of a geographic one, along a meridian."""
    parsed = pyproj.CRS.from_user_input(crs)
    factor = float(parsed.axis_info[0].unit_conversion_factor)  # to metres or radians
    return factor * EARTH_RADIUS_M if parsed.is_geographic else factor


def product_schema(shard: Path, metadata: Mapping[str, Any], columns: Sequence[ColumnSpec]) -> pa.Schema:
    """Return the schema of a product: the columns of its shards as the dictionary describes them, and `stac_item`.

    Args:
        shard: One of the shards.
        metadata: The `kiln` metadata of the product.
        columns: The archive's own columns.

    Raises:
        ConfigError: If the shard has other columns.
    """
    kinds = metadata["dimensions"], metadata["vector_dtype"]
    schema = embeddings_file.schema(*kinds, columns, metadata, metadata["embedding"])
    present = open_file(shard).schema_arrow
    if [(f.name, f.type) for f in present] != [(f.name, f.type) for f in schema]:
        other = sorted({str(f) for f in present} ^ {str(f) for f in schema}) or present.names
        raise ConfigError(
            f"{shard}: expected the columns of {metadata['dataset']}, got others ({', '.join(other)}). "
            "Embed the shards again."
        )
    return schema.append(STAC_ITEM.field)


def write_parts(
    shards: Sequence[Path],
    product: str,
    schema: pa.Schema,
    order: ProductOrder,
    *,
    row_group_rows: int,
    part_bytes: int,
    memory_bytes: int,
) -> list[Part]:
    """Write the sorted parts below `product`, and return them; a product without rows has one empty part.

    Args:
        shards: Embeddings files.
        product: Path or s3:// of the product's folder.
        schema: The product's schema.
        order: The place of each row of the shards.
        row_group_rows: Rows of a row group at most.
        part_bytes: Bytes of a part at most. A part ends before the row group that might exceed it.
        memory_bytes: Memory of the sort. It does not change the parts.
    """
    group_count = max(1, -(-order.rows // row_group_rows))
    row_group = max(1, -(-order.rows // group_count))  # row groups of about equal size
    metadata = json.loads(schema.metadata[b"kiln"])
    groups = external_sort.sort_rows(shards, order.starts, order.rank, order.rows, row_group, memory=memory_bytes)
    group = next(groups, schema.remove(len(schema) - 1).empty_table())
    parts: list[Part] = []
    while group is not None:
        name = f"{CHIPS}/part-{len(parts):04d}.parquet"
        emb = stac_fields.footer_entry(name, metadata)
        part_schema = schema.with_metadata({**schema.metadata, "emb": json.dumps(emb, sort_keys=True)})
        ranges = _Ranges()
        with storage.atomic(storage.join(product, name)) as path:
            largest = 0
            with GeoParquetWriter(path, part_schema) as out:
                while group is not None and path.stat().st_size + largest * 1.05 <= part_bytes:
                    before = path.stat().st_size
                    item = pa.DictionaryArray.from_arrays(pa.array([0] * len(group), pa.int32()), [emb["id"]])
                    rows = group.append_column(STAC_ITEM.field, item).cast(part_schema)
                    out.write(rows, embeddings_file.extent(group))
                    ranges.add(group)
                    largest = max(largest, path.stat().st_size - before)
                    group = next(groups, None)
            size, sha256 = path.stat().st_size, storage.sha256(path)
        parts.append(Part(name, size, sha256, out.rows, out.extent, ranges.times, ranges.gsd))
    return parts
