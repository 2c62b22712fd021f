"""Merging shards: order, sizes, accounts, the same bytes whatever the memory, and what is refused."""

import hashlib
import html
import json
import shutil
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.archives.worldcover.lattice import Column
from kiln.errors import ConfigError, SourceError
from kiln.formats import plan_file
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA, write_ledger
from kiln.product.merge import MergeOptions
from kiln.product.record import read_record
from kiln.report.ledger_page import ledger_page
from scripts import merge as merge_script
from tests.support import products
from tests.support.products import (
    WORLD,
    about,
    digests,
    drawn,
    make_product,
    merge_shards,
    run_merge,
    write_shard,
    write_shards,
)  # fmt: skip

GRID = [Column(k, 0, 40) for k in range(40)]  # 1600 chips
WIDE = about(dimensions=1024)  # as Clay's
PART_BYTES = 1_200_000


def open_parts(product):
    return [pq.ParquetFile(f"{product.uri}/{f['name']}") for f in product.record["files"]]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Merge 1600 chips of ten shards into several parts of several row groups; read only."""
    run = tmp_path_factory.mktemp("grid")
    skip = lambda col, row: (col + row) % 7 == 0  # noqa: E731
    return make_product(run, columns=GRID, kiln=WIDE, row_group=100, part_bytes=PART_BYTES, skip=skip)


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


def count_row_groups(files, window):
    """Count the row groups whose statistics of the `bbox` column meet a window, and all row groups."""
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
    found, total = count_row_groups(open_parts(grid), window)
    assert total == 14
    assert found <= 4
    shards = [p for p in (Path(grid.plan).parent / "shards/2021").glob("*.parquet") if "ledger" not in p.name]
    assert 1 <= found < total / 2
    assert len(shards) == 10


def test_the_bytes_do_not_depend_on_the_memory(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID, kiln=WIDE)
    seen = []
    for memory in (1, 3_000_000, 8_000_000, 1 << 30):
        out = tmp_path / f"m{memory}"
        record = merge_shards(names, folder, str(out), memory=memory, row_group=64, part_bytes=PART_BYTES)
        seen.append((record, digests(out)))
    assert len(seen[0][0]["files"]) > 2
    assert all(s == seen[0] for s in seen[1:])


def test_the_main_writes_the_same_bytes_for_any_memory_mb(tmp_path):
    plan, _, folder = write_shards(tmp_path, columns=GRID[:8])
    for mb in (1, 64, 4096):
        merge_script.main(
            ["--plan", plan, "--shards", str(folder), "--product", f"{tmp_path}/{mb}", "--memory-mb", str(mb)]
        )
    assert digests(tmp_path / "1") == digests(tmp_path / "64") == digests(tmp_path / "4096")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "64.json").read_bytes()
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "4096.json").read_bytes()


def test_a_second_run_writes_the_same_bytes(grid, tmp_path):
    before = digests(grid.uri)
    run = Path(grid.plan).parent
    names = [line.name for line in plan_file.read_plan(grid.plan)]
    folder = str(run / "shards/2021")
    again = merge_shards(names, folder, tmp_path / "again", row_group=100, part_bytes=PART_BYTES)
    assert again == grid.record
    assert digests(tmp_path / "again") == before


def test_a_second_run_over_the_product_leaves_nothing_of_the_first(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID)
    out = str(tmp_path / "product")
    first = merge_shards(names, folder, out, row_group=64, part_bytes=100_000)
    second = merge_shards(names, folder, out)
    assert len(first["files"]) > len(second["files"]) == 1
    named = {f["name"] for f in second["files"]} | {second["ledger"]["name"], *second["stac"]}
    assert set(digests(out)) == named


def test_the_order_in_which_shards_were_written_does_not_matter(tmp_path):
    lines = products.plan_lines(WORLD, 2021, GRID[:12], 4)
    seen = []
    for n, order in enumerate((lines, lines[::-1])):
        folder = tmp_path / f"{n}" / "shards"
        for line in order:
            write_shard(folder, line.name, [Column(*c) for c in line.details["columns"]], kiln=about())
        out = tmp_path / f"{n}" / "product"
        seen.append((merge_shards([x.name for x in lines], folder, str(out)), digests(out)))
    assert seen[0] == seen[1]


def test_the_order_in_which_shards_are_named_does_not_change_a_row(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID[:12])
    one = merge_shards(names, folder, str(tmp_path / "a"))
    two = merge_shards(names[::-1], folder, str(tmp_path / "b"))
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
    product = make_product(
        run, columns=[Column(k, 5, rows) for k in sorted(cols)], per_shard=per_shard,
        skip=lambda c, r: (c * 3 + r) % hole == 0, row_group=row_group,
    )  # fmt: skip
    cells = [(c, r) for c in cols for r in range(5, 5 + rows) if (c * 3 + r) % hole]
    counts = product.record["counts"]
    assert product.record["rows"] == counts["embedded"] == len(cells) == sum(f["rows"] for f in product.record["files"])
    assert counts["expected"] == len(cols) * rows == counts["embedded"] + counts["skipped_nodata"]
    got = product.rows()
    assert set(zip(got["col"].to_pylist(), got["row"].to_pylist(), strict=True)) == set(cells)
    shutil.rmtree(run)


# ------------------------------------------------------------------------------------------------ sizes and parts


def test_parts_are_filled_and_stay_below_part_bytes(grid):
    sizes = [Path(f"{grid.uri}/{f['name']}").stat().st_size for f in grid.record["files"]]
    assert len(sizes) >= 3
    assert max(sizes) <= PART_BYTES
    assert min(sizes[:-1]) > 0.6 * PART_BYTES  # all but the last are filled


@pytest.mark.parametrize("part_bytes", [250_000, 400_000, 1_000_000, 10_000_000])
def test_no_part_is_larger_than_part_bytes(tmp_path, part_bytes):
    product = make_product(tmp_path, columns=GRID[:20], kiln=WIDE, row_group=50, part_bytes=part_bytes)
    assert max(f["size"] for f in product.record["files"]) <= part_bytes


def test_row_groups_have_nearly_equal_sizes(grid):
    groups = [f.metadata.row_group(g).num_rows for f in open_parts(grid) for g in range(f.metadata.num_row_groups)]
    assert max(groups) <= 100
    assert set(groups[:-1]) == {groups[0]}
    assert groups[0] - len(groups) <= groups[-1] <= groups[0]


def test_the_default_row_group_has_a_size_for_remote_reads():
    assert 30_000 <= MergeOptions().row_group_rows <= 50_000


def test_a_full_row_group_of_wide_rows_is_one_row_group(tmp_path):
    """More rows than a writer's default row-group size and page limits must not split them."""
    product = make_product(tmp_path, columns=[Column(k, 0, 300) for k in range(10)], row_group=2500)
    (file,) = open_parts(product)
    assert [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)] == [1500, 1500]


def test_geo_bbox_is_that_of_each_parts_own_rows(grid):
    boxes = []
    for file in open_parts(grid):
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
    product = make_product(tmp_path, columns=GRID[:4], kiln=about(storage=store))
    (file,) = open_parts(product)
    kind = file.schema_arrow.field("embeddings").type
    assert pa.types.is_fixed_size_list(kind)
    assert kind.list_size == products.DIM
    assert kind.value_type == {"float32": pa.float32(), "float16": pa.float16()}[store]
    column = file.metadata.row_group(0).column(1)
    assert column.path_in_schema == "embeddings.list.element"
    assert column.compression == "ZSTD"
    assert ("BYTE_STREAM_SPLIT" in column.encodings) == (store == "float32")
    rows = product.rows()
    places = zip(rows["col"].to_pylist(), rows["row"].to_pylist(), strict=True)
    chips = [products.chip_at(WORLD, 2021, c, r) for c, r in places]
    got = np.asarray(rows["embeddings"].combine_chunks().flatten()).reshape(len(rows), -1)
    assert np.array_equal(got, drawn(chips).astype(store))


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_duckdb_reads_the_vectors(tmp_path, store):
    product = make_product(tmp_path, columns=GRID[:4], kiln=about(storage=store))
    found = duckdb.sql(
        f"SELECT chip_id, embeddings, bbox.xmin FROM '{product.uri}/part-0000.parquet' WHERE col = 2 ORDER BY row"
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
    expected = whole[whole.intersects(shapely.box(*window))]
    assert 0 < len(some) < len(whole)
    assert set(some["chip_id"]) == set(expected["chip_id"])


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_gpio_check_all_has_no_warning(gpio, tmp_path, store):
    """40 000 chips in four row groups: compression, covering, row groups, spatial order and specification."""

    def vectors(chips):
        return np.random.default_rng(1).standard_normal((len(chips), products.DIM))

    columns = [Column(k, 0, 200) for k in range(200)]
    product = make_product(
        tmp_path, columns=columns, per_shard=50, kiln=about(storage=store), vectors=vectors, row_group=10_000
    )
    assert product.record["rows"] == 40_000
    done = gpio("check", "all", f"{product.uri}/part-0000.parquet")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    for expected in (
        "✓ Data appears to be spatially ordered",
        "✓ 29 checks passed",
        "Number of row groups: 4",
        "✓ Version 1.1.0",
        "✓ Found bbox column 'bbox' with proper metadata covering",
        "✓ ZSTD compression on geometry column 'geometry'",
    ):
        assert expected in output, output
    assert not any(bad in output for bad in ("⚠", "✗", "❌", "WARNING")), output


# ------------------------------------------------------------------------------------------ record and metadata


def test_the_records_sizes_and_digests_are_those_of_the_files(grid):
    assert json.loads(Path(grid.record_file).read_text()) == grid.record
    for file in [*grid.record["files"], grid.record["ledger"]]:
        data = Path(f"{grid.uri}/{file['name']}").read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    named = {f["name"] for f in grid.record["files"]} | {grid.record["ledger"]["name"], *grid.record["stac"]}
    assert set(digests(grid.uri)) == named
    assert grid.record["rows"] == sum(f.metadata.num_rows for f in open_parts(grid))


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
    for file in open_parts(grid):
        kiln = json.loads(file.schema_arrow.metadata[b"kiln"])
        assert set(pc.unique(file.read(columns=["source"])["source"]).to_pylist()) <= set(kiln["sources"])
        assert kiln["fingerprint"] == about()["fingerprint"]
        assert list(kiln["sources"]) == sorted(kiln["sources"])


def test_the_merged_ledger_is_all_ledgers_in_plan_order(grid):
    run = Path(grid.plan).parent
    units = [u for line in plan_file.read_plan(grid.plan) for u in line.units]
    ledger = pq.read_table(f"{grid.uri}/ledger.parquet")
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["unit_id"].to_pylist() == units
    for count in LEDGER_COUNTS:
        assert pc.sum(ledger[count]).as_py() == grid.record["counts"][count]
    assert grid.record["units"] == {"embedded": 40}
    assert run.is_dir()


def test_failed_and_empty_units_are_counted_by_status(tmp_path):
    product = make_product(
        tmp_path, columns=GRID[:8], skip=lambda c, r: c == 1, fail=lambda c: "tile unreadable" if c in (2, 3) else ""
    )
    assert product.record["units"] == {"embedded": 5, "empty": 1, "failed": 2}
    assert product.record["counts"] == {
        "expected": 320, "embedded": 200, "skipped_nodata": 40, "skipped_cloud": 0, "failed": 80,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- empty things


def test_empty_shards_among_others_change_nothing(tmp_path):
    product = make_product(tmp_path, columns=GRID[:12], skip=lambda c, r: c < 4 or c >= 8)
    assert product.record["rows"] == 160
    assert set(product.rows()["col"].to_pylist()) == {4, 5, 6, 7}


def test_a_partition_without_any_chip_is_one_empty_part_with_all_columns(tmp_path):
    product = make_product(tmp_path, columns=GRID[:8], skip=lambda c, r: True)
    assert product.record["rows"] == 0
    (file,) = open_parts(product)
    assert file.metadata.num_rows == 0
    assert file.schema_arrow.field("embeddings").type.list_size == products.DIM
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert "bbox" not in geo["columns"]["geometry"]
    assert len(gpd.read_parquet(f"{product.uri}/part-0000.parquet")) == 0
    assert pq.read_table(f"{product.uri}/ledger.parquet").num_rows == 8


@pytest.mark.parametrize("columns", [[Column(3, 2, 1)], [Column(3, 0, 9)], [Column(k, 0, 1) for k in range(9)]])
def test_one_chip_one_column_or_one_row_of_chips_is_a_product(tmp_path, columns):
    product = make_product(tmp_path, columns=columns)
    rows = product.rows()
    steps = np.abs(np.diff(rows["col"].to_numpy())) + np.abs(np.diff(rows["row"].to_numpy()))
    assert len(rows) == max(len(columns), columns[0].rows)
    assert (steps == 1).all()  # neighbours follow each other


# ----------------------------------------------------------------------------------------------- what is refused


def test_a_missing_shard_is_named_and_leaves_no_record(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert "got 1 of 3 shards missing" in message
    assert names[1] in message
    assert not Path(f"{product}.json").exists()


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_shard_is_named(broken, capsys, keep):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message
    assert "expected a Parquet file, got a damaged one" in message
    assert not Path(f"{product}.json").exists()


def test_a_shard_with_damaged_pages_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[2]}.parquet"
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    at = column.data_page_offset + column.total_compressed_size // 2
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message
    assert not Path(f"{product}.json").exists()


def test_a_file_that_is_no_shard_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[0]}.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    code, message = run_merge(capsys, plan, folder, product)
    assert code in (1, 2)
    assert str(path) in message


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "0e" * 32}, {"partition": "2020"}, {"storage": "float16"}, {"dimensions": 16}]
)
def test_shards_of_different_settings_are_refused(broken, changes):
    _, names, folder, product = broken
    write_shard(folder, names[1], GRID[4:8], kiln=about(**changes))
    with pytest.raises(ConfigError, match="other settings") as e:
        merge_shards(names, folder, product)
    assert names[1] in str(e.value)


def test_a_ledger_that_disagrees_with_the_rows_is_refused(broken):
    _, names, folder, product = broken
    ledger = folder / f"{names[1]}.ledger.parquet"
    rows = pq.read_table(ledger).to_pylist()
    rows[0]["embedded"] -= 1
    rows[0]["skipped_nodata"] += 1
    write_ledger(ledger, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    with pytest.raises(SourceError, match="expected 479 rows by the ledgers, got 480"):
        merge_shards(names, folder, product)


def test_a_missing_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.ledger.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert f"{names[1]}.ledger.parquet" in message


def test_a_truncated_ledger_is_named(broken, capsys):
    plan, names, folder, product = broken
    path = folder / f"{names[1]}.ledger.parquet"
    path.write_bytes(path.read_bytes()[:300])
    code, message = run_merge(capsys, plan, folder, product)
    assert code == 1
    assert str(path) in message


# ------------------------------------------------------------------------------------------------- allow-missing


def test_allow_missing_is_recorded_in_record_metadata_and_ledger_page(broken, capsys):
    plan, names, folder, product = broken
    (folder / f"{names[1]}.parquet").unlink()
    code, _ = run_merge(capsys, plan, folder, product, "--allow-missing")
    assert code == 0
    record = json.loads(Path(f"{product}.json").read_text())
    assert record["missing_shards"] == [names[1]]
    assert record["rows"] == 320
    kiln = json.loads(pq.read_schema(f"{product}/part-0000.parquet").metadata[b"kiln"])
    assert kiln["missing_shards"] == [names[1]]
    assert "1 shards are missing" in html.unescape(ledger_page([read_record(f"{product}.json")], [product]))


def test_allow_missing_with_nothing_missing_is_the_plain_product(broken, capsys, tmp_path):
    plan, _, folder, product = broken
    assert run_merge(capsys, plan, folder, product)[0] == 0
    assert run_merge(capsys, plan, folder, f"{tmp_path}/other", "--allow-missing")[0] == 0
    assert digests(product) == digests(tmp_path / "other")


def test_allow_missing_without_any_shard_is_an_error(broken, capsys):
    plan, names, folder, product = broken
    for name in names:
        (folder / f"{name}.parquet").unlink()
    code, message = run_merge(capsys, plan, folder, product, "--allow-missing")
    assert code == 2
    assert "no shard to merge" in message


def test_the_ledgers_may_lie_elsewhere_than_the_shards(broken, capsys, tmp_path):
    plan, names, folder, product = broken
    assert run_merge(capsys, plan, folder, product)[0] == 0
    (tmp_path / "ledgers").mkdir()
    for name in names:
        (folder / f"{name}.ledger.parquet").rename(tmp_path / "ledgers" / f"{name}.ledger.parquet")
    code, _ = run_merge(capsys, plan, folder, f"{tmp_path}/other", "--ledgers", str(tmp_path / "ledgers"))
    assert code == 0
    assert digests(product) == digests(tmp_path / "other")


def test_a_product_is_written_to_s3_as_to_a_folder(bucket, tmp_path):
    from kiln.io import storage

    plan, _, folder = write_shards(tmp_path, columns=GRID[:8])
    merge_script.main(["--plan", plan, "--shards", str(folder), "--product", f"{bucket}/products/2021"])
    merge_script.main(["--plan", plan, "--shards", str(folder), "--product", f"{tmp_path}/2021"])
    uploaded = {
        u.removeprefix(f"{bucket}/products/2021/"): hashlib.sha256(storage.read_bytes(u)).hexdigest()
        for u in storage.listing(f"{bucket}/products/2021")
    }
    assert uploaded == digests(tmp_path / "2021")
    assert storage.read_bytes(f"{bucket}/products/2021.json") == (tmp_path / "2021.json").read_bytes()
