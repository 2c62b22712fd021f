"""Search: from marks to the chips most like them. The command line, the page, the API and the contact sheet use it.

A `Query` is answered in one of two ways, with equal results:

- By the table (LanceDB), without a preparation. This needs method `mean`, filters that are SQL (all but `area`) and no
  `apart_km`; `needs_matrix` is the rule.
- By the matrix, an array of every chip in the cache folder, which takes minutes to build for a large database. Callers
  that have it open, such as the page, pass it, and every query uses it.

Both ways use the vector index if the filters leave more than MAX_EXACT_ROWS chips, and compare every chip otherwise.
Similarities are always computed again from the vectors in float32.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ConfigError
from kiln.explorer import ranking
from kiln.explorer.chips import ChipFacts, Hit
from kiln.explorer.colours import unit
from kiln.explorer.database import (
    FACTS,
    VECTOR,
    ExplorerDatabase,
    answers,
    facts_of,
    nearest,
    probes,
    vectors_of,
)  # fmt: skip
from kiln.explorer.filters import EVERY_CHIP, ChipFilter
from kiln.explorer.matrix import BOX, Mask, Matrix, Rows
from kiln.explorer.ranking import Direction, Scores
from kiln.formats.bounding_box import Bounds

METHODS = ("mean", "linear")
MAX_MARKS = 1000  # of each kind
MAX_RESULTS = 10_000
MAX_APART_KM = 20_000.0  # half of the Earth's circumference
MIN_LINEAR_MARKS = 3  # of each kind
MAX_LINEAR_CHIPS = 5_000_000
MAX_EXACT_ROWS = 100_000  # so few chips are compared one by one, as fast as through the index
TOO_FEW = "The index gave too few: every chip was compared."
ComparedBy = Literal["exact", "index", "none"]


@dataclass(frozen=True)
class Query:
    """A search.

    Attributes:
        likes: Ids of chips that the results should be like.
        dislikes: Ids of chips that the results should not be like.
        at: Longitude and latitude in degrees; the chip that covers the point is a like.
        method: `mean` (cosine to the mean of the marks) or `linear` (a classifier of the marks).
        k: Number of results.
        apart_km: Minimum distance between results; 0: none.
        chip_filter: Conditions of the results. A chip `at` a place need not lie in its box or area.
    """

    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()
    at: tuple[float, float] | None = None
    method: str = "mean"
    k: int = 48
    apart_km: float = 0.0
    chip_filter: ChipFilter = EVERY_CHIP

    def __post_init__(self) -> None:
        """Raise ConfigError for a query without an answer."""
        for name, marks in (("likes", self.likes), ("dislikes", self.dislikes)):
            if len(marks) > MAX_MARKS:
                raise ConfigError(f"search: expected at most {MAX_MARKS} {name}, got {len(marks)}. Use the best ones.")
        if self.method not in METHODS:
            raise ConfigError(f"search: expected method {' or '.join(METHODS)}, got {self.method[:40]!r}.")
        if not 1 <= self.k <= MAX_RESULTS:
            raise ConfigError(f"search: expected 1 to {MAX_RESULTS} results, got {self.k}.")
        if not 0 <= self.apart_km <= MAX_APART_KM:
            raise ConfigError(f"search: expected 0 to {MAX_APART_KM:.0f} km apart, got {self.apart_km}.")
        if both := sorted(set(self.likes) & set(self.dislikes)):
            raise ConfigError(f"search: {both[0]} is liked and disliked. Remove one of the marks.")
        if not self.likes and self.at is None:
            raise ConfigError("search: expected a like or a place, got none. Mark a chip.")
        counts = [len(set(self.likes)) + (self.at is not None), len(set(self.dislikes))]
        if self.method == "linear" and min(counts) < MIN_LINEAR_MARKS:
            raise ConfigError(
                f"search: expected at least {MIN_LINEAR_MARKS} likes and {MIN_LINEAR_MARKS} dislikes for linear, got "
                f"{counts[0]} and {counts[1]}. Mark more chips, or use mean."
            )


@dataclass(frozen=True)
class SearchResult:
    """The answer to a query.

    Attributes:
        reference: The chip that stands for the query: the chip at the place, or the first like.
        hits: The results, best first; equal similarities by chip_id. Marked chips are left out.
        vectors: The results' vectors, [m, D].
        compared_by: `index` (vector index, approximate), `exact` (every chip) or `none` (the filters leave no chip).
        note: What a person should know; may be empty.
    """

    reference: ChipFacts
    hits: tuple[Hit, ...]
    vectors: NDArray[np.float16]
    compared_by: ComparedBy
    note: str = ""


def needs_matrix(query: Query) -> bool:
    """Return whether the table alone cannot answer a query."""
    return query.method != "mean" or query.apart_km > 0 or query.chip_filter.area is not None


def search(db: ExplorerDatabase, query: Query, matrix: Matrix | None = None, mask: Mask | None = None) -> SearchResult:
    """Answer a query.

    Args:
        db: The database.
        query: The query.
        matrix: The matrix of the database's version, n chips. It is required if `needs_matrix(query)`.
        mask: `query.chip_filter.mask(matrix)`, [n], if it is known already.

    Returns:
        At most k hits.

    Raises:
        UnknownChipError: The database does not have a mark, or no chip covers the place.
        ConfigError: An empty database, an unknown dataset, marks that cancel out, or too many chips for `linear`.
        TransientError: The database does not answer.
    """
    place = () if query.at is None else (db.at(*query.at, query.chip_filter).chip_id,)
    likes = tuple(dict.fromkeys((*place, *query.likes)))
    dislikes = tuple(dict.fromkeys(query.dislikes))
    if both := sorted(set(likes) & set(dislikes)):
        raise ConfigError(f"search: {both[0]} is liked and disliked. Remove one of the marks.")
    if matrix is None:
        return _by_table(db, query, likes, dislikes)
    return _by_matrix(db, query, likes, dislikes, matrix, query.chip_filter.mask(matrix) if mask is None else mask)


def _raise_if_empty(db: ExplorerDatabase, rows: int) -> None:
    if not rows:
        raise ConfigError(f"{db.uri}: the database is empty: there is no chip to search")


def _no_chip(bounds: Bounds) -> str:
    """Return the note of a search whose filters leave no chip."""
    west, south, east, north = bounds
    return f"The filters leave no chip; the data lie within {west:.2f}, {south:.2f}, {east:.2f}, {north:.2f}."


def _index_probes(rows: int, passing: int) -> int:
    """Return how many partitions to look into if `passing` of `rows` chips pass the filters: more for fewer."""
    return math.ceil(probes(rows) / math.sqrt(max(passing / rows, 1e-6)))


# ---------------------------------------------------------------------------------------------------- by the table


def _by_table(db: ExplorerDatabase, query: Query, likes: tuple[str, ...], dislikes: tuple[str, ...]) -> SearchResult:
    if needs_matrix(query):
        raise ConfigError("search: expected the matrix for method linear, area or apart_km, got none. Open the matrix.")
    rows = db.count()
    _raise_if_empty(db, rows)
    marks, vectors = db.chips((*likes, *dislikes))
    query.chip_filter.check_datasets(db.datasets)
    where = query.chip_filter.sql()
    passing = db.count(query.chip_filter) if where else rows
    if not passing:
        return SearchResult(marks[0], (), vectors[:0], "none", _no_chip(db.bounds()))
    units = unit(vectors)
    direction = ranking.mean_direction(units[: len(likes)], units[len(likes) :])
    note = ""
    if db.indexed and passing > MAX_EXACT_ROWS:
        hits, vectors = _table_hits(db, query, marks, direction, where, _index_probes(rows, passing))
        if len(hits) == query.k:
            return SearchResult(marks[0], hits, vectors, "index")
        note = TOO_FEW
    hits, vectors = _table_hits(db, query, marks, direction, where, None)
    return SearchResult(marks[0], hits, vectors, "exact", note)


def _table_hits(
    db: ExplorerDatabase, query: Query, marks: list[ChipFacts], direction: Direction, where: str | None,
    nprobes: int | None,
) -> tuple[tuple[Hit, ...], NDArray[np.float16]]:  # fmt: skip
    """Return the hits of the table and their vectors; without `nprobes` every chip is compared."""
    margin = 16 + query.k // 4  # LanceDB rounds the direction to float16, which may swap the last ones
    limit, columns = query.k + len(marks) + margin, [*FACTS, VECTOR]
    with answers(db.uri):
        neighbours = nearest(db.table, direction, limit, columns, where=where, nprobes=nprobes, exact=nprobes is None)
    vectors = vectors_of(neighbours)
    similarity = ranking.cosines(vectors, direction)
    chips, marked = facts_of(neighbours), {c.chip_id for c in marks}
    candidates = [n for n, chip in enumerate(chips) if chip.chip_id not in marked]
    order = sorted(candidates, key=lambda n: (-similarity[n], chips[n].chip_id))[: query.k]
    return tuple(Hit(chips[n], float(similarity[n])) for n in order), vectors[order]


# --------------------------------------------------------------------------------------------------- by the matrix


def _by_matrix(
    db: ExplorerDatabase, query: Query, likes: tuple[str, ...], dislikes: tuple[str, ...], matrix: Matrix,
    mask: Mask | None,
) -> SearchResult:  # fmt: skip
    _raise_if_empty(db, len(matrix))
    like_rows, dislike_rows = matrix.rows_of(likes), matrix.rows_of(dislikes)
    marks = np.concatenate([like_rows, dislike_rows])
    reference = matrix.facts(marks[:1])[0]
    passing = len(matrix) if mask is None else int(np.count_nonzero(mask))
    if not passing:
        west, south, east, north = (matrix[name] for name in BOX)
        bounds = (west.min(), south.min(), east.max(), north.max())
        return SearchResult(reference, (), matrix.vectors[:0], "none", _no_chip(bounds))
    passes = np.ones(len(matrix), bool) if mask is None else mask.copy()
    passes[marks] = False

    def result(rows: Rows, scores: Scores, compared_by: ComparedBy, note: str) -> SearchResult:
        hits = tuple(Hit(c, float(s)) for c, s in zip(matrix.facts(rows), scores, strict=True))
        return SearchResult(reference, hits, matrix.vectors[rows], compared_by, note)

    if query.method == "linear":
        if passing > MAX_LINEAR_CHIPS:
            raise ConfigError(
                f"search: expected at most {MAX_LINEAR_CHIPS} chips for linear, got {passing} that pass the filters. "
                "Draw an area, choose datasets or years, or use mean."
            )
        model = ranking.fit_linear(matrix, like_rows, dislike_rows, mask)
        rows, scores = ranking.best_spread(matrix, model.direction, passes, query.k, query.apart_km)
        return result(rows, scores + np.float32(model.offset), "exact", model.note)
    direction = ranking.mean_direction(unit(matrix.vectors[like_rows]), unit(matrix.vectors[dislike_rows]))
    note = ""
    if db.indexed and passing > MAX_EXACT_ROWS:
        more = query.apart_km > 0 or query.chip_filter.area is not None
        limit = (max(10 * query.k, 1000) if more else query.k) + len(marks)
        rows = index_rows(db, matrix, direction, query.chip_filter, limit, passing)
        rows = rows[passes[rows]]
        rows, scores = ranking.in_order(matrix, rows, ranking.cosines(matrix.vectors[rows], direction))
        chosen = ranking.spread_out(matrix, rows, query.apart_km, query.k)
        if len(chosen) == query.k:
            return result(rows[chosen], scores[chosen], "index", "")
        note = TOO_FEW
    rows, scores = ranking.best_spread(matrix, direction, passes, query.k, query.apart_km)
    return result(rows, scores, "exact", note)


def index_rows(
    db: ExplorerDatabase, matrix: Matrix, direction: Direction, chip_filter: ChipFilter, limit: int, passing: int
) -> Rows:
    """Return the matrix's rows [m] nearest to a direction [D] by the vector index, if `passing` chips pass."""
    nprobes = _index_probes(len(matrix), passing)
    with answers(db.uri):
        neighbours = nearest(db.table, direction, limit, ["_rowid"], where=chip_filter.sql(), nprobes=nprobes)
    return matrix.rows_of_row_ids(neighbours["_rowid"].to_numpy())
