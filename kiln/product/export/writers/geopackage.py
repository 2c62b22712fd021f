"""Exported rows as a GeoPackage with one layer."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from kiln.errors import StorageError
from kiln.product.export.writers.exported_rows import LAYER, UNTRAINED, ExportedRows
from kiln.product.export.writers.flat_columns import joined, plain_type, vector_bytes, without_dictionary

DATE = {"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"}  # of changes, so that equal rows give equal bytes
SUFFIX_WARNING = "The filename extension should be 'gpkg'"  # a file has another name until it is complete


def write(path: Path, rows: ExportedRows) -> None:
    """Write the rows as layer `chips` with a spatial index.

    Vectors become blobs of little-endian float32. Lists of text become a text with one value a line.
    """
    import pyogrio
    import pyogrio.errors

    path.unlink(missing_ok=True)  # GDAL takes an empty file for a damaged one
    schema = _schema(rows)
    geometry_type = "Polygon" if rows.geometry_types == {"Polygon"} else "MultiPolygon"
    errors: list[BaseException] = []
    stream = pa.RecordBatchReader.from_batches(schema, _batches(rows, schema, geometry_type, errors))
    facts = rows.facts()
    before = {name: pyogrio.get_gdal_config_option(name) for name in DATE}
    pyogrio.set_gdal_config_options(DATE)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", SUFFIX_WARNING, RuntimeWarning)
            pyogrio.write_arrow(
                stream,
                path,
                layer=LAYER,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type=geometry_type,
                crs="EPSG:4326",
                layer_metadata={"kiln": json.dumps(facts, sort_keys=True)},
                layer_options={"DESCRIPTION": _description(rows)},
            )
    except Exception as e:
        if errors:  # GDAL replaces what reading raised by an error of its own
            raise errors[0] from None
        if isinstance(e, pyogrio.errors.DataSourceError | pyogrio.errors.DataLayerError):
            raise StorageError(f"{path}: cannot be written: {e}. Choose another place, or free it.") from e
        raise
    finally:
        pyogrio.set_gdal_config_options(before)
    if errors:
        raise errors[0]


def _description(rows: ExportedRows) -> str:
    titles = [f"{p.get('dataset', '')} {p.get('partition', '')}".strip() for p in rows.facts()["products"]]
    return " ".join(filter(None, [f"Chips of {', '.join(titles)}.", UNTRAINED if rows.untrained else ""]))


def _schema(rows: ExportedRows) -> pa.Schema:
    fields = []
    for name in rows.plain:
        dtype = plain_type(rows.schema.field(name).type)
        fields.append(pa.field(name, pa.string() if pa.types.is_list(dtype) else dtype))
    fields += [pa.field(name, pa.binary()) for name in rows.vectors]
    return pa.schema([*fields, pa.field("geometry", pa.binary())])


def _batches(
    rows: ExportedRows, schema: pa.Schema, geometry_type: str, errors: list[BaseException]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows as GDAL takes them. What reading raises is added to `errors` too."""
    try:
        for batch in rows.batches:
            columns: dict[str, Any] = {name: without_dictionary(batch[name]) for name in rows.plain}
            for name, column in columns.items():
                if pa.types.is_list(column.type):
                    columns[name] = joined(column, "\n")
            columns |= {name: vector_bytes(batch, name) for name in rows.vectors}
            columns["geometry"] = _footprints(batch["geometry"], geometry_type)
            yield from pa.table([columns[name] for name in schema.names], schema=schema).to_batches()
    except BaseException as e:
        errors.append(e)
        raise


def _footprints(column: pa.ChunkedArray, geometry_type: str) -> pa.ChunkedArray | pa.Array:
    """Return footprints as WKB of one type: a layer has one."""
    if geometry_type == "Polygon":
        return column
    footprints = shapely.from_wkb(np.asarray(column, dtype=object))
    single = np.flatnonzero(shapely.get_type_id(footprints) == shapely.GeometryType.POLYGON)
    footprints[single] = shapely.multipolygons(footprints[single], indices=np.arange(len(single)))
    return pa.array(shapely.to_wkb(footprints, byte_order=1), pa.binary())
