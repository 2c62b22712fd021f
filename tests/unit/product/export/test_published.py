"""A year exported in the published run's layout: names, columns, order and vectors."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from kiln.archives.worldcover.lattice import Column
from kiln.cli import export as export_command
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.product.export.published import export_published
from tests.support.products import WORLD, chip_at, make_product, random_vectors, shard_metadata

COLUMNS = [Column(k, 0, 40) for k in (0, 1, 7, 1358)]


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """Write a product of four columns of the published lattice in several parts; column 7 has holes."""
    run = tmp_path_factory.mktemp("export")
    product = make_product(
        run, columns=COLUMNS, kiln=shard_metadata(dimensions=256), row_group=40, part_bytes=120_000,
        skip=lambda c, r: c == 7 and r % 3 == 0,
    )  # fmt: skip
    assert len(product.record["files"]) > 1
    return product


@pytest.fixture(scope="module")
def exported(product, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    export_command.main([product.record_file, "--out", str(folder), "--format", "published", "--version", "002"])
    return folder


def test_files_are_named_as_the_published_ones(exported):
    expected = [f"worldcover_embeddings_2021_{k}_v002.gpq" for k in (0, 1, 7, 1358)]
    assert sorted(p.name for p in exported.iterdir()) == sorted(expected)


def test_the_version_is_part_of_the_name(product, tmp_path):
    names = export_published(product.record_file, str(tmp_path), version="017")
    assert names[0] == "worldcover_embeddings_2021_0_v017.gpq"
    assert names == [f"worldcover_embeddings_2021_{k}_v017.gpq" for k in (0, 1, 7, 1358)]  # west to east


def test_columns_are_counted_from_125_west_in_chips_of_512(product):
    rows = product.rows()
    x = np.array([int(c.split(":x")[1].split(":")[0]) for c in rows["chip_id"].to_pylist()])
    assert np.array_equal(rows["col"].to_numpy(), (x - 660000) // 512)
    assert ((x - 660000) % 512 == 0).all()


def test_the_column_in_the_name_is_where_the_rows_are(exported):
    for path in exported.iterdir():
        column = int(path.name.split("_")[3])
        frame = gpd.read_parquet(path)
        west = frame.geometry.bounds["minx"].to_numpy()
        assert np.allclose((west + 125) * 12000 / 512, column, atol=1e-6)


def test_a_file_has_just_embeddings_and_bbox(exported):
    for path in exported.iterdir():
        schema = pq.read_schema(path)
        assert schema.names == ["embeddings", "bbox"]
        assert pa.types.is_fixed_size_list(schema.field("embeddings").type)
        assert schema.field("bbox").type == pa.binary()


def test_bbox_is_the_primary_geometry_and_a_polygon(exported):
    for path in exported.iterdir():
        geo = json.loads(pq.ParquetFile(path).metadata.metadata[b"geo"])
        assert geo["primary_column"] == "bbox"
        assert geo["columns"]["bbox"]["geometry_types"] == ["Polygon"]
        frame = gpd.read_parquet(path)
        assert frame.geometry.name == "bbox"
        assert frame.crs.to_epsg() == 4326
        assert (frame.geom_type == "Polygon").all()
        assert geo["columns"]["bbox"]["bbox"] == frame.total_bounds.tolist()


def test_rows_go_from_north_to_south(exported):
    for path in exported.iterdir():
        north = gpd.read_parquet(path).geometry.bounds["maxy"].to_numpy()
        assert (np.diff(north) < 0).all()


def test_vectors_and_footprints_are_the_products(exported):
    for path in exported.iterdir():
        column = int(path.name.split("_")[3])
        chips = [chip_at(WORLD, 2021, column, r) for r in range(40) if not (column == 7 and r % 3 == 0)]
        table = pq.read_table(path)
        got = np.asarray(table["embeddings"].combine_chunks().flatten()).reshape(len(table), -1)
        assert np.array_equal(got, random_vectors(chips, 256))
        shapes = shapely.from_wkb(table["bbox"].to_numpy())
        assert shapely.equals(shapes, [c.footprint for c in chips]).all()


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_the_type_of_the_vectors_is_kept(tmp_path, store):
    product = make_product(tmp_path, columns=COLUMNS[:2], kiln=shard_metadata(vector_dtype=store))
    (name, _) = export_published(product.record_file, str(tmp_path / "exported"))
    kind = pq.read_schema(tmp_path / "exported" / name).field("embeddings").type
    assert kind.value_type == {"float32": pa.float32(), "float16": pa.float16()}[store]


def test_equal_products_give_equal_files(product, exported, tmp_path):
    export_published(product.record_file, str(tmp_path))
    for path in exported.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_quarters_are_refused(tmp_path, capsys):
    lattice = {"chip_size": 512, "pixels_per_degree": 12000, "encode": "quarters"}
    product = make_product(tmp_path, columns=COLUMNS[:2], kiln=shard_metadata(lattice=lattice))
    with pytest.raises(SystemExit) as e:
        export_command.main([product.record_file, "--out", str(tmp_path / "exported"), "--format", "published"])
    assert e.value.code == 2
    assert "embedded in quarters" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_another_dataset_is_refused(product, tmp_path):
    record = tmp_path / "r.json"
    record.write_text(json.dumps(product.record | {"dataset": "naip"}))
    with pytest.raises(ConfigError, match="archive with a published layout, got one of naip"):
        export_published(str(record), str(tmp_path / "exported"))


def test_a_column_without_chips_is_an_empty_file(tmp_path):
    product = make_product(tmp_path, columns=COLUMNS[:2], skip=lambda c, r: True)
    names = export_published(product.record_file, str(tmp_path / "exported"))
    assert len(names) == 2
    for name in names:
        rows = pq.read_table(tmp_path / "exported" / name)
        assert (len(rows), rows.column_names) == (0, ["embeddings", "bbox"])


def test_a_missing_part_is_named(tmp_path, capsys):
    product = make_product(tmp_path, columns=COLUMNS[:2])
    (Path(product.uri) / "chips/part-0000.parquet").unlink()
    with pytest.raises(SystemExit) as e:
        export_command.main([product.record_file, "--out", str(tmp_path / "exported"), "--format", "published"])
    assert e.value.code == 1
    assert "part-0000.parquet: does not exist" in capsys.readouterr().err


def test_an_export_to_s3_has_the_same_files(bucket, product, exported):
    export_command.main([product.record_file, "--out", f"{bucket}/published", "--format=published"])
    uploaded = storage.listing(f"{bucket}/published")
    assert {u.rpartition("/")[2] for u in uploaded} == {p.name for p in exported.iterdir()}
    for uri in uploaded:
        assert storage.read_bytes(uri) == (exported / uri.rpartition("/")[2]).read_bytes()


def test_int8_is_written_as_the_float32_it_stands_for(tmp_path):
    kiln = shard_metadata(vector_dtype="int8", embedding="both")
    product = make_product(tmp_path / "run", columns=COLUMNS[:1], kiln=kiln)
    export_published(product.record_file, str(tmp_path / "exported"))
    file = tmp_path / "exported" / "worldcover_embeddings_2021_0_v002.gpq"
    assert pq.read_schema(file).names == ["embeddings", "bbox"]
    assert pq.read_schema(file).field("embeddings").type.value_type == pa.float32()
    rows = product.rows().sort_by("row")
    levels = np.array(rows["embeddings"].to_pylist(), np.float32)
    written = np.array(pq.read_table(file)["embeddings"].to_pylist(), np.float32)
    assert np.array_equal(written, levels * rows["scale"].to_numpy()[:, None])
