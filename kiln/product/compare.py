"""Compare the vectors of the same chips in two embeddings files: what a precision, dtype or setting costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ConfigError
from kiln.formats import embeddings_file, vectors
from kiln.formats.parquet import open_file, parquet_errors
from kiln.io import storage

NEIGHBOURS, MAX_QUERIES = 10, 1000  # of the recall
RUN_KEYS = ("sources", "software", "fingerprint", "dequantisation", "exports")  # metadata that is no setting

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class ChipVectors:
    """The vectors of an embeddings file.

    Attributes:
        chip_ids: Ids [n] of the chips.
        values: Their vectors [n, D].
        metadata: The `kiln` metadata of the file.
    """

    chip_ids: NDArray[np.object_]
    values: Vectors
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The agreement of two files.

    Attributes:
        common: Number of chips in both.
        only: Numbers of chips in the first and in the second alone.
        cosines: Cosine [common] of each chip's two vectors.
        centred_cosines: The same after the first file's mean was subtracted from both. It shows what separates chips.
        neighbours: Number of neighbours of the recall, fewer than 10 where there are fewer chips.
        recall: Mean fraction of a chip's nearest neighbours by cosine in the first file that are so in the second.
    """

    common: int
    only: tuple[int, int]
    cosines: Vectors
    centred_cosines: Vectors
    neighbours: int
    recall: float


def read_vectors(uri: str, column: str) -> ChipVectors:
    """Read one column of vectors of an embeddings file.

    Args:
        uri: Path or s3:// of the file.
        column: `embeddings` or `embeddings_mean`.

    Raises:
        ConfigError: If the file does not have the column.
        SourceError: If there is no file, or it is no embeddings file.
    """
    with storage.local_copy(uri) as path:
        metadata, file = embeddings_file.read_metadata(path, uri), open_file(path, uri)
        names = file.schema_arrow.names
        if column not in names:
            raise ConfigError(
                f"{uri}: expected a column {column}, got embedding {metadata.get('embedding')} without it. "
                "Choose another --column."
            )
        with parquet_errors(uri):
            rows = file.read([name for name in ("chip_id", column, vectors.SCALES[column]) if name in names])
    return ChipVectors(rows["chip_id"].to_numpy(), vectors.read(rows, column), metadata)


def compare_vectors(first: ChipVectors, second: ChipVectors) -> Comparison:
    """Compare the vectors of the chips that both files have.

    Raises ConfigError for files without a common chip, and for vectors of different lengths.
    """
    common, first_rows, second_rows = np.intersect1d(first.chip_ids, second.chip_ids, return_indices=True)
    if not len(common):
        raise ConfigError(
            "compare: expected two files of the same chips, got no chip in common. "
            "Compare the same shard or product of two runs."
        )
    a, b = first.values[first_rows], second.values[second_rows]
    if a.shape != b.shape:
        raise ConfigError(
            f"compare: expected vectors of one length, got {a.shape[1]} and {b.shape[1]} numbers. "
            "Compare files of one model."
        )
    mean = a.mean(axis=0)
    neighbours = min(NEIGHBOURS, len(common) - 1)
    return Comparison(
        common=len(common),
        only=(len(first.chip_ids) - len(common), len(second.chip_ids) - len(common)),
        cosines=_cosines(a, b),
        centred_cosines=_cosines(a - mean, b - mean),
        neighbours=neighbours,
        recall=_recall(a, b, neighbours) if neighbours else 1.0,
    )


def setting_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting in which the `kiln` metadata of two files differ."""
    keys = sorted((first.keys() | second.keys()) - set(RUN_KEYS))
    return [f"{key}: {first.get(key)} and {second.get(key)}" for key in keys if first.get(key) != second.get(key)]


def _normalised(values: Vectors) -> Vectors:
    """Return vectors [n, D] of length 1; a vector of zeros stays."""
    lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    normalised: Vectors = values / lengths
    return normalised


def _cosines(a: Vectors, b: Vectors) -> Vectors:
    cosines: Vectors = (_normalised(a) * _normalised(b)).sum(axis=1)
    return cosines


def _recall(a: Vectors, b: Vectors, neighbours: int) -> float:
    """Return the recall of `neighbours` over some rows, the same ones in every call."""
    queries = np.sort(np.random.default_rng(0).permutation(len(a))[:MAX_QUERIES])
    near_a, near_b = (_nearest(_normalised(values), queries, neighbours).tolist() for values in (a, b))
    return float(np.mean([len(set(x) & set(y)) / neighbours for x, y in zip(near_a, near_b, strict=True)]))


def _nearest(points: Vectors, queries: NDArray[np.int64], neighbours: int) -> NDArray[np.int64]:
    """Return the nearest rows [q, neighbours] of some rows of `points` [n, D] of length 1, themselves left out."""
    cosines = points[queries] @ points.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    nearest: NDArray[np.int64] = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
    return nearest
