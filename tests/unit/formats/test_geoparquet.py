"""The GeoParquet writer: metadata of the standard, encodings, row groups."""

import json

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats import embeddings_file, vectors
from kiln.formats.columns import BBOX
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import GeoParquetWriter, geo_metadata
from tests.support.products import DIM, WORLD, chip_at, random_vectors, shard_metadata


def write(path, groups, *, store="float32"):
    """Write one row group for each list of (col, row)."""
    columns = embeddings_file.schema(DIM, store, COLUMNS, shard_metadata(vector_dtype=store))
    with GeoParquetWriter(path, columns) as out:
        for places in groups:
            chips = [chip_at(WORLD, 2021, c, r) for c, r in places]
            rows = embeddings_file.chip_table(
                chips, vectors.store({"embeddings": random_vectors(chips)}, store), columns
            )
            out.write(rows, embeddings_file.extent(rows))
    return pq.ParquetFile(path)


def geo_of(file):
    return json.loads(file.metadata.metadata[b"geo"])


def test_geo_metadata_follows_the_standard(tmp_path):
    geo = geo_of(write(tmp_path / "a.parquet", [[(0, 0), (5, 3)]]))
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["edges"] == "planar"
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS.from_epsg(4326)
    assert column["covering"] == {"bbox": {n: ["bbox", n] for n in ("xmin", "ymin", "xmax", "ymax")}}


def test_bbox_grows_over_all_row_groups(tmp_path):
    file = write(tmp_path / "a.parquet", [[(3, 3)], [(9, 1)], [(-4, 7)]])
    side = 512 / 12000
    want = [-125 - 4 * side, 50 - 8 * side, -125 + 10 * side, 50 - 1 * side]
    assert geo_of(file)["columns"]["geometry"]["bbox"] == pytest.approx(want, abs=1e-9)
    assert file.metadata.num_row_groups == 3


def test_polygons_are_counterclockwise_as_the_metadata_states(tmp_path):
    file = write(tmp_path / "a.parquet", [[(0, 0), (1, 1)]])
    assert geo_of(file)["columns"]["geometry"]["orientation"] == "counterclockwise"
    rings = shapely.get_exterior_ring(shapely.from_wkb(file.read()["geometry"].to_numpy()))
    assert shapely.is_ccw(rings).all()


def test_a_file_without_rows_has_no_bbox_and_can_be_read(tmp_path):
    columns = embeddings_file.schema(DIM, "float32", COLUMNS, shard_metadata())
    with GeoParquetWriter(tmp_path / "a.parquet", columns) as out:
        out.write(columns.empty_table(), Extent())
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert "bbox" not in geo_of(file)["columns"]["geometry"]
    assert len(gpd.read_parquet(tmp_path / "a.parquet")) == 0


@pytest.mark.parametrize(("store", "split"), [("float32", True), ("float16", False)])
def test_only_float32_vectors_are_split_by_byte(tmp_path, store, split):
    file = write(tmp_path / "a.parquet", [[(c, 0) for c in range(50)]], store=store)
    group = file.metadata.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    vectors = by_name["embeddings.list.element"]
    assert ("BYTE_STREAM_SPLIT" in vectors.encodings) == split
    assert {c.compression for c in by_name.values()} == {"ZSTD"}
    assert "RLE_DICTIONARY" in by_name["source"].encodings
    assert "RLE_DICTIONARY" not in vectors.encodings


def test_the_schema_is_read_back_as_it_was_written(tmp_path):
    columns = embeddings_file.schema(DIM, "float16", COLUMNS, shard_metadata(vector_dtype="float16"))
    read = write(tmp_path / "a.parquet", [[(0, 0)]], store="float16").schema_arrow
    assert read.remove_metadata().equals(columns.remove_metadata())
    assert read.field("embeddings").type == pa.list_(pa.field("element", pa.float16(), nullable=False), DIM)
    assert read.field("bbox").type == BBOX
    assert json.loads(read.metadata[b"kiln"]) == shard_metadata(vector_dtype="float16")


def test_equal_rows_make_equal_files(tmp_path):
    places = [[(c, r) for c in range(9)] for r in range(4)]
    write(tmp_path / "a.parquet", places)
    write(tmp_path / "b.parquet", places)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_geo_metadata_without_covering_has_none():
    extent = Extent.of_boxes(np.array([[0.0, 1.0, 2.0, 3.0]]), frozenset({"Polygon"}))
    column = geo_metadata("bbox", extent, covering=False)["columns"]["bbox"]
    assert "covering" not in column
    assert column["bbox"] == [0.0, 1.0, 2.0, 3.0]
