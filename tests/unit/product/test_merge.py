"""Merging shards: order, sizes, accounts, the same bytes whatever the memory, and what is refused."""

import hashlib
import html
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.archives.sentinel2.scene import Grid
from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, SourceError, StorageError
from kiln.formats import embeddings_file, vectors
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA, LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Dropped, Unit
from kiln.product import merge
from kiln.report import coverage
from tests import ROOT
from tests.support import products
from tests.support.chips import make_chip
from tests.support.products import WORLD, about, drawn, make_product, write_shard, write_shards

GRID = [Column(k, 0, 40) for k in range(40)]  # 1600 chips
WIDE = about(dimensions=1024)  # as Clay's
PART = 1_200_000


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def tables(made):
    return [pq.ParquetFile(f"{made.uri}/{f['name']}") for f in made.record["files"]]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """1600 chips in ten shards, merged into several parts of several row groups."""
    run = tmp_path_factory.mktemp("grid")
    skip = lambda col, row: (col + row) % 7 == 0  # noqa: E731
    return make_product(run, columns=GRID, kiln=WIDE, row_group=100, part_bytes=PART, skip=skip)


# --------------------------------------------------------------------------------------------- order and content


def test_every_row_of_the_shards_is_in_the_product_once_and_unchanged(grid):
    run = Path(grid.plan).parent
    before = pa.concat_tables(
        pq.read_table(p) for p in sorted((run / "shards/2021").glob("*.parquet")) if "ledger" not in p.name
    )
    after = grid.rows()
    assert len(after) == len(before) == grid.record["rows"]
    key = [("chip_id", "ascending")]
    assert after.sort_by(key).replace_schema_metadata(None).equals(before.sort_by(key).replace_schema_metadata(None))


def test_rows_follow_the_hilbert_order_of_geopandas(grid):
    footprints = gpd.GeoSeries(shapely.from_wkb(grid.rows()["geometry"].to_numpy()), crs=4326)
    bounds = shapely.bounds(shapely.centroid(footprints.values))
    whole = (*bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0))
    keys = footprints.hilbert_distance(total_bounds=whole, level=16).to_numpy()
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    assert len(np.unique(keys)) == len(keys)


def touched(files, window):
    """Row groups whose statistics of the `bbox` column meet a window."""
    west, south, east, north = window
    found = total = 0
    for file in files:
        names = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
        at = [names.index(f"bbox.{k}") for k in ("xmin", "ymin", "xmax", "ymax")]
        for g in range(file.metadata.num_row_groups):
            s = [file.metadata.row_group(g).column(i).statistics for i in at]
            total += 1
            found += s[0].min < east and s[1].min < north and s[2].max > west and s[3].max > south
    return found, total


def test_a_spatial_window_touches_few_row_groups(grid):
    side = 512 / 12000
    window = (-125 + 10 * side, 50 - 15 * side, -125 + 15 * side, 50 - 10 * side)  # 5 x 5 of 40 x 40 chips
    found, total = touched(tables(grid), window)
    assert total == 14
    assert found <= 4
    shards = [p for p in (Path(grid.plan).parent / "shards/2021").glob("*.parquet") if "ledger" not in p.name]
    assert 1 <= found < total / 2
    assert len(shards) == 10


def test_the_same_bytes_come_out_whatever_the_memory_is(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID, kiln=WIDE)
    seen = []
    for memory in (1, 3_000_000, 8_000_000, 1 << 30):
        out = tmp_path / f"m{memory}"
        record = merge.merge(names, str(folder), str(folder), str(out), memory=memory, row_group=64, part_bytes=PART)
        seen.append((record, digests(out)))
    assert len(seen[0][0]["files"]) > 2
    assert all(s == seen[0] for s in seen[1:])


def test_the_main_writes_the_same_bytes_for_any_memory_mb(tmp_path):
    plan, _, folder = write_shards(tmp_path, columns=GRID[:8])
    for mb in (1, 64, 4096):
        merge.main(["--plan", plan, "--shards", str(folder), "--product", f"{tmp_path}/{mb}", "--memory-mb", str(mb)])
    assert digests(tmp_path / "1") == digests(tmp_path / "64") == digests(tmp_path / "4096")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "64.json").read_bytes()
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "4096.json").read_bytes()


def test_a_second_run_writes_the_same_bytes(grid, tmp_path):
    before = digests(grid.uri)
    run = Path(grid.plan).parent
    names = [json.loads(x)["shard"] for x in Path(grid.plan).read_text().splitlines()]
    folder = str(run / "shards/2021")
    again = merge.merge(names, folder, folder, str(tmp_path / "again"), row_group=100, part_bytes=PART)
    assert again == grid.record
    assert digests(tmp_path / "again") == before


def test_a_second_run_over_the_product_leaves_nothing_of_the_first(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID)
    out = str(tmp_path / "product")
    first = merge.merge(names, str(folder), str(folder), out, row_group=64, part_bytes=100_000)
    second = merge.merge(names, str(folder), str(folder), out)
    assert len(first["files"]) > len(second["files"]) == 1
    named = {f["name"] for f in second["files"]} | {second["ledger"]["name"], *second["stac"]}
    assert set(digests(out)) == named


def test_the_order_in_which_shards_were_written_does_not_matter(tmp_path):
    lines = products.plan_lines(WORLD, 2021, GRID[:12], 4)
    seen = []
    for n, order in enumerate((lines, lines[::-1])):
        folder = tmp_path / f"{n}" / "shards"
        for line in order:
            write_shard(folder, line["shard"], [Column(*c) for c in line["columns"]], kiln=about())
        out = tmp_path / f"{n}" / "product"
        seen.append((merge.merge([x["shard"] for x in lines], str(folder), str(folder), str(out)), digests(out)))
    assert seen[0] == seen[1]


def test_the_order_in_which_shards_are_named_does_not_change_a_row(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID[:12])
    one = merge.merge(names, str(folder), str(folder), str(tmp_path / "a"))
    two = merge.merge(names[::-1], str(folder), str(folder), str(tmp_path / "b"))
    assert one["files"] == two["files"]
    assert one["shards"] == two["shards"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cols=st.lists(st.integers(-3, 40), min_size=1, max_size=9, unique=True),
    rows=st.integers(1, 9),
    per_shard=st.integers(1, 5),
    hole=st.integers(1, 5),
    row_group=st.integers(1, 50),
)
def test_rows_are_the_ledgers_counts_for_any_shape(tmp_path_factory, cols, rows, per_shard, hole, row_group):
    run = tmp_path_factory.mktemp("any")
    made = make_product(
        run, columns=[Column(k, 5, rows) for k in sorted(cols)], per_shard=per_shard,
        skip=lambda c, r: (c * 3 + r) % hole == 0, row_group=row_group,
    )  # fmt: skip
    kept = [(c, r) for c in cols for r in range(5, 5 + rows) if (c * 3 + r) % hole]
    counts = made.record["counts"]
    assert made.record["rows"] == counts["embedded"] == len(kept) == sum(f["rows"] for f in made.record["files"])
    assert counts["expected"] == len(cols) * rows == counts["embedded"] + counts["skipped_nodata"]
    got = made.rows()
    assert set(zip(got["col"].to_pylist(), got["row"].to_pylist(), strict=True)) == set(kept)
    shutil.rmtree(run)


# ------------------------------------------------------------------------------------------------ sizes and parts


def test_parts_stay_below_part_bytes_and_there_are_several(grid):
    sizes = [Path(f"{grid.uri}/{f['name']}").stat().st_size for f in grid.record["files"]]
    assert len(sizes) >= 3
    assert max(sizes) <= PART
    assert min(sizes[:-1]) > 0.6 * PART  # and are filled


@pytest.mark.parametrize("part_bytes", [250_000, 400_000, 1_000_000, 10_000_000])
def test_no_part_is_larger_than_part_bytes(tmp_path, part_bytes):
    made = make_product(tmp_path, columns=GRID[:20], kiln=WIDE, row_group=50, part_bytes=part_bytes)
    assert max(f["size"] for f in made.record["files"]) <= part_bytes


def test_row_groups_are_about_as_large(grid):
    groups = [f.metadata.row_group(g).num_rows for f in tables(grid) for g in range(f.metadata.num_row_groups)]
    assert max(groups) <= 100
    assert set(groups[:-1]) == {groups[0]}
    assert groups[0] - len(groups) <= groups[-1] <= groups[0]


def test_the_default_row_group_is_that_of_remote_reading():
    assert 30_000 <= merge.ROW_GROUP <= 50_000


def test_a_full_row_group_of_wide_rows_is_one_row_group(tmp_path):
    """More rows than a writer's default row-group size and page limits must not split them."""
    made = make_product(tmp_path, columns=[Column(k, 0, 300) for k in range(10)], row_group=2500)
    (file,) = tables(made)
    assert [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)] == [1500, 1500]


def test_geo_bbox_is_that_of_each_parts_own_rows(grid):
    boxes = []
    for file in tables(grid):
        geo = json.loads(file.metadata.metadata[b"geo"])
        box = file.read(columns=["bbox"])["bbox"].combine_chunks()
        own = [pc.min(box.field(0)), pc.min(box.field(1)), pc.max(box.field(2)), pc.max(box.field(3))]
        boxes.append(geo["columns"]["geometry"]["bbox"])
        assert boxes[-1] == [v.as_py() for v in own]
        assert geo["version"] == "1.1.0"
        assert geo["primary_column"] == "geometry"
        assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]
        assert geo["columns"]["geometry"]["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    assert len(set(map(tuple, boxes))) == len(boxes)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_embeddings_stay_fixed_size_lists_of_their_type(tmp_path, store):
    made = make_product(tmp_path, columns=GRID[:4], kiln=about(storage=store))
    (file,) = tables(made)
    kind = file.schema_arrow.field("embeddings").type
    assert pa.types.is_fixed_size_list(kind)
    assert kind.list_size == products.DIM
    assert kind.value_type == {"float32": pa.float32(), "float16": pa.float16()}[store]
    column = file.metadata.row_group(0).column(1)
    assert column.path_in_schema == "embeddings.list.element"
    assert column.compression == "ZSTD"
    assert ("BYTE_STREAM_SPLIT" in column.encodings) == (store == "float32")
    rows = made.rows()
    places = zip(rows["col"].to_pylist(), rows["row"].to_pylist(), strict=True)
    chips = [products.chip_at(WORLD, 2021, c, r) for c, r in places]
    got = np.asarray(rows["embeddings"].combine_chunks().flatten()).reshape(len(rows), -1)
    assert np.array_equal(got, drawn(chips).astype(store))


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_duckdb_reads_the_vectors(tmp_path, store):
    made = make_product(tmp_path, columns=GRID[:4], kiln=about(storage=store))
    found = duckdb.sql(
        f"SELECT chip_id, embeddings, bbox.xmin FROM '{made.uri}/part-0000.parquet' WHERE col = 2 ORDER BY row"
    ).fetchall()
    chips = [products.chip_at(WORLD, 2021, 2, r) for r in range(40)]
    assert [f[0] for f in found] == [c.chip_id for c in chips]
    assert np.array_equal(np.array([f[1] for f in found], store), drawn(chips).astype(store))
    assert found[0][2] == chips[0].x0


def test_geopandas_reads_the_product_and_filters_by_bbox(grid):
    side = 512 / 12000
    path = f"{grid.uri}/{grid.record['files'][0]['name']}"
    whole = gpd.read_parquet(path)
    assert whole.crs.to_epsg() == 4326
    assert whole.geometry.name == "geometry"
    assert (whole.geom_type == "Polygon").all()
    west, south = whole.total_bounds[:2]
    window = (west + 2.5 * side, south + 2.5 * side, west + 4.5 * side, south + 4.5 * side)
    some = gpd.read_parquet(path, bbox=window)
    want = whole[whole.intersects(shapely.box(*window))]
    assert 0 < len(some) < len(whole)
    assert set(some["chip_id"]) == set(want["chip_id"])


@pytest.fixture(scope="module")
def duckdb_home(tmp_path_factory):
    """A home folder where DuckDB finds its spatial extension without the network."""
    home = tmp_path_factory.mktemp("duckdb-home")
    con = duckdb.connect(config={"extension_directory": str(home / ".duckdb" / "extensions")})
    importlib.import_module("duckdb_extensions").import_extension("spatial", con=con)
    con.close()
    return home


def gpio(home, *args):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(home), "COLUMNS": "200"}
    command = [str(Path(sys.executable).parent / "gpio"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_gpio_check_all_finds_nothing_to_warn_of(duckdb_home, tmp_path, store):
    """40 000 chips in four row groups: compression, covering, row groups, spatial order and specification."""

    def vectors(chips):
        return np.random.default_rng(1).standard_normal((len(chips), products.DIM))

    columns = [Column(k, 0, 200) for k in range(200)]
    made = make_product(
        tmp_path, columns=columns, per_shard=50, kiln=about(storage=store), vectors=vectors, row_group=10_000
    )
    assert made.record["rows"] == 40_000
    done = gpio(duckdb_home, "check", "all", f"{made.uri}/part-0000.parquet")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for want in (
        "✓ Data appears to be spatially ordered",
        "✓ 29 checks passed",
        "Number of row groups: 4",
        "✓ Version 1.1.0",
        "✓ Found bbox column 'bbox' with proper metadata covering",
        "✓ ZSTD compression on geometry column 'geometry'",
    ):
        assert want in said, said
    assert not any(bad in said for bad in ("⚠", "✗", "❌", "WARNING")), said


# ---------------------------------------------------------------------------------------------- the antimeridian

OVER = about(dataset="sentinel2", partition="2021", lattice={"chip_size": 256, "lattice": "scene", "edge": "drop"})


@pytest.fixture(scope="module")
def dateline(tmp_path_factory):
    """1600 chips of a scene of zone 1 south, 16 columns of 100: of each row some lie west, one or two over, some east.

    Its folder of shards (two), its product and the record.
    """
    run = tmp_path_factory.mktemp("dateline")
    grid = Grid(25_600, 4096, Affine(10, 0, 160_000, 0, -10, 8_200_000), "EPSG:32701", 256)
    footprints = grid.footprints()[0].reshape(-1)
    for name, part in (("a", footprints[:800]), ("b", footprints[800:])):
        chips = [make_chip(n, name, footprint=f) for n, f in enumerate(part)]
        entry = LedgerEntry(Unit(f"sentinel2:{name}", len(chips), "s3://b/i", "e"), embedded=len(chips))
        with embeddings_file.ShardWriter(
            run / f"{name}.parquet", embeddings_file.schema(8, "float32", [products.YEAR], OVER)
        ) as out:
            rng = np.random.default_rng(len(out.schema))
            out.append(chips, {"embeddings": rng.standard_normal((len(chips), 8), np.float32)})
        write_ledger(run / f"{name}.ledger.parquet", ledger_table([entry]))
    return run, merge.merge(["a", "b"], str(run), str(run), f"{run}/p", row_group=200), run / "p"


def test_a_product_over_the_antimeridian_tells_its_bounds_and_types(dateline):
    _, record, folder = dateline
    geo = json.loads(pq.read_metadata(folder / "part-0000.parquet").metadata[b"geo"])["columns"]["geometry"]
    assert geo["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert (geo["bbox"][0], geo["bbox"][2]) == (-180, 180)
    frame = gpd.read_parquet(folder / "part-0000.parquet")
    assert frame.geometry.is_valid.all()
    crossing = frame.geom_type == "MultiPolygon"
    assert 100 <= crossing.sum() <= 200
    boxes = pq.read_table(folder / "part-0000.parquet", columns=["bbox"])["bbox"].to_pylist()
    assert [b["xmin"] > b["xmax"] for b in boxes] == crossing.tolist()
    item = json.loads((folder / next(n for n in record["stac"] if "part" in n)).read_text())
    assert item["bbox"] == geo["bbox"]


def test_rows_over_the_antimeridian_lie_among_their_neighbours(dateline):
    """From row to row of the product no step is long, the short way round, but where the curve goes to the other side.

    With centres at Greenwich the crossing chips would lie apart from both.
    """
    box = pq.read_table(dateline[2] / "part-0000.parquet")["bbox"].combine_chunks()
    west, east = np.asarray(box.field("xmin")), np.asarray(box.field("xmax"))
    side = np.sign(embeddings_file.box_centres(box)[0])  # hemisphere of each row's centre
    assert np.count_nonzero(np.diff(side)) == 1  # one after the other
    over = west > east
    assert {-1.0, 1.0} >= set(side[over])
    for hemisphere in set(side[over]):
        at = np.flatnonzero(over & (side == hemisphere))
        beside = np.flatnonzero(~over & (side == hemisphere))
        assert beside.min() < at.max()
        assert at.min() < beside.max()


def test_geopandas_and_duckdb_read_what_is_at_the_antimeridian(dateline, duckdb_home):
    """By their geometry, all; geopandas' own look at `bbox`, which knows no xmin > xmax, gives those beside it."""
    path = dateline[2] / "part-0000.parquet"
    frame = gpd.read_parquet(path)
    for window in ((179.95, -17.5, 180, -17.0), (-180, -17.5, -179.95, -17.0)):
        want = frame[frame.intersects(shapely.box(*window))]
        assert set(want.geom_type) == {"Polygon", "MultiPolygon"}
        with duckdb.connect(config={"extension_directory": str(duckdb_home / ".duckdb" / "extensions")}) as con:
            con.load_extension("spatial")
            found = con.sql(
                f"SELECT chip_id FROM '{path}' WHERE ST_Intersects(geometry, ST_MakeEnvelope{window})"
            ).fetchall()
        assert sorted(f[0] for f in found) == sorted(want["chip_id"])
        some = gpd.read_parquet(path, bbox=window)
        assert set(want["chip_id"][want.geom_type == "Polygon"]) <= set(some["chip_id"])
        assert len(some) < len(frame) / 10


def test_gpio_finds_nothing_wrong_at_the_antimeridian(duckdb_home, dateline):
    done = gpio(duckdb_home, "check", "all", str(dateline[2] / "part-0000.parquet"))
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for want in ("✓ 29 checks passed", "✓ Data appears to be spatially ordered", "with proper metadata covering"):
        assert want in said, said
    assert "✗" not in said


# ------------------------------------------------------------------------------------------ record and metadata


def test_the_records_sizes_and_digests_are_true(grid):
    assert json.loads(Path(grid.record_file).read_text()) == grid.record
    for file in [*grid.record["files"], grid.record["ledger"]]:
        data = Path(f"{grid.uri}/{file['name']}").read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    named = {f["name"] for f in grid.record["files"]} | {grid.record["ledger"]["name"], *grid.record["stac"]}
    assert set(digests(grid.uri)) == named
    assert grid.record["rows"] == sum(f.metadata.num_rows for f in tables(grid))


def test_another_vector_gives_another_tag(tmp_path):
    def other(chips):
        vectors = drawn(chips)
        vectors[-1, -1] += 1
        return vectors

    tags = [
        make_product(tmp_path / n, columns=GRID[:2], vectors=v).record["tag"]
        for n, v in (("a", drawn), ("b", drawn), ("c", other))
    ]
    assert tags[0] == tags[1] != tags[2]


def test_the_products_metadata_names_the_sources_of_every_row(grid):
    for file in tables(grid):
        kiln = json.loads(file.schema_arrow.metadata[b"kiln"])
        assert set(pc.unique(file.read(columns=["source"])["source"]).to_pylist()) <= set(kiln["sources"])
        assert kiln["fingerprint"] == about()["fingerprint"]
        assert list(kiln["sources"]) == sorted(kiln["sources"])


def test_the_merged_ledger_is_all_ledgers_in_plan_order(grid):
    run = Path(grid.plan).parent
    units = [u for x in Path(grid.plan).read_text().splitlines() for u in json.loads(x)["units"]]
    ledger = pq.read_table(f"{grid.uri}/ledger.parquet")
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["unit_id"].to_pylist() == units
    for count in LEDGER_COUNTS:
        assert pc.sum(ledger[count]).as_py() == grid.record["counts"][count]
    assert grid.record["units"] == {"embedded": 40}
    assert run.is_dir()


def test_failed_and_empty_units_are_counted_by_status(tmp_path):
    made = make_product(
        tmp_path, columns=GRID[:8], skip=lambda c, r: c == 1, fail=lambda c: "tile unreadable" if c in (2, 3) else ""
    )
    assert made.record["units"] == {"embedded": 5, "empty": 1, "failed": 2}
    assert made.record["counts"] == {
        "expected": 320, "embedded": 200, "skipped_nodata": 40, "skipped_cloud": 0, "failed": 80,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- empty things


def test_empty_shards_among_others_change_nothing(tmp_path):
    made = make_product(tmp_path, columns=GRID[:12], skip=lambda c, r: c < 4 or c >= 8)
    assert made.record["rows"] == 160
    assert set(made.rows()["col"].to_pylist()) == {4, 5, 6, 7}


def test_a_partition_without_any_chip_is_one_empty_part_with_all_columns(tmp_path):
    made = make_product(tmp_path, columns=GRID[:8], skip=lambda c, r: True)
    assert made.record["rows"] == 0
    (file,) = tables(made)
    assert file.metadata.num_rows == 0
    assert file.schema_arrow.field("embeddings").type.list_size == products.DIM
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert "bbox" not in geo["columns"]["geometry"]
    assert len(gpd.read_parquet(f"{made.uri}/part-0000.parquet")) == 0
    assert pq.read_table(f"{made.uri}/ledger.parquet").num_rows == 8


@pytest.mark.parametrize("columns", [[Column(3, 2, 1)], [Column(3, 0, 9)], [Column(k, 0, 1) for k in range(9)]])
def test_one_chip_one_column_or_one_row_of_chips_is_a_product(tmp_path, columns):
    made = make_product(tmp_path, columns=columns)
    rows = made.rows()
    steps = np.abs(np.diff(rows["col"].to_numpy())) + np.abs(np.diff(rows["row"].to_numpy()))
    assert len(rows) == max(len(columns), columns[0].rows)
    assert (steps == 1).all()  # neighbours follow each other


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def broken(tmp_path):
    """A plan of three sound shards, for a test to break one."""
    plan, names, folder = write_shards(tmp_path, columns=GRID[:12])
    return plan, names, folder, str(tmp_path / "product")


def run_main(capsys, plan, folder, product, *more):
    """Exit status and what a person reads."""
    try:
        merge.main(["--plan", plan, "--shards", str(folder), "--product", product, *more])
    except SystemExit as e:
        return e.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_a_missing_shard_is_named_and_leaves_no_record(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, said = run_main(capsys, plan, folder, product)
    assert code == 1
    assert "1 of 3 shards" in said
    assert names[1] in said
    assert not Path(f"{product}.json").exists()


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_shard_is_named(broken, capsys, keep):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    code, said = run_main(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in said
    assert "expected a Parquet file" in said
    assert not Path(f"{product}.json").exists()


def test_a_shard_with_rotten_pages_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    at = column.data_page_offset + column.total_compressed_size // 2
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    code, said = run_main(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in said
    assert not Path(f"{product}.json").exists()


def test_a_file_that_is_no_shard_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[0]}.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    code, said = run_main(capsys, plan, folder, product)
    assert code in (1, 2)
    assert str(path) in said


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "0e" * 32}, {"partition": "2020"}, {"storage": "float16"}, {"dimensions": 16}]
)
def test_shards_made_with_different_settings_are_refused(broken, changes):
    _, names, folder, product = broken
    write_shard(folder, names[1], GRID[4:8], kiln=about(**changes))
    with pytest.raises(ConfigError, match="other settings") as e:
        merge.merge(names, str(folder), str(folder), product)
    assert names[1] in str(e.value)


def test_a_ledger_that_disagrees_with_the_rows_is_refused(broken):
    _, names, folder, product = broken
    ledger = folder / f"{names[1]}.ledger.parquet"
    rows = pq.read_table(ledger).to_pylist()
    rows[0]["embedded"] -= 1
    rows[0]["skipped_nodata"] += 1
    write_ledger(ledger, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    with pytest.raises(SourceError, match="480 rows, but the ledgers say 479"):
        merge.merge(names, str(folder), str(folder), product)


def test_a_missing_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.ledger.parquet").unlink()
    code, said = run_main(capsys, plan, folder, product)
    assert code == 1
    assert f"{names[1]}.ledger.parquet" in said


def test_a_truncated_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[1]}.ledger.parquet"
    path.write_bytes(path.read_bytes()[:300])
    code, said = run_main(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in said


# ------------------------------------------------------------------------------------------------- allow-missing


def test_allow_missing_says_so_in_record_metadata_and_ledger_page(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, _ = run_main(capsys, plan, folder, product, "--allow-missing")
    assert code == 0
    record = json.loads(Path(f"{product}.json").read_text())
    assert record["missing_shards"] == [names[1]]
    assert record["rows"] == 320
    kiln = json.loads(pq.read_schema(f"{product}/part-0000.parquet").metadata[b"kiln"])
    assert kiln["missing_shards"] == [names[1]]
    assert "1 shards are missing" in html.unescape(coverage.ledger_page([record], [product]))


def test_allow_missing_with_nothing_missing_is_the_plain_product(broken, capsys, tmp_path):
    plan, _, folder, product = broken
    assert run_main(capsys, plan, folder, product)[0] == 0
    assert run_main(capsys, plan, folder, f"{tmp_path}/other", "--allow-missing")[0] == 0
    assert digests(product) == digests(tmp_path / "other")


def test_allow_missing_without_any_shard_is_an_error(broken, capsys):
    plan, names, folder, product = broken
    for name in names:
        (folder / f"{name}.parquet").unlink()
    code, said = run_main(capsys, plan, folder, product, "--allow-missing")
    assert code == 2
    assert "no shard to merge" in said


def test_the_ledgers_may_lie_elsewhere_than_the_shards(broken, capsys, tmp_path):
    plan, names, folder, product = broken
    assert run_main(capsys, plan, folder, product)[0] == 0
    (tmp_path / "ledgers").mkdir()
    for name in names:
        (folder / f"{name}.ledger.parquet").rename(tmp_path / "ledgers" / f"{name}.ledger.parquet")
    code, _ = run_main(capsys, plan, folder, f"{tmp_path}/other", "--ledgers", str(tmp_path / "ledgers"))
    assert code == 0
    assert digests(product) == digests(tmp_path / "other")


def test_a_product_is_written_to_s3_as_to_a_folder(bucket, tmp_path):
    from kiln.io import storage

    plan, _, folder = write_shards(tmp_path, columns=GRID[:8])
    merge.main(["--plan", plan, "--shards", str(folder), "--product", f"{bucket}/products/2021"])
    merge.main(["--plan", plan, "--shards", str(folder), "--product", f"{tmp_path}/2021"])
    there = {
        u.removeprefix(f"{bucket}/products/2021/"): hashlib.sha256(storage.read_bytes(u)).hexdigest()
        for u in storage.listing(f"{bucket}/products/2021")
    }
    assert there == digests(tmp_path / "2021")
    assert storage.read_bytes(f"{bucket}/products/2021.json") == (tmp_path / "2021.json").read_bytes()


# -------------------------------------------------------------------------------------------------------- unique

UTM = {"chip_size": 16, "lattice": "utm", "lattice_gsd": 1.0, "anchor": [0, 0], "resampling": "none"}
SCENES = about(dataset="naip", partition="nd-2019", lattice=UTM, chip_size=16)


def write_scenes(folder, shards, kiln=SCENES, dropped=()):
    """Shards of scenes: {shard: {scene: {(zone, col, row): nodata}}}. Scenes in `dropped` also lost a chip each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scenes in shards.items():
        chips, entries = [], []
        for scene, cells in scenes.items():
            uri = f"s3://naip-analytic/{scene}.tif"
            entry = LedgerEntry(Unit(f"naip:nd:2019:{scene}", len(cells) + (scene in dropped), uri, "e"))
            if scene in dropped:
                entry.record_dropped(Dropped(entry.unit.unit_id, dropped[scene], 1, f"{scene} lost one"))
            for (zone, col, row), nodata in cells.items():
                entry.embedded += 1
                chips.append(
                    make_chip(
                        col % 300, entry.unit.unit_id, chip_id=f"naip:utm{zone}:1.0:{col}:{row}:nd:2019:{scene}",
                        crs=f"EPSG:269{zone}", col=col, row=row, nodata_fraction=nodata, source=uri, sources=(uri,),
                        footprint=shapely.box(col / 100, row / 100, (col + 1) / 100, (row + 1) / 100), item_id=scene,
                    )
                )  # fmt: skip
            entries.append(entry)
        told = kiln | {"sources": {c.source: {"size": 1} for c in chips}}
        with embeddings_file.ShardWriter(
            folder / f"{name}.parquet", embeddings_file.schema(8, "float32", [products.YEAR], told)
        ) as out:
            if chips:
                rng = np.random.default_rng(len(chips))
                out.append(chips, {"embeddings": rng.standard_normal((len(chips), 8), np.float32)})
        write_ledger(folder / f"{name}.ledger.parquet", ledger_table(entries))
    return list(shards)


def merged(folder, names, out, **more):
    """Record, rows and ledger of a product with one chip a cell."""
    record = merge.merge(names, str(folder), str(folder), str(out), unique=True, **more)
    rows = pa.concat_tables(pq.read_table(f"{out}/{f['name']}") for f in record["files"]).to_pylist()
    return record, rows, pq.read_table(f"{out}/ledger.parquet").to_pylist()


def test_one_chip_a_cell_stays_that_with_the_least_nodata_then_the_first_by_name(tmp_path):
    scenes = {
        "one": {
            "b": {(14, 1, 1): 0.0, (14, 2, 1): 0.02, (14, 3, 1): 0.01},
            "c": {(14, 2, 1): 0.01, (14, 4, 1): 0.0, (13, 1, 1): 0.04},
        },
        "two": {"a": {(14, 1, 1): 0.0, (14, 3, 1): 0.03, (14, 1, 2): 0.05}, "d": {(14, 2, 1): 0.01}},
    }
    record, rows, ledger = merged(tmp_path / "s", write_scenes(tmp_path / "s", scenes), tmp_path / "p")
    found = {(r["crs"][-2:], r["col"], r["row"]): r["item_id"] for r in rows}
    assert found == {
        ("14", 1, 1): "a", ("14", 2, 1): "c", ("14", 3, 1): "b",
        ("14", 4, 1): "c", ("13", 1, 1): "c", ("14", 1, 2): "a",
    }  # fmt: skip
    assert len(rows) == record["rows"] == 6
    names = ("status", "reason", "expected", "embedded", "notes")
    assert {e["unit_id"][-1]: tuple(e[n] for n in names) for e in ledger} == {
        "b": ("embedded", "", 1, 1, "2 chips left to scenes with less nodata"),
        "c": ("embedded", "", 3, 3, ""),
        "a": ("embedded", "", 2, 2, "1 chip left to scenes with less nodata"),
        "d": ("empty", merge.LEFT_ALL, 0, 0, "1 chip left to scenes with less nodata"),
    }
    assert record["counts"] == {"expected": 6, "embedded": 6, "skipped_nodata": 0, "skipped_cloud": 0, "failed": 0}
    assert record["units"] == {"embedded": 3, "empty": 1}


def test_units_that_lost_chips_before_keep_their_account_and_status(tmp_path):
    scenes = {"one": {"a": {(14, 1, 1): 0.0}, "b": {(14, 1, 1): 0.1}, "c": {(14, 1, 1): 0.2}}}
    names = write_scenes(tmp_path / "s", scenes, dropped={"b": "nodata", "c": "failed"})
    _, rows, ledger = merged(tmp_path / "s", names, tmp_path / "p")
    assert len(rows) == 1
    counts = ("status", "expected", "embedded", "skipped_nodata", "failed")
    assert [tuple(e[n] for n in counts) for e in ledger] == [
        ("embedded", 1, 1, 0, 0), ("empty", 1, 0, 1, 0), ("failed", 1, 0, 0, 1),
    ]  # fmt: skip
    assert ledger[2]["reason"] == "c lost one"


CELLS = st.dictionaries(
    st.tuples(st.sampled_from([13, 14]), st.integers(-2, 3), st.integers(0, 3)), st.sampled_from([0.0, 0.01, 0.25])
)


@settings(max_examples=25, deadline=None)
@given(
    scenes=st.lists(CELLS, min_size=1, max_size=6), per_shard=st.integers(1, 3), memory=st.sampled_from([1, 1 << 30])
)
def test_any_scenes_are_merged_to_the_best_chip_of_every_cell(tmp_path_factory, scenes, per_shard, memory):
    run = tmp_path_factory.mktemp("unique")
    named = [(f"m{n}", s) for n, s in enumerate(scenes)]
    shards = {f"s{n}": dict(named[n : n + per_shard]) for n in range(0, len(named), per_shard)}
    record, rows, ledger = merged(run / "s", write_scenes(run / "s", shards), run / "p", memory=memory, row_group=3)
    best = {}
    for scene, cells in named:
        for cell, nodata in cells.items():
            best[cell] = min(best.get(cell, (nodata, scene)), (nodata, scene))
    assert {(int(r["crs"][-2:]), r["col"], r["row"]): r["item_id"] for r in rows} == {
        c: s for c, (_, s) in best.items()
    }
    assert len(rows) == len(best) == record["rows"]
    for entry, (scene, _) in zip(ledger, named, strict=True):
        assert entry["expected"] == entry["embedded"] == sum(r["item_id"] == scene for r in rows)
    shutil.rmtree(run)


def test_a_unique_product_says_so_and_is_the_same_whatever_the_memory_or_the_shards(tmp_path):
    draw = np.random.default_rng(4)
    scenes = {
        f"m{n}": {(14, int(c), int(r)): int(v) / 10 for c, r, v in draw.integers(0, (9, 9, 3), (40, 3))}
        for n in range(8)
    }
    names = write_scenes(tmp_path / "s", {f"s{n}": {f"m{n}": scenes[f"m{n}"]} for n in range(8)})
    seen = []
    for memory in (1, 1 << 20, 1 << 30):
        record, rows, _ = merged(tmp_path / "s", names, tmp_path / f"{memory}", memory=memory, row_group=7)
        seen.append((record, digests(tmp_path / f"{memory}")))
    assert all(s == seen[0] for s in seen)
    assert len(rows) == len({(r["col"], r["row"]) for r in rows})
    kiln = json.loads(pq.read_schema(tmp_path / "1" / "part-0000.parquet").metadata[b"kiln"])
    assert (record["unique"], kiln["unique"]) == (True, True)
    plain = merge.merge(names, str(tmp_path / "s"), str(tmp_path / "s"), str(tmp_path / "plain"))
    assert "unique" not in plain
    assert plain["rows"] > record["rows"]
    again = write_scenes(tmp_path / "t", {"all": scenes})
    assert {r["chip_id"] for r in merged(tmp_path / "t", again, tmp_path / "q")[1]} == {r["chip_id"] for r in rows}


def test_chips_that_no_two_units_share_cannot_be_made_unique(broken, capsys):
    plan, _, folder, product = broken
    code, said = run_main(capsys, plan, folder, product, "--unique")
    assert code == 2
    assert "--unique wants chips of lattice utm" in said
    assert not Path(f"{product}.json").exists()
    scene = about(dataset="naip", partition="nd-2019", lattice={"chip_size": 16, "lattice": "scene", "edge": "drop"})
    names = write_scenes(folder / "scene", {"one": {"a": {(14, 1, 1): 0.0}}}, kiln=scene)
    with pytest.raises(ConfigError, match="lattice utm"):
        merge.merge(names, str(folder / "scene"), str(folder / "scene"), product, unique=True)


def test_rows_of_scenes_that_no_ledger_knows_are_refused(tmp_path):
    names = write_scenes(tmp_path / "s", {"one": {"a": {(14, 1, 1): 0.0}}, "two": {"b": {(14, 1, 1): 0.0}}})
    shutil.copy(tmp_path / "s" / "one.ledger.parquet", tmp_path / "s" / "two.ledger.parquet")
    with pytest.raises(ConfigError, match="share some"):
        merged(tmp_path / "s", names, tmp_path / "p")
    ledger = tmp_path / "s" / "two.ledger.parquet"
    write_ledger(ledger, LEDGER_SCHEMA.empty_table())
    with pytest.raises(SourceError, match=r"two\.parquet: rows of scenes that the ledgers do not know"):
        merged(tmp_path / "s", names, tmp_path / "p")


def test_the_main_makes_a_unique_product(tmp_path):
    names = write_scenes(tmp_path / "s", {"one": {"a": {(14, 1, 1): 0.1}, "b": {(14, 1, 1): 0.0}}})
    lines = [
        {"dataset": "naip", "shard": n, "partition": "nd-2019", "units": [], "bytes": 0, "expected": 0} for n in names
    ]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    argv = [f"--plan={tmp_path}/plan.jsonl", f"--shards={tmp_path}/s", f"--product={tmp_path}/p"]
    merge.main([*argv, "--unique"])
    record = json.loads((tmp_path / "p.json").read_text())
    assert (record["rows"], record["unique"]) == (1, True)
    merge.main(argv)
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == 2


# -------------------------------------------------------------------------------------------------------- memory

PEAK = """
import json, sys
from scripts import merge

record = merge.merge(json.loads(sys.argv[1]), sys.argv[2], sys.argv[2], sys.argv[3], memory=32 << 20, row_group=2048)
for line in open("/proc/self/status"):  # ru_maxrss would begin with that of the process that started this one
    if line.startswith("VmHWM"):
        print(json.dumps({"rows": record["rows"], "peak": int(line.split()[1]) << 10}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Four times the vectors, 262 MB in place of 66, are sorted in the same memory, give or take."""
    dim, columns = 1024, [Column(k, 0, 100) for k in range(160)]

    def vectors(chips):
        return np.random.default_rng(len(chips)).standard_normal((len(chips), dim), np.float32)

    _, names, folder = write_shards(tmp_path, columns=columns, per_shard=40, kiln=WIDE, vectors=vectors)
    for name in names:
        for copy in "abc":
            for end in (".parquet", ".ledger.parquet"):
                os.link(folder / f"{name}{end}", folder / f"{name}{copy}{end}")
    size = len(columns) * 100 * dim * 4
    peaks = []
    for chosen in (names, [f"{n}{copy}" for copy in ("", "a", "b", "c") for n in names]):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, json.dumps(chosen), str(folder), str(tmp_path / "out")],
            capture_output=True, text=True, cwd=ROOT, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["rows"] == len(chosen) * 40 * 100
        peaks.append(told["peak"])
    shutil.rmtree(tmp_path)
    assert peaks[1] - peaks[0] < 3 * size / 2


# ---------------------------------------------------------------------------------------- types and kinds of vectors


@pytest.mark.parametrize("storage", vectors.VECTOR_DTYPES)
@pytest.mark.parametrize("embedding", ["mean", "both"])
def test_vectors_of_every_type_and_kind_come_through_with_their_scales(tmp_path, storage, embedding):
    kiln = about(storage=storage, embedding=embedding, dimensions=64, patches={"shape": [2, 2, 64]})
    _, names, folder = write_shards(tmp_path, columns=GRID[:12], kiln=kiln, skip=lambda c, r: (c * r) % 5 == 1)
    seen = []
    for memory in (1, 200_000, 1 << 30):
        out = tmp_path / f"m{memory}"
        record = merge.merge(names, str(folder), str(folder), str(out), memory=memory, row_group=50)
        seen.append(digests(out))
    assert seen[0] == seen[1] == seen[2]
    shards = (p for p in sorted(folder.glob("*.parquet")) if "ledger" not in p.name)
    before = pa.concat_tables(pq.read_table(p) for p in shards).sort_by("chip_id")
    after = pa.concat_tables(pq.read_table(f"{out}/{f['name']}") for f in record["files"])
    assert after.sort_by("chip_id").replace_schema_metadata(None).equals(before.replace_schema_metadata(None))
    assert after.schema.remove_metadata().equals(before.schema.remove_metadata())
    told = json.loads(after.schema.metadata[b"kiln"])
    assert (told["storage"], told["embedding"]) == (storage, embedding)
    assert "patches" not in told, "they stay beside the shards"


def test_shards_that_begin_anywhere_in_their_row_groups_are_gathered_right(tmp_path):
    """Batches end within row groups, so that vectors begin in the middle of their buffers."""
    _, names, folder = write_shards(tmp_path, columns=GRID[:9], kiln=about(storage="int8"), row_group=70)
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 9_000, 64 << 20):
            patch.setattr(merge.buckets, "READ_BYTES", size)
            merge.merge(names, str(folder), str(folder), f"{tmp_path}/o{size}", memory=1, row_group=40)
    assert digests(tmp_path / "o1") == digests(tmp_path / "o9000") == digests(tmp_path / f"o{64 << 20}")


def test_an_error_in_the_middle_leaves_no_bucket_behind(tmp_path, monkeypatch):
    _, names, folder = write_shards(tmp_path, columns=GRID[:8])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(merge.GeoParquetWriter, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match="No space left"):
        merge.merge(names, str(folder), str(folder), str(tmp_path / "o"), memory=1, row_group=40)
    assert not list(scratch.iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_on_a_disk_that_knows_no_direct_writes_the_same_bytes_come_out(tmp_path, monkeypatch):
    _, names, folder = write_shards(tmp_path, columns=GRID[:6], kiln=about(storage="float16"))
    merge.merge(names, str(folder), str(folder), str(tmp_path / "direct"), memory=1, row_group=40)
    opened, refused = os.open, []

    def refuse(path, flags, *args, **told):
        if flags & getattr(os, "O_DIRECT", 0):
            refused.append(path)
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *args, **told)

    monkeypatch.setattr(os, "open", refuse)
    merge.merge(names, str(folder), str(folder), str(tmp_path / "plain"), memory=1, row_group=40)
    assert refused
    assert digests(tmp_path / "plain") == digests(tmp_path / "direct")
