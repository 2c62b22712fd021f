"""Published embedding files of others: every layout, and files of another one."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import geoarrow.pyarrow as ga
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from geoarrow.pyarrow import io as geoarrow_io

from kiln.errors import ConfigError, SourceError
from kiln.explorer.build import published, published_sets
from kiln.formats import embeddings_file
from kiln.io import storage

DIM = 6
V002 = "worldcover_embeddings_2020_{}_v002.gpq"


def vectors(n, seed=0, dim=DIM):
    return np.random.default_rng([seed, n]).standard_normal((n, dim)).astype(np.float32)


def boxes(n, west=-125.0, north=50.0, side=0.05):
    return [shapely.box(west, north - (k + 1) * side, west + side, north - k * side) for k in range(n)]


def tensor_gpq(path, given, footprints):
    """Write a file like Clay's run over WorldCover: a tensor of the Arrow extension, and WKB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(given))
    crs = pyproj.CRS("EPSG:4326").to_json_dict()
    column_metadata = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
    about = {
        "geo": json.dumps({"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column_metadata}})
    }
    wkb = pa.array(shapely.to_wkb(footprints).tolist(), pa.binary())
    pq.write_table(pa.table({"embeddings": column, "geometry": wkb}, metadata=about), path, compression="zstd")


def pandas_gpq(path, given, footprints):
    """Write the same with GeoPandas, which turns the tensor into a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(given))
    frame = gpd.GeoDataFrame({"embeddings": tensor}, geometry=footprints, crs="EPSG:4326")
    frame.to_parquet(path, compression="ZSTD", schema_version="1.0.0")


def clay_v1(
    path, given, footprints, day="20190904", uri="s3://naip-analytic/nd/2019/60cm/rgbir_cog/47099/m_4709963_se.tif"
):
    """Write a file like Clay's runs over NAIP and Sentinel-2: GeoArrow from WKT, lists, the scene in the footer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"geometry": ga.as_geoarrow([g.wkt for g in footprints]), "embeddings": list(given)}
    geoarrow_io.write_geoparquet_table(pa.table(columns, metadata={"date": day, "gsd": "0.6", "uri": uri}), path)


def earth_index(path, given, points, ids=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"{path.stem[:5]}_{k}" for k in range(len(given))]
    gpd.GeoDataFrame({"id": ids, "embedding": list(given)}, geometry=points, crs="EPSG:4326").to_parquet(path)


def major_tom(path, given, footprints):
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(given)
    facts = {
        "unique_id": [f"{k:064x}" for k in range(n)],
        "embedding": list(given),
        "timestamp": [f"2020{1 + k % 12:02d}15T101010" for k in range(n)],
        "product_id": [f"S2B_MSIL1C_{k}" for k in range(n)],
        "grid_cell": ["922D_249L"] * n,
        "utm_footprint": ["POLYGON EMPTY"] * n,
    }
    gpd.GeoDataFrame(facts, geometry=footprints, crs="EPSG:4326").to_parquet(path)


def files_of(name, files, model="m", **more):
    return published.files_of(published_sets.read_sets([{"name": name, "files": str(files), "model": model, **more}]))


def rows_of(*files):
    return pa.Table.from_batches([b for f in files for b in f.read()])


def footprints_of(rows):
    return shapely.from_wkb(rows["geometry"].to_pylist())


# ------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("write", [tensor_gpq, pandas_gpq])
def test_clays_worldcover_files_are_read(tmp_path, write):
    for column in (3, 12):
        write(tmp_path / "2020" / V002.format(column), vectors(5, column), boxes(5, -125 + column * 0.05))
    files = files_of("clay-wc", tmp_path, layout="clay-worldcover-v002")
    assert [f.partition for f in files] == [f"2020/worldcover_embeddings_2020_{c}_v002" for c in (12, 3)]
    rows = rows_of(*files)
    assert rows["chip_id"][0].as_py() == "clay-wc:2020/worldcover_embeddings_2020_12_v002:0"
    assert len(set(rows["chip_id"].to_pylist())) == 10
    assert rows["embeddings"].type == pa.list_(pa.float16(), DIM)
    np.testing.assert_array_equal(rows["embeddings"].to_pylist()[:5], vectors(5, 12).astype(np.float16).tolist())
    assert set(rows["year"].to_pylist()) == {2020}
    assert set(rows["datetime"].to_pylist()) == {datetime(2020, 6, 1, tzinfo=UTC)}
    west, south, east, north = boxes(1, -125 + 12 * 0.05)[0].bounds
    assert rows["bbox"][0].as_py() == {"xmin": west, "ymin": south, "xmax": east, "ymax": north}
    assert shapely.equals(footprints_of(rows)[:5], boxes(5, -125 + 12 * 0.05)).all()
    assert rows["source"][0].as_py() == files[0].uri
    assert rows["item_id"][0].as_py() == "worldcover_embeddings_2020_12_v002"
    assert rows["nodata_fraction"].null_count == 10


def test_a_geometry_column_of_another_name_is_found_by_the_files_metadata(tmp_path):
    frame = gpd.GeoDataFrame({"embeddings": list(vectors(3)), "bbox": boxes(3)}, geometry="bbox", crs="EPSG:4326")
    frame.to_parquet(tmp_path / V002.format(0))
    rows = rows_of(*files_of("wc", tmp_path, layout="clay-worldcover-v002"))
    assert rows["bbox"][2].as_py()["ymax"] == boxes(3)[2].bounds[3]


def test_day_and_scene_of_clays_naip_files_are_read_from_the_footer(tmp_path):
    clay_v1(tmp_path / "nd" / "m_4709963_se.parquet", vectors(4), boxes(4))
    rows = rows_of(*files_of("clay-naip", tmp_path, layout="clay-v1"))
    (first, *_) = rows.to_pylist()
    assert first["chip_id"] == "clay-naip:nd/m_4709963_se:0"
    assert (first["datetime"], first["year"]) == (datetime(2019, 9, 4, tzinfo=UTC), 2019)
    assert first["source"].startswith("s3://naip-analytic/nd/2019/")
    assert first["item_id"] == "m_4709963_se"


def test_a_day_with_dashes_of_clays_sentinel_files_is_read(tmp_path):
    uri = (
        "s3://sentinel-cogs/sentinel-s2-l2a-cogs/29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json"
    )
    clay_v1(tmp_path / "a.parquet", vectors(2), boxes(2), "2020-02-19", uri)
    rows = rows_of(*files_of("s2", tmp_path, layout="clay-v1")).to_pylist()
    assert rows[1]["datetime"] == datetime(2020, 2, 19, tzinfo=UTC)
    assert rows[1]["item_id"] == "S2A_29RKH_20200219_0_L2A"


def test_earth_index_points_are_places_without_extent(tmp_path):
    points = [shapely.Point(30.5 + k, -10.25) for k in range(3)]
    earth_index(tmp_path / "36LXK_2024-01-01_2025-01-01.parquet", vectors(3, dim=4), points)
    rows = rows_of(*files_of("ei", tmp_path, layout="earth-index"))
    assert rows["chip_id"].to_pylist() == ["ei:36LXK_0", "ei:36LXK_1", "ei:36LXK_2"]
    lon, lat = embeddings_file.box_centres(rows["bbox"].combine_chunks())
    assert (lon.tolist(), lat.tolist()) == ([30.5, 31.5, 32.5], [-10.25] * 3)
    assert footprints_of(rows).tolist() == points
    assert rows["year"].to_pylist() == [2024] * 3
    assert rows["datetime"].null_count == 3


def test_major_tom_rows_have_their_own_times_and_products(tmp_path):
    major_tom(tmp_path / "embeddings" / "part_00001-00050.parquet", vectors(3), boxes(3))
    rows = rows_of(*files_of("mt", tmp_path, layout="major-tom")).to_pylist()
    assert rows[2]["chip_id"] == f"mt:{2:064x}"
    assert rows[2]["datetime"] == datetime(2020, 3, 15, 10, 10, 10, tzinfo=UTC)
    assert (rows[2]["year"], rows[2]["item_id"]) == (2020, "S2B_MSIL1C_2")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int8()])
def test_named_columns_are_mapped_for_every_number_type(tmp_path, kind):
    given = np.arange(12).reshape(3, 4)
    values = pa.array(given.reshape(-1).tolist(), pa.float64()).cast(kind)
    rows = {
        "key": [7, 8, 9],
        "v": pa.FixedSizeListArray.from_arrays(values, 4),
        "where": pa.array(shapely.to_wkb(boxes(3)).tolist()),
        "day": [date(2021, 5, k) for k in (1, 2, 3)],
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    columns = {"vector": "v", "geometry": "where", "id": "key", "datetime": "day"}
    found = rows_of(*files_of("own", tmp_path, columns=columns, year=1999)).to_pylist()
    assert [r["chip_id"] for r in found] == ["own:7", "own:8", "own:9"]
    assert found[1]["embeddings"] == [4, 5, 6, 7]
    assert found[1]["datetime"] == datetime(2021, 5, 2, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------- places and vectors


def test_a_footprint_drawn_the_long_way_round_crosses_the_antimeridian(tmp_path):
    ring = shapely.Polygon([(179.9, 0), (-179.9, 0), (-179.9, 1), (179.9, 1)])
    major_tom(tmp_path / "a.parquet", vectors(2), [ring, *boxes(1)])
    rows = rows_of(*files_of("mt", tmp_path, layout="major-tom"))
    assert rows["bbox"][0].as_py() == {"xmin": 179.9, "ymin": 0, "xmax": -179.9, "ymax": 1}
    before, after = shapely.get_parts(footprints_of(rows)[0])
    assert before.equals(shapely.box(179.9, 0, 180, 1))
    assert shapely.hausdorff_distance(after, shapely.box(-180, 0, -179.9, 1)) < 1e-9
    lon, _ = embeddings_file.box_centres(rows["bbox"].combine_chunks())
    assert abs(abs(lon[0]) - 180) < 1e-9


def test_footprints_in_metres_are_converted_to_degrees(tmp_path):
    frame = gpd.GeoDataFrame({"embedding": list(vectors(2)), "id": ["a", "b"]}, geometry=boxes(2), crs="EPSG:4326")
    frame.to_crs("EPSG:32610").to_parquet(tmp_path / "a.parquet")
    rows = rows_of(*files_of("x", tmp_path, layout="earth-index"))
    assert rows["bbox"][0].as_py()["xmin"] == pytest.approx(-125, abs=1e-3)
    assert rows["bbox"][0].as_py()["ymax"] == pytest.approx(50, abs=1e-3)
    assert shapely.hausdorff_distance(footprints_of(rows), boxes(2)).max() < 1e-6


def test_metres_without_a_crs_are_refused(tmp_path):
    earth_index(tmp_path / "a.parquet", vectors(2), [shapely.Point(500_000, 4e6)] * 2)
    path = tmp_path / "a.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata({}), path)
    with pytest.raises(SourceError, match=r"a\.parquet: expected geometries in degrees"):
        rows_of(*files_of("x", tmp_path, layout="earth-index"))


def test_rows_without_a_vector_or_a_place_are_dropped_and_counted(tmp_path):
    given = [v.tolist() for v in vectors(7)]
    given[1][2], given[2][0], given[3], given[4][5] = float("nan"), 1e6, None, None
    places = [*shapely.to_wkb(boxes(5)).tolist(), None, shapely.to_wkb(shapely.Polygon())]
    pq.write_table(
        pa.table({"id": list("abcdefg"), "embedding": pa.array(given, pa.list_(pa.float32())), "geometry": places}),
        tmp_path / "a.parquet",
    )
    (file,) = files_of("x", tmp_path, layout="earth-index")
    assert rows_of(file)["chip_id"].to_pylist() == ["x:a"]
    assert dict(file.dropped) == {"the vector is missing, not finite or beyond float16": 4, "no geometry": 2}


def test_dropped_rows_do_not_change_the_numbers_of_later_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "BATCH_ROWS", 3)  # rows of a batch
    given = vectors(8)
    given[4] = np.nan
    tensor_gpq(tmp_path / V002.format(0), given, boxes(8))
    ids = rows_of(*files_of("x", tmp_path, layout="clay-worldcover-v002"))["chip_id"].to_pylist()
    assert [int(i.rpartition(":")[2]) for i in ids] == [0, 1, 2, 3, 5, 6, 7]


# ----------------------------------------------------------------------------------------------------- which files


def test_files_are_selected_by_folder_pattern_or_name(tmp_path, monkeypatch):
    for name in ("a/1.parquet", "a/2.parquet", "b/1.parquet", "b/note.txt"):
        earth_index(tmp_path / name, vectors(2), [shapely.Point(1, 2)] * 2, [f"{name}-{k}" for k in range(2)])
    assert [f.partition for f in files_of("x", tmp_path, layout="earth-index")] == ["a/1", "a/2", "b/1"]
    assert [f.partition for f in files_of("x", f"{tmp_path}/*/1.parquet", layout="earth-index")] == ["a/1", "b/1"]
    assert [f.partition for f in files_of("x", f"{tmp_path}/b/1.parquet", layout="earth-index")] == ["1"]
    monkeypatch.chdir(tmp_path / "a")
    assert [f.partition for f in files_of("x", "*.parquet", layout="earth-index")] == ["1", "2"]
    assert [f.partition for f in files_of("x", "../b", layout="earth-index")] == ["1"]


def test_a_prefix_on_s3_is_read_like_a_folder(bucket, tmp_path):
    for name in ("a", "b"):
        earth_index(tmp_path / f"{name}.parquet", vectors(2), [shapely.Point(1, 2)] * 2, [f"{name}1", f"{name}2"])
        storage.write_bytes(f"{bucket}/ei/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
    files = files_of("x", f"{bucket}/ei", layout="earth-index")
    assert rows_of(*files)["chip_id"].to_pylist() == ["x:a1", "x:a2", "x:b1", "x:b2"]
    assert [f.partition for f in files_of("x", f"{bucket}/ei/b*", layout="earth-index")] == ["b"]
    assert all(f.version for f in files)


def test_a_changed_file_has_another_key_and_a_copied_one_the_same(tmp_path):
    path = tmp_path / V002.format(0)
    tensor_gpq(path, vectors(4), boxes(4))
    keys = [files_of("x", tmp_path, layout="clay-worldcover-v002")[0].key]
    path.write_bytes(path.read_bytes())
    keys.append(files_of("x", tmp_path, layout="clay-worldcover-v002")[0].key)
    tensor_gpq(path, vectors(4, seed=1), boxes(4))
    keys.append(files_of("x", tmp_path, layout="clay-worldcover-v002")[0].key)
    assert keys[0] == keys[1] != keys[2]


# ------------------------------------------------------------------------------------------------------- bad input


GOOD = {"name": "x", "files": "f", "model": "m", "layout": "clay-v1"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"name": "x"}, "expected a list"),
        ([GOOD, GOOD], "expected different names, got x twice"),
        ([GOOD | {"model": ""}], "x: model is missing"),
        ([GOOD | {"name": "naip"}], "that no archive of Kiln has"),
        ([GOOD | {"name": "a:b"}], "expected a name of a-z"),
        ([GOOD | {"layout": "clay-v9"}], "expected a layout of clay-worldcover-v002, .* got 'clay-v9'"),
        ([GOOD | {"columns": {"vector": "v"}}], "expected either a layout of"),
        ([GOOD | {"layout": None}], "expected either a layout of"),
        ([GOOD | {"layout": None, "columns": {"vektor": "v"}}], "columns: expected vector"),
        ([GOOD | {"folder": "f"}], "unknown folder"),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_it(entries, message):
    with pytest.raises(ConfigError, match=message):
        published_sets.read_sets(entries)


def test_a_path_without_files_is_an_error(tmp_path):
    for nowhere in (tmp_path, tmp_path / "none", tmp_path / "none.parquet", tmp_path / "*.gpq"):
        with pytest.raises(ConfigError, match="x: no file of"):
            files_of("x", nowhere, layout="clay-v1")


def test_the_error_for_another_layout_lists_the_columns_of_the_file(tmp_path):
    earth_index(tmp_path / "a.parquet", vectors(2), [shapely.Point(1, 2)] * 2)
    with pytest.raises(
        SourceError, match="no column unique_id, timestamp, product_id, which major-tom names; it has id"
    ):
        files_of("x", tmp_path, layout="major-tom")


def test_a_truncated_file_is_named(tmp_path):
    earth_index(tmp_path / "a.parquet", vectors(2), [shapely.Point(1, 2)] * 2)
    earth_index(tmp_path / "b.parquet", vectors(2), [shapely.Point(1, 2)] * 2)
    path = tmp_path / "b.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"b\.parquet: expected a complete Parquet file, got a broken one"):
        files_of("x", tmp_path, layout="earth-index")


def test_vectors_of_another_length_are_refused_in_a_file_and_between_files(tmp_path):
    earth_index(tmp_path / "a.parquet", vectors(2), [shapely.Point(1, 2)] * 2)
    earth_index(tmp_path / "b.parquet", vectors(2, dim=3), [shapely.Point(1, 2)] * 2)
    with pytest.raises(SourceError, match=r"b\.parquet: expected vectors of 6 numbers as in the first file, got 3"):
        rows_of(*files_of("x", tmp_path, layout="earth-index"))
    mixed = pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32()))
    wkb = shapely.to_wkb([shapely.Point(1, 2)] * 2).tolist()
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": mixed, "geometry": wkb}), Path(tmp_path) / "c.parquet")
    with pytest.raises(SourceError, match="expected vectors of one length, got 2 and 3"):
        files_of("x", tmp_path / "c.parquet", layout="earth-index")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("embedding", ["text", "text"], "expected vectors as lists of numbers, got string"),
        ("embedding", [["a"], ["b"]], "expected vectors as lists of numbers, got lists of string"),
        ("geometry", ["POINT (1 2)", "POINT (1 2)"], "expected WKB geometries, got string"),
        ("geometry", [b"nonsense", b"nonsense"], "expected WKB geometries, got others"),
        ("timestamp", ["yesterday", "today"], "expected a date, got 'yesterday'"),
        ("timestamp", [1, 2], "expected times, got int64"),
        ("unique_id", ["a", None], "1 rows without unique_id"),
    ],
)
def test_columns_of_another_type_are_errors(tmp_path, column, values, message):
    major_tom(tmp_path / "a.parquet", vectors(2), boxes(2))
    rows = pq.read_table(tmp_path / "a.parquet")
    rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values))
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=message):
        rows_of(*files_of("x", tmp_path, layout="major-tom"))
