"""A file of chips with all that an export must treat: the antimeridian, unknown values, dictionaries, int8."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from kiln.archives.naip.columns import COLUMNS
from kiln.formats import embeddings_file, vectors
from tests.support.chips import make_chip
from tests.support.products import shard_metadata

DIMENSIONS = 6


def footprint(n: int) -> shapely.Geometry:
    """Return a square of half a degree; every tenth lies over the antimeridian."""
    west, south = -180 + (n * 7.25) % 359, -40 + n % 80
    if n % 10 == 0:
        return shapely.MultiPolygon(
            [shapely.box(179.75, south, 180, south + 0.5), shapely.box(-180, south, -179.75, south + 0.5)]
        )
    return shapely.box(west, south, west + 0.5, south + 0.5)


def write_chips(
    path: Path, count: int = 100, *, vector_dtype: Any = "float32", embedding: Any = "class", row_group: int = 16,
    **metadata: Any,
) -> pa.Table:  # fmt: skip
    """Write chips to a file of several row groups; return its rows."""
    chips = [
        make_chip(
            n,
            footprint=footprint(n),
            datetime=None if n % 9 == 4 else datetime(2020 + n % 3, 1 + n % 12, 1 + n % 28, 23, 30, tzinfo=UTC),
            nodata_fraction=float(np.float32(n % 20 / 20)),
            cloud_fraction=None if n % 4 == 1 else n % 7 / 7,
            extra={"state": ("nd", "mn", "ne")[n % 3], "year": 2020 + n % 3},
        )
        for n in range(count)
    ]
    kiln = shard_metadata(dimensions=DIMENSIONS, vector_dtype=vector_dtype, embedding=embedding, **metadata)
    schema = embeddings_file.schema(DIMENSIONS, vector_dtype, COLUMNS, kiln, embedding)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((count, DIMENSIONS), np.float32) for name in vectors.KINDS[embedding]}
    with embeddings_file.ShardWriter(path, schema, row_group) as out:
        if count:
            out.append(chips, vectors.store(values, vector_dtype))
    return pq.read_table(path)
