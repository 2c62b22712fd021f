"""GeoParquet exports, read by DuckDB, geopandas and Kiln."""

import json

import duckdb
import geopandas as gpd
import pyarrow.parquet as pq
import shapely

import kiln
from kiln.formats import vectors
from kiln.product.export.writers import geoparquet
from kiln.product.rows.row_filter import RowFilter


def test_rows_and_types_are_the_products(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.equals(source.rows.schema)
    assert written["state"].to_pylist() == source.rows["state"].to_pylist()  # codes of dictionaries may differ
    assert written.drop_columns("state").equals(source.rows.drop_columns("state"))
    kiln_before, kiln_now = (json.loads(table.schema.metadata[b"kiln"]) for table in (source.rows, written))
    assert kiln_now.pop("exports") == [{"source": "chips.parquet", "source_rows": 100, "filter": {}}]
    assert kiln_now == kiln_before


def test_duckdb_and_geopandas_read_it(source, tmp_path):
    out = tmp_path / "out.parquet"
    kiln.export(source.uri, out, row_filter=RowFilter(years=(2021,)))
    expected = source.rows.filter(source.rows["year"].to_numpy() == 2021)
    rows = duckdb.sql(f"SELECT chip_id, embeddings, bbox.xmin FROM '{out}'").fetchall()
    assert [row[0] for row in rows] == expected["chip_id"].to_pylist()
    assert [list(row[1]) for row in rows] == expected["embeddings"].to_pylist()
    frame = gpd.read_parquet(out)
    assert frame.crs.to_epsg() == 4326
    assert shapely.equals(frame.geometry.values, shapely.from_wkb(expected["geometry"].to_numpy())).all()
    box = gpd.read_parquet(out, bbox=(-180, -90, 0, 90))  # by the covering column
    assert 0 < len(box) < len(frame)


def test_without_vectors_there_are_no_scales(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.parquet", vectors=False)
    names = pq.read_schema(tmp_path / "out.parquet").names
    assert not {"embeddings", "embeddings_mean", "scale", "scale_mean"} & set(names)
    assert {"chip_id", "year", "geometry", "bbox"} <= set(names)


def test_a_vector_brings_its_scale(source, tmp_path):
    column = source.columns[-1]
    kiln.export(source.uri, tmp_path / "out.parquet", columns=["year", column, "chip_id"])
    scale = [vectors.SCALES[column]] if source.vector_dtype == "int8" else []
    assert pq.read_schema(tmp_path / "out.parquet").names == ["year", column, *scale, "chip_id", "geometry", "bbox"]


def test_row_groups_are_filled_from_small_batches(source, tmp_path, monkeypatch):
    monkeypatch.setattr(geoparquet, "ROW_GROUP", 40)
    kiln.export(source.uri, tmp_path / "out.parquet")
    footer = pq.read_metadata(tmp_path / "out.parquet")
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [40, 40, 20]


def test_an_export_of_an_export_states_both(source, tmp_path):
    kiln.export(source.uri, tmp_path / "a.parquet", row_filter=RowFilter(years=(2021,)))
    kiln.export(tmp_path / "a.parquet", tmp_path / "b.parquet", row_filter=RowFilter(max_nodata=0.5))
    metadata = json.loads(pq.read_schema(tmp_path / "b.parquet").metadata[b"kiln"])
    assert [(e["source"], e["filter"]) for e in metadata["exports"]] == [
        ("chips.parquet", {"years": [2021]}),
        ("a.parquet", {"max_nodata": 0.5}),
    ]
    assert metadata["exports"][1]["source_rows"] == pq.read_metadata(tmp_path / "a.parquet").num_rows


def test_kiln_reads_it_as_the_product(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.parquet")
    chips, before = (kiln.read_product(uri) for uri in (tmp_path / "out.parquet", source.uri))
    assert chips["chip_id"].tolist() == before["chip_id"].tolist()
    assert set(chips.columns) == set(before.columns)


def test_no_rows_are_a_valid_file(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.parquet", row_filter=RowFilter(years=(1999,)))
    assert len(gpd.read_parquet(tmp_path / "out.parquet")) == 0
    assert pq.read_schema(tmp_path / "out.parquet").field("embeddings") == source.rows.schema.field("embeddings")
