"""Sentinel-2's own columns of the embeddings file, after the common ones."""

import pyarrow as pa

from kiln.formats.columns import TEXTS, ColumnSpec

COLUMNS = (
    ColumnSpec("platform", TEXTS, "satellite, as the item names it: sentinel-2a", nullable=True),
    ColumnSpec("mgrs_tile", TEXTS, "tile of the Military Grid Reference System: 14TPP", nullable=True),
    ColumnSpec("processing_baseline", TEXTS, "version of ESA's processor: 05.00", nullable=True),
    ColumnSpec(
        "offset_applied",
        pa.bool_(),
        "whether Kiln subtracted 1000, the offset, from the file's numbers",
        nullable=True,
    ),
    ColumnSpec("sun_elevation", pa.float32(), "elevation of the sun above the horizon", "degrees", nullable=True),
)
