"""The status of runs, and the commands that repeat missing and failed shards."""

import json
import os
import shlex
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.cli import status
from kiln.formats import plan_file
from kiln.formats.fingerprint import digest, shard_name
from kiln.formats.ledger import ledger_name
from kiln.io import storage, text_table
from kiln.product.record import LedgerFile, ProductFile, ProductRecord, write_record
from kiln.report.status.command import RunCommand
from tests.support.products import write_shards

FOLDER = "results/sample/worldcover-1a2b3c4d"
GRID = [Column(k, 0, 10) for k in range(12)]


def write_run(top, year=2021, folder=FOLDER, **options):
    """Write shards of four columns each; return the plan, the names and the folder of the shards."""
    (top / folder).mkdir(parents=True, exist_ok=True)
    return write_shards(top / folder, year, **({"columns": GRID} | options))


def write_outputs(*folders, run="results/sample"):
    """Write a product of every partition of datasets' folders, and a database of them."""
    titles = []
    for folder in folders or (FOLDER,):
        names = {}
        for plan in sorted(Path(folder).glob("plan-*.jsonl*")):
            for line in plan_file.read_plan(str(plan)):
                names.setdefault(line.partition, []).append(line.name)
        for partition, shards in names.items():
            product = write_product(folder, partition, shards)
            titles.append(json.loads(Path(f"{product}.json").read_text()))
    storage.write_bytes(f"{run}/explorer/chips.lance/data/1.lance", b"rows")
    storage.write_bytes(f"{run}/index/0123456789abcdef.json", json.dumps({"products": titles}).encode())


def write_product(folder, partition, shards):
    product = f"{folder}/products/{partition}/{digest(shards)[:16]}"
    storage.write_bytes(f"{product}/chips/part-0000.parquet", b"rows")
    storage.write_bytes(f"{product}/ledger.parquet", b"ledger")
    storage.write_bytes(f"{product}/collection.json", b"{}")
    record = ProductRecord(
        dataset=Path(folder).name.rpartition("-")[0], partition=partition, fingerprint="", weights_sha256="",
        untrained=True, shards="",
        missing_shards=(), rows=1, counts={}, units={}, files=(ProductFile("chips/part-0000.parquet", 4, "", 1),),
        ledger=LedgerFile("ledger.parquet", 6, ""), documents=("collection.json",), tag="",
    )  # fmt: skip
    write_record(f"{product}.json", record)
    return product


def status_output(capsys, *arguments):
    status.main(list(arguments))
    return capsys.readouterr().out


def status_json(capsys, *arguments):
    return json.loads(status_output(capsys, *arguments, "--json"))


def numbers(out, label):
    """Return the numbers in the row of a partition."""
    return next(x for x in out.splitlines() if x.startswith(f"{label} ")).split()[1:]


def shard(name, year=2021, folder=FOLDER):
    return f"{folder}/shards/{year}/{name}.parquet"


def files_of(command):
    """Return flags and files of a printed command."""
    words = shlex.split(command)
    at = words.index("--")
    return words[:at], words[at + 1 :]


def delete_shard(name, **where):
    Path(shard(name, **where)).unlink()


def to_s3(top, prefix):
    """Copy every file below a folder to object storage, in the order of their times, which become times there."""
    for path in sorted((p for p in top.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns):
        storage.write_bytes(f"{prefix}/{path.relative_to(top).as_posix()}", path.read_bytes())


def test_columns_are_aligned_and_a_rule_is_as_wide():
    rows = [("", "n", "what"), ("alpha", "1,000", "x"), ("b", "2", "")]
    assert text_table.aligned(rows) == ["           n  what", "alpha  1,000     x", "b          2"]
    assert text_table.aligned(rows, left=(0, 2), rule=True) == [
        "           n  what",
        "-----  -----  ----",
        "alpha  1,000  x",
        "b          2",
    ]


def test_a_finished_run_has_nothing_to_do(here, capsys):
    write_run(here, skip=lambda col, row: row == 0)
    write_outputs()
    out = status_output(capsys)
    assert numbers(out, "2021") == ["3", "3", "0", "0", "0", "108", "120", "0", "merged"]
    assert "\nexplorer database complete\n100%: 3 of 3 shards, 108 chips\n" in out
    assert out.splitlines()[-1] == (
        "Nothing to do: all 3 shards are done, none with failures; products and database are there."
    )
    assert "snakemake" not in out
    assert status_output(capsys, "results/sample") == status_output(capsys, "./results/sample/") == out


def write_source(name="a.tif", *, age_s):
    """Write a source that changed so many seconds before now."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(b"pixels")
    now = time.time()
    os.utime(name, (now - age_s, now - age_s))


def test_missing_and_failing_shards_are_counted_and_redone_by_name(here, capsys):
    _, names, _ = write_run(here, fail=lambda col: "tiles/a.tif: unreadable" if col in (5, 6) else "")
    write_source("tiles/a.tif", age_s=-60)
    delete_shard(names[2])
    out = status_output(capsys, "results/sample")
    assert numbers(out, "2021") == ["3", "2", "1", "1", "2", "60", "80", "0", "waits"]
    lines = out.splitlines()
    at = lines.index("What failed and a retry may repair, since the source has changed or the ledger is damaged:")
    failures = [x.strip() for x in lines[at + 1 :]][:2]
    assert all(x.startswith(f"{names[1]}: worldcover:2021:") for x in failures)
    assert all(x.endswith(": tiles/a.tif: unreadable") for x in failures)
    at = lines.index("1 shard missing:")
    assert lines[at:] == [
        "1 shard missing:",
        f"  snakemake --cores all -- {shard(names[2])}",
        "1 shard with failures that a retry may repair:",
        f"  snakemake --cores all --force -- {shard(names[1])}",
        "then carry the results on (products, index):",
        "  snakemake --cores all",
    ]
    assert not list(here.glob("redo*")), "one file needs no list"


def test_failures_that_will_recur_are_not_redone(here, capsys):
    write_source("tiles/a.tif", age_s=60)
    write_run(here, fail=lambda col: "tiles/a.tif: unreadable" if col in (5, 6) else "")
    write_outputs()
    out = status_output(capsys)
    assert "What failed and will fail again, since the source is the same:\n" in out
    assert out.splitlines()[-1] == (
        "Nothing to do: all 3 shards are done, 2 units have failures that recur; products and database are there."
    )
    write_source("tiles/a.tif", age_s=-60)
    assert "1 shard with failures that a retry may repair:\n" in status_output(capsys)


def test_failures_of_unknown_sources_are_redone_on_their_own(here, capsys):
    _, names, _ = write_run(here, fail=lambda col: "dark" if col == 5 else "")
    write_outputs()
    lines = status_output(capsys).splitlines()
    at = lines.index("1 shard with failures whose sources cannot be looked at:")
    assert lines[at + 1] == f"  snakemake --cores all --force -- {shard(names[1])}"
    assert "What failed, from sources that cannot be looked at:" in lines


def test_config_and_cores_are_repeated(here, capsys):
    _, names, _ = write_run(here)
    delete_shard(names[0])
    out = status_output(capsys, "results/sample", "--configfile", "config/a b.yaml", "c.yaml", "--cores", "4")
    assert f"  snakemake --configfile 'config/a b.yaml' c.yaml --cores 4 -- {shard(names[0])}\n" in out
    assert out.endswith("  snakemake --configfile 'config/a b.yaml' c.yaml --cores 4\n")


def test_a_missing_or_damaged_ledger_is_a_failure(here, capsys):
    _, names, _ = write_run(here)
    ledgers = [Path(ledger_name(shard(n))) for n in names]
    ledgers[0].unlink()
    whole = ledgers[1].read_bytes()
    ledgers[1].write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"unit_id": ["u"]}), ledgers[2])
    out = status_output(capsys, "results/sample")
    assert numbers(out, "2021")[:8] == ["3", "3", "0", "3", "0", "0", "0", "0"]
    assert f"  {names[0]}: the ledger is gone\n" in out
    assert f"  {names[1]}: {ledgers[1]}: expected a Parquet file, got a damaged one (" in out
    assert f"  {names[2]}: {ledgers[2]}: not a ledger (" in out
    assert files_of(next(x for x in out.splitlines() if "--force" in x))[1] == [shard(n) for n in names]


@pytest.mark.parametrize("damage", ["nulls", "types", "bytes"])
def test_a_ledger_of_other_contents_is_a_failure_without_a_traceback(here, capsys, damage):
    _, names, _ = write_run(here)
    path = ledger_name(shard(names[0]))
    ledger = pq.read_table(path)
    at = ledger.column_names.index("failed")
    if damage == "nulls":
        pq.write_table(ledger.set_column(at, "failed", pa.nulls(len(ledger), pa.int64())), path)
    elif damage == "types":
        pq.write_table(ledger.set_column(at, "failed", pa.array([["x"]] * len(ledger))), path)
    else:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(b"PAR1" + bytes(len(whole) - 12) + whole[-8:])
    found = status_json(capsys, "results/sample")["folders"][0]["partitions"][0]
    assert [f["shard"] for f in found["failures"]] == [names[0]]
    assert path in found["failures"][0]["reason"]


def test_the_plan_written_last_is_used_and_the_others_are_named(here, capsys):
    first, old, _ = write_run(here, columns=GRID[:4])
    Path(first).rename(f"{FOLDER}/plan-2021-zz.jsonl")
    second, new, _ = write_run(here)
    Path(second).rename(f"{FOLDER}/plan-2021-aa.jsonl")
    os.utime(f"{FOLDER}/plan-2021-zz.jsonl", (1000, 1000))
    out = status_output(capsys, "results/sample")
    assert numbers(out, "2021")[:2] == [str(len(new))] * 2
    assert "2021: plan-2021-aa.jsonl was written last and is taken; left alone: plan-2021-zz.jsonl" in out
    os.utime(f"{FOLDER}/plan-2021-aa.jsonl", (500, 500))
    out = status_output(capsys, "results/sample")
    assert numbers(out, "2021")[0] == str(len(old))
    assert "plan-2021-zz.jsonl was written last" in out
    out = status_output(capsys, "--plans", f"./{FOLDER}/plan-2021-aa.jsonl")
    assert numbers(out, "2021")[0] == str(len(new))
    assert "written last" not in out


def test_two_named_plans_of_one_partition_are_refused(here, capsys):
    write_two_plans(here)
    with pytest.raises(SystemExit) as e:
        status.main(["--plans", f"{FOLDER}/plan-2021.jsonl", f"{FOLDER}/plan-2021-b.jsonl"])
    assert e.value.code == 2
    assert "expected one plan of 2021, got plan-2021.jsonl and plan-2021-b.jsonl" in capsys.readouterr().err


def write_two_plans(top):
    """Write a plan of three shards, and another one of one shard in the same partition."""
    plan, _, _ = write_run(top, columns=GRID[:4])
    Path(plan).rename(f"{FOLDER}/plan-2021-b.jsonl")
    write_run(top)


def many(top, partitions, shards=1):
    """Write a plan of many partitions, its file of names, and its shards: copies of one with 40 chips."""
    _, names, folder = write_run(top, columns=GRID[:4], folder="results/model/worldcover-00000000")
    one = folder / f"{names[0]}.parquet"
    naip = "results/sample/naip-1a2b3c4d"
    lines = [
        plan_file.ShardPlan("naip", p, shard_name(f"{p}-{n}", ("u",)), ("u",), 256, 1, 1, "s3://naip-analytic")
        for p in partitions
        for n in range(shards)
    ]
    plan_file.write_plan(lines, f"{naip}/plan-ab12.jsonl.gz", f"{naip}/plan-ab12.json")
    for line in lines:
        target = shard(line.name, line.partition, naip)
        storage.write_bytes(target, b"rows")
        storage.write_bytes(ledger_name(target), Path(ledger_name(str(one))).read_bytes())
    return [line.name for line in lines]


@pytest.mark.parametrize("names", [True, False], ids=["with names", "without names"])
def test_a_plan_of_many_partitions_shows_those_with_work_and_the_sum(here, capsys, names):
    partitions = [f"n{k:02d}-2019" for k in range(40)]
    shards = many(here, partitions)
    if not names:
        Path("results/sample/naip-1a2b3c4d/plan-ab12.json").unlink()
    write_outputs("results/sample/naip-1a2b3c4d")
    delete_shard(shards[7], year=partitions[7], folder="results/sample/naip-1a2b3c4d")
    out = status_output(capsys, "results/sample")
    assert [x.split()[0] for x in out.splitlines()[2:4]] == ["n07-2019", "total"]
    assert numbers(out, "total") == ["40", "39", "1", "0", "0", "1,560", "1,560", "0"]
    assert "Not shown: 39 partitions with every shard and product." in out


def test_more_than_three_partitions_have_a_sum(here, capsys):
    many(here, [f"n{k}-2019" for k in range(3)])
    assert "total" not in status_output(capsys, "results/sample")
    many(here, [f"n{k}-2019" for k in range(4)], shards=2)
    out = status_output(capsys, "results/sample")
    assert numbers(out, "total")[:2] == ["8", "8"]
    assert len(out.split("\n\n")[0].splitlines()) == 2 + 4 + 1


def test_many_files_are_written_to_a_list_that_the_command_reads(here, capsys):
    shards = many(here, ["nd-2019", "ks-2020"], shards=10)
    folder = "results/sample/naip-1a2b3c4d"
    lost = [name for number, name in enumerate(shards) if number % 10 != 5]
    for n in lost[:8]:
        delete_shard(n, year=n[:7], folder=folder)
    assert "redo" not in status_output(capsys, "results/sample"), "eight files are named on the command line"
    for n in lost[8:]:
        delete_shard(n, year=n[:7], folder=folder)
    assert len(status_json(capsys, "results/sample")["commands"][0]) == 4 + len(lost)
    assert not list(here.glob("redo*")), "with --json no list is written"
    out = status_output(capsys, "results/sample", "--list", "a list.txt")
    assert "18 shards missing (the list was written to a list-missing.txt):" in out
    assert "  snakemake --cores all -- $(cat 'a list-missing.txt')\n" in out
    expected = sorted(shard(n, n[:7], folder) for n in lost)
    assert sorted(Path("a list-missing.txt").read_text().splitlines()) == expected
    for n in shards:
        Path(ledger_name(shard(n, n[:7], folder))).unlink()
        storage.write_bytes(shard(n, n[:7], folder), b"rows")
    assert "--force -- $(cat redo-failed.txt)" in status_output(capsys, "results/sample")
    assert len(Path("redo-failed.txt").read_text().splitlines()) == 20


def test_only_the_first_twenty_failed_units_are_shown(here, capsys):
    write_run(here, columns=[Column(k, 0, 2) for k in range(23)], fail=lambda col: f"scene {col}: dark")
    out = status_output(capsys, "results/sample")
    assert out.count(": dark\n") == 20
    assert "\n  and 3 more\n" in out
    assert len(status_json(capsys)["folders"][0]["partitions"][0]["failures"]) == 23


def test_two_fingerprints_have_separate_tables_and_commands(here, capsys):
    other = FOLDER.replace("1a2b3c4d", "99887766")
    names = [write_run(here, folder=f)[1][0] for f in (FOLDER, other)]
    delete_shard(names[0], folder=FOLDER)
    delete_shard(names[1], folder=other)
    out = status_output(capsys, "results/sample")
    assert [x.split()[0] for x in out.splitlines() if "shards  done" in x] == [Path(f).name for f in (FOLDER, other)]
    for name, folder in zip(names, (FOLDER, other), strict=True):
        assert f"{folder}, 1 shard missing:\n  snakemake --cores all -- {shard(name, folder=folder)}\n" in out
    assert "explorer database waits for one config: several fingerprints of a dataset share it" in out


def test_datasets_of_one_config_are_redone_together(here, capsys):
    other = "results/sample/other-99887766"
    names = [write_run(here, folder=f)[1][0] for f in (FOLDER, other)]
    delete_shard(names[0], folder=FOLDER)
    delete_shard(names[1], folder=other)
    first, last = status_json(capsys, "results/sample")["commands"]
    assert sorted(first[4:]) == sorted([shard(names[0]), shard(names[1], folder=other)])
    assert last == ["snakemake", "--cores", "all"]


def test_without_a_named_run_all_runs_are_shown(here, capsys):
    write_run(here)
    write_outputs()
    _, names, _ = write_run(here, folder="results/other/worldcover-1a2b3c4d")
    delete_shard(names[0], folder="results/other/worldcover-1a2b3c4d")
    Path("results/models/x").mkdir(parents=True)
    out = status_output(capsys)
    assert [x for x in out.splitlines() if x in ("results/other", "results/sample")] == [
        "results/other",
        "results/sample",
    ]
    assert "results/other, 1 shard missing:\n" in out
    assert "results/sample, " not in out


def test_the_command_for_a_run_elsewhere_names_its_directory(here, tmp_path_factory, capsys):
    place = tmp_path_factory.mktemp("else where")
    _, names, folder = write_run(place)
    (folder / f"{names[0]}.parquet").unlink()
    out = status_output(capsys, str(place / "results" / "sample"))
    assert f"  snakemake --cores all --directory '{place}' -- {shard(names[0])}\n" in out


def test_checkpoints_of_unfinished_shards_are_counted(here, capsys):
    write_run(here, 2020)
    write_run(here, 2021)
    for n in range(3):
        storage.write_bytes(f"checkpoints/sample/worldcover-1a2b3c4d/2021/unit-{n}.parquet", b"part")
        storage.write_bytes(f"elsewhere/worldcover-1a2b3c4d/2020/unit-{n}.parquet", b"part")
    storage.write_bytes("checkpoints/sample/worldcover-1a2b3c4d/2021/note.txt", b"")
    storage.write_bytes("checkpoints/sample/worldcover-ffffffff/2021/unit.parquet", b"part")
    assert [p["checkpoints"] for p in status_json(capsys)["folders"][0]["partitions"]] == [0, 3]
    out = status_output(capsys, "results/sample", "--checkpoints", "elsewhere/")
    assert (numbers(out, "2020")[7], numbers(out, "2021")[7]) == ("3", "0")


def test_json_has_what_the_table_has(here, capsys):
    _, names, _ = write_run(here, fail=lambda col: "dark" if col == 5 else "")
    delete_shard(names[2])
    found = status_json(capsys, "results/sample")
    (folder,) = found["folders"]
    (partition,) = folder["partitions"]
    (failure,) = partition.pop("failures")
    assert (failure["shard"], failure["reason"], failure["outlook"]) == (names[1], "dark", "unknown")
    assert partition == {
        "partition": "2021", "plan": "plan-2021.jsonl", "shards": 3, "done": 2, "missing": 1, "failing": 1,
        "failed_units": 1, "embedded": 70, "of_chips": 80, "checkpoints": 0, "missing_shards": [names[2]],
        "product": {"state": "waits", "record": "", "note": "for its shards"},
    }  # fmt: skip
    (database,) = found["databases"]
    assert database == {"run": "results/sample", "state": "waits", "record": "", "note": "for the products"}
    assert found["commands"] == [
        ["snakemake", "--cores", "all", "--", shard(names[2])],
        ["snakemake", "--cores", "all", "--force", "--", shard(names[1])],
        ["snakemake", "--cores", "all"],
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["results/none"],
            "expected the folder of a run, got no such folder. Correct the name. There are results/sample",
        ),
        (["results"], "expected the folder of a run"),
        ([FOLDER], "expected the folder of a run"),
        (["/"], "expected the folder of a run"),
        (["s3://bucket/sample"], "expected the folder of a run"),
        (["results/sample", "--plans", "x"], "expected either RUN or --plans"),
        (["--plans", "plan-2021.jsonl"], "expected the folder of a dataset"),
        (["results/sample", "results/other", "--checkpoints", "x"], "--checkpoints: expected one RUN, got 2"),
        (["results/other"], "no plan in it"),
        (["ftp://b/results/sample"], "got no such folder"),
    ],
)
def test_a_wrong_run_is_an_error_with_exit_code_2(here, capsys, arguments, why):
    write_run(here)
    if "results/other" in arguments:
        Path("results/other").mkdir()
    with pytest.raises(SystemExit) as e:
        status.main(arguments)
    assert e.value.code == 2
    assert why in capsys.readouterr().err


def test_no_run_at_all_is_an_error(here, capsys):
    with pytest.raises(SystemExit) as e:
        status.main([])
    assert e.value.code == 2
    assert "no run with a plan below results/" in capsys.readouterr().err


def test_a_run_on_object_storage_is_reported_as_on_a_disk(here, bucket, capsys, monkeypatch):
    _, names, _ = write_run(here, fail=lambda col: "dark" if col == 5 else "")
    storage.write_bytes("checkpoints/sample/worldcover-1a2b3c4d/2021/unit.parquet", b"part")
    delete_shard(names[2])
    to_s3(here, f"{bucket}/deep/er")
    local = status_output(capsys, "results/sample").splitlines()
    operations = []
    client = storage.s3_client(bucket.removeprefix("s3://"))
    client.meta.events.register("before-call.s3", lambda model, **_: operations.append(model.name))
    remote = status_output(capsys, f"{bucket}/deep/er/results/sample").splitlines()
    where = f"--default-storage-provider s3 --default-storage-prefix {bucket}/deep/er"
    assert [x.replace("--cores all", f"--cores all {where}") for x in local] == remote
    assert sorted(operations) == ["GetObject"] * 3 + ["ListObjectsV2"] * 2, (
        "GetObject: plan and two ledgers; ListObjectsV2: run and checkpoints"
    )


def test_several_plans_on_object_storage_must_be_named(here, bucket, capsys):
    write_two_plans(here)
    to_s3(here, bucket)
    with pytest.raises(SystemExit) as e:
        status.main([f"{bucket}/results/sample"])
    assert e.value.code == 2
    assert "Name one with --plans" in capsys.readouterr().err
    out = status_output(capsys, "--plans", f"{bucket}/{FOLDER}/plan-2021-b.jsonl")
    assert numbers(out, "2021")[:3] == ["1", "1", "0"]


def test_plans_of_the_same_shards_are_one(here, bucket, capsys):
    """As after a change of settings that decide about no shard."""
    plan, _, _ = write_run(here)
    write_outputs()
    Path(f"{FOLDER}/plan-2021-b.jsonl").write_bytes(Path(plan).read_bytes())
    to_s3(here, bucket)
    for place in ("results/sample", f"{bucket}/results/sample"):
        out = status_output(capsys, place)
        assert numbers(out, "2021")[:3] == ["3", "3", "0"]
        assert out.endswith("all 3 shards are done, none with failures; products and database are there.\n")


def test_a_run_is_looked_at_as_it_is_limited(here, capsys):
    shards = many(here, ["nd-2019", "ks-2020"], shards=2)
    folder = "results/sample/naip-1a2b3c4d"
    for name in (shards[1], shards[2]):
        delete_shard(name, year=name[:7], folder=folder)
    RunCommand(partitions=["nd-*"]).write("results/sample")
    out = status_output(capsys)
    assert numbers(out, "nd-2019")[:3] == ["2", "1", "1"]
    assert "ks-2020" not in out
    assert "the run is limited to nd-*: 1 partitions are left out" in out
    RunCommand(allow_missing=True).write("results/sample")
    write_product(folder, "nd-2019", shards[:1])
    out = status_output(capsys)
    assert numbers(out, "nd-2019") == ["1", "1", "0", "0", "0", "40", "40", "0", "merged"]
    assert numbers(out, "ks-2020")[:3] == ["1", "1", "0"]
    assert "the run embeds nothing (allow_missing): 2 shards are left out" in out
