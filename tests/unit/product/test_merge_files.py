"""The files of a merged product: sizes, row groups, other readers, the record and the metadata."""

import hashlib
import json
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely

from kiln.archives.worldcover.lattice import Column
from kiln.formats import plan_file
from kiln.formats.json_digest import with_digest
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA
from kiln.product.merge import MergeOptions
from tests.support import products
from tests.support.merges import GRID, PART_BYTES, WIDE, open_parts
from tests.support.products import WORLD, digests, make_product, random_vectors, shard_metadata

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
    product = make_product(tmp_path, columns=GRID[:4], kiln=shard_metadata(vector_dtype=store))
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
    assert np.array_equal(got, random_vectors(chips).astype(store))


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_duckdb_reads_the_vectors(tmp_path, store):
    product = make_product(tmp_path, columns=GRID[:4], kiln=shard_metadata(vector_dtype=store))
    found = duckdb.sql(
        f"SELECT chip_id, embeddings, bbox.xmin FROM '{product.uri}/chips/part-0000.parquet' WHERE col = 2 ORDER BY row"
    ).fetchall()
    chips = [products.chip_at(WORLD, 2021, 2, r) for r in range(40)]
    assert [f[0] for f in found] == [c.chip_id for c in chips]
    assert np.array_equal(np.array([f[1] for f in found], store), random_vectors(chips).astype(store))
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
        tmp_path,
        columns=columns,
        per_shard=50,
        kiln=shard_metadata(vector_dtype=store),
        vectors=vectors,
        row_group=10_000,
    )
    assert product.record["rows"] == 40_000
    done = gpio("check", "all", f"{product.uri}/chips/part-0000.parquet")
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


# -------------------------------------------------------------------------------------------- record and metadata


def test_the_records_sizes_and_digests_are_those_of_the_files(grid):
    assert json.loads(Path(grid.record_file).read_text()) == with_digest(grid.record)
    for file in [*grid.record["files"], grid.record["ledger"]]:
        data = Path(f"{grid.uri}/{file['name']}").read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(grid.record["document_sha256"]) == grid.record["documents"]
    for name, sha256 in grid.record["document_sha256"].items():
        assert hashlib.sha256(Path(f"{grid.uri}/{name}").read_bytes()).hexdigest() == sha256
    named = {f["name"] for f in grid.record["files"]} | {grid.record["ledger"]["name"], *grid.record["documents"]}
    assert set(digests(grid.uri)) == named
    assert grid.record["rows"] == sum(f.metadata.num_rows for f in open_parts(grid))


def test_another_vector_gives_another_tag(tmp_path):
    def other(chips):
        vectors = random_vectors(chips)
        vectors[-1, -1] += 1
        return vectors

    tags = [
        make_product(tmp_path / n, columns=GRID[:2], vectors=v).record["tag"]
        for n, v in (("a", random_vectors), ("b", random_vectors), ("c", other))
    ]
    assert tags[0] == tags[1] != tags[2]


def test_the_products_metadata_names_the_sources_of_every_row(grid):
    for file in open_parts(grid):
        kiln = json.loads(file.schema_arrow.metadata[b"kiln"])
        assert set(pc.unique(file.read(columns=["source"])["source"]).to_pylist()) <= set(kiln["sources"])
        assert kiln["fingerprint"] == shard_metadata()["fingerprint"]
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
        "expected": 320, "embedded": 200, "skipped_nodata": 40, "skipped_cloud": 0, "deduplicated": 0,
        "failed": 80,
    }  # fmt: skip
