"""Deduplication to one chip per lattice cell: the choice of the chip, the ledger, and refused inputs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.archives.naip.columns import COLUMNS
from kiln.errors import ConfigError, SourceError
from kiln.formats import embeddings_file, plan_file
from kiln.formats.fingerprint import shard_name
from kiln.formats.ledger import LEDGER_SCHEMA, LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Dropped, Unit
from scripts import merge as merge_script
from tests.support.chips import make_chip
from tests.support.products import digests, merge_shards, run_merge, shard_metadata

LESS = "scenes with less nodata"
EQUAL = "scenes with as much nodata and an earlier chip_id"
UTM = {"chip_size": 16, "lattice": "utm", "lattice_gsd": 1.0, "anchor": [0, 0], "resampling": "none"}
SCENES = shard_metadata(dataset="naip", partition="nd-2019", lattice=UTM, chip_size=16)


def write_scenes(folder, shards, kiln=SCENES, dropped=()):
    """Write shards: {shard: {scene: {(zone, col, row): nodata}}}. Scenes in `dropped` have one more chip, dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scenes in shards.items():
        chips, entries = [], []
        for scene, cells in scenes.items():
            uri = f"s3://naip-analytic/{scene}.tif"
            entry = LedgerEntry(Unit(f"naip:nd:2019:{scene}", len(cells) + (scene in dropped), uri, "e"))
            if scene in dropped:
                entry.record_dropped(Dropped(entry.unit.unit_id, dropped[scene], 1, f"{scene} lost one"))
            for (zone, col, row), nodata in cells.items():
                entry.embedded += 1
                chips.append(
                    make_chip(
                        col % 300, entry.unit.unit_id, chip_id=f"naip:utm{zone}:1.0:{col}:{row}:nd:2019:{scene}",
                        extra={"state": "nd", "year": 2019},
                        crs=f"EPSG:269{zone}", col=col, row=row, nodata_fraction=nodata, source=uri, sources=(uri,),
                        footprint=shapely.box(col / 100, row / 100, (col + 1) / 100, (row + 1) / 100), item_id=scene,
                    )
                )  # fmt: skip
            entries.append(entry)
        metadata = kiln | {"sources": {c.source: {"size": 1} for c in chips}}
        with embeddings_file.ShardWriter(
            folder / f"{name}.parquet", embeddings_file.schema(8, "float32", COLUMNS, metadata)
        ) as out:
            if chips:
                rng = np.random.default_rng(len(chips))
                out.append(chips, {"embeddings": rng.standard_normal((len(chips), 8), np.float32)})
        write_ledger(folder / f"{name}.ledger.parquet", ledger_table(entries))
    return list(shards)


def merged(folder, names, out, **more):
    """Merge with one chip per cell; return record, rows and ledger."""
    record = merge_shards(names, folder, out, deduplicate=True, **more)
    rows = pa.concat_tables(pq.read_table(f"{out}/{f['name']}") for f in record["files"]).to_pylist()
    return record, rows, pq.read_table(f"{out}/ledger.parquet").to_pylist()


def test_the_chip_with_the_least_nodata_of_a_cell_stays_then_the_first_by_name(tmp_path):
    scenes = {
        "one": {
            "b": {(14, 1, 1): 0.0, (14, 2, 1): 0.02, (14, 3, 1): 0.01},
            "c": {(14, 2, 1): 0.01, (14, 4, 1): 0.0, (13, 1, 1): 0.04},
        },
        "two": {"a": {(14, 1, 1): 0.0, (14, 3, 1): 0.03, (14, 1, 2): 0.05}, "d": {(14, 2, 1): 0.01}},
    }
    record, rows, ledger = merged(tmp_path / "s", write_scenes(tmp_path / "s", scenes), tmp_path / "p")
    found = {(r["crs"][-2:], r["col"], r["row"]): r["item_id"] for r in rows}
    assert found == {
        ("14", 1, 1): "a", ("14", 2, 1): "c", ("14", 3, 1): "b",
        ("14", 4, 1): "c", ("13", 1, 1): "c", ("14", 1, 2): "a",
    }  # fmt: skip
    assert len(rows) == record["rows"] == 6
    names = ("status", "reason", "expected", "embedded", "deduplicated", "notes")
    assert {e["unit_id"][-1]: tuple(e[n] for n in names) for e in ledger} == {
        "b": ("embedded", "", 3, 1, 2, f"1 chip left to {LESS}; 1 chip left to {EQUAL}"),
        "c": ("embedded", "", 3, 3, 0, ""),
        "a": ("embedded", "", 3, 2, 1, f"1 chip left to {LESS}"),
        "d": ("empty", f"every chip left its cell to {EQUAL}", 1, 0, 1, f"1 chip left to {EQUAL}"),
    }
    assert record["counts"] == {
        "expected": 10, "embedded": 6, "skipped_nodata": 0, "skipped_cloud": 0, "deduplicated": 4, "failed": 0,
    }  # fmt: skip
    assert record["units"] == {"embedded": 3, "empty": 1}


def test_units_with_dropped_chips_keep_their_counts_and_status(tmp_path):
    scenes = {"one": {"a": {(14, 1, 1): 0.0}, "b": {(14, 1, 1): 0.1}, "c": {(14, 1, 1): 0.2}}}
    names = write_scenes(tmp_path / "s", scenes, dropped={"b": "nodata", "c": "failed"})
    _, rows, ledger = merged(tmp_path / "s", names, tmp_path / "p")
    assert len(rows) == 1
    counts = ("status", "expected", "embedded", "skipped_nodata", "deduplicated", "failed")
    assert [tuple(e[n] for n in counts) for e in ledger] == [
        ("embedded", 1, 1, 0, 0, 0), ("empty", 2, 0, 1, 1, 0), ("failed", 2, 0, 0, 1, 1),
    ]  # fmt: skip
    assert ledger[2]["reason"] == "c lost one"


CELLS = st.dictionaries(
    st.tuples(st.sampled_from([13, 14]), st.integers(-2, 3), st.integers(0, 3)), st.sampled_from([0.0, 0.01, 0.25])
)


@settings(max_examples=25, deadline=None)
@given(
    scenes=st.lists(CELLS, min_size=1, max_size=6), per_shard=st.integers(1, 3), memory=st.sampled_from([1, 1 << 30])
)
def test_any_scenes_are_merged_to_the_best_chip_of_every_cell(tmp_path_factory, scenes, per_shard, memory):
    run = tmp_path_factory.mktemp("unique")
    named = [(f"m{n}", s) for n, s in enumerate(scenes)]
    shards = {f"s{n}": dict(named[n : n + per_shard]) for n in range(0, len(named), per_shard)}
    record, rows, ledger = merged(run / "s", write_scenes(run / "s", shards), run / "p", memory=memory, row_group=3)
    best = {}
    for scene, cells in named:
        for cell, nodata in cells.items():
            best[cell] = min(best.get(cell, (nodata, scene)), (nodata, scene))
    assert {(int(r["crs"][-2:]), r["col"], r["row"]): r["item_id"] for r in rows} == {
        c: s for c, (_, s) in best.items()
    }
    assert len(rows) == len(best) == record["rows"]
    for entry, (scene, _) in zip(ledger, named, strict=True):
        assert entry["embedded"] == sum(r["item_id"] == scene for r in rows)
        assert entry["expected"] == entry["embedded"] + entry["deduplicated"]
    shutil.rmtree(run)


def test_a_deduplicated_product_is_marked_and_does_not_depend_on_memory_or_shards(tmp_path):
    draw = np.random.default_rng(4)
    scenes = {
        f"m{n}": {(14, int(c), int(r)): int(v) / 10 for c, r, v in draw.integers(0, (9, 9, 3), (40, 3))}
        for n in range(8)
    }
    names = write_scenes(tmp_path / "s", {f"s{n}": {f"m{n}": scenes[f"m{n}"]} for n in range(8)})
    seen = []
    for memory in (1, 1 << 20, 1 << 30):
        record, rows, _ = merged(tmp_path / "s", names, tmp_path / f"{memory}", memory=memory, row_group=7)
        seen.append((record, digests(tmp_path / f"{memory}")))
    assert all(s == seen[0] for s in seen)
    assert len(rows) == len({(r["col"], r["row"]) for r in rows})
    kiln = json.loads(pq.read_schema(tmp_path / "1" / "chips/part-0000.parquet").metadata[b"kiln"])
    assert (record["deduplicated"], kiln["deduplicated"]) == (True, True)
    plain = merge_shards(names, tmp_path / "s", tmp_path / "plain")
    assert "deduplicated" not in plain
    assert plain["rows"] > record["rows"]
    again = write_scenes(tmp_path / "t", {"all": scenes})
    assert {r["chip_id"] for r in merged(tmp_path / "t", again, tmp_path / "q")[1]} == {r["chip_id"] for r in rows}


def test_deduplication_requires_the_utm_lattice(broken, capsys):
    plan, _, folder, product = broken
    code, message = run_merge(capsys, plan, folder, product, "--deduplicate")
    assert code == 2
    assert "--deduplicate expected chips of lattice utm" in message
    assert not Path(f"{product}.json").exists()
    scene = shard_metadata(
        dataset="naip", partition="nd-2019", lattice={"chip_size": 16, "lattice": "scene", "edge": "drop"}
    )
    names = write_scenes(folder / "scene", {"one": {"a": {(14, 1, 1): 0.0}}}, kiln=scene)
    with pytest.raises(ConfigError, match="lattice utm"):
        merge_shards(names, folder / "scene", product, deduplicate=True)


def test_rows_of_scenes_without_a_ledger_entry_are_refused(tmp_path):
    names = write_scenes(tmp_path / "s", {"one": {"a": {(14, 1, 1): 0.0}}, "two": {"b": {(14, 1, 1): 0.0}}})
    shutil.copy(tmp_path / "s" / "one.ledger.parquet", tmp_path / "s" / "two.ledger.parquet")
    with pytest.raises(ConfigError, match="units with the same one"):
        merged(tmp_path / "s", names, tmp_path / "p")
    ledger = tmp_path / "s" / "two.ledger.parquet"
    write_ledger(ledger, LEDGER_SCHEMA.empty_table())
    with pytest.raises(SourceError, match=r"two\.parquet: expected rows of sources in the ledgers"):
        merged(tmp_path / "s", names, tmp_path / "p")


def test_the_main_deduplicates_a_product(tmp_path):
    one = shard_name("one", ("a", "b"))
    names = write_scenes(tmp_path / "s", {one: {"a": {(14, 1, 1): 0.1}, "b": {(14, 1, 1): 0.0}}})
    lines = [plan_file.ShardPlan("naip", "nd-2019", n, ("a", "b"), 16, 0, 0, "s3://naip-analytic") for n in names]
    plan_file.write_plan(lines, f"{tmp_path}/plan.jsonl")
    argv = [f"--plan={tmp_path}/plan.jsonl", f"--shards={tmp_path}/s", f"--product={tmp_path}/p"]
    merge_script.main([*argv, "--deduplicate"])
    record = json.loads((tmp_path / "p.json").read_text())
    assert (record["rows"], record["deduplicated"]) == (1, True)
    merge_script.main(argv)
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == 2
