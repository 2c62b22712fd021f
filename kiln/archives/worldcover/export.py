"""Export a year in the layout of the published run: one file per column, `embeddings` and `bbox`, nothing else.

Files are named `worldcover_embeddings_{year}_{column}_v{version}.gpq`. Columns count from -125 degrees east. `bbox` is
the chip's polygon, the primary geometry. Rows go from north to south.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kiln.archives.worldcover.lattice import Lattice
from kiln.errors import ConfigError
from kiln.formats import embeddings_file, vectors
from kiln.formats.columns import BBOX_SIDES
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.ledger import read_ledger
from kiln.formats.parquet import read_table
from kiln.io import storage


def export_product(year: str, parts: Sequence[str], ledger: str, out: str, version: str) -> list[str]:
    """Write the columns of a product, one of them in memory at a time.

    Args:
        year: Partition of the product.
        parts: Paths or s3:// of the product's Parquet files.
        ledger: Path or s3:// of its ledger.
        out: Folder or s3:// to write to.
        version: Version of the published series, as in `002`.

    Returns:
        The names of the written files, west to east. A column without chips is a file without rows.

    Raises:
        ConfigError: If chips were embedded in quarters.
        SourceError: If a file is missing.
    """
    names = []
    with ExitStack() as stack:
        paths = [stack.enter_context(storage.local_copy(part)) for part in parts]
        metadata = embeddings_file.read_metadata(paths[0], parts[0])
        if metadata["lattice"]["encode"] != "whole":
            raise ConfigError(
                f"{parts[0]}: expected one row per chip, got chips embedded in quarters. "
                "The published layout has no place for them."
            )
        for column in planned_columns(ledger, metadata["lattice"]):
            name = f"worldcover_embeddings_{year}_{column}_v{version}.gpq"
            _write_column(paths, column, metadata["vector_dtype"], storage.join(out, name))
            names.append(name)
    return names


def planned_columns(ledger: str, layout: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the columns in a product's ledger, sorted; columns without chips are among them."""
    lattice = Lattice(layout["chip_size"], layout["pixels_per_degree"])
    with storage.local_copy(ledger) as path:
        units = read_ledger(path, ledger)["unit_id"].to_pylist()
    starts = [int(unit.split(":")[3].removeprefix("x")) for unit in units]  # on the 1/12000 degree grid
    return sorted((x - lattice.native(lattice.x(0))) // lattice.native(lattice.chip) for x in starts)


def _write_column(paths: Sequence[Path], column: int, vector_dtype: str, uri: str) -> None:
    """Write the rows of one column, from all parts."""
    scales = [vectors.SCALES["embeddings"]] if vector_dtype == "int8" else []
    names = ["embeddings", *scales, "geometry", "bbox", "row"]
    rows = pa.concat_tables(
        read_table(path, columns=names, filters=pc.field("col") == column).replace_schema_metadata(None)
        for path in paths
    ).sort_by("row")
    box = rows["bbox"].combine_chunks()
    sides = np.stack([np.asarray(box.field(side)) for side in BBOX_SIDES], axis=1)
    extent = Extent.of_boxes(sides, frozenset({"Polygon"} if len(rows) else ()))
    embeddings = _as_float32(rows) if scales else rows["embeddings"]
    table = pa.table({"embeddings": embeddings, "bbox": rows["geometry"]})
    with storage.atomic(uri) as path, GeoParquetWriter(path, table.schema, geometry="bbox", box=None) as file:
        file.write(table, extent)


def _as_float32(rows: pa.Table) -> pa.FixedSizeListArray:
    """Return int8 vectors as the float32 that the published files hold."""
    values = vectors.read(rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
