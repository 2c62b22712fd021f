"""The plan's table: units, shards, chips, bytes, hours, storage and price, before and during a run."""

import gzip
import json
from pathlib import Path

import pytest

from kiln.errors import ConfigError
from kiln.formats.plan_file import ShardPlan, write_plan
from kiln.io import storage
from kiln.io.text_table import format_bytes
from kiln.report import estimate
from scripts import estimate as estimate_script

NUMBERS = {"chips_per_second": 25, "price_per_hour": 0.5, "price_per_gb_month": 0.02}


def line(n, *, units=3, expected=900_000, size=4_000_000_000, partition="2021"):
    ids = tuple(f"u{n}.{i}" for i in range(units))
    return ShardPlan("worldcover", partition, f"s{n}", ids, 512, expected, size, "s3://esa-worldcover-s2")


def write_lines(tmp_path, *lines, name="plan-2021-abcd.jsonl"):
    write_plan(lines, str(tmp_path / name))
    return str(tmp_path / name)


def write_shard(root, shard, *, where="shards/2021"):
    storage.write_bytes(f"{root}/{where}/{shard}.parquet", b"done")
    storage.write_bytes(f"{root}/{where}/{shard}.ledger.parquet", b"done")


def test_the_sums_of_a_plan_are_those_computed_by_hand(tmp_path):
    uri = write_lines(tmp_path, line(0), line(1, units=2, expected=600_000, size=1_000_000_000))
    (s,) = estimate.summarise(uri, 1024, "float32")
    assert (s.dataset, s.partition, s.units, s.shards, s.done) == ("worldcover", "2021", 5, 2, 0)
    assert (s.chips, s.chips_left, s.read) == (1_500_000, 1_500_000, 5_000_000_000)
    assert s.stored == 1_500_000 * (2 * (4096 + 400) + 2048 + 400), "shards, product, database"
    (half,) = estimate.summarise(uri, 1024, "float16")
    assert half.stored == 1_500_000 * 3 * (2048 + 400)


def test_finished_shards_are_counted_and_left_out_of_the_rest(tmp_path):
    uri = write_lines(tmp_path, line(0), line(1, expected=600_000, size=1_000_000_000), line(2, expected=1, size=1))
    write_shard(tmp_path, "s0")
    write_shard(tmp_path, "s9")  # of another plan
    write_shard(tmp_path, "s2", where="shards/2020")  # of another partition
    (tmp_path / "shards/2021/s1.ledger.parquet").write_bytes(b"its shard is missing")
    (tmp_path / "shards/2021/.s1.parquet.host.1.partial").write_bytes(b"half")
    (s,) = estimate.summarise(uri, 1024, "float32")
    assert (s.shards, s.done) == (3, 1)
    assert s.chips == 1_500_001
    assert (s.chips_left, s.read) == (600_001, 1_000_000_001)


def test_finished_shards_are_found_on_s3(bucket):
    write_plan([line(n) for n in range(3)], f"{bucket}/run/plan-2021.jsonl")
    write_shard(f"{bucket}/run", "s1")
    (s,) = estimate.summarise(f"{bucket}/run/plan-2021.jsonl", 1024, "float32")
    assert (s.shards, s.done, s.chips_left) == (3, 1, 1_800_000)


def test_a_plan_in_the_working_directory_is_found_with_its_shards(tmp_path, monkeypatch):
    write_lines(tmp_path, line(0), line(1))
    write_shard(tmp_path, "s1")
    monkeypatch.chdir(tmp_path)
    assert estimate.summarise("plan-2021-abcd.jsonl", 8, "float32")[0].done == 1


def test_the_table_has_hours_and_prices_of_the_remaining_work(tmp_path, capsys):
    uri = write_lines(tmp_path, line(0), line(1))
    write_shard(tmp_path, "s0")
    estimate_script.main(["--plans", uri, "--numbers", json.dumps(NUMBERS), "--vector-dtype", "float32"])
    head, row, blank, _, foot = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "units", "shards", "done", "chips", "to", "read", "encoder-h", "storage", "compute", "per", "month",
    ]  # fmt: skip
    # 900 000 chips at 25/s are 10 hours, 5.00 at 0.5 an hour; 1.8 M rows of 11 440 B are 20.6 GB, 0.41 a month at 0.02
    assert row.split() == (
        ["worldcover", "2021", "6", "2", "1", "1,800,000", "4.0", "GB", "10.00", "20.6", "GB", "5.00", "0.41"]
    )
    assert len(head) == len(row)
    assert blank == ""
    assert "25 chips/s" in foot


def test_several_plans_are_several_rows_in_order(tmp_path, capsys):
    one = write_lines(tmp_path, line(0))
    two = write_lines(tmp_path, line(0, partition="2020"), name="other.jsonl")
    estimate_script.main(
        ["--plans", two, one, "--numbers", json.dumps(NUMBERS), "--vector-dtype", "float16", "--dimensions", "8"]
    )
    rows = capsys.readouterr().out.splitlines()[1:3]
    assert [r.split()[1] for r in rows] == ["2020", "2021"]
    assert rows[0].split()[-4:-2] == ["1.1", "GB"]  # 900 000 rows of three times 16 + 400 B


def test_a_plan_of_many_partitions_has_a_row_for_each_and_their_sum(tmp_path, capsys):
    lines = [line(n, units=n + 1, partition=f"nd-{2010 + n // 2}") for n in range(8)]
    write_shard(tmp_path, "s2", where="shards/nd-2011")
    estimate_script.main(["--plans", write_lines(tmp_path, *lines), "--numbers", json.dumps(NUMBERS)])
    rows = [r.split() for r in capsys.readouterr().out.splitlines()[1:6]]
    assert [r[1:5] for r in rows[:4]] == [
        ["nd-2010", "3", "2", "0"], ["nd-2011", "7", "2", "1"], ["nd-2012", "11", "2", "0"],
        ["nd-2013", "15", "2", "0"],
    ]  # fmt: skip
    assert rows[4][1:7] == ["in", "all", "36", "8", "1", "7,200,000"]


def test_a_real_plan_is_read(tmp_path):
    from kiln.archives.worldcover.config import Config
    from kiln.archives.worldcover.plan import plan_shards
    from tests.support.archives import random_pixels, write_tile

    for west in (-2, -1):
        write_tile(tmp_path / "archive", 2021, west, 43, random_pixels(240, 1))
    config = Config(
        archive=str(tmp_path / "archive"), years=[2021], region=[-2, 43, 0, 44], chip_size=48, pixels_per_degree=240,
        columns_per_shard=4,
    )  # fmt: skip
    lines = list(plan_shards(config))
    out = write_lines(tmp_path, *lines)
    sizes = [p.stat().st_size for p in (tmp_path / "archive").rglob("*.tif")]
    (s,) = estimate.summarise(out, 1024, "float32")
    assert s.units == 10  # 2 degrees are ten columns of 48 px
    assert s.chips == 10 * 5
    assert s.shards == len(lines)
    assert s.read == pytest.approx(sum(sizes), abs=len(lines))  # every byte once


def test_an_empty_plan_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got no shard in it"):
        estimate.summarise(write_lines(tmp_path), 8, "float32")


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"dataset": "worldcover", "shard": "a"}', "[1]", "3"])
def test_the_error_for_a_broken_plan_names_its_line(tmp_path, capsys, text):
    path = write_lines(tmp_path, line(0))
    Path(path).write_bytes(gzip.decompress(Path(path).read_bytes()) + text.encode() + b"\n")
    with pytest.raises(SystemExit) as e:
        estimate_script.main(["--plans", path, "--numbers", json.dumps(NUMBERS)])
    assert e.value.code == 2
    assert f"{path}, line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2.34e9, "2.3 GB"), (5e12, "5.0 TB"),
     (7e15, "7000.0 TB")],
)  # fmt: skip
def test_bytes_are_formatted_with_a_unit(size, text):
    assert format_bytes(size) == text


def test_the_bytes_of_a_chip_depend_on_type_kinds_and_patches():
    assert estimate.chip_bytes(1024, "float32") == 2 * (4096 + 400) + 2048 + 400
    assert estimate.chip_bytes(1024, "int8") == 2 * (1024 + 4 + 400) + 2048 + 400
    assert estimate.chip_bytes(1024, "float16", "both") == 2 * (2 * 2048 + 400) + 2048 + 400
    more = estimate.chip_bytes(1024, "int8", "mean", 1024) - estimate.chip_bytes(1024, "int8", "mean")
    assert more == 1024 * 1024 * 2, "256 px: patches are stored once, next to the shard"


def test_patches_are_counted_for_the_dataset_that_keeps_them(tmp_path):
    uri = write_lines(tmp_path, line(0, expected=10))
    (without,) = estimate.summarise(uri, 1024, "int8", "both", {"naip": 1024})
    (with_patches,) = estimate.summarise(uri, 1024, "int8", "both", {"worldcover": 4})
    assert with_patches.stored - without.stored == 10 * 4 * 2048
