"""Read products as GeoDataFrames."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError
from kiln.formats.bounding_box import BoundingBox, Bounds
from kiln.formats.parquet import parquet_errors
from kiln.io import storage
from kiln.io.range_file import RangeFile
from kiln.product.record import product_folder, read_record

PART = re.compile(r"part-\d+\.parquet")
SIDES = ("xmin", "ymin", "xmax", "ymax")  # of the `bbox` column
HALF_TURN = 180.0  # degrees: no chip is wider


def read_product(
    uri: str | Path, bbox: Sequence[float] | None = None, columns: Sequence[str] | None = None
) -> gpd.GeoDataFrame:
    """Read the chips of a product, from all of its part files.

    Only the row groups that meet the bounding box are read, and of them only the requested columns. Files on s3:// are
    not downloaded: the footer and the needed pieces are read by ranges.

    Vectors stay as they are stored, an array of `vector_dtype` per row: `numpy.stack(chips["embeddings"])` gives the
    matrix [n, D]. int8 vectors have a scale per row in the column `scale` (`scale_mean` for `embeddings_mean`). The
    numbers are `int8 * scale`, as in `numpy.stack(chips["embeddings"]) * chips["scale"].to_numpy()[:, None]`.

    Args:
        uri: The product's folder or its record (`<folder>.json`): path or s3://.
        bbox: Bounding box (west, south, east, north) in degrees. Chips whose own bounding box meets it are read. A box
            with west > east goes over the antimeridian.
        columns: Columns to read, in this order; None reads all but the `bbox` column. The geometry is always read.

    Returns:
        The chips in the product's order, along a Hilbert curve, with footprints in EPSG:4326.

    Raises:
        ConfigError: If the bounding box is no box, a column does not exist, or the record is another file.
        SourceError: If there is no product, or a file is missing or damaged.

    Example:
        >>> chips = read_product("results/sample/worldcover-8cd6f2dc/products/2021/206c30f9a7b14e04",
        ...                      bbox=(-98.6, 43.1, -98.5, 43.2), columns=["chip_id", "embeddings"])
    """
    boxes = _split_box(bbox) if bbox is not None else None
    tables: list[pa.Table] = []
    for part in _part_uris(str(uri)):
        tables.extend(_read_part(part, boxes, columns))
    table = pa.concat_tables(tables)
    names = list(columns) if columns is not None else table.column_names
    frame = gpd.GeoDataFrame(
        table.drop_columns("geometry").unify_dictionaries().to_pandas(),
        geometry=shapely.from_wkb(np.asarray(table["geometry"], dtype=object)),
        crs="EPSG:4326",
    )
    return frame[names if "geometry" in names else [*names, "geometry"]]


def _split_box(bbox: Sequence[float]) -> list[Bounds]:
    """Return the box, in two parts if it crosses the antimeridian. Raises ConfigError for anything else."""
    if len(bbox) != 4 or not all(map(math.isfinite, bbox)) or bbox[1] > bbox[3]:
        raise ConfigError(f"bbox: expected west, south, east, north in degrees, got {bbox}. Correct it.")
    return list(BoundingBox(*map(float, bbox)).parts())


def _part_uris(uri: str) -> list[str]:
    """Return the part files of a product by its folder or record, in order. Raises SourceError if there is none."""
    if uri.endswith(".json"):
        folder = product_folder(uri)
        return [storage.join(folder, file.name) for file in read_record(uri).files]
    names = [name.removeprefix(storage.join(uri, "")) for name in storage.listing(uri)]
    if parts := sorted(name for name in names if PART.fullmatch(name)):
        return [storage.join(uri, name) for name in parts]
    raise SourceError(f"{uri}: expected the folder or record of a product, got no part file. Correct the address.")


def _read_part(uri: str, boxes: Sequence[Bounds] | None, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield the part's rows, one table for each row group that has some, and an empty table first."""
    with _open(uri) as stream, parquet_errors(uri):
        file = pq.ParquetFile(stream, pre_buffer=True)
        names = file.schema_arrow.names
        if unknown := [name for name in columns or () if name not in names]:
            raise ConfigError(f"{uri}: expected columns of the product, got {', '.join(unknown)}. It has {names}.")
        needed = [n for n in names if n == "geometry" or (n in columns if columns is not None else n != "bbox")]
        yield file.schema_arrow.remove_metadata().empty_table().select(needed)
        for group in range(file.num_row_groups):
            if boxes is None:
                yield file.read_row_group(group, needed).select(needed).replace_schema_metadata(None)
            elif any(_may_meet(file.metadata, group, box) for box in boxes):
                rows = np.flatnonzero(_meets(file.read_row_group(group, ["bbox"])["bbox"], boxes))
                if len(rows):
                    table = file.read_row_group(group, needed).select(needed).replace_schema_metadata(None)
                    yield table.take(pa.array(rows))


def _open(uri: str) -> Any:
    """Open a file for reading by ranges. Raises SourceError if there is none."""
    source = storage.stat(uri)
    if source is None:
        raise SourceError(f"{uri}: expected a part of a product, got no file. Merge the shards again.")
    return RangeFile(uri, source) if storage.is_remote(uri) else Path(uri).open("rb")


def _may_meet(metadata: pq.FileMetaData, group: int, box: Bounds) -> bool:
    """Return whether chips of a row group may meet a box with west <= east, by the statistics of its bounding boxes.

    A chip over the antimeridian has xmin > xmax. A row group may have one if they lie half a turn apart.
    """
    row_group = metadata.row_group(group)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    statistics = {c.path_in_schema.removeprefix("bbox."): c.statistics for c in columns}
    if any(statistics.get(side) is None or not statistics[side].has_min_max for side in SIDES):
        return True
    low, high = ({side: getattr(statistics[side], end) for side in SIDES} for end in ("min", "max"))
    west, south, east, north = box
    if low["ymin"] > north or high["ymax"] < south:
        return False
    return bool((low["xmin"] <= east and high["xmax"] >= west) or high["xmin"] - low["xmax"] > HALF_TURN)


def _meets(column: pa.ChunkedArray, boxes: Sequence[Bounds]) -> NDArray[np.bool_]:
    """Return which chips [n] meet any of the boxes, by their `bbox` values."""
    values = column.combine_chunks()
    xmin, ymin, xmax, ymax = (np.asarray(values.field(side)) for side in SIDES)
    meets = np.zeros(len(values), bool)
    for west, south, east, north in boxes:
        in_longitude = np.where(xmin > xmax, (xmin <= east) | (xmax >= west), (xmin <= east) & (xmax >= west))
        meets |= in_longitude & (ymin <= north) & (ymax >= south)
    return meets
