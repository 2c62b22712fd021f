"""How good and how fast the search of an explorer table is: recall@10 against exact search, and time per query."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from kiln.explorer import database
from kiln.explorer.colours import unit
from kiln.explorer.database import Table
from kiln.explorer.ranking import mean_direction

QUERIES = 100
K = 10


def measure(chips: Table) -> dict[str, Any]:
    """Rows, kind of search, recall@10 of that search for seeded queries, and the median of its times in milliseconds.

    The truth is NumPy's over all vectors where they are few, else LanceDB's own exact search.
    """
    rows = chips.count_rows()
    indexed = any(database.VECTOR in i.columns for i in chips.list_indices())
    k, found, asked, times = min(K, rows), 0, 0, []
    if rows:
        chosen = np.random.default_rng(0).choice(rows, min(QUERIES, rows), replace=False)
        columns = ["chip_id", database.VECTOR]
        queries = asked_for(matrix(chips.take_offsets(sorted(chosen.tolist())).select(columns).to_arrow())[1])
        every = None if indexed else matrix(chips.search().select(columns).limit(rows).to_arrow())
        for query in queries:
            began = time.perf_counter()
            hits = database.nearest(chips, query, k)
            times.append(time.perf_counter() - began)
            fast = {h["chip_id"] for h in hits}
            if every is None:
                true = {h["chip_id"] for h in database.nearest(chips, query, k, exact=True)}
                found += len(fast & true)
            else:  # ties count as found: any k rows as near as the k-th are right
                ids, vectors = every
                cosine = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(query), 1e-12)
                near = cosine >= np.partition(cosine, -k)[-k] - 1e-6
                found += len(fast & {ids[i] for i in np.flatnonzero(near)})
            asked += k
    return {
        "rows": rows,
        "search": "IVF_SQ" if indexed else "exact",
        "recall_at_10": found / asked if asked else 1.0,
        "settings": {"probes": database.probes(rows), "refine": database.REFINE, "metric": database.METRIC},
        "query_ms": round(1000 * float(np.median(times)), 2) if times else 0.0,
    }


def asked_for(vectors: np.ndarray) -> np.ndarray:
    """Queries [n, D] as people ask them, of the vectors [n, D] of chips: every other one is a mean of marks."""
    queries = unit(vectors)
    for n in range(1, len(queries) - 4, 2):
        likes, dislikes = vectors[n : n + 1 + n % 3], vectors[n + 3 : n + 3 + n % 4 // 2]
        queries[n] = mean_direction(unit(likes), unit(dislikes))
    return queries


def matrix(rows: pa.Table) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [n, D], float32."""
    vectors = rows[database.VECTOR].combine_chunks().flatten().cast(pa.float32())
    return rows["chip_id"].to_pylist(), np.asarray(vectors).reshape(len(rows), -1)
