"""Fixtures of the tests of writers: the same chips in every dtype of vectors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kiln.formats import vectors
from tests.support.exports import write_chips

KINDS = [("float32", "class"), ("float16", "class"), ("int8", "class"), ("float32", "both"), ("int8", "both")]


@dataclass(frozen=True)
class Source:
    """A file of chips, its rows, and the columns of vectors."""

    uri: str
    rows: pa.Table
    vector_dtype: str

    @property
    def columns(self) -> list[str]:
        """The columns of vectors."""
        return [name for name in vectors.SCALES if name in self.rows.column_names]

    def numbers(self, column: str = "embeddings") -> np.ndarray:
        """Return vectors [n, D] as float32."""
        values = np.array(self.rows[column].to_pylist(), np.float32)
        return values * self.rows[vectors.SCALES[column]].to_numpy()[:, None] if self.vector_dtype == "int8" else values

    @property
    def ids(self) -> list[str]:
        """The ids of the chips, in order."""
        return self.rows["chip_id"].to_pylist()


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def source(request, tmp_path_factory):
    """Write 100 chips, some over the antimeridian and some with unknown values."""
    vector_dtype, embedding = request.param
    path = tmp_path_factory.mktemp("chips") / "chips.parquet"
    return Source(str(path), write_chips(Path(path), vector_dtype=vector_dtype, embedding=embedding), vector_dtype)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Write chips of untrained weights."""
    path = tmp_path_factory.mktemp("untrained") / "chips.parquet"
    return Source(str(path), write_chips(path, 5, untrained=True), "float32")
