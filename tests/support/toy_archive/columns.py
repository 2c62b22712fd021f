"""The toy archive's own columns of the embeddings file."""

import pyarrow as pa

from kiln.formats.columns import ColumnSpec

COLUMNS = (ColumnSpec("year", pa.int16(), "year in the tile's path", "calendar year", nullable=True),)
