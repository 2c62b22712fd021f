"""The embeddings file: its columns, its bytes, and how other programs read it."""

import json
from datetime import UTC, datetime

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives.sentinel2.scene import SceneGrid
from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats import embeddings_file, vectors
from kiln.formats.columns import TEXTS, ColumnSpec
from kiln.formats.geoparquet import ROW_GROUP
from tests.support.chips import make_chip

WHEN = datetime(2021, 6, 1, tzinfo=UTC)


def write(path, chips, dim=4, vector_dtype="float32", row_group=ROW_GROUP, batch=3, about=None):
    """Write chips in batches as the engine does; each vector counts up from the chip's column."""
    columns = embeddings_file.schema(dim, vector_dtype, COLUMNS, about or {"model": "x"})
    with embeddings_file.ShardWriter(path, columns, row_group) as out:
        for at in range(0, len(chips), batch):
            some = chips[at : at + batch]
            values = {"embeddings": np.array([[c.col + d / 8 for d in range(dim)] for c in some], np.float32)}
            out.append(some, vectors.store(values, vector_dtype))
    return path


def geo_of(path):
    return json.loads(pq.read_metadata(path).metadata[b"geo"])


@pytest.mark.parametrize("vector_dtype", vectors.VECTOR_DTYPES)
def test_the_columns_are_those_of_the_contract(tmp_path, vector_dtype):
    columns = pq.read_schema(write(tmp_path / "o", [make_chip(1)], vector_dtype=vector_dtype))
    types = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
    scale = [("scale", pa.float32(), False)] if vector_dtype == "int8" else []
    bbox = pa.struct([(n, pa.float64()) for n in ("xmin", "ymin", "xmax", "ymax")])
    vector = pa.list_(pa.field("element", types[vector_dtype], nullable=False), 4)
    assert [(f.name, f.type, f.nullable) for f in columns] == [
        ("chip_id", pa.string(), False),
        ("embeddings", vector, False),
        *scale,
        ("geometry", pa.binary(), False),
        ("bbox", bbox, False),
        ("crs", pa.string(), False),
        ("x0", pa.float64(), False),
        ("y0", pa.float64(), False),
        ("pixel_size", pa.float64(), False),
        ("col", pa.int32(), False),
        ("row", pa.int32(), False),
        ("datetime", pa.timestamp("ms", tz="UTC"), True),
        ("item_id", pa.string(), False),
        ("source", pa.string(), False),
        ("sources", pa.list_(pa.string()), False),
        ("nodata_fraction", pa.float32(), False),
        ("cloud_fraction", pa.float32(), True),
        ("year", pa.int16(), True),
    ]


def test_both_kinds_lie_side_by_side_each_with_its_scale():
    columns = [f.name for f in embeddings_file.schema(4, "int8", COLUMNS, {}, "both")]
    assert columns[:6] == ["chip_id", "embeddings", "scale", "embeddings_mean", "scale_mean", "geometry"]
    assert [f.name for f in embeddings_file.schema(4, "float16", COLUMNS, {}, "both")][1:4] == [
        *columns[1:5:2],
        "geometry",
    ]
    assert [f.name for f in embeddings_file.schema(4, "float32", COLUMNS, {}, "mean")][1:3] == [
        "embeddings",
        "geometry",
    ]


def test_duckdb_and_geopandas_read_int8_and_its_scale(tmp_path):
    path = write(tmp_path / "o.parquet", [make_chip(n) for n in range(1, 6)], vector_dtype="int8")
    frame = geopandas.read_parquet(path)
    numbers = np.stack(frame["embeddings"]).astype("float32") * frame["scale"].to_numpy()[:, None]
    assert np.abs(numbers - np.array([[n + d / 8 for d in range(4)] for n in range(1, 6)])).max() < 0.03
    total = duckdb.sql(f"SELECT sum(list_sum(embeddings) * scale) FROM '{path}'").fetchone()[0]
    assert total == pytest.approx(numbers.sum(), rel=1e-5)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert chunk.path_in_schema == "embeddings.list.element"
    assert "PLAIN_DICTIONARY" in chunk.encodings or "RLE_DICTIONARY" in chunk.encodings


def test_rows_are_read_back_as_they_were_written(tmp_path):
    chips = [make_chip(1), make_chip(2, datetime=None, cloud_fraction=0.5)]
    one, two = pq.read_table(write(tmp_path / "o", chips)).to_pylist()
    assert one["embeddings"] == [1.0, 1.125, 1.25, 1.375]
    assert one["datetime"].isoformat() == "2021-06-01T00:00:00+00:00"
    assert (one["cloud_fraction"], two["cloud_fraction"], two["datetime"]) == (None, 0.5, None)
    assert (one["chip_id"], one["x0"], one["y0"], one["pixel_size"]) == ("u:1", -179.0, 11.0, 0.125)
    assert (two["col"], two["row"], two["crs"], two["year"]) == (2, -2, "EPSG:4326", 2021)
    assert (one["item_id"], one["source"]) == ("item1", "s3://b/item1.tif")
    assert one["sources"] == ["s3://b/item1.tif", "s3://b/other.tif"]
    assert one["bbox"] == {"xmin": -179, "ymin": 10, "xmax": -178, "ymax": 11}
    assert shapely.from_wkb(one["geometry"]).equals(chips[0].footprint)


def test_geopandas_reads_the_file_with_its_crs_and_bounds(tmp_path):
    path = write(tmp_path / "o", [make_chip(n) for n in (3, 1, 200)], row_group=2)
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 4326
    assert frame.total_bounds.tolist() == [-179, 10, 21, 11]
    assert frame.geometry.iloc[0].exterior.is_ccw
    near = geopandas.read_parquet(path, bbox=(19.9, 10.2, 20.2, 10.4))  # through the covering column
    assert near["chip_id"].tolist() == ["u:200"]


def test_geo_metadata_is_geoparquet_1_1_with_the_covering_and_the_bbox_of_all_row_groups(tmp_path):
    geo = geo_of(write(tmp_path / "o", [make_chip(n) for n in (7, 100)], batch=1, row_group=1))
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["bbox"] == [-173, 10, -79, 11]
    assert column["geometry_types"] == ["Polygon"]
    assert column["covering"] == {"bbox": {n: ["bbox", n] for n in ("xmin", "ymin", "xmax", "ymax")}}
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 4326}


def test_the_geometry_types_include_footprints_in_two_parts(tmp_path):
    parts = shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])
    path = write(tmp_path / "o", [make_chip(1), make_chip(2, footprint=parts)])
    geo = geo_of(path)
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert geopandas.read_parquet(path).geometry.iloc[1].equals(parts)


def test_kiln_metadata_is_what_was_given_in_a_fixed_order(tmp_path):
    file = pq.read_metadata(write(tmp_path / "o", [make_chip(1)], about={"b": [1, 2], "a": {"z": 0.5, "y": None}}))
    assert file.metadata[b"kiln"] == b'{"a": {"y": null, "z": 0.5}, "b": [1, 2]}'


def test_rows_are_written_in_groups_as_they_fill(tmp_path):
    path = write(tmp_path / "o", [make_chip(n) for n in range(25)], row_group=10, batch=5)
    found = pq.ParquetFile(path).metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [10, 10, 5]
    assert pq.read_table(path)["col"].to_pylist() == list(range(25))


def test_row_groups_have_a_size_for_remote_reads(tmp_path):
    chips = [make_chip(n) for n in range(50)] * 700  # 35 000 rows
    found = pq.ParquetFile(write(tmp_path / "o", chips, batch=50)).metadata
    assert found.num_row_groups == 2
    assert 32_000 <= found.row_group(0).num_rows <= 50_000


@pytest.mark.parametrize(("vector_dtype", "split"), [("float32", True), ("float16", False)])
def test_columns_are_zstd_and_float32_vectors_split_by_byte(tmp_path, vector_dtype, split):
    group = pq.ParquetFile(
        write(tmp_path / "o", [make_chip(n) for n in range(9)], vector_dtype=vector_dtype)
    ).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert ("BYTE_STREAM_SPLIT" in columns["embeddings.list.element"].encodings) == split


@pytest.mark.parametrize("vector_dtype", ["float32", "float16"])
def test_a_file_without_rows_has_the_same_columns_and_is_read_by_geopandas(tmp_path, vector_dtype):
    empty, full = (
        write(tmp_path / "e", [], vector_dtype=vector_dtype),
        write(tmp_path / "f", [make_chip(1)], vector_dtype=vector_dtype),
    )
    assert pq.read_schema(empty).equals(pq.read_schema(full))
    assert len(geopandas.read_parquet(empty)) == 0
    geo = geo_of(empty)
    assert "bbox" not in geo["columns"]["geometry"]
    assert geo["columns"]["geometry"]["geometry_types"] == []


def test_equal_rows_make_byte_equal_files(tmp_path):
    one, two = (
        write(tmp_path / n, [make_chip(i) for i in range(20)], row_group=7, batch=b) for n, b in (("a", 7), ("b", 7))
    )
    assert one.read_bytes() == two.read_bytes()


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_the_bytes_of_rows_do_not_depend_on_how_they_are_appended(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cuts")
    count, row_group = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 12))
    state = ColumnSpec("state", TEXTS, "state", nullable=True)
    vector_dtype = data.draw(st.sampled_from(["float32", "float16", "int8"]))
    embedding = data.draw(st.sampled_from(["class", "both"]))
    columns = embeddings_file.schema(4, vector_dtype, [*COLUMNS, state], {"model": "x"}, embedding)
    chips = [
        make_chip(
            n * 37, extra={"year": 2021, "state": ["nd", "va", None][n * n % 3]}, datetime=None if n % 4 else WHEN
        )
        for n in range(count)
    ]
    drawn = np.random.default_rng(1).normal(size=(2, count, 4)).astype(np.float32)
    stored = vectors.store(dict(zip(vectors.KINDS[embedding], drawn, strict=False)), vector_dtype)
    one = folder / "one"
    with embeddings_file.ShardWriter(one, columns, row_group) as out:
        for n in range(count):
            out.append(chips[n : n + 1], vectors.select_rows(stored, slice(n, n + 1)))
    whole = embeddings_file.chip_table(chips, stored, columns)
    bare = columns.remove_metadata()
    with embeddings_file.ShardWriter(folder / "cut", columns, row_group) as out:
        first = 0
        while first < count:
            last = data.draw(st.integers(first + 1, count))
            how = data.draw(st.sampled_from(["chips", "rows", "slice", "own dictionary"]))
            if how == "chips":
                out.append(chips[first:last], vectors.select_rows(stored, slice(first, last)))
            elif how == "slice":
                out.append_rows(whole.slice(first, last - first))
            else:
                some = embeddings_file.chip_table(
                    chips[first:last], vectors.select_rows(stored, slice(first, last)), columns
                )
                out.append_rows(some if how == "rows" else some.cast(bare).unify_dictionaries())
            assert out.rows == last
            first = last
    assert (folder / "cut").read_bytes() == one.read_bytes()
    groups = pq.ParquetFile(one).metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert sizes == [row_group] * (count // row_group) + [count % row_group] * bool(count % row_group or not count)
    assert pq.read_table(one).to_pylist() == whole.to_pylist()


def test_no_more_than_two_row_groups_wait_in_memory(tmp_path):
    columns = embeddings_file.schema(256, "float32", COLUMNS, {})
    some = embeddings_file.chip_table(
        [make_chip(n) for n in range(50)], {"embeddings": np.ones((50, 256), np.float32)}, columns
    )
    before = pa.total_allocated_bytes()
    peak = 0
    with embeddings_file.ShardWriter(tmp_path / "o", columns, 100) as out:
        for _ in range(60):
            out.append([make_chip(n) for n in range(30)], {"embeddings": np.ones((30, 256), np.float32)})
            out.append_rows(pa.concat_tables([some]).take(np.arange(50)))  # with their own buffers
            peak = max(peak, pa.total_allocated_bytes() - before)
            assert len(out._chips) + sum(map(len, out._tables)) < 200
    assert peak < 8 * 100 * 256 * 4  # of 4800 rows
    assert pq.ParquetFile(tmp_path / "o").metadata.num_rows == 4800


def test_an_error_while_writing_closes_the_file_and_is_raised(tmp_path):
    columns = embeddings_file.schema(4, "float32", COLUMNS, {})
    with (
        pytest.raises(KeyError, match="year"),
        embeddings_file.ShardWriter(tmp_path / "o", columns, row_group=1) as out,
    ):
        out.append([make_chip(1, extra={})], {"embeddings": np.zeros((1, 4), np.float32)})


# -------------------------------------------------------------------------------------------- the ends of the Earth

SIDES = ("xmin", "ymin", "xmax", "ymax")


def cut(west, east, south=0, north=1):
    """Return a footprint over the antimeridian, cut there."""
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def boxes_in(path):
    return [[b[n] for n in SIDES] for b in pq.read_table(path)["bbox"].to_pylist()]


@pytest.mark.parametrize("turned", [False, True])
def test_the_box_of_a_footprint_over_the_antimeridian_has_xmin_above_xmax(tmp_path, turned):
    over = cut(179.5, -179.75)
    over = shapely.MultiPolygon(list(over.geoms)[::-1]) if turned else over
    neighbours = [shapely.box(178.5, 0, 179.5, 1), shapely.box(-179.75, 0, -178.75, 1)]
    chips = [make_chip(n, footprint=f) for n, f in enumerate((neighbours[0], over, neighbours[1]))]
    boxes = boxes_in(write(tmp_path / "o", chips))
    assert boxes == [[178.5, 0, 179.5, 1], [179.5, 0, -179.75, 1], [-179.75, 0, -178.75, 1]]


@pytest.mark.parametrize(
    ("footprint", "box"),
    [
        (shapely.box(179, 0, 180, 1), [179, 0, 180, 1]),  # only touches it
        (shapely.box(-180, 0, -179, 1), [-180, 0, -179, 1]),
        (shapely.box(-180, 80, 180, 90), [-180, 80, 180, 90]),  # a cap
        (cut(0, 0, 80, 90), [-180, 80, 180, 90]),  # the same in two halves
        (shapely.MultiPolygon([shapely.box(1, 0, 2, 1), shapely.box(-3, 2, -2, 3)]), [-3, 0, 2, 3]),  # elsewhere
        (cut(179.5, -179.5) | shapely.box(178, 2, 179, 3), [178, 0, -179.5, 3]),  # three parts
    ],
)
def test_boxes_of_other_footprints_are_their_min_and_max(tmp_path, footprint, box):
    assert boxes_in(write(tmp_path / "o", [make_chip(1, footprint=footprint)])) == [box]


def test_a_box_over_the_antimeridian_has_its_centre_there(tmp_path):
    footprints = [cut(179.5, -179.75), cut(179.75, -179.5), cut(179.5, -179.5), shapely.box(-2, 0, 1, 1)]
    chips = [make_chip(n, footprint=f) for n, f in enumerate(footprints)]
    box = pq.read_table(write(tmp_path / "o", chips))["bbox"].combine_chunks()
    assert np.stack(embeddings_file.box_centres(box), axis=1).tolist() == [
        [179.875, 0.5],
        [-179.875, 0.5],
        [180, 0.5],
        [-0.5, 0.5],
    ]


@pytest.mark.parametrize("row_group", [1, 3])
def test_the_bounds_of_a_file_hold_every_row_on_both_sides_of_the_antimeridian(tmp_path, row_group):
    footprints = [shapely.box(178, 0, 179, 1), cut(179.5, -179.75, -2, 2), shapely.box(-179.75, 0, -179, 1)]
    chips = [make_chip(n, footprint=f) for n, f in enumerate(footprints)]
    for some, west, east in ((chips, 178, -179), (chips[1:2], 179.5, -179.75)):
        path = write(tmp_path / "o", some, row_group=row_group)
        assert geo_of(path)["columns"]["geometry"]["bbox"] == [west, -2, east, 2]
    assert geopandas.read_parquet(path).geometry.iloc[0].equals(footprints[1])


def test_bounds_of_no_rows_are_none(tmp_path):
    empty = pq.read_table(write(tmp_path / "o", []))
    extent = embeddings_file.extent(empty)
    assert extent.bbox is None
    assert extent.types == frozenset()


@pytest.mark.parametrize(
    ("epsg", "east", "north"),
    [
        (32601, 420_000.0, 9_330_000.0),  # 84 degrees north, 3 degrees of longitude are 35 km
        (32660, 500_000.0, 9_330_000.0),
        (32701, 420_000.0, 1_120_000.0),  # 80 south
        (32760, 500_000.0, 1_120_000.0),
        (32601, 160_000.0, 8_000.0),  # the equator
    ],
)
def test_chips_of_the_outermost_zones_have_small_boxes_from_the_equator_to_the_poles(tmp_path, epsg, east, north):
    grid = SceneGrid(1024, 10240, Affine(10, 0, east, 0, -10, north), f"EPSG:{epsg}", 256)
    footprints, centres = grid.footprints()
    chips = [make_chip(n, footprint=f) for n, f in enumerate(footprints.reshape(-1))]
    path = write(tmp_path / "o", chips, batch=50)
    over = 0
    for chip, (xmin, ymin, xmax, ymax) in zip(chips, boxes_in(path), strict=True):
        assert chip.footprint.is_valid
        crosses = chip.footprint.geom_type == "MultiPolygon"
        over += crosses
        assert crosses == (xmin > xmax)
        assert 0 < xmax - xmin + 360 * crosses < 0.4
        assert 0 < ymax - ymin < 0.05
    assert 4 <= over < len(chips) / 2
    lon, lat = embeddings_file.box_centres(pq.read_table(path)["bbox"].combine_chunks())
    want = centres.reshape(-1, 2)
    assert np.abs((lon - want[:, 0] + 180) % 360 - 180).max() < 0.01
    assert np.abs(lat - want[:, 1]).max() < 0.001


def test_an_extent_has_the_types_of_sliced_rows_and_of_any_byte_order(tmp_path):
    footprints = [shapely.box(0, 0, 1, 1), cut(179.5, -179.75), shapely.box(2, 0, 3, 1), shapely.box(4, 0, 5, 1)]
    rows = pq.read_table(write(tmp_path / "o", [make_chip(n, footprint=f) for n, f in enumerate(footprints)]))
    assert embeddings_file.extent(rows).types == {"Polygon", "MultiPolygon"}
    assert embeddings_file.extent(rows.slice(2)).types == {"Polygon"}
    assert embeddings_file.extent(rows.slice(1, 1)).types == {"MultiPolygon"}
    big_endian = pa.array(shapely.to_wkb(np.array(footprints), byte_order=0), pa.binary())
    at = rows.column_names.index("geometry")
    turned = rows.set_column(at, "geometry", pa.chunked_array([big_endian[:1], big_endian[1:]]))
    assert embeddings_file.extent(turned).types == {"Polygon", "MultiPolygon"}
