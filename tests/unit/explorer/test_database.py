"""Reading the explorer database: exact neighbours, filters, places, and unfinished databases."""

import math
from datetime import UTC, datetime
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError
from kiln.explorer import database
from kiln.explorer.build import Select, build, builder
from kiln.explorer.database import ExplorerDatabase, cells
from kiln.explorer.filters import ChipFilter, quote
from kiln.formats.bounding_box import check_bounding_box
from tests.support.explorers import similar
from tests.support.products import DIM, WORLD, chip_at, make_product, random_vectors

SIDE = 512 / 12000
YEARS = (2020, 2021)
COLUMNS = [Column(k, 0, 30) for k in range(30)]  # 900 chips a year, over four cells of a degree


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    run = tmp_path_factory.mktemp("explorer")
    products = [make_product(run, year, columns=COLUMNS) for year in YEARS]
    build([m.record_file for m in products], [m.uri for m in products], str(run / "db"), Select())
    return ExplorerDatabase(str(run / "db"))


@pytest.fixture(scope="module")
def rows(db):
    """Return all rows as NumPy data: facts, and unit vectors [n, D]."""
    table = db.table.search().limit(100_000).to_arrow()
    vectors = np.asarray(table["vector"].combine_chunks().flatten(), np.float64).reshape(len(table), -1)
    return table.drop_columns("vector").to_pylist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_by_numpy(rows, vector, k, keep=lambda r: True):
    """Return ids and similarities of the k nearest by cosine."""
    facts, unit = rows
    likes = unit @ (np.asarray(vector, np.float64) / np.linalg.norm(vector))
    order = sorted((i for i, r in enumerate(facts) if keep(r)), key=lambda i: (-likes[i], facts[i]["chip_id"]))[:k]
    return [facts[i]["chip_id"] for i in order], [likes[i] for i in order]


# ------------------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("exact", [False, True])
def test_neighbours_and_their_order_are_those_of_numpy(db, rows, exact):
    rng = np.random.default_rng(0)
    for _ in range(10):
        vector = rng.standard_normal(DIM)
        hits = similar(db, vector, 25, exact=exact)
        ids, likes = nearest_by_numpy(rows, vector, 25)
        assert [h["chip_id"] for h in hits] == ids
        assert [h["similarity"] for h in hits] == pytest.approx(likes, abs=1e-3)  # a query is compared as float16


def test_the_length_of_a_query_does_not_matter(db):
    vector = np.random.default_rng(1).standard_normal(DIM)
    ids = [[h["chip_id"] for h in similar(db, vector * f, 10)] for f in (1, 100, 1e-3)]
    assert ids[0] == ids[1] == ids[2]


def test_a_hit_has_the_facts_and_no_vector(db):
    (hit,) = similar(db, np.ones(DIM), 1)
    assert set(hit) == {*database.FACTS, "similarity"}
    assert isinstance(hit["datetime"], datetime)
    assert hit["datetime"].astimezone(UTC).month == 6


def test_a_k_above_the_number_of_rows_returns_all(db):
    assert len(similar(db, np.ones(DIM), 5000)) == 1800


# -------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        (ChipFilter(years=(2020,)), lambda r: r["year"] == 2020),
        (ChipFilter(years=(2020, 2021)), lambda r: True),
        (ChipFilter(years=(1999,)), lambda r: False),
        (ChipFilter(datasets=("worldcover",)), lambda r: True),
        (ChipFilter(datasets=("naip", "sentinel2")), lambda r: False),
        (
            ChipFilter(bbox=(-124.9, 49.2, -124.2, 49.7)),
            lambda r: -124.9 <= r["lon"] <= -124.2 and 49.2 <= r["lat"] <= 49.7,
        ),
        (
            ChipFilter(("worldcover",), (2021,), bbox=(-124.5, 48.0, -100.0, 49.5)),
            lambda r: r["year"] == 2021 and r["lon"] >= -124.5 and r["lat"] <= 49.5,
        ),
        (ChipFilter(bbox=(-180.0, -90.0, 180.0, 90.0)), lambda r: True),  # too many cells to name
        (ChipFilter(bbox=(10.0, -20.0, 11.0, -19.0)), lambda r: False),
    ],
)
def test_filters_return_the_chips_that_match(db, rows, filters, keep):
    vector = np.random.default_rng(2).standard_normal(DIM)
    hits = similar(db, vector, 40, filters)
    assert [h["chip_id"] for h in hits] == nearest_by_numpy(rows, vector, 40, keep)[0]


@pytest.mark.parametrize("year", [123456, -40000])
def test_a_year_beyond_the_column_finds_nothing_or_is_refused(db, year):
    try:
        hits = similar(db, np.ones(DIM), 5, ChipFilter(years=(year,)))
    except ConfigError as e:
        assert str(year) in str(e)  # noqa: PT017
    else:
        assert hits == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bbox_takes_just_the_chips_with_their_centre_in_it(db, rows, data):
    """Some edges go through centres and whole degrees."""
    facts, _ = rows
    lons, lats = sorted({r["lon"] for r in facts}), sorted({r["lat"] for r in facts})

    def edges(values, whole):
        pick = st.one_of(st.sampled_from(values), st.sampled_from(whole), st.floats(min(whole), max(whole)))
        return data.draw(st.tuples(pick, pick).filter(lambda e: e[0] != e[1]).map(sorted))

    (west, east), (south, north) = edges(lons, [-126.0, -125.0, -124.0, -123.0]), edges(lats, [48.0, 49.0, 50.0])
    where = ChipFilter(bbox=(west, south, east, north)).sql()
    got = {r["chip_id"] for r in db.table.search().where(where).limit(5000).to_list()}
    assert got == {r["chip_id"] for r in facts if west <= r["lon"] <= east and south <= r["lat"] <= north}


def test_a_centre_on_a_whole_degree_is_found_from_every_side(tmp_path):
    """Row 37 of chips of 128 px at 1200 a degree is centred on 46 degrees north, column 37 on 121 west."""
    from kiln.archives.worldcover.lattice import Lattice

    lattice = Lattice(128, 1200)
    product = make_product(tmp_path, columns=[Column(37, 37, 1)], lattice=lattice)
    build([product.record_file], [product.uri], str(tmp_path / "db"), Select())
    table = ExplorerDatabase(str(tmp_path / "db")).table
    (row,) = table.search().to_list()
    assert (row["lon"], row["lat"]) == (-121.0, 46.0)
    for box in ((-121.5, 45.5, -120.5, 46.5), (-121.0, 46.0, -120.0, 47.0), (-122.0, 45.0, -121.0, 46.0)):
        assert len(table.search().where(ChipFilter(bbox=box).sql()).to_list()) == 1, box


@pytest.mark.parametrize(
    "bbox", [(0, 1, 0, 2), (1, 0, 0, 1), (0, 2, 1, 1), (math.nan, 0, 1, 1), (0, 0, math.inf, 1), (-math.inf, 0, 1, 1)]
)
def test_a_wrong_bbox_is_refused(bbox):
    with pytest.raises(ConfigError, match="west < east and south < north"):
        check_bounding_box(bbox)


HOSTILE = [
    "'",
    "''",
    "' OR '1'='1",
    "x'; DROP TABLE chips; --",
    'worldcover" OR true --',
    "\\'",
    "%",
    "worldcover\x00",
    "é世",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_of_datasets_find_nothing_and_delete_nothing(db, text):
    assert similar(db, np.ones(DIM), 5, ChipFilter(datasets=(text,))) == []
    assert db.table.count_rows() == 1800


@pytest.mark.parametrize("text", [*HOSTILE, "", "worldcover:2021:512:x0660000:y0480000' OR 'a'='a"])
def test_an_unknown_or_hostile_chip_id_is_an_error(db, text):
    with pytest.raises(ConfigError, match="no chip"):
        db.chips([text])


def test_quoting_doubles_quotes():
    assert quote("it's") == "'it''s'"


@given(st.floats(-180, 179.999), st.floats(-90, 89.999))
def test_cells_are_named_after_their_south_west_corner(lon, lat):
    (cell,) = cells(np.array([lon]), np.array([lat]))
    south = int(cell[1:3]) * (-1 if cell[0] == "S" else 1)
    west = int(cell[4:7]) * (-1 if cell[3] == "W" else 1)
    assert south <= lat < south + 1
    assert west <= lon < west + 1


# --------------------------------------------------------------------------------------------------------- places


def test_a_chip_is_found_by_its_id_with_its_vector(db):
    chip = chip_at(WORLD, 2020, 12, 3)
    other = chip_at(WORLD, 2021, 1, 2)
    chips, vectors = db.chips([chip.chip_id, other.chip_id])
    assert [c.chip_id for c in chips] == [chip.chip_id, other.chip_id]
    assert (chips[0].lon, chips[0].lat) == pytest.approx(chip.center)
    assert vectors.shape == (2, DIM)
    assert np.abs(vectors - random_vectors([chip, other])).max() < 0.01


@pytest.mark.parametrize(("dx", "dy"), [(0.5, 0.5), (0.01, 0.01), (0.99, 0.02)])
def test_a_place_gives_the_newest_chip_that_covers_it(db, dx, dy):
    lon, lat = -125 + (7 + dx) * SIDE, 50 - (5 + dy) * SIDE
    assert db.at(lon, lat).chip_id == chip_at(WORLD, 2021, 7, 5).chip_id
    assert db.at(lon, lat, ChipFilter(years=(2020,))).chip_id == chip_at(WORLD, 2020, 7, 5).chip_id


def test_a_place_on_an_edge_always_gives_the_same_neighbour(db):
    chip = db.at(-125 + 3 * SIDE, 50 - 4.5 * SIDE)
    assert chip.chip_id in {chip_at(WORLD, 2021, c, 4).chip_id for c in (2, 3)}
    assert chip.chip_id == db.at(-125 + 3 * SIDE, 50 - 4.5 * SIDE).chip_id


def test_the_error_for_an_uncovered_place_names_the_nearest_chip_and_its_distance(db):
    with pytest.raises(ConfigError) as e:
        db.at(-125 - 0.5 * SIDE, 50 - 10.5 * SIDE)
    near = {chip_at(WORLD, y, 0, 10).chip_id for y in YEARS}
    assert any(f"the nearest is {n}," in str(e.value) for n in near)
    km = SIDE * 111.2 * math.cos(math.radians(50 - 10.5 * SIDE))
    assert float(str(e.value).split(", ")[-1].split(" km")[0]) == pytest.approx(km, abs=0.06)


def test_the_error_for_a_distant_place_names_no_chip(db):
    with pytest.raises(ConfigError, match=r"no chip covers 10, 10$"):
        db.at(10, 10)


@pytest.mark.parametrize(("lon", "lat"), [(math.nan, 49), (-124, math.inf)])
def test_a_place_that_is_not_finite_is_refused(db, lon, lat):
    with pytest.raises(ConfigError):
        db.at(lon, lat)


# ------------------------------------------------------------------------------------------------- no database


def test_a_missing_database_is_an_error_and_not_created(tmp_path):
    with pytest.raises(ConfigError, match="no explorer database there; make it with `snakemake index`"):
        ExplorerDatabase(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_half_built_database_is_not_opened(tmp_path):
    table = lancedb.connect(str(tmp_path)).create_table("chips", schema=database.chips_schema(DIM, {}))
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(tmp_path))
    table.tags.create("state-0123", table.version)
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(tmp_path))
    table.tags.create(database.TAG, table.version)
    assert ExplorerDatabase(str(tmp_path)).table.count_rows() == 0


def test_a_database_that_lost_a_file_is_an_error(tmp_path):
    product = make_product(tmp_path, columns=COLUMNS[:2])
    build([product.record_file], [product.uri], str(tmp_path / "db"), Select())
    for manifest in (tmp_path / "db/chips.lance/_versions").glob("*.manifest"):
        manifest.unlink()
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(tmp_path / "db"))


def test_untrained_is_read_from_the_metadata(tmp_path):
    from tests.support.products import shard_metadata

    for n, untrained in enumerate((False, True)):
        product = make_product(tmp_path / f"{n}", columns=COLUMNS[:2], kiln=shard_metadata(untrained=untrained))
        build([product.record_file], [product.uri], str(tmp_path / f"db{n}"), Select())
        assert ExplorerDatabase(str(tmp_path / f"db{n}")).untrained is untrained


def test_a_reader_never_sees_an_untagged_version(tmp_path, monkeypatch):
    product = make_product(tmp_path, columns=COLUMNS[:2])
    build([product.record_file], [product.uri], str(tmp_path / "db"), Select())
    seen = []

    def look(table, target):
        seen.append((table.count_rows(), ExplorerDatabase(str(tmp_path / "db")).table.count_rows()))
        return measure(table, target)

    measure = builder.measure
    monkeypatch.setattr(builder, "measure", lambda table, target: look(table, target))
    more = make_product(tmp_path, 2020, columns=COLUMNS[:2])
    build([m.record_file for m in (product, more)], [m.uri for m in (product, more)], str(tmp_path / "db"), Select())
    assert seen == [(120, 60)]
    assert Path(tmp_path / "db").is_dir()


# ------------------------------------------------------------------------------------------------ the antimeridian


@pytest.mark.parametrize(
    ("bbox", "keep"),
    [
        ((179.0, 0.0, -179.0, 1.0), {"w", "m", "e"}),
        ((179.3, 0.0, -179.9, 1.0), {"m"}),
        ((179.0, 0.0, 180.0, 1.0), {"w", "m"}),
        ((-180.0, 0.0, -179.0, 1.0), {"e"}),
        ((100.0, -60.0, -80.0, 60.0), {"w", "m", "e"}),  # too many cells to name
        ((179.9, 0.0, -178.0, 1.0), {"e"}),
        ((-179.0, 0.0, 179.0, 1.0), {"far"}),
    ],
)
def test_a_bbox_with_west_above_east_goes_over_the_antimeridian(tmp_path, bbox, keep):
    columns = ("name", pa.string()), ("lon", pa.float64()), ("lat", pa.float64()), ("cell", pa.string())
    names, lon, lat = ["w", "m", "e", "far"], np.array([179.25, 179.875, -179.5, 0.0]), np.full(4, 0.5)
    rows = pa.table([names, lon, lat, cells(lon, lat)], schema=pa.schema(columns))
    chips = lancedb.connect(str(tmp_path)).create_table("chips", rows)
    got = chips.search().where(f"{ChipFilter(bbox=bbox).sql()} AND name != ''").to_list()
    assert {r["name"] for r in got} == keep


@pytest.mark.parametrize("bbox", [(60, 0, 40, 1), (-60, 0, -120, 1), (100, 0, -79, 1), (181, 0, -179, 1)])
def test_a_bbox_over_more_than_half_the_world_has_its_sides_swapped(bbox):
    with pytest.raises(ConfigError, match="half the world wide at most"):
        check_bounding_box(bbox)
