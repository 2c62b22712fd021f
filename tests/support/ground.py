"""An explorer database whose chips belong to a few kinds of ground, with a vector index and a matrix."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kiln.archives.worldcover.lattice import Column
from kiln.explorer.build import Select, build, builder
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.matrix import Matrix
from kiln.explorer.matrix_cache import open_matrix
from tests.support.products import make_product, shard_metadata

COLUMNS = [Column(k, 0, 30) for k in range(40)]
DIM = 32
CLASSES = 6
Opened = tuple[ExplorerDatabase, Matrix]


def ground(chips):
    """Return vectors [n, D] with noise. The place of a chip in the lattice sets its kind of ground."""
    centres = np.random.default_rng(5).standard_normal((CLASSES, DIM)) + 2
    rng = np.random.default_rng([chips[0].extra["year"], chips[0].col])
    kinds = [(c.col // 7 + c.row // 5) % CLASSES for c in chips]
    return centres[kinds] + 0.5 * rng.standard_normal((len(chips), DIM))


def open_ground(run: Path) -> Opened:
    """Build a database of 2400 chips with a vector index. Return the database and its matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "MIN_INDEXED_ROWS", 1000)
        products = [
            make_product(run, y, columns=COLUMNS, vectors=ground, kiln=shard_metadata(dimensions=DIM))
            for y in (2020, 2021)
        ]
        build([m.record_file for m in products], [m.uri for m in products], str(run / "db"), Select())
    db = ExplorerDatabase(str(run / "db"))
    assert db.indexed
    return db, open_matrix(db, run / "cache")


def unit(matrix: Matrix) -> NDArray[np.float64]:
    """Return the vectors of a matrix [n, D], scaled to length 1."""
    wide = matrix.vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def kind(matrix: Matrix, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kind of ground of each row, computed from its position."""
    side = 512 / 12000
    col = np.rint((matrix["xmin"][rows] + 125) / side).astype(int)
    row = np.rint((50 - matrix["ymax"][rows]) / side).astype(int)
    return (col // 7 + row // 5) % CLASSES


def marks(matrix: Matrix, ground_kind: int, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return ids of random chips of one kind of ground."""
    rows = np.flatnonzero(kind(matrix, np.arange(len(matrix))) == ground_kind)
    return tuple(matrix.ids(np.random.default_rng(seed).choice(rows, count, replace=False)))
