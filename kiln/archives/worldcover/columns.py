"""WorldCover's own columns of the embeddings file, after the common ones."""

import pyarrow as pa

from kiln.formats.columns import ColumnSpec

COLUMNS = (ColumnSpec("year", pa.int16(), "year of the composite", "calendar year", nullable=True),)
