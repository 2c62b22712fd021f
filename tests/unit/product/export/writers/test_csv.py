"""CSV exports, read by DuckDB."""

import csv
from datetime import datetime

import duckdb
import numpy as np
import shapely

import kiln
from kiln.formats.embeddings_file import box_centres
from kiln.product.rows.row_filter import RowFilter
from tests.support.exports import DIMENSIONS


def test_duckdb_reads_the_products_values(source, tmp_path):
    out = tmp_path / "out.csv"
    kiln.export(source.uri, out, vectors=True)
    rows, frame = source.rows, duckdb.sql(f"SELECT * FROM read_csv('{out}')").to_arrow_table().to_pandas()
    assert frame["chip_id"].tolist() == source.ids
    for name in ("x0", "y0", "col", "row", "item_id", "source", "year", "state"):
        assert frame[name].tolist() == rows[name].to_pylist()
    assert frame["sources"].str.split(";").tolist() == rows["sources"].to_pylist()
    for name in ("nodata_fraction", "cloud_fraction"):
        assert np.array_equal(frame[name].astype("float32"), rows[name].to_pandas(), equal_nan=True)
    lon, lat = box_centres(rows["bbox"].combine_chunks())
    assert np.array_equal(frame["lon"], lon)
    assert np.array_equal(frame["lat"], lat)
    footprints = shapely.from_wkt(frame["geometry"].to_numpy())
    assert shapely.equals(footprints, shapely.from_wkb(rows["geometry"].to_numpy())).all()
    for column in source.columns:
        matrix = frame[[f"{column}_{n}" for n in range(DIMENSIONS)]].to_numpy(np.float32)
        assert np.array_equal(matrix, source.numbers(column))


def test_the_header_has_the_columns_in_order(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.csv", columns=["year", "chip_id"])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["year", "chip_id", "lon", "lat", "geometry"]
    assert [line[1] for line in lines[1:]] == source.ids


def test_times_are_iso_8601_and_unknown_values_empty(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.csv", columns=["datetime", "cloud_fraction"])
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    times = [line["datetime"] for line in lines]
    assert [datetime.fromisoformat(t) if t else None for t in times] == source.rows["datetime"].to_pylist()
    assert times[0] == "2020-01-01T23:30:00.000Z"
    assert [line["cloud_fraction"] == "" for line in lines] == source.rows["cloud_fraction"].is_null().to_pylist()


def test_rows_of_untrained_weights_have_a_column_that_states_it(source, untrained, tmp_path):
    for name, chips in (("a", source), ("b", untrained)):
        kiln.export(chips.uri, tmp_path / f"{name}.csv")
    assert "untrained" not in duckdb.sql(f"SELECT * FROM '{tmp_path}/a.csv'").columns
    assert duckdb.sql(f"SELECT DISTINCT untrained FROM '{tmp_path}/b.csv'").fetchall() == [(True,)]


def test_no_rows_are_a_header(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.csv", columns=["chip_id"], row_filter=RowFilter(years=(1999,)))
    assert (tmp_path / "out.csv").read_text() == '"chip_id","lon","lat","geometry"\n'
