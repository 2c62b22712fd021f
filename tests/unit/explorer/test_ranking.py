"""Ranking: both methods against plain NumPy, the index against exact search, neighbourhoods, models kept apart."""

import math

import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError
from kiln.explorer import build as index
from kiln.explorer import ranking
from kiln.explorer.build import Select, build
from kiln.explorer.database import Explorer
from kiln.explorer.filters import Where, parse
from kiln.explorer.matrix import UnknownChipError, open_matrix
from kiln.explorer.ranking import Query, apart, ridge, search
from tests.support import explorers
from tests.support.products import about, make_product

COLUMNS = [Column(k, 0, 30) for k in range(40)]
DIM = 32
CLASSES = 6


def ground(chips):
    """Vectors of a few kinds of ground, which follow the lattice, with noise."""
    centres = np.random.default_rng(5).standard_normal((CLASSES, DIM)) + 2
    rng = np.random.default_rng([chips[0].extra["year"], chips[0].col])
    kinds = [(c.col // 7 + c.row // 5) % CLASSES for c in chips]
    return centres[kinds] + 0.5 * rng.standard_normal((len(chips), DIM))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """2400 chips with a vector index: database and matrix."""
    run = tmp_path_factory.mktemp("ranking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "EXACT_BELOW", 1000)
        products = [
            make_product(run, y, columns=COLUMNS, vectors=ground, kiln=about(dimensions=DIM)) for y in (2020, 2021)
        ]
        build([m.record_file for m in products], [m.uri for m in products], str(run / "db"), Select())
    db = Explorer(str(run / "db"))
    assert db.indexed
    return db, open_matrix(db, run / "cache")


def ask(made, query):
    db, matrix = made
    return search(db, matrix, query, matrix.mask(query.where))


def unit(matrix):
    wide = matrix.vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def kind(matrix, rows):
    """The kind of ground of rows, from their places."""
    side = 512 / 12000
    col = np.rint((matrix["xmin"][rows] + 125) / side).astype(int)
    row = np.rint((50 - matrix["ymax"][rows]) / side).astype(int)
    return (col // 7 + row // 5) % CLASSES


def marks(made, wanted, count, seed=0):
    """Chips of a kind of ground."""
    matrix = made[1]
    mine = np.flatnonzero(kind(matrix, np.arange(len(matrix))) == wanted)
    return tuple(matrix.ids(np.random.default_rng(seed).choice(mine, count, replace=False)))


@pytest.mark.parametrize(("likes", "dislikes"), [(1, 0), (3, 0), (2, 3), (5, 40)])
@pytest.mark.parametrize("by", ["index", "exact"])
def test_mean_is_the_cosine_to_likes_less_half_the_dislikes(made, monkeypatch, likes, dislikes, by):
    monkeypatch.setattr(ranking, "EXACT_ROWS", 0 if by == "index" else 1 << 30)
    matrix, vectors = made[1], unit(made[1])
    liked, other = marks(made, 2, likes), marks(made, 4, dislikes)
    got = ask(made, Query(liked, other, k=20))
    assert got.by == by
    direction = vectors[matrix.rows_of(liked)].mean(axis=0)
    if dislikes:
        direction = direction - 0.5 * vectors[matrix.rows_of(other)].mean(axis=0)
    cosine = vectors @ direction / np.linalg.norm(direction)
    cosine[matrix.rows_of(liked + other)] = -9  # marked chips are no results
    best = np.argsort(-cosine)[:20]
    if by == "exact":
        assert got.rows.tolist() == best.tolist()
    assert len(set(got.rows.tolist()) & set(best.tolist())) >= 19
    assert got.scores == pytest.approx(cosine[got.rows], abs=1e-4)
    assert (np.diff(got.scores) <= 0).all()


def test_the_index_finds_what_exact_search_finds(made):
    db, matrix = made
    rng, found = np.random.default_rng(0), 0
    for _ in range(50):
        direction = ranking.mean_direction(
            ranking.vectors(matrix, rng.choice(len(matrix), 3)), ranking.vectors(matrix, rng.choice(len(matrix), 2))
        )
        rows, _ = ranking.by_index(db, matrix, direction, Where(), 10, 1.0)
        true = np.argsort(-(unit(matrix) @ direction))[:10]
        found += len(np.intersect1d(rows, true))
    assert found / 500 >= 0.98


@pytest.mark.parametrize("few", [10, 1 << 30])
@pytest.mark.parametrize("left", [300, 2000, 4000])
def test_the_best_of_what_is_left_are_exact(made, monkeypatch, left, few):
    matrix = made[1]
    monkeypatch.setattr(ranking, "FEW", few)
    rng = np.random.default_rng(0)
    for _ in range(10):
        direction = rng.standard_normal(DIM).astype(np.float32)
        keep = np.zeros(len(matrix), bool)
        keep[rng.choice(len(matrix), min(left, len(matrix)), replace=False)] = True
        got, scores = ranking.top(matrix, keep, direction, 15)
        products = np.where(keep, unit(matrix) @ direction, -np.inf)
        assert got.tolist() == np.argsort(-products)[:15].tolist()
        assert scores == pytest.approx(np.sort(products)[::-1][:15], abs=1e-5)


def test_linear_ranks_the_kind_that_is_liked_first(made):
    likes, dislikes = marks(made, 1, 4), marks(made, 3, 4)
    got = ask(made, Query(likes, dislikes, "linear", k=200))
    assert got.by == "exact"
    assert "count as faint" in got.note
    assert (kind(made[1], got.rows) == 1).mean() > 0.95
    assert not set(made[1].ids(got.rows)) & {*likes, *dislikes}
    assert (np.diff(got.scores) <= 0).all()
    assert -1.5 < got.scores[-1] < got.scores[0] < 1.5


def test_linear_takes_the_dislikes_into_account(made):
    """Two kinds are liked or not by turns: what is disliked must fall."""
    likes = marks(made, 1, 5)
    for disliked in (0, 2):
        got = ask(made, Query(likes, marks(made, disliked, 40), "linear", k=400))
        assert got.note == ""
        assert (kind(made[1], got.rows) == disliked).mean() < 0.02


def test_ridge_is_the_closed_form():
    """Against the normal equations of the primal."""
    rng = np.random.default_rng(1)
    points, labels, weights = rng.standard_normal((30, 7)), rng.choice([-1.0, 1.0], 30), rng.uniform(0.5, 2, 30)
    direction, offset = ridge(points, labels, weights)
    share = weights / weights.sum()
    centred, middle = points - share @ points, labels - share @ labels
    penalty = ranking.RIDGE * np.sum(share * (centred**2).sum(axis=1))
    wanted = np.linalg.solve(centred.T @ (share[:, None] * centred) + penalty * np.eye(7), centred.T @ (share * middle))
    assert direction == pytest.approx(wanted, abs=1e-5)
    assert offset == pytest.approx(share @ labels - (share @ points) @ wanted, abs=1e-5)


def test_ridge_of_equal_points_is_refused():
    with pytest.raises(ConfigError, match="same vector"):
        ridge(np.ones((6, 4)), np.array([1.0, 1, 1, -1, -1, -1]), np.ones(6))


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("exact_rows", [0, 1 << 30])
def test_filters_hold_for_every_result(made, monkeypatch, method, exact_rows):
    monkeypatch.setattr(ranking, "EXACT_ROWS", exact_rows)
    triangle = {"type": "Polygon", "coordinates": [[[-125, 50], [-123.5, 50], [-125, 48.8], [-125, 50]]]}
    for values in ({"years": [2020]}, {"bbox": [-124.6, 49, -124.2, 49.6]}, {"area": triangle, "years": [2021]}):
        where = parse(values)
        got = ask(made, Query(marks(made, 1, 3), marks(made, 2, 3), method, k=40, where=where))
        assert len(got.rows) == 40
        assert made[1].mask(where)[got.rows].all()


def test_fewer_than_k_are_given_where_the_filters_leave_fewer(made, monkeypatch):
    monkeypatch.setattr(ranking, "EXACT_ROWS", 0)
    where = parse({"bbox": [-124.9, 49.7, -124.8, 49.8]})
    left = int(made[1].mask(where).sum())
    got = ask(made, Query(marks(made, 1, 1), k=500, where=where))
    assert len(got.rows) == left - len(
        np.intersect1d(made[1].rows_of(marks(made, 1, 1)), made[1].mask(where).nonzero()[0])
    )
    assert len(got.rows) < 30


def test_filters_that_leave_nothing_say_where_the_data_lie(made):
    got = ask(made, Query(marks(made, 1, 1), where=parse({"bbox": [0, 0, 10, 10]})))
    assert (len(got.rows), got.by) == (0, "none")
    assert "The filters leave no chip; the data lie within -125.00, 48.72, -123.29, 50.00." in got.note


# ------------------------------------------------------------------------------------------- neighbourhoods


def haversine(lon1, lat1, lon2, lat2):
    a, b = math.radians(lat1), math.radians(lat2)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(h))


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("km", [5.0, 20.0])
def test_one_per_neighbourhood_is_the_greedy_choice(made, method, km):
    matrix = made[1]
    likes, dislikes = marks(made, 1, 3), marks(made, 2, 3)
    got = ask(made, Query(likes, dislikes, method, k=12, apart_km=km))
    order = ask(made, Query(likes, dislikes, method, k=500)).rows
    kept = []
    for row in order.tolist():
        place = float(matrix["lon"][row]), float(matrix["lat"][row])
        if all(haversine(*place, float(matrix["lon"][o]), float(matrix["lat"][o])) >= km for o in kept):
            kept.append(row)
    assert got.rows.tolist()[: len(kept)] == kept[:12]
    assert len(got.rows) == 12


@pytest.mark.parametrize("exact_rows", [0, 1 << 30])
def test_neighbourhoods_too_large_for_k_results_give_what_there_is(made, monkeypatch, exact_rows):
    monkeypatch.setattr(ranking, "EXACT_ROWS", exact_rows)
    got = ask(made, Query(marks(made, 1, 1), k=50, apart_km=60))
    assert 2 <= len(got.rows) < 20
    assert len(ask(made, Query(marks(made, 1, 1), k=50, apart_km=20_000)).rows) == 1


def test_apart_goes_round_the_world_and_over_the_poles(tmp_path):
    places = [(179.9, 10), (-179.9, 10), (10, 89.9), (-170, 89.9), (0, 0), (0, 1)]
    rows = [explorers.chip(n, lon, lat, [1, n, 0, 0]) for n, (lon, lat) in enumerate(places)]
    matrix = open_matrix(Explorer(explorers.write(tmp_path / "db", rows)), tmp_path / "cache")
    order = matrix.rows_of([r["chip_id"] for r in rows])
    assert apart(matrix, order, 100.0, 10).tolist() == [0, 2, 4, 5]
    assert apart(matrix, order, 112.0, 10).tolist() == [0, 2, 4]
    assert apart(matrix, order, 0.0, 3).tolist() == [0, 1, 2]


# --------------------------------------------------------------------------------------------- what is refused


def test_equal_scores_are_ordered_by_id(tmp_path):
    rows = [explorers.chip(n, n, 0, [1, 1, 0, 0]) for n in (5, 3, 4, 1, 2)]
    db = Explorer(explorers.write(tmp_path / "db", rows))
    matrix = open_matrix(db, tmp_path / "cache")
    got = search(db, matrix, Query(("test:00003",), k=3), None)
    assert matrix.ids(got.rows) == ["test:00001", "test:00002", "test:00004"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"likes": ()}, "nothing is liked yet"),
        ({"likes": ("a",) * 1001}, "1001 likes: at most 1000"),
        ({"likes": ("a",), "dislikes": tuple(map(str, range(10_000)))}, "10000 dislikes: at most 1000"),
        ({"likes": ("a",), "dislikes": ("a",)}, "a is liked and disliked"),
        ({"likes": ("a",), "k": 0}, "want 1 to 500"),
        ({"likes": ("a",), "k": 501}, "want 1 to 500"),
        ({"likes": ("a",), "apart_km": -1.0}, "km apart"),
        ({"likes": ("a",), "apart_km": float("nan")}, "km apart"),
        ({"likes": ("a",), "method": "magic"}, "want mean or linear"),
        ({"likes": ("a", "b", "c"), "dislikes": ("d", "e"), "method": "linear"}, "at least 3 likes and 3 dislikes"),
        ({"likes": ("a", "a", "a"), "dislikes": ("d", "e", "f"), "method": "linear"}, "these are 1 and 3"),
    ],
)
def test_what_cannot_be_asked_is_said(query, said):
    with pytest.raises(ConfigError, match=said):
        Query(**query)


def test_linear_over_too_many_is_refused(made, monkeypatch):
    monkeypatch.setattr(ranking, "MOST_SCORED", 100)
    with pytest.raises(ConfigError, match="at most 100; the filters leave 2400"):
        ask(made, Query(marks(made, 1, 3), marks(made, 2, 3), "linear"))


def test_unknown_marks_and_an_empty_database_are_said(made, tmp_path):
    with pytest.raises(UnknownChipError, match="no chip 'x'"):
        ask(made, Query(("x",)))
    db = Explorer(explorers.write(tmp_path / "db", []))
    with pytest.raises(ConfigError, match="the database is empty"):
        search(db, open_matrix(db, tmp_path / "cache"), Query(("x",)), None)


def test_marks_that_cancel_out_are_said(tmp_path):
    rows = [explorers.chip(n, n, 0, v) for n, v in enumerate([[1, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0], [2, 0, 0, 0]])]
    db = Explorer(explorers.write(tmp_path / "db", rows))
    with pytest.raises(ConfigError, match="cancel each other out"):
        search(db, open_matrix(db, tmp_path / "cache"), Query(("test:00000", "test:00002")), None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two datasets of one model and one of another."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("models")
    names = ("naip", "sentinel2", "worldcover")
    rows = [
        explorers.chip(n, n / 10, 0, rng.standard_normal(4), dataset=names[n % 3], chip_id=f"{names[n % 3]}:{n}")
        for n in range(90)
    ]
    told = {d: explorers.KILN | {"dimensions": 4} for d in names}
    told["worldcover"] = told["worldcover"] | {"weights_sha256": "b6" * 32}
    db = Explorer(explorers.write(folder / "db", rows, told))
    return db, open_matrix(db, folder / "cache")


def test_only_datasets_of_the_marks_model_are_searched(models):
    assert len(models[1].spaces) == 2
    got = ask(models, Query(("naip:0",), k=500))
    assert {i.partition(":")[0] for i in models[1].ids(got.rows)} == {"naip", "sentinel2"}
    assert len(got.rows) == 59
    got = ask(models, Query(("worldcover:2",), k=500))
    assert {i.partition(":")[0] for i in models[1].ids(got.rows)} == {"worldcover"}
    got = ask(models, Query(("naip:0",), k=500, where=parse({"datasets": ["naip", "worldcover"]})))
    assert {i.partition(":")[0] for i in models[1].ids(got.rows)} == {"naip"}


def test_marks_of_different_models_are_refused(models):
    with pytest.raises(ConfigError, match="naip and worldcover, whose vectors come from different models"):
        ask(models, Query(("naip:0",), ("worldcover:2",)))
    with pytest.raises(ConfigError, match="worldcover has vectors of another model"):
        ask(models, Query(("naip:0",), where=parse({"datasets": ["worldcover"]})))
