"""Shards of NAIP to products, an index and a search."""

import json

import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from kiln.cli import search
from kiln.formats import embeddings_file
from kiln.product import deduplicate
from scripts import build_index, embed, merge
from tests.support import plans
from tests.support.archives import random_pixels, write_tile
from tests.support.embed_jobs import ledger_closes
from tests.support.naip_jobs import ND_KEYS, UNDATED_KEY, embed_all, make_plan, unit_id
from tests.support.naip_scenes import scene_pixels, write_scene
from tests.support.products import merge_shards

REAL_KEYS = [
    "nc/2016/100cm/rgbir_cog/36078/m_3607824_se_17_1_20160620.tif",
    "nd/2014/100cm/rgbir_cog/47099/m_4709963_se_14_1_20140720.tif",
    "nd/2019/100cm/rgbir_cog/47099/m_4709963_se_14_1_20190904.tif",
    "va/2016/100cm/rgbir_cog/37078/m_3707801_ne_17_1_20160620.tif",
]


def test_the_state_column_stays_a_dictionary_from_shard_to_product(tmp_path, encoder_file, monkeypatch):
    for n, key in enumerate(ND_KEYS):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, lines = make_plan(tmp_path / "plan.gz", ND_KEYS, tmp_path, per_shard=2)
    assert len(lines) > 2
    monkeypatch.setattr(embeddings_file.ShardWriter.__init__, "__defaults__", (4,))  # rows per row group
    monkeypatch.setattr(deduplicate, "BATCH_ROWS", 3)
    embed_all(units, lines, tmp_path / "shards", encoder_file)
    shards = str(tmp_path / "shards")
    record = merge_shards([x.name for x in lines], shards, tmp_path / "product", row_group=10)
    assert (record["rows"], record["units"]) == (54, {"embedded": 9})
    product = tmp_path / "product" / record["files"][0]["name"]
    assert pq.ParquetFile(product).num_row_groups > 4
    for path in (product, tmp_path / "shards" / f"{lines[0].name}.parquet"):
        assert pq.read_schema(path).field("state").type == pa.dictionary(pa.int32(), pa.string())
        assert pq.ParquetFile(path).num_row_groups > 1
    read = geopandas.read_parquet(product)
    assert set(read["state"]) == {"nd"}
    assert set(read["year"]) == {2019}
    assert read["chip_id"].is_unique
    assert read.crs.to_epsg() == 4326
    assert read.geometry.is_valid.all()


def test_a_partition_of_undated_scenes_can_be_merged(tmp_path, encoder_file):
    write_scene(tmp_path, UNDATED_KEY, scene_pixels())
    units, lines = make_plan(tmp_path / "plan.gz", [UNDATED_KEY], tmp_path)
    embed_all(units, lines, tmp_path / "shards", encoder_file)
    merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/id-2015"])
    assert json.loads((tmp_path / "id-2015.json").read_text())["rows"] == 6
    collection = json.loads(next((tmp_path / "id-2015").glob("collection*.json")).read_text())
    assert collection["extent"]["temporal"]["interval"] == [["2015-01-01T00:00:00Z", "2015-12-31T23:59:59Z"]]


@pytest.fixture(scope="module")
def real_archive(shared, tmp_path_factory):
    """The archive of the four real scenes; without them, random scenes of the same sizes and places."""
    if shared:
        return shared / "archive" / "naip-analytic"
    root = tmp_path_factory.mktemp("archive")
    sizes = {"nc": (300, 300, 1), "nd": (723, 934, 5), "va": (510, 597, 1)}
    wests = {"nc": (768_269, 4_057_292), "nd": (485_899, 5_209_246), "va": (680_811, 4_207_739)}
    for n, key in enumerate(REAL_KEYS):
        height, width, gsd = sizes[key[:2]]
        transform = rasterio.transform.from_origin(*wests[key[:2]], gsd, gsd)
        crs = "EPSG:26914" if key.startswith("nd") else "EPSG:26917"
        write_scene(root, key, scene_pixels(height, width, n), crs=crs, transform=transform)
    return root


def test_real_scenes_are_found_by_a_search_together_with_worldcover(real_archive, tmp_path, encoder_file, capsys):
    records, rows = [], {}
    _, every = make_plan(tmp_path / "every.gz", REAL_KEYS, real_archive, chip=256)
    for partition in [line.partition for line in every]:
        units, lines = make_plan(
            tmp_path / f"{partition}.gz",
            [k for k in REAL_KEYS if k[:7] == partition.replace("-", "/")],
            real_archive,
            chip=256,
        )
        embed_all(units, lines, tmp_path / "shards", encoder_file)
        merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/{partition}"])
        records.append(f"{tmp_path}/{partition}.json")
        rows[partition] = json.loads((tmp_path / f"{partition}.json").read_text())["rows"]
    expected = {}
    for key in REAL_KEYS:
        with rasterio.open(real_archive / key) as file:
            expected[f"{key[:2]}-{key[3:7]}"] = (file.height // 256) * (file.width // 256)
    assert rows == expected == {"nc-2016": 1, "nd-2014": 6, "nd-2019": 6, "va-2016": 2}
    (e,) = pq.read_table(tmp_path / "nd-2014" / "ledger.parquet").to_pylist()
    assert e["notes"] == "pixels of 5 m, expected 1 m from the key"

    write_tile(tmp_path / "wc", 2021, 10, 45, random_pixels(48, 1))
    settings = {"archive": str(tmp_path / "wc"), "years": [2021], "region": [10, 45, 11, 46], "chip_size": 16}
    plans.write("worldcover", tmp_path / "wc.gz", **settings, pixels_per_degree=48, columns_per_shard=9)
    wc = ["worldcover", "--units", tmp_path / "wc.gz", "--index", 0, "--folder", tmp_path / "wc-shards"]
    wc += ["--weights", encoder_file, "--pixels-per-degree", 48]
    embed.main([str(t) for t in wc])
    merge.main([f"--plan={tmp_path}/wc.gz", f"--shards={tmp_path}/wc-shards", f"--product={tmp_path}/wc-2021"])

    db = ["--db", f"{tmp_path}/db"]
    build_index.main(["--records", *records, f"{tmp_path}/wc-2021.json", *db, "--record", f"{tmp_path}/db.json"])
    query = "naip:nd:2019:m_4709963_se_14_1_20190904:1:1"
    query_row = (
        geopandas.read_parquet(tmp_path / "nd-2019" / "chips" / "part-0000.parquet").set_index("chip_id").loc[query]
    )
    capsys.readouterr()
    search.main([*db, "--chip", query, "-k", "50", "--format", "json"])
    hits = json.loads(capsys.readouterr().out)["results"]
    assert {h["dataset"] for h in hits} == {"naip", "worldcover"}
    assert sum(h["dataset"] == "naip" for h in hits) == 14
    search.main([*db, "--chip", query, "-k", "50", "--format", "json", "--dataset", "naip", "--year", "2014"])
    assert {h["chip_id"].rsplit(":", 2)[0] for h in json.loads(capsys.readouterr().out)["results"]} == {
        unit_id(REAL_KEYS[1])
    }
    point = query_row.geometry.centroid
    search.main([*db, f"--at={point.x},{point.y}", "-k", "5", "--format", "json", "--year", "2019"])
    assert json.loads(capsys.readouterr().out)["query"]["chip_id"] == query


def test_overlapping_scenes_are_merged_to_one_chip_per_cell(tmp_path, encoder_file):
    west, north = 31_250 * 16, 325_500 * 16
    holed = scene_pixels(64, 64, 2)
    holed[:, 20, 20:24] = 0  # 4 of 256 pixels of a cell that both scenes have
    for key, left, pixels in ((ND_KEYS[0], west, scene_pixels(64, 64, 1)), (ND_KEYS[1], west + 32, holed)):
        write_scene(tmp_path, key, pixels, transform=rasterio.transform.from_origin(left, north, 1, 1))
    units, lines = make_plan(tmp_path / "plan.gz", ND_KEYS[:2], tmp_path, per_shard=1)
    embed_all(units, lines, tmp_path / "shards", encoder_file, "--lattice", "utm")
    for name, more in (("all", []), ("unique", ["--deduplicate"])):
        merge.main([f"--plan={units}", f"--shards={tmp_path}/shards", f"--product={tmp_path}/{name}", *more])
    every, unique = (pq.read_table(tmp_path / n / "chips/part-0000.parquet").to_pylist() for n in ("all", "unique"))
    assert (len(every), len(unique)) == (32, 24)
    best = {}
    for row in every:
        cell, rank = (row["crs"], row["col"], row["row"]), (row["nodata_fraction"], row["chip_id"])
        best[cell] = min(best.get(cell, rank), rank)
    assert {r["chip_id"] for r in unique} == {i for _, i in best.values()}
    ledger = {e["unit_id"]: e for e in pq.read_table(tmp_path / "unique" / "ledger.parquet").to_pylist()}
    assert ledger_closes(ledger, unique)
    later = ledger[unit_id(ND_KEYS[1])]
    assert later["deduplicated"] == 8
    assert later["notes"] == (
        "1 chip left to scenes with less nodata; 7 chips left to scenes with as much nodata and an earlier chip_id"
    )
    shards = {e["unit_id"]: e["expected"] for e in pq.read_table(tmp_path / "all" / "ledger.parquet").to_pylist()}
    assert {unit: e["expected"] for unit, e in ledger.items()} == shards
