"""GeoParquet 1.1 written with pyarrow, so that embeddings stay fixed-size lists (geopandas writes plain lists)."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

ROW_GROUP = 32_768  # rows
BBOX = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
CRS = json.loads(pyproj.CRS.from_epsg(4326).to_json())


def geo_metadata(column: str, types: set[str], bbox: list[float], *, covering: bool) -> dict[str, Any]:
    """Return the `geo` metadata of a file.

    Args:
        column: The primary geometry column, WKB in EPSG:4326.
        types: Geometry types of the column.
        bbox: Bounding box of the file's rows, [west, south, east, north] in degrees; left out unless finite.
        covering: Whether the column `bbox` has the bounding box of each row.
    """
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(types),
        "crs": CRS,
        "edges": "planar",
        "orientation": "counterclockwise",
    }
    if all(map(math.isfinite, bbox)):
        geometry["bbox"] = bbox
    if covering:
        geometry["covering"] = {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}}
    return {"version": "1.1.0", "primary_column": column, "columns": {column: geometry}}


class GeoParquetWriter:
    """A writer of row groups. The `geo` metadata is completed from their bounds when the file is closed.

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
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=[*plain, *int8_vectors, "sources.list.element"],
            column_encoding=byte_split or None,
            write_page_index=True,
            store_schema=True,
        )
        self._geometry, self._box = geometry, box
        self.bbox = [math.inf, math.inf, -math.inf, -math.inf]
        self.types: set[str] = set()
        self.rows = 0

    def write(self, table: pa.Table, bounds: list[float], types: set[str]) -> None:
        """Write one row group.

        Args:
            table: The rows.
            bounds: xmin, ymin, xmax, ymax of their footprints in degrees.
            types: Geometry types of their footprints.
        """
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self.bbox = [*map(min, self.bbox[:2], bounds[:2]), *map(max, self.bbox[2:], bounds[2:])]
        self.types |= types
        self.rows += len(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        geo = geo_metadata(self._geometry, self.types, self.bbox, covering=self._box is not None)
        self._writer.add_key_value_metadata({"geo": json.dumps(geo)})
        self._writer.close()
