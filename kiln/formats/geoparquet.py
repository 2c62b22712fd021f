"""GeoParquet 1.1 written with pyarrow, so that embeddings stay fixed-size lists (geopandas writes plain lists)."""

import base64
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyproj

from kiln.formats.columns import BBOX_SIDES
from kiln.formats.extent import Extent
from kiln.formats.parquet import close_writer, open_writer

ROW_GROUP = 32_768  # rows
CRS = json.loads(pyproj.CRS.from_epsg(4326).to_json())
ARROW_SCHEMA = "ARROW:schema"  # entry of the footer from which Arrow readers take types and metadata


def geo_metadata(column: str, extent: Extent, *, covering: bool) -> dict[str, Any]:
    """Return the `geo` metadata of a file.

    Args:
        column: The primary geometry column, WKB in EPSG:4326.
        extent: Extent of the file's rows. Its bounding box is left out if there is none.
        covering: Whether the column `bbox` has the bounding box of each row.
    """
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(extent.types),
        "crs": CRS,
        "edges": "planar",
        "orientation": "counterclockwise",
    }
    if bbox := extent.bbox:
        geometry["bbox"] = list(bbox)
    if covering:
        geometry["covering"] = {"bbox": {side: ["bbox", side] for side in BBOX_SIDES}}
    return {"version": "1.1.0", "primary_column": column, "columns": {column: geometry}}


class GeoParquetWriter:
    """A writer of row groups. The `geo` metadata is completed from their extents when the file is closed.

    It stands in the footer, as GeoParquet defines it, and in the Arrow schema. Copies and subsets that Arrow readers
    write from the table are then GeoParquet too.

    float32 vectors are split by byte before zstd, which shrinks them (DuckDB refuses it for other types). int8 vectors
    are written as a dictionary of 255 numbers, since Parquet has no type of one byte: 946 bytes a vector of 1024
    numbers instead of 1318.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, geometry: str = "geometry", box: str | None = "bbox") -> None:
        vectors = {f"{f.name}.list.element": f.type.value_type for f in schema if pa.types.is_fixed_size_list(f.type)}
        byte_split = {name: "BYTE_STREAM_SPLIT" for name, dtype in vectors.items() if pa.types.is_float32(dtype)}
        int8_vectors = [name for name, dtype in vectors.items() if pa.types.is_int8(dtype)]
        other = {"sources", geometry, box, "scale", "scale_mean", *(name.partition(".")[0] for name in vectors)}
        plain = [f.name for f in schema if f.name not in other]
        self._path = path
        self._writer = open_writer(
            path,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=[*plain, *int8_vectors, "sources.list.element"],
            column_encoding=byte_split or None,
            write_page_index=True,
            store_schema=True,
        )
        self._schema, self._geometry, self._box = schema, geometry, box
        self.extent = Extent()  # of all rows
        self.rows = 0

    def write(self, table: pa.Table, extent: Extent) -> None:
        """Write rows as one row group."""
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self.extent = self.extent.union(extent)
        self.rows += len(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        geo = json.dumps(geo_metadata(self._geometry, self.extent, covering=self._box is not None))
        arrow = self._schema.with_metadata({**(self._schema.metadata or {}), b"geo": geo.encode()})
        # The writer put its schema into the footer when it was opened. An entry of the same name replaces that.
        schema_entry = base64.b64encode(arrow.serialize().to_pybytes()).decode()
        self._writer.add_key_value_metadata({"geo": geo, ARROW_SCHEMA: schema_entry})
        if kind is None:
            close_writer(self._writer, self._path)
        else:  # the file is not kept
            self._writer.close()
