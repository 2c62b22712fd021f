"""NAIP's own columns of the embeddings file, after the common ones."""

import pyarrow as pa

from kiln.formats.columns import TEXTS, ColumnSpec

COLUMNS = (
    ColumnSpec("state", TEXTS, "state, two letters, in the path of the scene's key", nullable=True),
    ColumnSpec(
        "year",
        pa.int16(),
        "year in the path of the scene's key; the acquisition may be in the next year",
        "calendar year",
        nullable=True,
    ),
)
