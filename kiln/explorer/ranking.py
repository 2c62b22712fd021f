"""Directions from marks, and the best chips along a direction.

`mean` (Rocchio): the mean of the liked unit vectors less half the mean of the disliked ones; chips are ranked by their
cosine to it. `linear`: a ridge classifier of likes (1) against dislikes (-1), applied to every chip of the filters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ConfigError
from kiln.explorer.colours import Vectors, unit
from kiln.explorer.matrix import Floats, Mask, Matrix, Rows

DISLIKE_WEIGHT = 0.5  # of the dislikes' mean
MIN_DISLIKES = 30  # with fewer, other chips count as faint dislikes
MAX_FAINT_DISLIKES = 256
FAINT_WEIGHT = 0.25  # of all faint dislikes together; likes weigh 1 together, and so do dislikes
RIDGE = 0.1  # penalty, as a fraction of the marks' mean squared distance from their centre
MAX_EXACT_ROWS = 2000  # this many chips are compared in full precision at once
DENSE = 4  # if at least one chip in so many passes, all are multiplied, which is faster than picking them
BLOCK_ROWS = 2048  # results spread out at a time
EARTH_RADIUS_KM = 6371.0088
Direction = NDArray[np.float32]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class LinearModel:
    """A classifier: the score of a unit vector is its product with `direction` [D], plus `offset`."""

    direction: Direction
    offset: float
    note: str


def mean_direction(likes: Vectors, dislikes: Vectors) -> Direction:
    """Return the direction of marks (Rocchio, 1971).

    Args:
        likes: Unit vectors of likes, [m, D], m >= 1.
        dislikes: Unit vectors of dislikes, [m, D].

    Returns:
        The unit vector [D] along the mean of the likes less DISLIKE_WEIGHT times the mean of the dislikes.

    Raises:
        ConfigError: The difference is zero.
    """
    direction = likes.mean(axis=0)
    if len(dislikes):
        direction = direction - DISLIKE_WEIGHT * dislikes.mean(axis=0)
    length = float(np.linalg.norm(direction))
    if length < 1e-6:
        raise ConfigError("likes and dislikes cancel each other out. Remove some.")
    return np.asarray(direction / length, np.float32)


def cosines(vectors: Vectors, direction: Direction) -> Scores:
    """Return the cosines [n] of vectors [n, D] to a unit vector [D]."""
    return np.asarray(unit(vectors) @ direction, np.float32)


def ridge(points: Vectors, labels: Floats, weights: Floats) -> tuple[Direction, float]:
    """Return the direction [D] and offset of a weighted ridge regression of labels on points (closed form, dual).

    Args:
        points: [m, D].
        labels: [m].
        weights: [m].

    Raises:
        ConfigError: All points are equal.
    """
    fractions = weights / weights.sum()
    centre, middle = fractions @ points, float(fractions @ labels)
    root = np.sqrt(fractions)[:, None]
    scaled = (root * (points - centre)).astype(np.float64)
    gram = scaled @ scaled.T
    spread = float(np.trace(gram))
    if spread < 1e-9:
        raise ConfigError("all marks have the same vector: likes and dislikes cannot be separated. Mark other chips.")
    alpha = np.linalg.solve(gram + RIDGE * spread * np.eye(len(gram)), root[:, 0] * (labels - middle))
    direction = scaled.T @ alpha
    return direction.astype(np.float32), float(middle - direction @ centre)


def fit_linear(matrix: Matrix, likes: Rows, dislikes: Rows, mask: Mask | None) -> LinearModel:
    """Fit a classifier of likes against dislikes.

    If there are fewer than MIN_DISLIKES dislikes, chips spread evenly over those that pass count as faint dislikes.

    Args:
        matrix: n chips.
        likes: Rows of likes.
        dislikes: Rows of dislikes.
        mask: Which chips pass the filters, [n]; None: all.
    """
    marks = np.concatenate([likes, dislikes])
    labels = [np.ones(len(likes)), -np.ones(len(dislikes))]
    weights = [np.full(len(likes), 1 / len(likes)), np.full(len(dislikes), 1 / len(dislikes))]
    note = ""
    if len(dislikes) < MIN_DISLIKES:
        rows = np.arange(len(matrix)) if mask is None else np.flatnonzero(mask)
        spread = np.linspace(0, len(rows) - 1, min(MAX_FAINT_DISLIKES, len(rows))).astype(int)
        faint = np.setdiff1d(rows[spread], marks)
        marks = np.concatenate([marks, faint])
        labels.append(-np.ones(len(faint)))
        weights.append(np.full(len(faint), FAINT_WEIGHT / max(1, len(faint))))
        note = f"Few dislikes: {len(faint)} other chips count as faint ones."
    points = unit(matrix.vectors[marks])
    direction, offset = ridge(points, np.concatenate(labels), np.concatenate(weights))
    return LinearModel(direction, offset, note)


def best_spread(matrix: Matrix, direction: Direction, passes: Mask, k: int, apart_km: float) -> tuple[Rows, Scores]:
    """Return the k best chips, each at least `apart_km` from better ones.

    Args:
        matrix: n chips.
        direction: [D].
        passes: Which chips to compare, [n].
        k: Number of chips.
        apart_km: Minimum distance of centres; 0: none.

    Returns:
        Rows [m] and products [m] of unit vectors with the direction, best first.
    """
    for count in _candidate_counts(k, int(np.count_nonzero(passes)), all_at_once=not apart_km):
        rows, scores = top(matrix, passes, direction, count)
        chosen = spread_out(matrix, rows, apart_km, k)
        if len(chosen) == k:
            break
    return rows[chosen], scores[chosen]


def _candidate_counts(k: int, maximum: int, *, all_at_once: bool) -> Iterator[int]:
    """Yield how many candidates to compare: k, or more and more of them."""
    count = k if all_at_once else 100 * k
    while count < maximum and not all_at_once:
        yield count
        count *= 20
    yield min(count, maximum)


def top(matrix: Matrix, passes: Mask, direction: Direction, count: int) -> tuple[Rows, Scores]:
    """Return the `count` chips whose unit vectors have the largest product with a direction, exactly.

    Half precision gives each product within a known error; every chip that may be among the best is computed again.

    Args:
        matrix: n chips.
        passes: Which chips to compare, [n].
        direction: [D].
        count: Number of chips.

    Returns:
        Rows [m] and products [m], best first.
    """
    from kiln.explorer import scan  # torch takes seconds to load, and most searches of the command line do without

    rows = np.flatnonzero(passes)
    if len(rows) > max(MAX_EXACT_ROWS, 4 * count):
        picked = None if len(rows) * DENSE > len(matrix) else rows
        products, error = scan.approximate_products(matrix, direction, picked)
        if picked is None:
            products[~passes] = -np.inf
        lowest = products - error
        likely = np.flatnonzero(products + error >= np.partition(lowest, len(lowest) - count)[len(lowest) - count])
        rows = likely if picked is None else picked[likely]
    return in_order(matrix, rows, scan.exact_products(matrix, direction, rows), count)


def in_order(matrix: Matrix, rows: Rows, scores: Scores, count: int | None = None) -> tuple[Rows, Scores]:
    """Return rows [m] and scores [m], best first, the first `count` of them; equal scores by chip_id."""
    if count is not None and count < len(rows):
        lowest = np.partition(scores, len(rows) - count)[len(rows) - count]
        keep = scores >= lowest
        rows, scores = rows[keep], scores[keep]
    order = np.argsort(-scores, kind="stable")
    if (np.diff(scores[order]) == 0).any():
        ids = matrix.ids(rows)
        order = np.array(sorted(range(len(rows)), key=lambda n: (-scores[n], ids[n])), np.int64)
    return rows[order][:count], scores[order][:count]


def spread_out(matrix: Matrix, rows: Rows, km: float, k: int) -> Rows:
    """Return places in `rows` of the first k, each at least `km` (great circle) from those before; 0: the first k."""
    if not km:
        return np.arange(min(k, len(rows)))
    lon, lat = np.radians(matrix["lon"][rows]), np.radians(matrix["lat"][rows])
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * math.sin(min(km / EARTH_RADIUS_KM, math.pi) / 2) * (1 - 1e-9)  # the straight line through the Earth
    chosen: list[int] = []
    for first in range(0, len(rows), BLOCK_ROWS):
        candidates = np.arange(first, min(first + BLOCK_ROWS, len(rows)))
        if chosen:
            squares = 2 - 2 * (points[candidates] @ points[chosen].T)
            candidates = candidates[(squares >= chord**2).all(axis=1)]
        while len(candidates) and len(chosen) < k:
            chosen.append(int(candidates[0]))
            distances = np.linalg.norm(points[candidates] - points[chosen[-1]], axis=1)
            candidates = candidates[distances >= chord]
        if len(chosen) == k:
            break
    return np.array(chosen, np.int64)
