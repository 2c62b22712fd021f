"""The order of a product's rows: along a Hilbert curve, so that neighbours on the ground are neighbours in the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiln.formats import embeddings_file
from kiln.formats.parquet import open_file, parquet_errors

LEVEL = 16  # bits per axis of the curve's cells; a key then fills a uint32
BATCH_ROWS = 100_000  # keyed at a time, which bounds the temporary arrays


@dataclass(frozen=True)
class ProductOrder:
    """The destination of every row of a partition's shards.

    Attributes:
        rank: Rank [n] int64 of each row in the product, -1 for a row that is left out. Rows are numbered through the
            shards, one shard after the other.
        starts: Number of the first row of each shard.
    """

    rank: NDArray[np.int64]
    starts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The number of rows in the product."""
        return int((self.rank >= 0).sum())


def hilbert_order(shards: Sequence[Path], keep: NDArray[np.bool_] | None = None) -> ProductOrder:
    """Rank every row along a Hilbert curve through the centres of the footprints' bounding boxes.

    The curve spans the centres of all kept rows. Rows with equal keys stay in the order of the shards. Only the `bbox`
    columns are read.

    Args:
        shards: Embeddings files.
        keep: Mask [n] of the rows that the product gets; None keeps all.

    Raises:
        SourceError: If a shard is not a whole Parquet file.
    """
    centres_by_shard, starts, row_count = [], [], 0
    for path in shards:
        starts.append(row_count)
        with parquet_errors(path):
            box = open_file(path).read(columns=["bbox"])["bbox"].combine_chunks()
        centres_by_shard.append(np.stack(embeddings_file.box_centres(box), axis=1))
        row_count += len(box)
    centres = np.concatenate(centres_by_shard) if centres_by_shard else np.empty((0, 2))
    rank = np.full(row_count, -1, np.int64)
    kept = np.flatnonzero(keep) if keep is not None else np.arange(row_count)
    rank[kept[np.argsort(hilbert_keys(centres[kept]), kind="stable")]] = np.arange(len(kept))
    return ProductOrder(rank, tuple(starts))


def hilbert_keys(points: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Return the distance [n] of points [n, 2] along the Hilbert curve over their own bounds.

    The keys are those of `geopandas.GeoSeries.hilbert_distance(level=16)`, bit by bit.
    """
    keys = np.zeros(len(points), np.uint32)
    if not len(points):
        return keys
    west, south = points.min(axis=0)
    width, height = np.ptp(points, axis=0)
    for first in range(0, len(points), BATCH_ROWS):
        batch = points[first : first + BATCH_ROWS]
        x, y = _cells(batch[:, 0], west, width), _cells(batch[:, 1], south, height)
        keys[first : first + BATCH_ROWS] = _distances(x, y)
    return keys


def _cells(values: NDArray[np.float64], low: np.float64, extent: np.float64) -> NDArray[np.uint32]:
    """Return the curve's cell of each coordinate along one axis; all 0 where the axis has no extent."""
    last = 2**LEVEL - 1
    if extent == 0:
        return np.zeros(len(values), np.uint32)
    cells: NDArray[np.uint32] = np.clip((values - low) * (last / extent), 0, last).astype(np.uint32)
    return cells


def _distances(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the position of cells along the curve, two bits a level; `x` and `y` are overwritten.

    Each level picks a quadrant. In the lower two the curve is turned: x and y are swapped, at the right also mirrored.
    """
    keys, one = np.zeros(len(x), np.uint32), np.uint32(1)
    for bit in reversed(range(LEVEL)):
        right, upper = (x >> np.uint32(bit)) & one, (y >> np.uint32(bit)) & one
        keys <<= np.uint32(2)
        keys |= (np.uint32(3) * right) ^ upper
        mirror, swap = -(right & ~upper), upper - one  # all bits set where they apply, since uint32 wraps at 0
        x ^= mirror
        y ^= mirror
        difference = (x ^ y) & swap
        x ^= difference
        y ^= difference
    return keys
