"""The matrix: a cached copy of the table's rows and facts per version; lookup by id, place and view; colours."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, SourceError, StorageError
from kiln.explorer import colours, database, matrix_cache
from kiln.explorer.build import Select, build
from kiln.explorer.chips import UnknownChipError
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.matrix import interleave, map_x, map_y
from kiln.explorer.matrix_cache import open_matrix
from tests.support import explorers
from tests.support.products import WORLD, chip_at, make_product

COLUMNS = [Column(k, 0, 10) for k in range(10)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a database of 200 chips; return it, its folder and its matrix."""
    run = tmp_path_factory.mktemp("matrix")
    products = [make_product(run, year, columns=COLUMNS) for year in (2020, 2021)]
    build([m.record_file for m in products], [m.uri for m in products], str(run / "db"), Select())
    db = ExplorerDatabase(str(run / "db"))
    return db, run, open_matrix(db, run / "cache")


def rows_of(db):
    return {r["chip_id"]: r for r in db.table.search().limit(10_000).to_list()}


def test_every_row_has_the_tables_vector_and_facts(built):
    db, _, m = built
    rows = rows_of(db)
    ids = m.ids(range(len(m)))
    assert sorted(ids) == sorted(rows)
    for n, chip_id in enumerate(ids):
        row = rows[chip_id]
        assert m.vectors[n].tolist() == row["vector"]
        assert (m["lon"][n], m["lat"][n], m["xmin"][n], m["ymax"][n]) == (
            row["lon"],
            row["lat"],
            row["xmin"],
            row["ymax"],
        )
        assert (m["year"][n], m.datasets[m["dataset"][n]]) == (row["year"], row["dataset"])
        assert m["time"][n] == int(row["datetime"].timestamp() * 1000)
        assert np.isnan(m["cloud"][n])
        assert m.texts["source"][n].as_py() == row["source"]


def test_chips_are_found_by_id_and_by_the_databases_row_id(built):
    db, _, m = built
    ids = [m.ids([n])[0] for n in (0, 77, 199, 77)]
    assert m.rows_of(ids).tolist() == [0, 77, 199, 77]
    found = db.table.search().select(["chip_id"]).with_row_id(True).limit(200).to_arrow()
    assert m.ids(m.rows_of_row_ids(found["_rowid"].to_numpy())) == found["chip_id"].to_pylist()


@pytest.mark.parametrize("chip_id", ["", "nope", "worldcover:2021:512:x0", "é\ud800"])
def test_an_unknown_id_is_an_error(built, chip_id):
    with pytest.raises(UnknownChipError, match="no chip"):
        built[2].rows_of([built[2].ids([3])[0], chip_id])


def test_many_unknown_ids_are_counted_and_not_listed(built):
    with pytest.raises(UnknownChipError, match="and 999 more") as e:
        built[2].rows_of([f"x{n}" for n in range(1000)])
    assert len(str(e.value)) < 200


def test_a_second_opening_reads_the_cached_matrix(built, monkeypatch):
    _, run, m = built
    monkeypatch.setattr(matrix_cache, "_build", None)
    again = open_matrix(ExplorerDatabase(str(run / "db")), run / "cache")
    assert isinstance(again.vectors, np.memmap)
    assert (again.vectors == m.vectors).all()


def test_the_matrix_of_an_older_version_is_deleted_and_stays_usable_while_open(tmp_path):
    db = tmp_path / "db"
    explorers.write(db, [explorers.chip(n, n, 0, [n, 1, 0, 0]) for n in range(5)])
    old = open_matrix(ExplorerDatabase(str(db)), tmp_path / "cache")
    explorers.write(db, [explorers.chip(n, n, 0, [n, 1, 0, 0]) for n in range(7)])
    new = open_matrix(ExplorerDatabase(str(db)), tmp_path / "cache")
    assert (len(old), len(new)) == (5, 7)
    assert len(list((tmp_path / "cache" / "matrix").glob("*/*/record.json"))) == 1
    assert old.ids(old.rows_of(["test:00003"])) == ["test:00003"]
    assert old.vectors[old.rows_of(["test:00003"])[0]].tolist() == [3, 1, 0, 0]


def test_a_rebuilt_database_of_the_same_version_has_another_identity(tmp_path):
    db = tmp_path / "db"
    explorers.write(db, [explorers.chip(1, 0, 0, [1, 0, 0, 0])])
    first = ExplorerDatabase(str(db))
    identity, version = first.identity(), first.table.version
    shutil.rmtree(db)
    explorers.write(db, [explorers.chip(2, 0, 0, [1, 0, 0, 0])])
    second = ExplorerDatabase(str(db))
    assert second.table.version == version
    assert second.identity() != identity
    assert open_matrix(second, tmp_path / "cache").ids([0]) == ["test:00002"]


def test_a_partial_matrix_is_built_again(tmp_path, monkeypatch):
    db = ExplorerDatabase(explorers.write(tmp_path / "db", [explorers.chip(n, n, 0, [n, 1, 0, 0]) for n in range(5)]))

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(matrix_cache, "_write_vectors", killed)
        with pytest.raises(Killed):
            open_matrix(db, tmp_path / "cache")
    (home,) = (tmp_path / "cache" / "matrix").iterdir()
    (home / "left by a power cut").mkdir()
    assert len(open_matrix(db, tmp_path / "cache")) == 5
    assert len([p for p in home.iterdir() if p.is_dir()]) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 4
    path.write_bytes(data)


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, zeroed, flipped, removed])
def test_a_matrix_with_a_damaged_file_is_built_again(tmp_path, caplog, damage):
    """Each file of the cache in turn; what is opened afterwards equals the table."""
    db = ExplorerDatabase(explorers.write(tmp_path / "db", [explorers.chip(n, n, 0, [n, 1, 0, 0]) for n in range(5)]))
    open_matrix(db, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "matrix").glob("*/*/")
    names = sorted(p.name for p in folder.iterdir())
    assert {"record.json", "texts.arrow", "vectors.npy", "hash.npy"} <= set(names)
    intact = {name: (folder / name).read_bytes() for name in names}
    for name in names if damage is not flipped else ("record.json", "texts.arrow", "vectors.npy", "lon.npy"):
        damage(folder / name)
        caplog.clear()
        m = open_matrix(db, tmp_path / "cache")
        assert f"{folder}: expected a complete matrix, got a damaged one" in caplog.text
        assert m.vectors[m.rows_of(["test:00003"])[0]].tolist() == [3, 1, 0, 0]
        assert {n: (folder / n).read_bytes() for n in names} == intact


def test_the_digest_of_a_file_covers_its_chunks_and_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_cache, "CHUNK_BYTES", 4)
    path = tmp_path / "a"
    contents = (b"", b"abcd", b"abcdefgh", b"efghabcd", b"abcdefg", b"abcdefgh\0")
    digests = []
    for content in contents:
        path.write_bytes(content)
        digests.append(matrix_cache.file_digest(path))
    assert len(set(digests)) == len(contents)


def test_files_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    db = ExplorerDatabase(explorers.write(tmp_path / "db", [explorers.chip(1, 1, 0, [1, 1, 0, 0])]))
    synced, sync = [], os.fsync

    def record(number):
        synced.append(Path(f"/proc/self/fd/{number}").resolve())
        sync(number)

    monkeypatch.setattr(matrix_cache.os, "fsync", record)
    open_matrix(db, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "matrix").glob("*/*/")
    names = {p.name for p in folder.iterdir()} - {"record.json"}
    assert names <= {p.name for p in synced if ".partial" in p.parent.name}


def test_a_full_disk_and_an_unwritable_cache_are_errors(tmp_path, built, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 10))
    with pytest.raises(StorageError, match=r"got 0\. Choose another --cache"):
        open_matrix(built[0], tmp_path / "full")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        open_matrix(built[0], tmp_path / "file")


def test_a_table_with_other_columns_is_refused(tmp_path):
    import pyarrow as pa

    table = database.connect(str(tmp_path / "db")).create_table("chips", pa.table({"text": ["a"]}))
    table.tags.create("ready", table.version)
    with pytest.raises(ConfigError, match="expected an explorer table, got one without chip_id"):
        open_matrix(ExplorerDatabase(str(tmp_path / "db")), tmp_path / "cache")


def test_vectors_of_another_dimension_than_the_metadata_are_refused(tmp_path):
    about = {"worldcover": explorers.KILN | {"dimensions": 1024}}
    db = ExplorerDatabase(explorers.write(tmp_path / "db", [explorers.chip(1, 0, 0, [1, 0, 0, 0])], about))
    with pytest.raises(ConfigError, match="expected 1024 dimensions as the metadata of worldcover, got 4"):
        open_matrix(db, tmp_path / "cache")


def test_an_empty_database_opens(tmp_path):
    m = open_matrix(ExplorerDatabase(explorers.write(tmp_path / "db", [])), tmp_path / "cache")
    assert (len(m), m.vectors.shape) == (0, (0, 4))
    with pytest.raises(UnknownChipError):
        m.rows_of(["x"])


# ------------------------------------------------------------------------------------------------------- places


def test_the_chip_at_a_place_is_the_newest(built):
    _, _, m = built
    chip = chip_at(WORLD, 2021, 4, 3)
    assert m.ids([m.at(*chip.center, None)]) == [chip.chip_id]
    older = m["year"] == 2020
    assert m.ids([m.at(*chip.center, older)]) == [chip_at(WORLD, 2020, 4, 3).chip_id]
    assert m.ids([m.at(*chip.center, None)]) == [built[0].at(*chip.center).chip_id]


def test_a_place_without_a_chip_names_the_nearest(built):
    with pytest.raises(UnknownChipError, match=r"the nearest is worldcover:2021:.* km away|nearest is worldcover:2020"):
        built[2].at(-125.3, 49.9, None)
    with pytest.raises(UnknownChipError, match=r"no chip covers 100\.0, 10\.0$"):
        built[2].at(100.0, 10.0, None)


@pytest.mark.parametrize("place", [(200, 0), (0, 91), (float("nan"), 0), (0, float("inf"))])
def test_wrong_places_are_refused(built, place):
    with pytest.raises(ConfigError, match="place: expected longitude"):
        built[2].at(*place, None)


def test_a_view_holds_the_chips_that_touch_it(tmp_path):
    rng = np.random.default_rng(0)
    places = [*rng.uniform([-180, -85], [180, 85], (800, 2)).tolist(), [179.99, 10], [-179.99, 10]]
    rows = [explorers.chip(n, lon, lat, [1, n, 0, 0]) for n, (lon, lat) in enumerate(places)]
    m = open_matrix(ExplorerDatabase(explorers.write(tmp_path / "db", rows)), tmp_path / "cache")
    views = [(-20, -10, 50, 40), (0.01, 0.01, 0.02, 0.02), (-180, -90, 180, 90), (160, -30, -150, 60)]
    for west, south, east, north in [*views, (179.995, 9, -179.995, 11), (-179.985, 9.99, -179.98, 10.01)]:
        got = set(m.ids(m.in_view((west, south, east, north), None)))
        boxes = [(west, east)] if west < east else [(west, 180), (-180, east)]

        def touches(r, boxes=boxes, south=south, north=north):
            sides = [(r["xmin"], r["xmax"])] if r["xmin"] <= r["xmax"] else [(r["xmin"], 180), (-180, r["xmax"])]
            return (
                any(a <= e and b >= w for w, e in boxes for a, b in sides) and r["ymin"] <= north and r["ymax"] >= south
            )

        assert got == {r["chip_id"] for r in rows if touches(r)}
    across = m.rows_of(["test:00800"])[0]
    assert m["xmin"][across] > m["xmax"][across]
    assert m.ids([m.at(-179.995, 10, None)])[0] in ("test:00800", "test:00801")


def test_the_map_is_web_mercator():
    assert map_x(np.array([-180.0, 0, 180])).tolist() == [0, 0.5, 1]
    assert map_y(np.array([0.0, 85.051128779806604, -90])) == pytest.approx([0.5, 0, 1], abs=1e-9)
    import pyproj

    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(-73.2, 44.1)
    half = 20037508.342789244
    assert float(map_x(-73.2)) == pytest.approx((x + half) / 2 / half)
    assert float(map_y(44.1)) == pytest.approx((half - y) / 2 / half)


def test_the_curve_interleaves_bits():
    assert interleave(np.array([0b101, 0]), np.array([0b011, 0b111])).tolist() == [0b011011, 0b101010]


# ----------------------------------------------------------------------------------------------------- colours


def test_colours_follow_the_components_that_vary_most():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((500, 3)) * [3, 1, 0.3]
    axes = np.linalg.qr(rng.standard_normal((16, 4)))[0]
    vectors = 40 * axes[:, 3] + latent @ axes[:, :3].T
    fitted = colours.fit_colours(vectors)
    for n in range(3):
        assert abs(fitted.components[n] @ axes[:, n]) > 0.95
        assert fitted.components[n][np.abs(fitted.components[n]).argmax()] > 0
    rgb = fitted.rgb(vectors)
    assert abs(np.corrcoef(rgb[:, 0], latent[:, 0])[0, 1]) > 0.95
    assert rgb.min() == 0
    assert rgb.max() == 255
    assert (fitted.rgb(vectors * 7) == rgb).all()  # length does not count


@pytest.mark.parametrize("vectors", [np.ones((1, 8)), np.zeros((3, 8)), np.ones((50, 2)), np.eye(2)])
def test_few_or_equal_vectors_have_finite_colours(vectors):
    assert np.isfinite(colours.fit_colours(vectors).rgb(vectors)).all()


def test_stored_colours_are_used_and_missing_ones_are_fitted_and_logged(built, tmp_path, caplog):
    db, run, m = built
    stored = colours.read_colours(db.uri, db.table.version)
    assert (m["colour"] == stored.rgb(m.vectors)).all()
    shutil.copytree(run / "db", tmp_path / "db")
    for file in (tmp_path / "db" / "state").glob("*colours*"):
        file.unlink()
    with caplog.at_level("INFO"):
        without = open_matrix(ExplorerDatabase(str(tmp_path / "db")), tmp_path / "cache")
    assert "no colours are stored" in caplog.text
    assert np.abs(without["colour"].astype(int) - m["colour"]).max() <= 1


@pytest.mark.parametrize("text", ["", "[]", '{"x": {"mean": 3}}', '{"x": 3}'])
def test_broken_colours_are_an_error(built, tmp_path, text):
    _, run, _ = built
    shutil.copytree(run / "db", tmp_path / "db")
    copy = ExplorerDatabase(str(tmp_path / "db"))
    open(colours.colours_uri(copy.uri, copy.table.version), "w").write(text)  # noqa: PTH123, SIM115
    with pytest.raises(SourceError, match="expected the colours of a database"):
        open_matrix(copy, tmp_path / "cache")


def test_colours_are_equal_bytes_for_equal_vectors(built):
    db = built[0]
    first, second = (colours.to_bytes("space", colours.fit_table(db.table)) for _ in range(2))
    assert first == second
    assert set(json.loads(first)) == {"space"}
