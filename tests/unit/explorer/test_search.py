"""Search: both methods against plain NumPy, the index against exact search, the table against the matrix."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from kiln.errors import ConfigError
from kiln.explorer import ranking, search
from kiln.explorer.chips import UnknownChipError
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.filters import EVERY_CHIP, ChipFilter
from kiln.explorer.matrix_cache import open_matrix
from kiln.explorer.search import Query, needs_matrix
from tests.support import explorers
from tests.support.ground import kind, marks, unit


@dataclass(frozen=True)
class Answer:
    """The result of a search with the matrix: rows and scores of the hits."""

    rows: np.ndarray
    scores: np.ndarray
    compared_by: str
    note: str


def search_by_matrix(opened, query):
    """Search with the matrix."""
    db, matrix = opened
    result = search.search(db, query, matrix)
    assert matrix.vectors[matrix.rows_of([h.chip.chip_id for h in result.hits])].tolist() == result.vectors.tolist()
    rows = matrix.rows_of([h.chip.chip_id for h in result.hits])
    return Answer(rows, np.array([h.similarity for h in result.hits]), result.compared_by, result.note)


@pytest.mark.parametrize(("likes", "dislikes"), [(1, 0), (3, 0), (2, 3), (5, 40)])
@pytest.mark.parametrize("by", ["index", "exact"])
def test_mean_is_the_cosine_to_likes_less_half_the_dislikes(opened, monkeypatch, likes, dislikes, by):
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", 0 if by == "index" else 1 << 30)
    matrix, vectors = opened[1], unit(opened[1])
    liked, other = marks(opened[1], 2, likes), marks(opened[1], 4, dislikes)
    answer = search_by_matrix(opened, Query(liked, other, k=20))
    assert answer.compared_by == by
    direction = vectors[matrix.rows_of(liked)].mean(axis=0)
    if dislikes:
        direction = direction - 0.5 * vectors[matrix.rows_of(other)].mean(axis=0)
    cosine = vectors @ direction / np.linalg.norm(direction)
    cosine[matrix.rows_of(liked + other)] = -9  # marked chips are no results
    best = np.argsort(-cosine)[:20]
    if by == "exact":
        assert answer.rows.tolist() == best.tolist()
    assert len(set(answer.rows.tolist()) & set(best.tolist())) >= 19
    assert answer.scores == pytest.approx(cosine[answer.rows], abs=1e-4)
    assert (np.diff(answer.scores) <= 0).all()


def test_the_index_finds_what_exact_search_finds(opened):
    db, matrix = opened
    rng, found = np.random.default_rng(0), 0
    for _ in range(50):
        direction = ranking.mean_direction(
            *(ranking.unit(matrix.vectors[rng.choice(len(matrix), count)]) for count in (3, 2))
        )
        rows = search.index_rows(db, matrix, direction, EVERY_CHIP, 10, len(matrix))
        true = np.argsort(-(unit(matrix) @ direction))[:10]
        found += len(np.intersect1d(rows, true))
    assert found / 500 >= 0.98


def test_linear_ranks_the_liked_kind_first(opened):
    likes, dislikes = marks(opened[1], 1, 4), marks(opened[1], 3, 4)
    answer = search_by_matrix(opened, Query(likes, dislikes, None, "linear", k=200))
    assert answer.compared_by == "exact"
    assert "count as faint" in answer.note
    assert (kind(opened[1], answer.rows) == 1).mean() > 0.95
    assert not set(opened[1].ids(answer.rows)) & {*likes, *dislikes}
    assert (np.diff(answer.scores) <= 0).all()
    assert -1.5 < answer.scores[-1] < answer.scores[0] < 1.5


def test_linear_takes_the_dislikes_into_account(opened):
    """Dislike one of two kinds at a time; hardly any result is of that kind."""
    likes = marks(opened[1], 1, 5)
    for disliked in (0, 2):
        answer = search_by_matrix(opened, Query(likes, marks(opened[1], disliked, 40), None, "linear", k=400))
        assert answer.note == ""
        assert (kind(opened[1], answer.rows) == disliked).mean() < 0.02


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("exact_rows", [0, 1 << 30])
def test_filters_hold_for_every_result(opened, monkeypatch, method, exact_rows):
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", exact_rows)
    triangle = {"type": "Polygon", "coordinates": [[[-125, 50], [-123.5, 50], [-125, 48.8], [-125, 50]]]}
    for values in ({"years": [2020]}, {"bbox": [-124.6, 49, -124.2, 49.6]}, {"area": triangle, "years": [2021]}):
        chip_filter = ChipFilter.from_json(values)
        answer = search_by_matrix(
            opened, Query(marks(opened[1], 1, 3), marks(opened[1], 2, 3), None, method, k=40, chip_filter=chip_filter)
        )
        assert len(answer.rows) == 40
        assert chip_filter.mask(opened[1])[answer.rows].all()


def test_fewer_than_k_are_returned_if_the_filters_leave_fewer(opened, monkeypatch):
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", 0)
    chip_filter = ChipFilter.from_json({"bbox": [-124.9, 49.7, -124.8, 49.8]})
    left = int(chip_filter.mask(opened[1]).sum())
    answer = search_by_matrix(opened, Query(marks(opened[1], 1, 1), k=500, chip_filter=chip_filter))
    assert len(answer.rows) == left - len(
        np.intersect1d(opened[1].rows_of(marks(opened[1], 1, 1)), chip_filter.mask(opened[1]).nonzero()[0])
    )
    assert len(answer.rows) < 30


def test_the_note_of_an_empty_result_has_the_bounds_of_the_data(opened):
    answer = search_by_matrix(
        opened, Query(marks(opened[1], 1, 1), chip_filter=ChipFilter.from_json({"bbox": [0, 0, 10, 10]}))
    )
    assert (len(answer.rows), answer.compared_by) == (0, "none")
    assert "The filters leave no chip; the data lie within -125.00, 48.72, -123.29, 50.00." in answer.note


# ------------------------------------------------------------------------------------------- neighbourhoods


def haversine(lon1, lat1, lon2, lat2):
    a, b = math.radians(lat1), math.radians(lat2)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(h))


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("km", [5.0, 20.0])
def test_one_per_neighbourhood_is_the_greedy_choice(opened, method, km):
    matrix = opened[1]
    likes, dislikes = marks(opened[1], 1, 3), marks(opened[1], 2, 3)
    answer = search_by_matrix(opened, Query(likes, dislikes, None, method, k=12, apart_km=km))
    order = search_by_matrix(opened, Query(likes, dislikes, None, method, k=500)).rows
    chosen = []
    for row in order.tolist():
        place = float(matrix["lon"][row]), float(matrix["lat"][row])
        if all(haversine(*place, float(matrix["lon"][o]), float(matrix["lat"][o])) >= km for o in chosen):
            chosen.append(row)
    assert answer.rows.tolist()[: len(chosen)] == chosen[:12]
    assert len(answer.rows) == 12


@pytest.mark.parametrize("exact_rows", [0, 1 << 30])
def test_neighbourhoods_too_large_for_k_results_give_fewer(opened, monkeypatch, exact_rows):
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", exact_rows)
    answer = search_by_matrix(opened, Query(marks(opened[1], 1, 1), k=50, apart_km=60))
    assert 2 <= len(answer.rows) < 20
    assert len(search_by_matrix(opened, Query(marks(opened[1], 1, 1), k=50, apart_km=20_000)).rows) == 1


# --------------------------------------------------------------------------------------------- what is refused


def test_equal_scores_are_ordered_by_id(tmp_path):
    rows = [explorers.chip(n, n, 0, [1, 1, 0, 0]) for n in (5, 3, 4, 1, 2)]
    db = ExplorerDatabase(explorers.write(tmp_path / "db", rows))
    for matrix in (None, open_matrix(db, tmp_path / "cache")):
        hits = search.search(db, Query(("test:00003",), k=3), matrix).hits
        assert [h.chip.chip_id for h in hits] == ["test:00001", "test:00002", "test:00004"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"likes": ()}, "expected a like or a place, got none"),
        ({"likes": ("a",) * 1001}, "at most 1000 likes, got 1001"),
        ({"likes": ("a",), "dislikes": tuple(map(str, range(10_000)))}, "at most 1000 dislikes, got 10000"),
        ({"likes": ("a",), "dislikes": ("a",)}, "a is liked and disliked"),
        ({"likes": ("a",), "k": 0}, "expected 1 to 10000 results"),
        ({"likes": ("a",), "k": 10_001}, "expected 1 to 10000 results"),
        ({"likes": ("a",), "apart_km": -1.0}, "km apart"),
        ({"likes": ("a",), "apart_km": float("nan")}, "km apart"),
        ({"likes": ("a",), "method": "magic"}, "expected method mean or linear"),
        ({"likes": ("a", "b", "c"), "dislikes": ("d", "e"), "method": "linear"}, "at least 3 likes and 3 dislikes"),
        ({"likes": ("a", "a", "a"), "dislikes": ("d", "e", "f"), "method": "linear"}, "got 1 and 3"),
    ],
)
def test_wrong_queries_are_errors(query, message):
    with pytest.raises(ConfigError, match=message):
        Query(**query)


def test_linear_over_too_many_is_refused(opened, monkeypatch):
    monkeypatch.setattr(search, "MAX_LINEAR_CHIPS", 100)
    with pytest.raises(ConfigError, match="at most 100 chips for linear, got 2400"):
        search_by_matrix(opened, Query(marks(opened[1], 1, 3), marks(opened[1], 2, 3), None, "linear"))


def test_unknown_marks_and_an_empty_database_are_errors(opened, tmp_path):
    with pytest.raises(UnknownChipError, match="no chip 'x'"):
        search_by_matrix(opened, Query(("x",)))
    db = ExplorerDatabase(explorers.write(tmp_path / "db", []))
    with pytest.raises(ConfigError, match="the database is empty"):
        search.search(db, Query(("x",)), open_matrix(db, tmp_path / "cache"))
    with pytest.raises(ConfigError, match="the database is empty"):
        search.search(db, Query(("x",)))


def test_marks_that_cancel_out_are_an_error(tmp_path):
    rows = [explorers.chip(n, n, 0, v) for n, v in enumerate([[1, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0], [2, 0, 0, 0]])]
    db = ExplorerDatabase(explorers.write(tmp_path / "db", rows))
    with pytest.raises(ConfigError, match="cancel each other out"):
        search.search(db, Query(("test:00000", "test:00002")))


def test_datasets_of_two_models_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    names = ("naip", "worldcover")
    rows = [explorers.chip(n, n / 10, 0, rng.standard_normal(4), dataset=names[n % 2]) for n in range(10)]
    metadata = {d: explorers.KILN | {"dimensions": 4} for d in names}
    metadata["worldcover"] = metadata["worldcover"] | {"weights_sha256": "b6" * 32}
    with pytest.raises(ConfigError, match="expected vectors of one model, got 2"):
        ExplorerDatabase(explorers.write(tmp_path / "db", rows, metadata))


# ---------------------------------------------------------------------------------------- the table and the matrix

FILTERS = {
    "no filter": {},
    "a year": {"years": [2020]},
    "a box": {"bbox": [-124.6, 49, -124.2, 49.6]},
    "a small box": {"bbox": [-124.9, 49.7, -124.8, 49.8]},
    "days": {"from": "2020-12-01", "to": "2022-01-01"},
    "nodata": {"max_nodata": 0.5, "datasets": ["worldcover"]},
    "nothing": {"bbox": [0, 0, 10, 10]},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize(("likes", "dislikes", "k"), [(1, 0, 10), (3, 2, 48), (40, 30, 500)])
def test_the_table_and_the_matrix_give_equal_answers(opened, filters, likes, dislikes, k):
    db, matrix = opened
    liked, disliked = marks(matrix, 1, likes), marks(matrix, 3, dislikes)
    query = Query(liked, disliked, k=k, chip_filter=ChipFilter.from_json(filters))
    assert not needs_matrix(query)
    by_table, by_matrix = search.search(db, query), search.search(db, query, matrix)
    assert [h.chip for h in by_table.hits] == [h.chip for h in by_matrix.hits]
    assert [h.similarity for h in by_table.hits] == pytest.approx([h.similarity for h in by_matrix.hits], abs=1e-6)
    assert by_table.vectors.tolist() == by_matrix.vectors.tolist()
    assert (by_table.reference, by_table.compared_by, by_table.note) == (
        by_matrix.reference, by_matrix.compared_by, by_matrix.note,
    )  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_the_table_and_the_matrix_agree_through_the_index(opened, filters, monkeypatch):
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", 0)
    db, matrix = opened
    query = Query(marks(matrix, 1, 3), marks(matrix, 3, 2), k=25, chip_filter=ChipFilter.from_json(filters))
    by_table, by_matrix = search.search(db, query), search.search(db, query, matrix)
    assert by_table.compared_by == by_matrix.compared_by
    assert by_table.note == by_matrix.note
    ids = [{h.chip.chip_id for h in result.hits} for result in (by_table, by_matrix)]
    assert len(ids[0]) == len(ids[1])
    assert len(ids[0] & ids[1]) >= 0.95 * len(ids[0])


def test_a_place_outside_the_filters_box_is_a_like(opened):
    db, matrix = opened
    box = ChipFilter.from_json({"bbox": [-124.0, 49, -123.5, 49.6], "years": [2020]})
    query = Query(at=(-124.9, 49.9), k=5, chip_filter=box)
    by_table, by_matrix = search.search(db, query), search.search(db, query, matrix)
    assert by_table.reference == by_matrix.reference
    west, south, east, north = by_table.reference.bbox
    assert west <= -124.9 <= east
    assert south <= 49.9 <= north
    assert by_table.reference.year == 2020
    assert [h.chip for h in by_table.hits] == [h.chip for h in by_matrix.hits]
    assert all(-124.0 <= h.chip.lon <= -123.5 for h in by_table.hits)
    with pytest.raises(ConfigError, match="is liked and disliked"):
        search.search(db, Query(at=(-124.9, 49.9), dislikes=(by_table.reference.chip_id,), chip_filter=box))


@pytest.mark.parametrize("options", [{"method": "linear"}, {"apart_km": 1.0}, {"chip_filter": "area"}])
def test_the_table_alone_refuses_what_needs_the_matrix(opened, options):
    area = {"type": "Polygon", "coordinates": [[[-125, 50], [-123.5, 50], [-125, 48.8], [-125, 50]]]}
    if "chip_filter" in options:
        options = {"chip_filter": ChipFilter.from_json({"area": area})}
    query = Query(marks(opened[1], 1, 3), marks(opened[1], 3, 3), **options)
    assert needs_matrix(query)
    with pytest.raises(ConfigError, match="expected the matrix"):
        search.search(opened[0], query)


def test_an_unknown_dataset_is_refused_with_and_without_the_matrix(opened):
    query = Query(marks(opened[1], 1, 1), chip_filter=ChipFilter(datasets=("x",)))
    for matrix in (None, opened[1]):
        with pytest.raises(ConfigError, match="expected a dataset of worldcover, got 'x'"):
            search.search(opened[0], query, matrix)
