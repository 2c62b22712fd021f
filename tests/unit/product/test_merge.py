"""Merging shards: every row once, in order, with the same bytes for any memory; empty shards."""

import hashlib
import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.archives.worldcover.lattice import Column
from kiln.formats import plan_file
from kiln.io import storage
from scripts import merge as merge_script
from tests.support import products
from tests.support.merges import GRID, PART_BYTES, WIDE, open_parts
from tests.support.products import (
    WORLD,
    digests,
    make_product,
    merge_shards,
    run_merge,
    shard_metadata,
    write_shard,
    write_shards,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------- order and content


def test_every_row_of_the_shards_is_in_the_product_once_and_unchanged(grid):
    run = Path(grid.plan).parent
    before = pa.concat_tables(
        pq.read_table(p) for p in sorted((run / "shards/2021").glob("*.parquet")) if "ledger" not in p.name
    )
    after = grid.rows().drop_columns("stac_item")
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
    named = {f["name"] for f in second["files"]} | {second["ledger"]["name"], *second["documents"]}
    assert set(digests(out)) == named


def test_the_order_in_which_shards_were_written_does_not_matter(tmp_path):
    lines = products.plan_lines(WORLD, 2021, GRID[:12], 4)
    seen = []
    for n, order in enumerate((lines, lines[::-1])):
        folder = tmp_path / f"{n}" / "shards"
        for line in order:
            write_shard(folder, line.name, [Column(*c) for c in line.details["columns"]], kiln=shard_metadata())
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


# ----------------------------------------------------------------------------------------------- empty shards


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
    assert len(gpd.read_parquet(f"{product.uri}/chips/part-0000.parquet")) == 0
    assert pq.read_table(f"{product.uri}/ledger.parquet").num_rows == 8


@pytest.mark.parametrize("columns", [[Column(3, 2, 1)], [Column(3, 0, 9)], [Column(k, 0, 1) for k in range(9)]])
def test_one_chip_one_column_or_one_row_of_chips_is_a_product(tmp_path, columns):
    product = make_product(tmp_path, columns=columns)
    rows = product.rows()
    steps = np.abs(np.diff(rows["col"].to_numpy())) + np.abs(np.diff(rows["row"].to_numpy()))
    assert len(rows) == max(len(columns), columns[0].rows)
    assert (steps == 1).all()  # neighbours follow each other


# -------------------------------------------------------------------------------------------- other folders and S3


def test_the_ledgers_may_be_in_another_folder_than_the_shards(broken, capsys, tmp_path):
    plan, names, folder, product = broken
    assert run_merge(capsys, plan, folder, product)[0] == 0
    (tmp_path / "ledgers").mkdir()
    for name in names:
        (folder / f"{name}.ledger.parquet").rename(tmp_path / "ledgers" / f"{name}.ledger.parquet")
    code, _ = run_merge(capsys, plan, folder, f"{tmp_path}/other", "--ledgers", str(tmp_path / "ledgers"))
    assert code == 0
    assert digests(product) == digests(tmp_path / "other")


def test_a_product_is_written_to_s3_as_to_a_folder(bucket, tmp_path):
    plan, _, folder = write_shards(tmp_path, columns=GRID[:8])
    merge_script.main(["--plan", plan, "--shards", str(folder), "--product", f"{bucket}/products/2021"])
    merge_script.main(["--plan", plan, "--shards", str(folder), "--product", f"{tmp_path}/2021"])
    uploaded = {
        u.removeprefix(f"{bucket}/products/2021/"): hashlib.sha256(storage.read_bytes(u)).hexdigest()
        for u in storage.listing(f"{bucket}/products/2021")
    }
    assert uploaded == digests(tmp_path / "2021")
    assert storage.read_bytes(f"{bucket}/products/2021.json") == (tmp_path / "2021.json").read_bytes()
