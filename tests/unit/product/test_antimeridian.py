"""Products over the antimeridian: order, bounds, and other readers."""

import json

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine

from kiln.archives.sentinel2.scene import SceneGrid
from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats import embeddings_file
from kiln.formats.ledger import LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Unit
from tests.support.chips import make_chip
from tests.support.products import merge_shards, shard_metadata
from tests.support.stac import assert_valid

OVER = shard_metadata(
    dataset="worldcover", partition="2021", lattice={"chip_size": 256, "lattice": "scene", "edge": "drop"}
)


@pytest.fixture(scope="module")
def dateline(tmp_path_factory):
    """Merge 1600 chips of a scene of zone 1 south: of each row, one or two of 16 cross the antimeridian.

    Returns the folder of its two shards, the record and the folder of the product.
    """
    run = tmp_path_factory.mktemp("dateline")
    grid = SceneGrid(25_600, 4096, Affine(10, 0, 160_000, 0, -10, 8_200_000), "EPSG:32701", 256)
    footprints = grid.footprints()[0].reshape(-1)
    for name, part in (("a", footprints[:800]), ("b", footprints[800:])):
        chips = [make_chip(n, name, footprint=f) for n, f in enumerate(part)]
        entry = LedgerEntry(Unit(f"sentinel2:{name}", len(chips), "s3://b/i", "e"), embedded=len(chips))
        with embeddings_file.ShardWriter(
            run / f"{name}.parquet", embeddings_file.schema(8, "float32", COLUMNS, OVER)
        ) as out:
            rng = np.random.default_rng(len(out.schema))
            out.append(chips, {"embeddings": rng.standard_normal((len(chips), 8), np.float32)})
        write_ledger(run / f"{name}.ledger.parquet", ledger_table([entry]))
    return run, merge_shards(["a", "b"], run, f"{run}/p", row_group=200), run / "p"


def test_a_product_over_the_antimeridian_has_its_bounds_and_types(dateline):
    _, record, folder = dateline
    geo = json.loads(pq.read_metadata(folder / "chips/part-0000.parquet").metadata[b"geo"])["columns"]["geometry"]
    assert geo["geometry_types"] == ["MultiPolygon", "Polygon"]
    west, _, east, _ = geo["bbox"]
    assert (west, east) == pytest.approx((179.78, -179.80), abs=0.01)  # west > east: 41 km, not around the world
    frame = gpd.read_parquet(folder / "chips/part-0000.parquet")
    assert frame.geometry.is_valid.all()
    crossing = frame.geom_type == "MultiPolygon"
    assert 100 <= crossing.sum() <= 200
    boxes = pq.read_table(folder / "chips/part-0000.parquet", columns=["bbox"])["bbox"].to_pylist()
    assert [b["xmin"] > b["xmax"] for b in boxes] == crossing.tolist()
    item = json.loads((folder / next(n for n in record["documents"] if "part" in n)).read_text())
    assert_valid(item)
    assert item["bbox"] == geo["bbox"]
    assert item["geometry"]["type"] == "MultiPolygon"
    drawn = shapely.geometry.shape(item["geometry"])
    assert drawn.covers(frame.union_all().simplify(0))
    assert drawn.area < 3 * (180 - west + east + 180)  # three degrees of latitude
    collection = json.loads((folder / "collection.json").read_text())
    assert_valid(collection)
    assert collection["extent"]["spatial"]["bbox"] == [geo["bbox"]]


def test_rows_over_the_antimeridian_are_sorted_among_their_neighbours(dateline):
    """Chips over the antimeridian are sorted into the rows of their hemisphere.

    With centres computed at Greenwich, they would be sorted between the two hemispheres.
    """
    box = pq.read_table(dateline[2] / "chips/part-0000.parquet")["bbox"].combine_chunks()
    west, east = np.asarray(box.field("xmin")), np.asarray(box.field("xmax"))
    side = np.sign(embeddings_file.box_centres(box)[0])  # hemisphere of each row's centre
    assert np.count_nonzero(np.diff(side)) == 1  # one hemisphere after the other
    over = west > east
    assert {-1.0, 1.0} >= set(side[over])
    for hemisphere in set(side[over]):
        at = np.flatnonzero(over & (side == hemisphere))
        others = np.flatnonzero(~over & (side == hemisphere))
        assert others.min() < at.max()
        assert at.min() < others.max()


def test_geopandas_and_duckdb_read_chips_at_the_antimeridian(dateline, duckdb_home):
    """Filters by geometry find all chips; the `bbox` filter of geopandas, without xmin > xmax, finds the polygons."""
    path = dateline[2] / "chips/part-0000.parquet"
    frame = gpd.read_parquet(path)
    for window in ((179.95, -17.5, 180, -17.0), (-180, -17.5, -179.95, -17.0)):
        expected = frame[frame.intersects(shapely.box(*window))]
        assert set(expected.geom_type) == {"Polygon", "MultiPolygon"}
        with duckdb.connect(config={"extension_directory": str(duckdb_home / ".duckdb" / "extensions")}) as con:
            con.load_extension("spatial")
            found = con.sql(
                f"SELECT chip_id FROM '{path}' WHERE ST_Intersects(geometry, ST_MakeEnvelope{window})"
            ).fetchall()
        assert sorted(f[0] for f in found) == sorted(expected["chip_id"])
        some = gpd.read_parquet(path, bbox=window)
        assert set(expected["chip_id"][expected.geom_type == "Polygon"]) <= set(some["chip_id"])
        assert len(some) < len(frame) / 10


def test_gpio_finds_nothing_wrong_at_the_antimeridian(gpio, dateline):
    done = gpio("check", "all", str(dateline[2] / "chips/part-0000.parquet"))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    for expected in ("✓ 29 checks passed", "✓ Data appears to be spatially ordered", "with proper metadata covering"):
        assert expected in output, output
    assert "✗" not in output
