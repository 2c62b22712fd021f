"""Read products as GeoDataFrames."""

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import shapely

from kiln.product.rows.row_filter import RowFilter
from kiln.product.rows.row_stream import open_rows


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
        uri: The product's folder, its record (`<folder>.json`), or one file of chips (`.parquet`): path or s3://.
        bbox: Bounding box (west, south, east, north) in degrees. Chips whose own bounding box meets it are read. A box
            with west > east goes over the antimeridian.
        columns: Columns to read, in this order; None reads all but the `bbox` column. The geometry is always read.

    Returns:
        The chips in the product's order, along a Hilbert curve, with footprints in EPSG:4326.

    Raises:
        ConfigError: If the bounding box is no box, a column does not exist, or the file is another one.
        SourceError: If there is no product, or a file is missing or damaged.

    Example:
        >>> chips = read_product("results/sample/worldcover-8cd6f2dc/products/2021/206c30f9a7b14e04",
        ...                      bbox=(-98.6, 43.1, -98.5, 43.2), columns=["chip_id", "embeddings"])
    """
    rows = open_rows(str(uri), RowFilter(bbox=None if bbox is None else tuple(bbox)))
    names = list(columns) if columns is not None else [name for name in rows.schema.names if name != "bbox"]
    rows.check_columns(names)
    needed = [name for name in rows.schema.names if name == "geometry" or name in names]
    empty = pa.schema([rows.schema.field(name) for name in needed]).empty_table()
    table = pa.concat_tables([empty, *rows.batches(needed)])
    frame = gpd.GeoDataFrame(
        table.drop_columns("geometry").unify_dictionaries().to_pandas(),
        geometry=shapely.from_wkb(np.asarray(table["geometry"], dtype=object)),
        crs="EPSG:4326",
    )
    return frame[names if "geometry" in names else [*names, "geometry"]]
