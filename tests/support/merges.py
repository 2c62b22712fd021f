"""Settings of merged products that several tests use."""

import pyarrow.parquet as pq

from kiln.archives.worldcover.lattice import Column
from tests.support.products import shard_metadata

GRID = [Column(k, 0, 40) for k in range(40)]  # 1600 chips
WIDE = shard_metadata(dimensions=1024)  # as Clay's
PART_BYTES = 1_200_000  # the product of `GRID` has several parts


def open_parts(product):
    """Open the part files of a product in their order."""
    return [pq.ParquetFile(f"{product.uri}/{f['name']}") for f in product.record["files"]]
