"""Readers of other projects count what the ledger counts, and copies that they write are complete."""

import json
import re
from pathlib import Path

import geopandas as gpd
import lonboard
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.io import storage
from tests.support import readers
from tests.support.products import make_product, shard_metadata

GRID = [Column(k, 0, 12) for k in range(12)]
LIMITS = {"one part": {}, "several parts": {"row_group": 20, "part_bytes": 60_000}}


@pytest.fixture(scope="module", params=LIMITS)
def product(request, tmp_path_factory):
    """A product with skipped chips, in one part or in several."""
    kiln = shard_metadata(dimensions=256, vector_dtype="float16")
    run = tmp_path_factory.mktemp("readers")
    product = make_product(run, columns=GRID, kiln=kiln, skip=lambda c, r: (c + r) % 7 == 0, **LIMITS[request.param])
    assert (len(product.record["files"]) > 1) == (request.param == "several parts")
    return product


def embedded(product):
    return pc.sum(pq.read_table(f"{product.uri}/ledger.parquet")["embedded"]).as_py()


@pytest.mark.parametrize("name", readers.READERS)
def test_a_reader_counts_what_the_ledger_counts(product, duckdb_home, name):
    assert readers.READERS[name](f"{product.uri}/chips", duckdb_home) == embedded(product) > 100


@pytest.mark.parametrize("name", readers.READERS)
def test_a_reader_counts_the_same_on_s3(product, duckdb_home, bucket, name):
    assert readers.READERS[name](f"{on_s3(product, bucket)}/chips", duckdb_home) == embedded(product)


def on_s3(product, bucket):
    """Copy a product to a bucket; return its folder."""
    for path in Path(product.uri).rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/p/{path.relative_to(product.uri)}", path.read_bytes())
    return f"{bucket}/p"


def test_the_folder_of_chips_holds_parts_and_nothing_else(product):
    names = sorted(path.name for path in Path(product.uri, "chips").iterdir())
    assert names == [file["name"].removeprefix("chips/") for file in product.record["files"]]
    assert {path.name for path in Path(product.uri).iterdir()} == {
        "README.md", "chips", "collection.json", "items", "ledger.parquet",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_gpio_finds_nothing_wrong_and_counts_the_same(product, bucket, gpio, place):  # `bucket` before `gpio`
    folder = product.uri if place == "disk" else on_s3(product, bucket)
    rows = 0
    for part in readers.parts(f"{folder}/chips"):
        done = gpio("check", "all", part)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "checks passed" in done.stdout
        assert "✗" not in done.stdout
        rows += int(re.search(r"Rows: ([\d,]+)", gpio("inspect", part).stdout)[1].replace(",", ""))
    assert rows == embedded(product)


@pytest.fixture
def copy(product, tmp_path):
    """A filtered copy of some columns, written by pyarrow without any knowledge of geometry."""
    table = readers.arrow_table(f"{product.uri}/chips")
    some = table.filter(pc.greater(table["col"], 6)).select(["geometry", "bbox", "chip_id", "embeddings"])
    pq.write_table(some, tmp_path / "copy.parquet")
    return tmp_path / "copy.parquet"


def test_a_filtered_copy_is_geoparquet_that_others_open(copy, duckdb_home):
    rows = pq.read_table(copy)
    frame = gpd.read_parquet(copy)
    assert frame.crs.to_epsg() == 4326
    assert frame["chip_id"].tolist() == rows["chip_id"].to_pylist()
    assert frame.geometry.is_valid.all()
    with readers.connection(duckdb_home) as con:
        types = con.sql(f"SELECT DISTINCT ST_GeometryType(geometry) FROM '{copy}'").fetchall()
        assert [str(value) for (value,) in types] == ["POLYGON"]
    layer = lonboard.PolygonLayer(table=rows)
    assert len(layer.table) == len(rows) > 0


def test_a_filtered_copy_is_valid_geoparquet(copy, gpio):
    done = gpio("check", "spec", str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout


def test_footer_and_arrow_schema_state_the_same(product):
    for file in product.record["files"]:
        path = f"{product.uri}/{file['name']}"
        footer, schema = pq.read_metadata(path).metadata, pq.read_schema(path).metadata
        assert {key: footer[key] for key in (b"geo", b"kiln", b"emb")} == schema


def test_rows_and_footer_lead_to_the_item_of_the_part(product):
    for file in product.record["files"]:
        path = Path(product.uri, file["name"])
        (name,) = pc.unique(pq.read_table(path)["stac_item"]).to_pylist()
        emb = json.loads(pq.read_schema(path).metadata[b"emb"])
        item = json.loads(Path(product.uri, "items", f"{name}.json").read_text())
        assert item["id"] == emb["id"] == name
        assert (path.parent / emb["links"][0]["href"]).resolve() == Path(product.uri, "items", f"{name}.json").resolve()
        assert (Path(product.uri, "items") / item["assets"]["embeddings"]["href"]).resolve() == path.resolve()
        assert item["collection"] == emb["collection"]
        for key in ("emb:runtime_parameters", "emb:quantization", "processing:software"):
            assert item["properties"][key] == emb[key]
        collection = json.loads(Path(product.uri, "collection.json").read_text())
        assert {key: collection[key] for key in ("emb:type", "emb:dimensions", "data_type", "license")} == {
            key: emb[key] for key in ("emb:type", "emb:dimensions", "data_type", "license")
        }


def test_vectors_are_the_same_in_every_reader(product, duckdb_home):
    rows = product.rows()
    expected = np.asarray(rows["embeddings"].combine_chunks().flatten()).reshape(len(rows), -1)
    order = pa.table({"id": rows["chip_id"], "n": range(len(rows))}).sort_by("id")["n"].to_numpy()
    folder = f"{product.uri}/chips"
    frame = gpd.read_parquet(folder).sort_values("chip_id")
    assert np.array_equal(np.stack(frame["embeddings"]), expected[order])
    polars = readers.pl.read_parquet(f"{folder}/*.parquet").sort("chip_id")["embeddings"].to_numpy()
    assert np.array_equal(polars, expected[order])
    with readers.connection(duckdb_home) as con:
        column = con.sql(f"SELECT embeddings FROM '{folder}/*.parquet' ORDER BY chip_id").fetchnumpy()["embeddings"]
    assert np.array_equal(np.stack(column), expected[order].astype(np.float32))
