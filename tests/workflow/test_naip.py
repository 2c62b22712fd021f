"""NAIP through the workflow: plan, run, larger manifest, retry, UTM lattice, search together with WorldCover."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import rasterio

from kiln.archives.naip.keys import parse_key
from kiln.archives.stable_shards import stable_shards
from kiln.sample.worldcover import make_worldcover
from tests.support import scenes
from tests.workflow.conftest import Story
from tests.workflow.workflow import ROOT, WITH_NAIP, Run, finished_jobs

INDEX = {"build_index": 1, "coverage": 1, "picture_similar": 1, "all": 1}
REDO = {"embed_naip": 1, "merge_naip": 1, **INDEX}
PICTURES = ("coverage", "picture_similar", "all")
PER_SHARD = WITH_NAIP["naip"]["scenes_per_shard"]
NOTHING = "Nothing to be done"


def keys_of(run: Run) -> list[str]:
    """Return the keys of all scenes in a run's archive."""
    return sorted(str(p.relative_to(run.folder / "scenes")) for p in (run.folder / "scenes").rglob("*.tif"))


def planned(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return the names of the shards by partition, from the keys alone."""
    by_partition = defaultdict(list)
    for key in keys:
        by_partition[parse_key(key).partition].append(key)
    return {p: {name for name, _ in stable_shards(mine, PER_SHARD)} for p, mine in by_partition.items()}


def count(shards: dict[str, set[str]]) -> int:
    return sum(map(len, shards.values()))


def named(paths: Iterable[Path]) -> dict[str, set[str]]:
    """Return the names of the shards by partition, from their files."""
    found = defaultdict(set)
    for path in paths:
        found[path.parent.name].add(path.stem)
    return dict(found)


def grow(run: Run, manifest: str = "scenes/manifest.txt") -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """List two more scenes of a partition and one of a new state. Returns the shards by partition before and after."""
    before = planned(keys_of(run))
    for n in (7, 8):
        scenes.write(run.folder / "scenes", "nd", 2019, n)
    scenes.write(run.folder / "scenes", "mn", 2020, 0)
    scenes.write_manifest(run.folder / manifest, keys_of(run))
    return before, planned(keys_of(run))


def work_of(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, int]:
    """Return the jobs by rule between two plans, if the first is finished."""
    new = {p: names - before.get(p, set()) for p, names in after.items()}
    return {"embed_naip": count(new), "merge_naip": sum(after[p] != before.get(p) for p in after), **INDEX}


def times(paths: Iterable[Path]) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in paths}


def record_of(run: Run, partition: str) -> dict:
    """Return a partition's newest record."""
    found = run.folder.glob(f"results/tiny/naip-*/products/{partition}/*.json")
    return json.loads(max(found, key=lambda p: p.stat().st_mtime_ns).read_text())


def rows_of(paths: Iterable[Path]) -> list[dict]:
    columns = ["chip_id", "crs", "col", "row", "nodata_fraction"]
    return [row for p in paths for row in pq.read_table(p, columns=columns).to_pylist()]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints: files of finished units of unfinished shards."""
    return [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]


def damaged(scene: Path) -> bytes:
    """Overwrite a scene's pixels with zeros and keep its header and size. Returns its bytes before."""
    good = scene.read_bytes()
    with rasterio.open(scene) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    scene.write_bytes(good[:at] + bytes(len(good) - at))
    return good


def search(run: Run, *arguments: str) -> dict:
    command = [sys.executable, "-m", "kiln.cli.search", "--db", "results/tiny/explorer", "--format", "json", *arguments]
    environment = run.environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=run.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------ a first run


def test_a_dry_run_shows_the_plan_alone_and_after_it_exactly_what_is_done(naip_story: Story) -> None:
    world = {"embed_worldcover": 1, "merge_worldcover": 1, "encoder_weights": 1, "all": 1}
    assert naip_story.before == {"plan_worldcover": 1, "plan_naip": 1, "all": 1}
    shards = planned(keys_of(naip_story.run))
    assert naip_story.planned == {**world, **INDEX, "embed_naip": count(shards), "merge_naip": 3}
    assert naip_story.done == naip_story.planned
    assert count(shards) > len(shards), "a partition of several shards"


def test_a_finished_run_holds_every_scene_and_no_checkpoints(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip
    assert named(run.shards("naip")) == planned(keys_of(run))
    assert not checkpoints(run.folder)
    records = {p: record_of(run, p) for p in planned(keys_of(run))}
    assert {p: r["units"] for p, r in records.items()} == {
        "nd-2019": {"embedded": 6},
        "nd-2021": {"embedded": 3},
        "va-2016": {"embedded": 3},
    }
    rows = sum(r["rows"] for r in records.values())
    assert rows == 12 * 6, "2 x 3 chips a scene"
    world = json.loads(run.one("results/tiny/worldcover-*/products/2021/*.json").read_text())
    assert json.loads(run.one("results/tiny/index/*.json").read_text())["rows"] == rows + world["rows"]
    assert NOTHING in run.snakemake("-n")
    clone = run.clone(tmp_path / "clone")
    assert not (clone.folder / ".snakemake").exists()
    assert NOTHING in clone.snakemake("-n"), "a clone without Snakemake's records"


def test_a_search_finds_chips_of_both_datasets(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    rows = json.loads(run.one("results/tiny/index/*.json").read_text())["rows"]
    chip = rows_of(run.shards("worldcover"))[0]["chip_id"]
    found = search(run, "--chip", chip, "-k", "200")["results"]
    assert len(found) == rows - 1, "all but itself"
    assert {r["dataset"] for r in found} == {"worldcover", "naip"}
    naip = search(run, "--chip", chip, "-k", "200", "--dataset", "naip")["results"]
    assert sorted(r["chip_id"] for r in naip) == sorted(r["chip_id"] for r in rows_of(run.shards("naip")))
    assert {r["year"] for r in naip} == {2019, 2021, 2016}


# ------------------------------------------------------------------------------------------------- a manifest grows


def test_a_larger_manifest_redoes_its_new_and_changed_shards_alone(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    had = times(run.folder.rglob("results/tiny/naip-*/*/*/*.parquet"))
    before, after = grow(run)
    wanted = {rule: n for rule, n in work_of(before, after).items() if rule not in PICTURES} | {"index": 1}
    assert before["nd-2019"] & after["nd-2019"], "a shard of the grown partition stays"
    assert count(before) < count(after)
    assert NOTHING in run.snakemake("-n"), "a plan is not made again by itself"
    assert run.jobs("--forcerun", "plan_naip") == {"plan_naip": 1, "all": 1}
    done = finished_jobs(run.snakemake("--cores", "2", "--forcerun", "plan_naip", "--", "index"))
    assert done == {**wanted, "plan_naip": 1}
    assert named(run.shards("naip")) == {p: names | before.get(p, set()) for p, names in after.items()}
    assert times(had) == had, "a finished shard or ledger was touched"
    assert not checkpoints(run.folder)
    assert record_of(run, "nd-2019")["units"] == {"embedded": 8}
    world = json.loads(run.one("results/tiny/worldcover-*/products/2021/*.json").read_text())
    rows = json.loads(run.one("results/tiny/index/*.json").read_text())["rows"]
    assert rows == world["rows"] + 15 * 6
    assert NOTHING in run.snakemake("-n", "index")


def test_another_manifest_redoes_its_new_shards_and_fewer_states_redo_none(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    before, after = grow(run, "scenes/grown.txt")
    run.configure({"naip": {"manifest": "scenes/grown.txt"}})
    assert run.jobs() == {"plan_naip": 1, "all": 1}
    run.snakemake("--cores", "2", "plan")
    assert run.jobs() == work_of(before, after)
    run.configure({"naip": {"states": ["nd"]}})
    run.snakemake("--cores", "2", "plan")
    assert run.jobs() == INDEX, "products of the same shards are the same"
    run.configure({})
    assert run.jobs() == {}


# ----------------------------------------------------------------------------------------------------------- targets


def test_a_run_can_be_limited_to_partitions(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    shards = planned(keys_of(run))
    mine = {p: names for p, names in shards.items() if p.startswith("nd-")}
    for part in ("shards", "products"):
        shutil.rmtree(next(run.folder.glob("results/tiny/naip-*")) / part)
    run.configure({"partitions": ["nd-*"]})
    assert run.jobs("naip") == {"embed_naip": count(mine), "merge_naip": 2, "naip": 1}
    run.configure({"partitions": ["ny-*"]})
    output = run.snakemake("-n", "naip", check=False)
    assert "config: partitions: expected patterns that fit a partition of naip, got ['ny-*']" in output
    assert "Traceback (most recent call last)" not in output
    run.configure({"datasets": ["worldcover"]})
    assert run.jobs() == INDEX, "the database without NAIP"
    output = run.snakemake("-n", "naip", check=False)
    assert "config: datasets: expected naip among them" in output
    assert "Traceback (most recent call last)" not in output


# ------------------------------------------------------------------------------------------------ what is lost


def test_a_failed_shard_keeps_its_finished_scenes_for_the_retry(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    before = run.files()
    failing = run.one("results/tiny/naip-*/shards/nd-2021/*[0-9a-f].parquet")
    other = run.one("results/tiny/naip-*/shards/va-2016/*[0-9a-f].parquet")
    for shard in (failing, other):
        shard.unlink()
    scene = run.folder / "scenes" / scenes.key("nd", 2021, 2)
    good = damaged(scene)
    run.configure({"max_failed_fraction": 0.0})
    output = run.snakemake("--cores", "2", "naip", check=False)
    assert "max_failed_fraction" in output
    log = run.folder / f"logs/tiny/embed_naip/nd-2021/{failing.stem}.log"
    assert "unit_id" in log.read_text(), "the log holds the ledger of a failed shard"
    assert "TIFFRead" in log.read_text(), "and the reason"
    assert finished_jobs(output) == {"embed_naip": 1, "merge_naip": 1}, "those of the other partition"
    assert other.is_file()
    assert not failing.exists()
    kept = checkpoints(run.folder)
    folder = failing.parents[2].name
    assert {str(p.parent.relative_to(run.folder)) for p in kept} == {f"checkpoints/tiny/{folder}/nd-2021"}
    assert len(kept) == 2, "the scenes that can be read"
    scene.write_bytes(good)
    assert finished_jobs(run.snakemake("--cores", "2", "naip")) == {"embed_naip": 1, "merge_naip": 1, "naip": 1}
    assert "1 reads" in log.read_text(), "the broken scene alone"
    assert not checkpoints(run.folder)
    assert run.files() == before


def test_allow_missing_merges_what_exists(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    lost = next(p for p in run.shards("naip") if p.parent.name == "nd-2019")
    lost.unlink()
    shutil.rmtree(run.one("results/tiny/naip-*/shards/va-2016"))
    run.configure({"allow_missing": True})
    done = finished_jobs(run.snakemake("--cores", "2", "index"))
    assert done == {"merge_naip": 1, "build_index": 1, "index": 1}
    record = record_of(run, "nd-2019")
    assert record["missing_shards"] == [lost.stem]
    rows = sum(pq.read_metadata(p).num_rows for d in ("naip", "worldcover") for p in run.shards(d))
    assert json.loads(run.one("results/tiny/index/*.json").read_text())["rows"] == rows


# --------------------------------------------------------------------------------------- the zone's lattice, selection


def test_deduplicate_keeps_one_chip_a_cell_and_redoes_merges_alone(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    scene_folder = run.one("results/tiny/naip-*")
    utm = {"lattice": "utm", "states": ["nd"], "years": [2019]}
    run.configure({"naip": utm})
    done = finished_jobs(run.snakemake("--cores", "2", "naip"))
    shards = len(planned(keys_of(run))["nd-2019"])
    assert done == {"plan_naip": 1, "embed_naip": shards, "merge_naip": 1, "naip": 1}
    (folder,) = {*run.folder.glob("results/tiny/naip-*")} - {scene_folder}
    files = sorted(p for p in (folder / "shards/nd-2019").glob("*.parquet") if ".ledger." not in p.name)
    rows = rows_of(files)
    assert all(r["chip_id"].startswith(f"naip:utm14:1.0:{r['col']}:{r['row']}:nd:2019:") for r in rows)
    assert not {r["chip_id"] for r in rows} & {r["chip_id"] for r in rows_of(scene_folder.rglob("part-*.parquet"))}

    run.configure({"naip": {**utm, "deduplicate": True}})
    assert finished_jobs(run.snakemake("--cores", "2", "naip")) == {"merge_naip": 1, "naip": 1}
    record = json.loads(max(folder.glob("products/nd-2019/*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())
    assert record["deduplicated"] is True
    best: dict[tuple, tuple] = {}
    for r in rows:
        cell, rank = (r["crs"], r["col"], r["row"]), (r["nodata_fraction"], r["chip_id"])
        best[cell] = min(best.get(cell, rank), rank)
    assert len(best) < len(rows), "scenes overlap"
    product = [p for p in folder.glob("products/nd-2019/*/chips/part-*.parquet") if "deduplicated" in about(p)]
    assert sorted(r["chip_id"] for r in rows_of(product)) == sorted(chip_id for _, chip_id in best.values())
    run.configure({"naip": utm})
    assert NOTHING in run.snakemake("-n", "naip"), "both products are there"


def about(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"kiln"])


def test_the_database_takes_the_selected_partitions_alone(finished_naip: Run, tmp_path: Path) -> None:
    run = finished_naip.clone(tmp_path / "clone")
    run.configure({"index": {"select": {"partitions": ["nd-2019", "2021"]}}})
    assert finished_jobs(run.snakemake("--cores", "2", "index")) == {"build_index": 1, "index": 1}
    world = json.loads(run.one("results/tiny/worldcover-*/products/2021/*.json").read_text())
    rows = json.loads(run.one("results/tiny/index/*.json").read_text())["rows"]
    assert rows == world["rows"] + record_of(run, "nd-2019")["rows"]
    run.configure({"index": {"select": {"datasets": ["naip"], "partitions": ["nd-2019", "2021"]}}})
    output = run.snakemake("-n", check=False)
    assert "config: index.select.partitions: expected some of nd-2019, nd-2021, va-2016, got 2021" in output
    assert "Traceback (most recent call last)" not in output
    shutil.rmtree(run.one("results/tiny/naip-*"))
    assert run.jobs() == {"plan_naip": 1, "all": 1}, "the partitions are known after the plan"


# -------------------------------------------------------------------------------------------------- object storage


# ------------------------------------------------------------------------------------------------------ real pixels


def test_real_scenes_are_found_by_a_search_next_to_worldcover(shared: Path | None, tmp_path: Path) -> None:
    if shared is None:
        pytest.skip("needs the folder of real pixels")
    archive = shared / "archive" / "naip-analytic"
    here = {str(p.relative_to(archive)) for p in archive.rglob("*.tif")}
    listed = [k for k in (archive / "manifest.txt").read_text().split() if k in here and parse_key(k).year == 2019]
    assert len(listed) == 1
    make_worldcover(tmp_path / "archive", tiles=["N43W001"], years=[2021], ppd=120, seed=7)
    (tmp_path / "manifest.txt").write_text("\n".join((archive / "manifest.txt").read_text().split()))
    states = sorted({k[:2] for k in listed})
    naip = {"manifest": "manifest.txt", "archive": str(archive), "states": states, "years": [2019]}
    run = Run(tmp_path, {"naip": {**naip, "chip_size": 256}, "max_failed_fraction": 1.0}, base=WITH_NAIP)
    run.snakemake("--cores", "2", "index")
    records = [json.loads(p.read_text()) for p in run.folder.glob("results/tiny/naip-*/products/*/*.json")]
    units: dict[str, int] = defaultdict(int)
    for record in records:
        for status, n in record["units"].items():
            units[status] += n
    absent = [
        k
        for k in (archive / "manifest.txt").read_text().split()
        if (s := parse_key(k)) and s.state in states and s.year in naip["years"] and k not in here
    ]
    assert dict(units) == {"embedded": 1, **({"failed": len(absent)} if absent else {})}
    chip = rows_of(run.shards("worldcover"))[0]["chip_id"]
    found = search(run, "--chip", chip, "-k", "5000")["results"]
    real = {r["source"] for r in found if r["dataset"] == "naip"}
    assert real == {f"{archive}/{k}" for k in listed}
    assert {r["dataset"] for r in found} == {"worldcover", "naip"}
    assert len(found) + 1 == json.loads(run.one("results/tiny/index/*.json").read_text())["rows"]
