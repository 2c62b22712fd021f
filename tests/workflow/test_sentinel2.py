"""Sentinel-2 through the workflow: three ways to find items, what a change redoes, and the product."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.archives.sentinel2 import layout
from kiln.archives.sentinel2.layout import BUCKET, WEB
from kiln.archives.stable_shards import position
from kiln.explorer import pictures
from kiln.explorer.api import open_explorer
from kiln.explorer.database import ExplorerDatabase
from kiln.formats.fingerprint import shard_name
from kiln.formats.ledger import ledger_name
from kiln.formats.plan_file import ShardPlan, write_plan
from scripts import embed, plan_units
from tests.support.inventories import key, keys_of, put, text
from tests.support.items import FILES, NAME, WrittenItem, write_item
from tests.support.stac import assert_valid
from tests.support.stac_api import COLLECTION, StacApi
from tests.workflow.workflow import Run, fresh

TILE = {"corner": (699_960.0, 4_900_020.0), "epsg": 32614}
FLAT, HAZY, OLD = "S2A_14TQP_20200702_0_L2A", "S2B_14TQP_20200704_0_L2A", "S2A_14TQP_20200712_0_L2A"
LEVELS = {"blue": 500, "green": 1500, "red": 3000}  # of FLAT, whose other bands are noise
YEAR = "2020-01-01/2020-12-31"
REDO = {"build_index": 1, "coverage": 1, "picture_similar": 1, "all": 1}


def of(**more: object) -> dict:
    """Changes of the tiny config that turn Sentinel-2 on, found by its list."""
    settings = {"items": "s2/items.txt", "archive": "s2", "items_per_shard": 2, "chip_size": 16}
    return {"datasets": ["sentinel2"], "sentinel2": {**settings, **more}}


def add(run: Run, name: str, listed: str = "items.txt", **how: object) -> WrittenItem:
    """Write an item into the run's archive and at the end of a list."""
    place = TILE if "_14TQP_" in name else {}
    made = write_item(run.folder / "s2", name, seed=position(name) % 1000, **place, **how)
    with (run.folder / "s2" / listed).open("a") as file:
        file.write(f"{made.key}\n")
    return made


def shards(run: Run) -> dict[str, Path]:
    """Embeddings files by `partition/shard`."""
    found = sorted(run.folder.glob("results/tiny/sentinel2-*/shards/*/*.parquet"))
    return {f"{p.parent.name}/{p.stem}": p for p in found if not p.name.endswith(".ledger.parquet")}


def times(run: Run) -> dict[str, int]:
    return {n: p.stat().st_mtime_ns for n, p in shards(run).items()}


def ledger_of(path: Path) -> dict[str, dict]:
    """The ledger of a shard by the item's id."""
    rows = pq.read_table(ledger_name(str(path))).to_pylist()
    return {e["unit_id"].removeprefix("sentinel2:"): e for e in rows}


def shard_of(run: Run, item: str) -> Path:
    """The shard that holds an item."""
    return next(p for p in shards(run).values() if item in ledger_of(p))


def record(run: Run, partition: str) -> dict:
    return json.loads(run.one(f"results/tiny/sentinel2-*/products/{partition}/*.json").read_text())


def unnamed(run: Run) -> dict[str, str]:
    """Digests of a run's files, with one name for all plans: a plan's name depends on its settings."""
    return {re.sub(r"/plan-\w+", "/plan", name): digest for name, digest in run.files().items()}


def ran(output: str) -> dict[str, int]:
    """Return the finished jobs by rule. The table of jobs does not hold those after a checkpoint."""
    return Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", output, flags=re.M))


def forget_plans(run: Run) -> None:
    for plan in run.folder.glob("results/tiny/sentinel2-*/plan-*"):
        plan.unlink()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three scenes in July, in two shards, and of a fully cloudy scene of another zone.

    Tests must not change it.
    """
    run = fresh(tmp_path_factory.mktemp("sentinel2") / "run", of())
    add(run, FLAT, bands={b: np.full((64, 64), level, np.uint16) for b, level in LEVELS.items()})
    scl = np.full((32, 32), 5, np.uint8)
    scl[:8], scl[8:16, :16] = 0, 9
    add(run, HAZY, scl=scl)
    add(run, OLD, style="v0")
    add(run, NAME, scl=np.full((32, 32), 8, np.uint8))
    run.snakemake("--cores", "2")
    return run


@pytest.fixture
def clone(done: Run, tmp_path: Path) -> Callable[..., Run]:
    """Copies of the finished run, with other settings of Sentinel-2."""

    def copy(**more: object) -> Run:
        run = done.clone(tmp_path / "clone")
        run.configure(of(**more))
        return run

    return copy


@pytest.fixture
def serve_items() -> Iterator[Callable[[list[dict]], StacApi]]:
    started: list[StacApi] = []

    def start(documents: list[dict]) -> StacApi:
        started.append(StacApi(documents))
        return started[-1]

    yield start
    for server in started:
        server.stop()


# -------------------------------------------------------------------------------------------------- the finished run


def test_a_partition_is_a_grid_zone_and_month_and_a_second_run_has_nothing_to_do(done: Run) -> None:
    assert {n.partition("/")[0] for n in shards(done)} == {"14T-2020-07", "29R-2020-02"}
    assert len(shards(done)) == 3
    assert record(done, "14T-2020-07")["units"] == {"embedded": 3}
    assert (record(done, "29R-2020-02")["rows"], record(done, "29R-2020-02")["units"]) == (0, {"empty": 1})
    assert json.loads(done.one("results/tiny/index/*.json").read_text())["rows"] == 42
    assert not [p for p in (done.folder / "checkpoints").rglob("*") if p.is_file()], "checkpoints outlived their shard"
    assert done.jobs() == {}
    assert done.jobs("sentinel2") == {}


def test_the_ledger_counts_cloud_and_nodata_apart(done: Run) -> None:
    entry = ledger_of(shard_of(done, HAZY))[HAZY]
    counts = ("expected", "embedded", "skipped_nodata", "skipped_cloud", "deduplicated", "failed")
    assert [entry[c] for c in counts] == [16, 10, 4, 2, 0, 0]
    assert record(done, "14T-2020-07")["counts"] == dict(zip(counts, [48, 42, 4, 2, 0, 0], strict=True))
    assert record(done, "29R-2020-02")["counts"]["skipped_cloud"] == 16


def test_products_keep_the_columns_of_their_dataset_and_are_valid_stac(done: Run) -> None:
    product = done.one("results/tiny/sentinel2-*/products/14T-2020-07/*/chips/part-0000.parquet")
    schema = pq.read_schema(product)
    for name in ("platform", "mgrs_tile", "processing_baseline"):
        assert schema.field(name).type == pa.dictionary(pa.int32(), pa.string()), name
    assert schema.field("offset_applied").type == pa.bool_()
    rows = pq.read_table(product, columns=["platform", "mgrs_tile"])
    assert set(rows["platform"].to_pylist()) == {"sentinel-2a", "sentinel-2b"}
    assert set(rows["mgrs_tile"].to_pylist()) == {"14TQP"}
    folder = product.parent.parent
    collection = json.loads((folder / "collection.json").read_text())
    items = [json.loads(p.read_text()) for p in (folder / "items").iterdir()]
    assert len(items) == 1
    for value in (collection, *items):
        assert_valid(value)
    first, last = collection["extent"]["temporal"]["interval"][0]
    assert (first[:10], last[:10]) == ("2020-07-02", "2020-07-12")


def test_gpio_finds_nothing_to_warn_of_in_a_product(done: Run, gpio: Callable[..., Any]) -> None:
    product = done.one("results/tiny/sentinel2-*/products/14T-2020-07/*/chips/part-0000.parquet")
    checked = gpio("check", "all", str(product))
    output = checked.stdout + checked.stderr
    assert checked.returncode == 0, output
    assert "✓ 29 checks passed" in output, output
    assert not any(bad in output for bad in ("⚠", "✗", "❌", "WARNING")), output


def test_a_month_without_a_chip_covers_that_month(done: Run) -> None:
    (path,) = done.folder.glob("results/tiny/sentinel2-*/products/29R-2020-02/*/collection.json")
    collection = json.loads(path.read_text())
    assert_valid(collection)
    assert collection["extent"]["temporal"]["interval"] == [["2020-02-01T00:00:00Z", "2020-02-29T23:59:59Z"]]


def test_a_picture_is_drawn_from_the_three_files_of_the_chips_own_scene(
    done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    found = ExplorerDatabase("results/tiny/explorer").table.search().where(f"item_id = '{FLAT}'").limit(1).to_list()
    drawn = pictures.picture(found[0], {})
    assert drawn.origin == "source"
    expected = [(LEVELS[band] / 4000) ** 0.6 * 255 for band in ("red", "green", "blue")]
    assert np.median(drawn.pixels, axis=(0, 1)).tolist() == pytest.approx(expected, abs=1)
    assert done.one("results/tiny/pictures/*/similar-*.png").stat().st_size > 5000


# -------------------------------------------------------------------------------------------- three ways to find items


def way_of(run: Run, way: str, made: list[WrittenItem], serve: Callable[[list[dict]], StacApi]) -> dict:
    """Return settings that find the items by an inventory or a search instead of a list."""
    if way == "inventory":
        keys = [k for m in made for k in keys_of(m.entry["id"])]
        put(run.folder / "inventory", text(keys[::2]), text(keys[1::2]))
        return {"items": None, "inventory": "inventory/2026-01-01T01-00Z/manifest.json"}
    return {"items": None, "search": serve([m.as_api_item(COLLECTION) for m in made]).url, "dates": YEAR}


@pytest.mark.parametrize(("way", "lost"), [("inventory", FLAT), ("search", OLD)])
def test_an_inventory_and_a_search_give_the_shards_that_the_list_gave(
    done: Run, clone: Callable[..., Run], serve_items: Callable[[list[dict]], StacApi], way: str, lost: str
) -> None:
    run = clone()
    homes = {p.stem: p.parent for p in (run.folder / "s2").rglob("S2*.json")}
    blank = np.zeros(0)
    made = [WrittenItem({"id": i, "href": f"{WEB}/{key(i)}"}, homes[i], blank, blank) for i in homes]
    run.configure(of(**way_of(run, way, made, serve_items)))
    forget_plans(run)
    shard_of(run, lost).unlink()
    output = run.snakemake("--cores", "2", "sentinel2")
    assert ran(output) == {"plan_sentinel2": 1, "embed_sentinel2": 1, "merge_sentinel2": 1, "sentinel2": 1}
    assert unnamed(run) == unnamed(done)
    assert run.jobs("sentinel2") == {}


def test_the_real_scene_gives_the_same_shard_from_each_kind_of_plan(
    shared: Path | None, tmp_path: Path, serve_items: Callable[[list[dict]], StacApi]
) -> None:
    if shared is None:
        pytest.skip("needs the folder of real pixels")
    archive = shared / "archive" / "sentinel-cogs"
    (path,) = archive.rglob(f"{NAME}.json")
    run = Run(tmp_path)
    keys = [p.relative_to(archive).as_posix() for p in path.parent.iterdir()]
    (tmp_path / "items.txt").write_text(f"{WEB}/{key(NAME)}\n")
    inventory = put(tmp_path / "inventory", text(keys))
    api = serve_items([json.loads(path.read_text()) | {"collection": COLLECTION}])
    world = {"archive": str(shared / "archive" / "esa-worldcover-s2" / "rgbnir_1200px"), "years": [2020]}
    world |= {"region": [-12, 24, -11, 25], "pixels_per_degree": 1200, "chip_size": 128, "columns_per_shard": 20}

    settings = {"items": "items.txt", "archive": str(archive), "chip_size": 128}
    run.configure({"datasets": ["worldcover", "sentinel2"], "worldcover": world, "sentinel2": settings})
    run.snakemake("--cores", "2", "index")
    ((name, shard),) = shards(run).items()
    assert name.startswith("29R-2020-02/")
    plan = run.one("results/tiny/sentinel2-*/plan-*.jsonl.gz").read_bytes()
    (weights,) = (run.folder / "results/models").iterdir()
    flags = ["--archive", str(archive), "--items-per-shard", "2", "--chip-size", "128"]
    for way in (["--inventory", inventory], ["--search", api.url, "--bbox=-12,24,-11,25"]):
        folder = tmp_path / way[0]
        plan_units.main(["sentinel2", *way, *flags, "--output", f"{folder}/plan.gz"])
        assert (folder / "plan.gz").read_bytes() == plan
        by_hand = ["--units", f"{folder}/plan.gz", "--index", "0", "--folder", str(folder), "--weights", str(weights)]
        more = ["--vector-dtype", "float16", "--batch-size", "16"]  # as the config has them
        embed.main(["sentinel2", *by_hand, *more, "--threads", "1"])
        for file in (shard, Path(ledger_name(str(shard)))):
            assert (folder / file.name).read_bytes() == file.read_bytes(), f"{way[0]}: {file.name}"
    assert record(run, "29R-2020-02")["units"] == {"embedded": 1}
    explorer = open_explorer(tmp_path / "results/tiny/explorer", cache=tmp_path / "cache")
    rows = record(run, "29R-2020-02")["rows"]
    table = explorer.database.table
    assert table.count_rows("dataset = 'sentinel2'") == rows > 10
    here = table.search().where("dataset = 'sentinel2'").limit(1).to_list()[0]
    assert set(explorer.search(likes=here["chip_id"], k=len(explorer)).dataset) == {"sentinel2", "worldcover"}


# -------------------------------------------------------------------------------------------------- what changes redo


def test_a_deleted_shard_redoes_itself_its_months_merge_index_and_pictures(clone: Callable[..., Run]) -> None:
    run = clone()
    shard_of(run, OLD).unlink()
    assert run.jobs() == {"embed_sentinel2": 1, "merge_sentinel2": 1, **REDO}


# --------------------------------------------------------------------------------------------------------- the config


def test_rewrites_of_the_config_come_before_the_buckets_own_and_name_whole_buckets() -> None:
    assert layout.rewrites("s2/", ["a=b"])[0] == "a=b"
    own = [pair.split("=") for pair in layout.rewrites("s2/", [])]
    for address, read in (
        (f"{BUCKET}/a.tif", "s2/a.tif"),
        (f"{WEB}/a.tif", "s2/a.tif"),
        (f"{BUCKET}-mirror/a.tif", f"{BUCKET}-mirror/a.tif"),
    ):
        fits = [new + address.removeprefix(old) for old, new in own if address.startswith(old)]
        assert (fits or [address])[0] == read


def test_a_mirror_of_the_config_is_read_in_place_of_the_archive(tmp_path: Path, encoder_file: Path) -> None:
    made = write_item(tmp_path / "mirror", side=16)
    item = tmp_path / "archive" / made.key
    item.parent.mkdir(parents=True)
    shutil.move(made.folder / f"{NAME}.json", item)
    name = shard_name("s", (NAME,))
    shard = ShardPlan(
        "sentinel2", "29R-2020-02", name, (NAME,), 16, 1, 0, str(tmp_path / "archive"), {"items": {NAME: str(item)}}
    )
    write_plan([shard], str(tmp_path / "plan.gz"))
    flags = ["--units", tmp_path / "plan.gz", "--shard", name, "--folder", tmp_path / "out", "--weights", encoder_file]
    embed.main(["sentinel2", *map(str, flags), "--threads", "1", "--rewrite", f"{WEB}/={tmp_path}/mirror/"])
    (row,) = pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
    assert row["sources"] == [str(made.folder / f"{file}.tif") for file in FILES.values()]
