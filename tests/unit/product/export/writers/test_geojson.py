"""GeoJSON exports: RFC 7946, read as JSON and by GDAL."""

import json
import math
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
import shapely.geometry

import kiln
from kiln.product.rows.row_filter import RowFilter


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def read(path):
    return json.loads(path.read_text(), parse_constant=refuse_constant)


def test_features_are_the_chips(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.geojson", vectors=True)
    value, rows = read(tmp_path / "out.geojson"), source.rows.to_pylist()
    assert value["type"] == "FeatureCollection"
    assert [feature["id"] for feature in value["features"]] == source.ids
    for feature, row in zip(value["features"], rows, strict=True):
        properties = feature["properties"]
        assert shapely.geometry.shape(feature["geometry"]).equals(shapely.from_wkb(row["geometry"]))
        assert feature["bbox"] == list(row["bbox"].values())
        for name in ("chip_id", "x0", "col", "item_id", "sources", "state", "year"):
            assert properties[name] == row[name]
        for name in ("nodata_fraction", "cloud_fraction"):
            assert (properties[name] is None) == (row[name] is None)
            assert row[name] is None or np.float32(properties[name]) == np.float32(row[name])
        time = properties["datetime"]
        assert (time and datetime.fromisoformat(time)) == row["datetime"]
        assert time is None or time.endswith("Z")
        assert not {"bbox", "geometry", "scale"} & set(properties)
    for column in source.columns:
        got = np.array([feature["properties"][column] for feature in value["features"]], np.float32)
        assert np.array_equal(got, source.numbers(column))


def test_boxes_over_the_antimeridian_have_west_greater_than_east(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.geojson")
    features = read(tmp_path / "out.geojson")["features"]
    over = [feature for feature in features if feature["bbox"][0] > feature["bbox"][2]]
    assert len(over) == 10
    assert {feature["geometry"]["type"] for feature in over} == {"MultiPolygon"}
    for feature in features:
        for polygon in shapely.get_parts(shapely.geometry.shape(feature["geometry"])):
            assert polygon.exterior.is_ccw


def test_gdal_reads_it(source, tmp_path):
    kiln.export(source.uri, tmp_path / "out.geojson", columns=["year", "datetime", "chip_id"])
    frame = pyogrio.read_dataframe(tmp_path / "out.geojson")
    assert frame["chip_id"].tolist() == source.ids
    assert [c for c in frame.columns if c != "id"] == ["year", "datetime", "chip_id", "geometry"]
    assert pyogrio.read_info(tmp_path / "out.geojson")["layer_name"] == "chips"


def test_the_collection_states_its_products(untrained, tmp_path):
    kiln.export(untrained.uri, tmp_path / "out.geojson")
    facts = read(tmp_path / "out.geojson")["kiln"]
    assert facts["untrained"] is True
    (product,) = facts["products"]
    assert product["dataset"] == "worldcover"
    assert {"partition", "model", "fingerprint", "untrained"} <= product.keys()
    assert facts["exports"] == [{"source": "chips.parquet", "source_rows": 5, "filter": {}}]


def test_numbers_that_are_not_finite_are_null(source, tmp_path):
    rows = source.rows.append_column("slope", pa.array([math.nan, math.inf, -math.inf, None, *[0.1] * 96]))
    pq.write_table(rows.append_column("tilt", rows["slope"].cast(pa.float32())), tmp_path / "chips.parquet")
    kiln.export(tmp_path / "chips.parquet", tmp_path / "out.geojson", columns=["slope", "tilt"])
    features = read(tmp_path / "out.geojson")["features"]
    for name in ("slope", "tilt"):
        assert [feature["properties"][name] for feature in features] == [None] * 4 + [0.1] * 96


def test_no_rows_are_a_valid_file_and_properties_may_be_empty(source, tmp_path):
    kiln.export(source.uri, tmp_path / "none.geojson", row_filter=RowFilter(years=(1999,)))
    assert read(tmp_path / "none.geojson")["features"] == []
    kiln.export(source.uri, tmp_path / "bare.geojson", columns=[])
    assert [feature["properties"] for feature in read(tmp_path / "bare.geojson")["features"]] == [{}] * 100
