"""From marks to ranked chips: likes and dislikes, what the filters leave, one per neighbourhood.

`mean` (Rocchio): the mean of the liked unit vectors less half the mean of the disliked ones; chips are ranked by their
cosine to it, through the database's index, or exactly where the filters leave few chips. `linear`: a ridge classifier
of likes (1) against dislikes (-1), scored over every chip that the filters leave.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kiln.errors import ConfigError, TransientError
from kiln.explorer.colours import unit
from kiln.explorer.database import METRIC, REFINE, VECTOR, Explorer, probes
from kiln.explorer.filters import Where, names_sql
from kiln.explorer.matrix import Matrix

METHODS = ("mean", "linear")
MOST_MARKS = 1000  # of each kind
MOST_RESULTS = 500
MOST_KM = 20_000.0  # half the way round the Earth
AWAY = 0.5  # weight of the dislikes' mean
LEAST_MARKS = 3  # of each kind, for `linear`
MOST_SCORED = 5_000_000  # chips that `linear` looks at
EXACT_ROWS = 100_000  # fewer than these are compared one by one, as fast as through the index
BACKGROUND, ENOUGH = 256, 30  # chips taken as weak dislikes where there are fewer than ENOUGH real ones
FAINT = 0.25  # weight of all those together; likes weigh 1 together, and so do dislikes
RIDGE = 0.1  # of the mean squared length of the marks about their centre
FEW = 2000  # chips are compared in full precision at once
DENSE = 4  # where at least one chip in so many is wanted, all are multiplied, faster than picking them
BLOCK = 2048  # results put apart at a time
RADIUS = 6371.0088  # km, the Earth's mean


@dataclass(frozen=True)
class Query:
    """What is asked: marks by chip_id, how to rank, k results at least `apart_km` from each other."""

    likes: tuple[str, ...]
    dislikes: tuple[str, ...] = ()
    method: str = "mean"
    k: int = 50
    apart_km: float = 0.0
    where: Where = field(default_factory=Where)

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be asked."""
        for name, marks in (("likes", self.likes), ("dislikes", self.dislikes)):
            if len(marks) > MOST_MARKS:
                raise ConfigError(f"{len(marks)} {name}: at most {MOST_MARKS} are taken; keep the best of them")
        if self.method not in METHODS:
            raise ConfigError(f"method {self.method[:40]!r}: want {' or '.join(METHODS)}")
        if not 1 <= self.k <= MOST_RESULTS:
            raise ConfigError(f"{self.k} results: want 1 to {MOST_RESULTS}")
        if not 0 <= self.apart_km <= MOST_KM:
            raise ConfigError(f"{self.apart_km} km apart: want 0 to {MOST_KM:.0f}")
        if both := sorted(set(self.likes) & set(self.dislikes)):
            raise ConfigError(f"{both[0]} is liked and disliked: take one mark away")
        if not self.likes:
            raise ConfigError("nothing is liked yet: mark a chip that is what you look for")
        if self.method == "linear" and min(len(set(self.likes)), len(set(self.dislikes))) < LEAST_MARKS:
            raise ConfigError(
                f"linear wants at least {LEAST_MARKS} likes and {LEAST_MARKS} dislikes; these are "
                f"{len(set(self.likes))} and {len(set(self.dislikes))}: mark more, or rank by mean"
            )


@dataclass(frozen=True)
class Ranked:
    """Rows [m] of the matrix, best first, their scores [m], how they were found, and what a person should know.

    A score is the cosine to the wanted direction for `mean`; for `linear` about 1 for a like and -1 for a dislike.
    """

    rows: np.ndarray
    scores: np.ndarray
    by: str
    note: str = ""


def search(db: Explorer, matrix: Matrix, query: Query, mask: np.ndarray | None) -> Ranked:
    """The k best chips; marked ones are left out. `mask` [n] is what `matrix.mask(query.where)` gave.

    Raises ConfigError for marks of different spaces and more chips than `linear` takes, UnknownChipError for marks that
    the database does not have, TransientError if it does not answer.
    """
    if not len(matrix):
        raise ConfigError(f"{db.uri}: the database is empty: there is nothing to search")
    likes, dislikes = (matrix.rows_of(sorted(set(m))) for m in (query.likes, query.dislikes))
    marks = np.concatenate([likes, dislikes])
    where, mask = _confine(matrix, marks, query.where, mask)
    left = len(matrix) if mask is None else int(np.count_nonzero(mask))
    if not left:
        west, east = matrix["xmin"].min(), matrix["xmax"].max()
        south, north = matrix["ymin"].min(), matrix["ymax"].max()
        where_is = f"the data lie within {west:.2f}, {south:.2f}, {east:.2f}, {north:.2f}"
        return Ranked(np.empty(0, np.int64), np.empty(0), "none", f"The filters leave no chip; {where_is}.")
    if query.method == "linear":
        return _linear(matrix, query, likes, dislikes, mask, left)
    direction = mean_direction(vectors(matrix, likes), vectors(matrix, dislikes))
    want = query.k + len(marks)
    if query.apart_km or where.area is not None:
        want = max(10 * query.k, 1000) + len(marks)
    note = ""
    if db.indexed and left > EXACT_ROWS:
        rows, scores = by_index(db, matrix, direction, where, want, left / len(matrix))
        keep = ~np.isin(rows, marks) & (True if mask is None else mask[rows])
        rows, scores = in_order(matrix, rows[keep], scores[keep])
        chosen = apart(matrix, rows, query.apart_km, query.k)
        if len(chosen) == query.k:
            return Ranked(rows[chosen], scores[chosen], "index")
        note = "The index gave too few: every chip was compared."
    return _best(matrix, direction, 0.0, marks, mask, query, note)


def _confine(
    matrix: Matrix, marks: np.ndarray, where: Where, mask: np.ndarray | None
) -> tuple[Where, np.ndarray | None]:
    """Filters and mask, confined to the datasets whose vectors can be compared with the marks'."""
    spaces = {d: s for s, names in matrix.spaces.items() for d in names}
    datasets = [matrix.datasets[d] for d in np.unique(matrix["dataset"][marks])]
    if len({spaces[d] for d in datasets}) > 1:
        raise ConfigError(
            f"the marks are of {' and '.join(datasets)}, whose vectors come from different models: they cannot be "
            "compared; keep the marks of one"
        )
    mine = tuple(matrix.spaces[spaces[datasets[0]]])
    if len(mine) == len(matrix.datasets):
        return where, mask
    wanted = tuple(d for d in where.datasets or mine if d in mine)
    if not wanted:
        raise ConfigError(
            f"the marks are of {' and '.join(datasets)}; {', '.join(where.datasets)} has vectors of another model: "
            "they cannot be compared"
        )
    same = np.isin(matrix["dataset"], [matrix.datasets.index(d) for d in wanted])
    return replace(where, datasets=wanted), same if mask is None else mask & same


def vectors(matrix: Matrix, rows: np.ndarray) -> np.ndarray:
    """Unit vectors [m, D] float32 of rows."""
    return unit(matrix.vectors[rows])


def mean_direction(likes: np.ndarray, dislikes: np.ndarray) -> np.ndarray:
    """Unit vector [D]: the mean of liked unit vectors [m, D] less AWAY times that of disliked ones (Rocchio, 1971).

    Raises ConfigError if likes and dislikes leave nothing.
    """
    direction = likes.mean(axis=0)
    if len(dislikes):
        direction = direction - AWAY * dislikes.mean(axis=0)
    length = float(np.linalg.norm(direction))
    if length < 1e-6:
        raise ConfigError("likes and dislikes cancel each other out: take some away")
    return (direction / length).astype(np.float32)


def ridge(points: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Weighted ridge regression of labels [m] on points [m, D]: direction [D] and offset (closed form, dual).

    The penalty is RIDGE times the points' mean squared distance from their centre. Raises ConfigError if all are equal.
    """
    share = weights / weights.sum()
    centre, middle = share @ points, float(share @ labels)
    root = np.sqrt(share)[:, None]
    scaled = (root * (points - centre)).astype(np.float64)
    gram = scaled @ scaled.T
    spread = float(np.trace(gram))
    if spread < 1e-9:
        raise ConfigError("all marks have the same vector: there is nothing to tell likes from dislikes")
    alpha = np.linalg.solve(gram + RIDGE * spread * np.eye(len(gram)), root[:, 0] * (labels - middle))
    direction = scaled.T @ alpha
    return direction.astype(np.float32), float(middle - direction @ centre)


def _linear(
    matrix: Matrix, query: Query, likes: np.ndarray, dislikes: np.ndarray, mask: np.ndarray | None, left: int
) -> Ranked:
    if left > MOST_SCORED:
        raise ConfigError(
            f"linear looks at every chip, at most {MOST_SCORED}; the filters leave {left}: draw an area, choose "
            "datasets or years, or rank by mean"
        )
    marks = np.concatenate([likes, dislikes])
    labels = [np.ones(len(likes)), -np.ones(len(dislikes))]
    weights = [np.full(len(likes), 1 / len(likes)), np.full(len(dislikes), 1 / len(dislikes))]
    note = ""
    if len(dislikes) < ENOUGH:
        every = np.arange(len(matrix)) if mask is None else np.flatnonzero(mask)
        some = np.setdiff1d(every[np.linspace(0, len(every) - 1, min(BACKGROUND, len(every))).astype(int)], marks)
        marks = np.concatenate([marks, some])
        labels.append(-np.ones(len(some)))
        weights.append(np.full(len(some), FAINT / max(1, len(some))))
        note = f"Few dislikes: {len(some)} other chips count as faint ones."
    direction, offset = ridge(vectors(matrix, marks), np.concatenate(labels), np.concatenate(weights))
    return _best(matrix, direction, offset, np.concatenate([likes, dislikes]), mask, query, note)


def by_index(
    db: Explorer, matrix: Matrix, direction: np.ndarray, where: Where, want: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and cosines of the `want` nearest by the index; where filters leave a `share`, more of it is looked at."""
    sql = where.sql()
    if where.datasets and not sql:
        sql = names_sql(where.datasets)
    wide = math.ceil(probes(len(matrix)) / math.sqrt(max(share, 1e-6)))
    try:
        asked = db.table.search(direction, vector_column_name=VECTOR).distance_type(METRIC)
        asked = asked.nprobes(wide).refine_factor(REFINE if want <= 1000 else 2)
        if sql:
            asked = asked.where(sql, prefilter=True)
        found = asked.limit(want).with_row_id(True).select(["_distance"]).to_arrow()
    except (RuntimeError, ValueError, OSError) as e:
        said = (str(e).splitlines() or [type(e).__name__])[0][:160]
        raise TransientError(f"{db.uri}: the database does not answer: {said}") from e
    return matrix.of_row_ids(found["_rowid"].to_numpy()), 1 - found["_distance"].to_numpy()


def _best(
    matrix: Matrix, direction: np.ndarray, offset: float, marks: np.ndarray, mask: np.ndarray | None, query: Query,
    note: str,
) -> Ranked:  # fmt: skip
    """The k best of every chip that mask and marks leave, exactly."""
    keep = np.ones(len(matrix), bool) if mask is None else mask.copy()
    keep[marks] = False
    for count in _growing(query.k, int(np.count_nonzero(keep)), all_at_once=not query.apart_km):
        rows, scores = top(matrix, keep, direction, count)
        chosen = apart(matrix, rows, query.apart_km, query.k)
        if len(chosen) == query.k:
            break
    return Ranked(rows[chosen], scores[chosen] + offset, "exact", note)


def _growing(k: int, most: int, *, all_at_once: bool) -> Iterator[int]:
    """How many candidates to look at: k, or more and more of them."""
    count = k if all_at_once else 100 * k
    while count < most and not all_at_once:
        yield count
        count *= 20
    yield min(count, most)


def top(matrix: Matrix, keep: np.ndarray, direction: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` chips of those in `keep` [n] whose unit vectors have the largest product with `direction` [D].

    Returns rows and products. Exact: half precision gives each product within a known error, and all that may be among
    the best are computed again.
    """
    from kiln.explorer import scan  # torch takes seconds to load, and most searches of the command line do without

    rows = np.flatnonzero(keep)
    if len(rows) > max(FEW, 4 * count):
        some = None if len(rows) * DENSE > len(matrix) else rows
        products, error = scan.rough(matrix, direction, some)
        if some is None:
            products[~keep] = -np.inf
        lowest = products - error
        likely = np.flatnonzero(products + error >= np.partition(lowest, len(lowest) - count)[len(lowest) - count])
        rows = likely if some is None else some[likely]
    return in_order(matrix, rows, scan.exact(matrix, direction, rows), count)


def in_order(
    matrix: Matrix, rows: np.ndarray, scores: np.ndarray, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Best first, the first `count` of them; equals by chip_id."""
    if count is not None and count < len(rows):
        least = np.partition(scores, len(rows) - count)[len(rows) - count]
        keep = scores >= least
        rows, scores = rows[keep], scores[keep]
    order = np.argsort(-scores, kind="stable")
    if (np.diff(scores[order]) == 0).any():
        ids = matrix.ids(rows)
        order = np.array(sorted(range(len(rows)), key=lambda n: (-scores[n], ids[n])), np.int64)
    return rows[order][:count], scores[order][:count]


def apart(matrix: Matrix, rows: np.ndarray, km: float, k: int) -> np.ndarray:
    """Places in `rows` of the first k, each at least `km` (great circle) from those before it; 0 km: the first k."""
    if not km:
        return np.arange(min(k, len(rows)))
    lon, lat = np.radians(matrix["lon"][rows]), np.radians(matrix["lat"][rows])
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    least = 2 * math.sin(min(km / RADIUS, math.pi) / 2) * (1 - 1e-9)  # the straight line through the Earth
    kept: list[int] = []
    for first in range(0, len(rows), BLOCK):
        some = np.arange(first, min(first + BLOCK, len(rows)))
        if kept:
            some = some[_far(points[some], points[kept], least)]
        while len(some) and len(kept) < k:
            kept.append(int(some[0]))
            some = some[np.linalg.norm(points[some] - points[kept[-1]], axis=1) >= least]
        if len(kept) == k:
            break
    return np.array(kept, np.int64)


def _far(points: np.ndarray, others: Sequence[np.ndarray] | np.ndarray, least: float) -> np.ndarray:
    """Which points [m, 3] are at least so far from each of the others."""
    squares = 2 - 2 * (points @ np.asarray(others).T)
    return (squares >= least**2).all(axis=1)
