"""GeoPackages, read by GDAL and as SQLite."""

import json
import sqlite3
import warnings

import numpy as np
import pyogrio
import pytest
import shapely

import kiln
from kiln.cli.command_line import Terminated
from kiln.errors import SourceError
from kiln.product.rows.row_filter import RowFilter
from kiln.product.rows.row_stream import RowStream
from tests.support.exports import write_chips


def read(path):
    """Read the rows with their order, by pyogrio."""
    return pyogrio.read_dataframe(path, layer="chips")


def test_values_footprints_and_vectors_are_the_products(source, tmp_path):
    out = tmp_path / "out.gpkg"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kiln.export(source.uri, out, vectors=True)
    frame, rows = read(out), source.rows
    assert frame["chip_id"].tolist() == source.ids
    assert frame.crs.to_epsg() == 4326
    assert shapely.equals(frame.geometry.values, shapely.from_wkb(rows["geometry"].to_numpy())).all()
    for column in source.columns:
        matrix = np.stack([np.frombuffer(blob, "<f4") for blob in frame[column]])
        assert np.array_equal(matrix, source.numbers(column))
    for name in (
        "x0",
        "y0",
        "pixel_size",
        "col",
        "row",
        "nodata_fraction",
        "year",
        "crs",
        "item_id",
        "source",
        "state",
    ):
        assert frame[name].tolist() == rows[name].to_pylist()
    cloud = rows["cloud_fraction"].to_pandas()
    assert np.array_equal(frame["cloud_fraction"], cloud, equal_nan=True)
    assert [None if t is None else t for t in rows["datetime"].to_pylist()] == [
        None if str(t) == "NaT" else t.to_pydatetime() for t in frame["datetime"]
    ]
    assert frame["sources"].str.split("\n").tolist() == rows["sources"].to_pylist()
    assert not {"bbox", "scale", "scale_mean"} & set(frame.columns)


def test_the_layer_has_a_type_and_a_spatial_index(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.gpkg")
    info = pyogrio.read_info(tmp_path / "out.gpkg")
    assert (info["layer_name"], info["geometry_type"], info["features"]) == ("chips", "MultiPolygon", 100)
    assert info["capabilities"]["fast_spatial_filter"]
    with sqlite3.connect(tmp_path / "out.gpkg") as file:
        names = {row[0] for row in file.execute("SELECT name FROM sqlite_master")}
    assert "rtree_chips_geom" in names
    assert not {"embeddings", "embeddings_mean"} & set(info["fields"])
    some = pyogrio.read_dataframe(tmp_path / "out.gpkg", bbox=(-180, -90, 0, 90))
    assert 0 < len(some) < 100


def test_polygons_alone_are_a_layer_of_polygons(grid, tmp_path):
    kiln.export(grid.record_file, tmp_path / "out.gpkg")
    assert pyogrio.read_info(tmp_path / "out.gpkg")["geometry_type"] == "Polygon"
    frame, rows = read(tmp_path / "out.gpkg"), grid.rows()
    assert frame["chip_id"].tolist() == rows["chip_id"].to_pylist()
    assert shapely.equals(frame.geometry.values, shapely.from_wkb(rows["geometry"].to_numpy())).all()


def test_equal_exports_are_equal_bytes(source, tmp_path):
    for name in ("a.gpkg", "b.gpkg"):
        kiln.export(source.uri, tmp_path / name)
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "b.gpkg"]


def test_untrained_weights_are_in_description_and_metadata(untrained, tmp_path):
    kiln.export(untrained.uri, tmp_path / "out.gpkg")
    with sqlite3.connect(tmp_path / "out.gpkg") as file:
        (description,) = file.execute("SELECT description FROM gpkg_contents").fetchone()
    assert description == "Chips of worldcover 2021. UNTRAINED weights: for demonstration only."
    facts = json.loads(pyogrio.read_info(tmp_path / "out.gpkg")["layer_metadata"]["kiln"])
    assert facts["untrained"] is True
    assert facts["products"][0]["fingerprint"] == "f1" * 32


def test_no_rows_are_a_valid_file(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.gpkg", row_filter=RowFilter(years=(1999,)))
    assert len(read(tmp_path / "out.gpkg")) == 0


@pytest.mark.parametrize("error", [SourceError("changed while it was read"), KeyboardInterrupt(), Terminated()])
def test_an_error_of_reading_is_raised_as_it_is(tmp_path, monkeypatch, error):
    write_chips(tmp_path / "chips.parquet", 100)
    batches = RowStream.batches

    def broken(self, *args, **options):
        yield from list(batches(self, *args, **options))[:2]
        raise error

    monkeypatch.setattr(RowStream, "batches", broken)
    with pytest.raises(type(error)):
        kiln.export(tmp_path / "chips.parquet", tmp_path / "out.gpkg")
    assert [path.name for path in tmp_path.iterdir()] == ["chips.parquet"]
