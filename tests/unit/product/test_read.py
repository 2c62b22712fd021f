"""Products read as GeoDataFrames: all parts, bounding boxes, columns, local and on S3."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from kiln.archives.worldcover.columns import COLUMNS
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file
from kiln.io import storage
from kiln.io.range_file import RangeFile
from kiln.product.read import read_product
from tests.support.chips import make_chip
from tests.support.merges import GRID
from tests.support.products import make_product, shard_metadata

SIDE = 512 / 12000  # degrees of a chip
WINDOW = (-125 + 10.5 * SIDE, 50 - 14.5 * SIDE, -125 + 14.5 * SIDE, 50 - 10.5 * SIDE)  # meets 5 x 5 chips


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    kiln = shard_metadata(dimensions=256, vector_dtype="float16")
    product = make_product(tmp_path_factory.mktemp("read"), columns=GRID, kiln=kiln, row_group=100, part_bytes=300_000)
    assert len(product.record["files"]) > 2
    return product


def test_a_product_is_read_from_all_its_parts_in_order(product):
    chips = read_product(product.uri)
    assert isinstance(chips, gpd.GeoDataFrame)
    assert chips.crs.to_epsg() == 4326
    rows = product.rows()
    assert chips["chip_id"].tolist() == rows["chip_id"].to_pylist()
    assert list(chips.columns) == [name for name in rows.column_names if name != "bbox"]
    assert shapely.equals(chips.geometry.values, shapely.from_wkb(rows["geometry"].to_numpy())).all()
    vectors = np.stack(chips["embeddings"])
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, np.asarray(rows["embeddings"].combine_chunks().flatten()).reshape(len(rows), -1))


def test_folder_and_record_are_the_same_product(product):
    pd.testing.assert_frame_equal(read_product(product.record_file), read_product(Path(product.uri)))


def test_a_bounding_box_selects_the_chips_that_meet_it(product):
    chips = read_product(product.uri, bbox=WINDOW)
    everything = read_product(product.uri)
    expected = everything[everything.intersects(shapely.box(*WINDOW))]
    assert len(chips) == 25
    assert chips["chip_id"].tolist() == expected["chip_id"].tolist()


def test_columns_come_in_the_requested_order_with_the_geometry(product):
    assert list(read_product(product.uri, columns=["row", "chip_id"]).columns) == ["row", "chip_id", "geometry"]
    assert list(read_product(product.uri, columns=["geometry", "bbox"]).columns) == ["geometry", "bbox"]
    assert list(read_product(product.uri, columns=[]).columns) == ["geometry"]


def test_a_box_without_chips_gives_an_empty_frame_with_all_columns(product):
    chips = read_product(product.uri, bbox=(0, 0, 1, 1))
    assert (len(chips), list(chips.columns)) == (0, list(read_product(product.uri).columns))
    every = read_product(product.uri)
    assert [chips[name].dtype.kind for name in chips] == [every[name].dtype.kind for name in every]


def test_int8_vectors_stay_as_stored_with_their_scale(tmp_path):
    product = make_product(tmp_path, columns=GRID[:3], kiln=shard_metadata(vector_dtype="int8", embedding="both"))
    chips = read_product(product.uri)
    vectors = np.stack(chips["embeddings"])
    assert vectors.dtype == np.int8
    assert {"scale", "scale_mean", "embeddings_mean"} <= set(chips.columns)
    plain = vectors * chips["scale"].to_numpy()[:, None]
    assert np.abs(plain).max() == pytest.approx(127 * chips["scale"].max())


def test_only_the_needed_pieces_are_read_from_s3(product, bucket, monkeypatch):
    for path in Path(product.uri).rglob("*.parquet"):
        storage.write_bytes(f"{bucket}/p/{path.relative_to(product.uri)}", path.read_bytes())
    storage.write_bytes(f"{bucket}/p.json", Path(product.record_file).read_bytes())
    sizes = []
    read = RangeFile.read
    monkeypatch.setattr(RangeFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n))
    chips = read_product(f"{bucket}/p", bbox=WINDOW)
    assert 0 < sum(sizes) < sum(f["size"] for f in product.record["files"]) / 2
    pd.testing.assert_frame_equal(chips, read_product(product.uri, bbox=WINDOW))
    some, columns = sum(sizes), ["chip_id", "nodata_fraction"]
    read_product(f"{bucket}/p.json", bbox=WINDOW, columns=columns)
    assert sum(sizes) - some < some
    pd.testing.assert_frame_equal(
        read_product(f"{bucket}/p.json", columns=columns), read_product(product.uri, columns=columns)
    )


@pytest.mark.parametrize(
    ("bbox", "names"),
    [
        ((179, 0, -179, 1), {"west", "over", "east"}),
        ((179.6, 0, -179.6, 1), {"over"}),
        ((-179.9, 0, -178, 1), {"over", "east"}),
        ((178, 0, 179.9, 1), {"west", "over"}),
        ((-10, 0, 10, 1), {"middle"}),
        ((-180, 0, 180, 1), {"west", "over", "east", "middle"}),
        ((20, 0, 160, 1), set()),
        ((179, 2, -179, 3), set()),
    ],
)
@pytest.mark.parametrize("row_group", [1, 2, 32768])
def test_boxes_and_chips_over_the_antimeridian(tmp_path, bbox, names, row_group):
    over = shapely.MultiPolygon([shapely.box(179.5, 0, 180, 1), shapely.box(-180, 0, -179.5, 1)])
    footprints = {
        "west": shapely.box(178.5, 0, 179.5, 1),
        "over": over,
        "east": shapely.box(-179.5, 0, -178.5, 1),
        "middle": shapely.box(0, 0, 1, 1),
    }
    chips = [make_chip(n, chip_id=name, footprint=shape) for n, (name, shape) in enumerate(footprints.items())]
    columns = embeddings_file.schema(2, "float32", COLUMNS, shard_metadata())
    with embeddings_file.ShardWriter(tmp_path / "part-0000.parquet", columns, row_group) as out:
        out.append(chips, {"embeddings": np.ones((len(chips), 2), np.float32)})
    assert set(read_product(tmp_path, bbox=bbox)["chip_id"]) == names


@pytest.mark.parametrize("bbox", [(0, 1, 1, 0), (0, 0, 1), (0, 0, 1, float("nan"))])
def test_wrong_boxes_are_refused(product, bbox):
    with pytest.raises(ConfigError, match="bbox: expected west, south, east, north"):
        read_product(product.uri, bbox=bbox)


def test_paths_without_a_product_are_refused(product, tmp_path, bucket):
    for uri in (str(tmp_path), str(tmp_path / "gone"), f"{bucket}/gone"):
        with pytest.raises(SourceError, match="expected the folder or record of a product, got no part file"):
            read_product(uri)
    with pytest.raises(SourceError, match=r"gone\.json: does not exist"):
        read_product(str(tmp_path / "gone.json"))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ConfigError, match="expected the record of a product, got another file"):
        read_product(str(tmp_path / "other.json"))
    with pytest.raises(ConfigError, match="expected columns of the product, got nothing, nowhere"):
        read_product(product.uri, columns=["chip_id", "nothing", "nowhere"])


def test_damaged_and_missing_parts_are_named(product, tmp_path):
    part = tmp_path / "part-0000.parquet"
    part.write_bytes((Path(product.uri) / "chips/part-0000.parquet").read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"part-0000\.parquet: expected a Parquet file, got a damaged one"):
        read_product(tmp_path)
    record = tmp_path.with_suffix(".json")
    record.write_bytes(Path(product.record_file).read_bytes())
    part.unlink()
    with pytest.raises(SourceError, match=r"part-0000.parquet: expected a Parquet file of chips, got no file"):
        read_product(record)


def test_a_product_without_chips_is_an_empty_frame(tmp_path):
    product = make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True)
    assert len(read_product(product.uri)) == 0
    assert pq.read_schema(Path(product.uri) / "chips/part-0000.parquet").names[0] in read_product(product.uri).columns
