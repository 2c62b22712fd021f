"""Compare the vectors of the same chips in two embeddings files: what a precision, a storage or a setting costs.

    python -m kiln.cli.compare results/a/.../shards/2021/c00512.parquet results/b/.../shards/2021/c00512.parquet

Chips are matched by their ids. Two cosines are told: that of a chip's two vectors, and the same after the first file's
mean vector was taken from both, which is what tells chips apart. Recall@10 is the share of a chip's ten nearest by
cosine in the first file that are its ten nearest in the second.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats import embeddings_file, vectors
from kiln.formats.parquet import open_file, parquet_errors
from kiln.io import storage
from kiln.io.text_table import aligned

K, QUERIES = 10, 1000
ASIDE = ("sources", "software", "fingerprint", "dequantisation")  # of the metadata, not what was chosen
LOWEST = (0, 1, 50)  # percentiles that are told, the least first


@dataclass(frozen=True)
class Comparison:
    """Chips that both files have, or one alone; cosines [chips in both], plain and about the mean; recall of `k`."""

    both: int
    only: tuple[int, int]
    cosines: np.ndarray
    centred: np.ndarray
    recall: float
    k: int


def read(uri: str, column: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Chip ids [n], vectors [n, D] float32 of a column, and the `kiln` metadata of a file.

    Raises ConfigError for a file without such vectors, SourceError for one that is no embeddings file.
    """
    with storage.local_copy(uri) as path:
        about, file = embeddings_file.read_metadata(path), open_file(path)
        names = file.schema_arrow.names
        if column not in names:
            raise ConfigError(f"{uri}: has no {column}; its `embedding` is {about.get('embedding')}")
        with parquet_errors(path):
            rows = file.read([n for n in ("chip_id", column, vectors.SCALES[column]) if n in names])
    return rows["chip_id"].to_numpy(), vectors.read(rows, column), about


def unit(values: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of length 1; one of zeros stays."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def nearest(points: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The `k` nearest by cosine [q, k] of some rows of `points` [n, D] of length 1, themselves left out."""
    likeness = points[queries] @ points.T
    likeness[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-likeness, k - 1, axis=1)[:, :k]


def compare(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Comparison:
    """Of chip ids [n] and vectors [n, D] of either file. Raises ConfigError for no chip in both, or another length."""
    shared, mine, its = np.intersect1d(first[0], second[0], return_indices=True)
    a, b = first[1][mine], second[1][its]
    if not len(shared):
        raise ConfigError("the two files have no chip in common: compare the same shard or product of two runs")
    if a.shape != b.shape:
        raise ConfigError(f"vectors of {a.shape[1]} and {b.shape[1]} numbers: two models cannot be compared")
    mean = a.mean(axis=0)
    k = min(K, len(shared) - 1)
    recall = 1.0
    if k:
        queries = np.sort(np.random.default_rng(0).permutation(len(shared))[:QUERIES])
        true, found = nearest(unit(a), queries, k), nearest(unit(b), queries, k)
        recall = float(np.mean([len(set(x) & set(y)) / k for x, y in zip(true.tolist(), found.tolist(), strict=True)]))
    only = len(first[0]) - len(shared), len(second[0]) - len(shared)
    cosines, centred = (unit(a) * unit(b)).sum(axis=1), (unit(a - mean) * unit(b - mean)).sum(axis=1)
    return Comparison(len(shared), only, cosines, centred, recall, k)


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What was chosen otherwise, a line each."""
    keys = sorted((first.keys() | second.keys()) - set(ASIDE))
    return [f"{k}: {first.get(k)} and {second.get(k)}" for k in keys if first.get(k) != second.get(k)]


def report(found: Comparison) -> str:
    """The table."""
    rows = [["", "least", "1 % are below", "median"]]
    for name, values in (("cosine", found.cosines), ("cosine about the mean", found.centred)):
        rows.append([name, *(f"{v:.6f}" for v in np.percentile(values, LOWEST))])
    chips = f"{found.both:,} chips in both files"
    if any(found.only):
        chips += f", {found.only[0]:,} in the first alone, {found.only[1]:,} in the second alone"
    return "\n".join([chips, "", *aligned(rows), "", f"recall@{found.k} {found.recall:.4f}"])


def main(argv: list[str] | None = None) -> None:
    """Print what differs."""
    p = command_line.parser(__doc__, "kiln.cli.compare")
    p.add_argument("first", help="embeddings file: path or s3://")
    p.add_argument("second", help="the other")
    p.add_argument("--column", choices=tuple(vectors.SCALES), default="embeddings", help="which vectors")
    args = p.parse_args(argv)

    def work() -> None:
        *a, first = read(args.first, args.column)
        *b, second = read(args.second, args.column)
        print("\n".join(differences(first, second) or ["the same settings"]))
        print(report(compare((a[0], a[1]), (b[0], b[1]))))

    command_line.run(work)


if __name__ == "__main__":
    main()
