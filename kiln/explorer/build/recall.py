"""Quality and speed of an explorer table's search: recall@10 against exact search, and time per query."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kiln.explorer.colours import unit
from kiln.explorer.database import METRIC, REFINE_FACTOR, VECTOR, Table, nearest, probes
from kiln.explorer.ranking import mean_direction

QUERIES = 100
K = 10


def measure_recall(chips: Table) -> dict[str, Any]:
    """Return rows, kind of search, its recall@10 for seeded queries, its settings, and the median time in milliseconds.

    The reference of a table without a vector index is NumPy over all vectors; else LanceDB's own exact search.
    """
    rows = chips.count_rows()
    indexed = any(VECTOR in index.columns for index in chips.list_indices())
    k, hits, total, times_s = min(K, rows), 0, 0, []
    if rows:
        chosen = np.random.default_rng(0).choice(rows, min(QUERIES, rows), replace=False)
        columns = ["chip_id", VECTOR]
        queries = draw_queries(
            _ids_and_vectors(chips.take_offsets(sorted(chosen.tolist())).select(columns).to_arrow())[1]
        )
        everything = None if indexed else _ids_and_vectors(chips.search().select(columns).limit(rows).to_arrow())
        for query in queries:
            start = time.perf_counter()
            ids = _nearest_ids(chips, query, k)
            times_s.append(time.perf_counter() - start)
            if everything is None:
                hits += len(ids & _nearest_ids(chips, query, k, exact=True))
            else:  # ties count: any k rows as near as the k-th are right
                all_ids, vectors = everything
                cosine = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(query), 1e-12)
                near = cosine >= np.partition(cosine, -k)[-k] - 1e-6
                hits += len(ids & {all_ids[i] for i in np.flatnonzero(near)})
            total += k
    return {
        "rows": rows,
        "search": "IVF_SQ" if indexed else "exact",
        "recall_at_10": hits / total if total else 1.0,
        "settings": {"probes": probes(rows), "refine": REFINE_FACTOR, "metric": METRIC},
        "query_ms": round(1000 * float(np.median(times_s)), 2) if times_s else 0.0,
    }


def draw_queries(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return queries [n, D] like those of people, from the vectors [n, D] of chips: every other is a mean of marks."""
    queries = unit(vectors)
    for n in range(1, len(queries) - 4, 2):
        likes, dislikes = vectors[n : n + 1 + n % 3], vectors[n + 3 : n + 3 + n % 4 // 2]
        queries[n] = mean_direction(unit(likes), unit(dislikes))
    return queries


def _nearest_ids(chips: Table, query: NDArray[np.float32], k: int, *, exact: bool = False) -> set[str]:
    return set(nearest(chips, query, k, ["chip_id"], exact=exact)["chip_id"].to_pylist())


def _ids_and_vectors(rows: pa.Table) -> tuple[list[str], NDArray[np.float32]]:
    """Return ids and vectors [n, D]."""
    vectors = rows[VECTOR].combine_chunks().flatten().cast(pa.float32())
    return rows["chip_id"].to_pylist(), np.asarray(vectors).reshape(len(rows), -1)
