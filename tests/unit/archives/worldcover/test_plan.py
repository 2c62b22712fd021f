"""The plan: what it says of shards and tiles, and what it refuses."""

import json
import subprocess
import sys

import boto3
import pytest

from kiln.archives.worldcover import plan
from tests.conftest import ROOT
from tests.support.archives import random_pixels, tile_path, write_tile


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    for west in (10, 12):
        write_tile(root, 2021, west, 45, random_pixels(48, west))
    return root


def flags(root, output, **changes):
    told = {
        "archive": root,
        "year": 2021,
        "region": "10.2,45.1,12.7,45.9",
        "chip-size": 16,
        "pixels-per-degree": 48,
        "columns-per-shard": 3,
        "output": output,
    } | {k.replace("_", "-"): v for k, v in changes.items()}
    return [f"--{k}={v}" for k, v in told.items()]


def test_a_plan_has_a_line_per_shard_with_all_that_a_job_needs(archive, tmp_path):
    plan.main(flags(archive, tmp_path / "plan.jsonl"))
    lines = [json.loads(x) for x in (tmp_path / "plan.jsonl").read_text().splitlines()]
    columns = [c for x in lines for c in x["columns"]]
    assert [c[0] for c in columns] == list(range(405, 414))  # 45 columns of 1/3 degree a 15 degrees: 405 is at 10 east
    assert [len(x["units"]) for x in lines] == [3, 3, 3]
    assert len({x["shard"] for x in lines}) == 3
    uris = {w: str(tile_path(archive, 2021, w, 45)) for w in (10, 12)}
    size = {w: tile_path(archive, 2021, w, 45).stat().st_size for w in (10, 12)}
    assert [x["tiles"] for x in lines] == [
        [["N45E010", uris[10], size[10], ""]],
        [],
        [["N45E012", uris[12], size[12], ""]],
    ]
    for line in lines:
        assert line["dataset"] == "worldcover"
        assert (line["partition"], line["year"], line["chip"], line["ppd"]) == ("2021", 2021, 16, 48)
        assert line["archive"] == str(archive)
        assert line["encode"] == "whole"
    assert [x["expected"] for x in lines] == [9, 9, 9]  # three columns of three chips
    assert [x["bytes"] for x in lines] == [size[10], 0, size[12]]


def test_a_plan_of_quarters_expects_four_rows_a_chip(archive, tmp_path):
    plan.main(flags(archive, tmp_path / "plan.jsonl", encode="quarters"))
    lines = [json.loads(x) for x in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert [(x["encode"], x["expected"]) for x in lines] == [("quarters", 36)] * 3


def test_bytes_are_the_share_of_the_tiles_widths_that_a_shard_reads(archive, tmp_path):
    size = tile_path(archive, 2021, 10, 45).stat().st_size
    lines = plan.plan(str(archive), 2021, [9.7, 45.1, 10.3, 45.9], 16, 48, 3)  # columns 404 and 405
    assert [x["bytes"] for x in lines] == [0, round(size / 3)]


def test_equal_archives_and_regions_make_byte_equal_plans(archive, tmp_path):
    for name in ("a", "b"):
        plan.main(flags(archive, tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_new_tile_elsewhere_changes_no_other_line(archive, tmp_path):
    root = tmp_path / "archive"
    for west in (10, 12):
        path = tile_path(root, 2021, west, 45)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tile_path(archive, 2021, west, 45).read_bytes())
    before = plan.plan(str(root), 2021, [10.2, 45.1, 12.7, 45.9], 16, 48, 3)
    write_tile(root, 2021, 11, 45, random_pixels(48, 1))
    after = plan.plan(str(root), 2021, [10.2, 45.1, 12.7, 45.9], 16, 48, 3)
    assert [x["shard"] for x in before] == [x["shard"] for x in after]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_plan_of_a_bucket_is_written_to_the_bucket_with_etags(archive, bucket):
    path = tile_path(archive, 2021, 10, 45)
    name = bucket.removeprefix("s3://")
    client = boto3.client("s3")
    client.upload_file(str(path), name, f"wc/{path.relative_to(archive)}")
    plan.main(flags(f"{bucket}/wc", f"{bucket}/runs/plan.jsonl"))
    body = client.get_object(Bucket=name, Key="runs/plan.jsonl")["Body"].read().decode()
    (tile,) = json.loads(body.splitlines()[0])["tiles"]
    head = client.head_object(Bucket=name, Key=f"wc/{path.relative_to(archive)}")
    assert tile == ["N45E010", f"{bucket}/wc/{path.relative_to(archive)}", path.stat().st_size, head["ETag"].strip('"')]


def test_the_crossing_of_the_antimeridian_is_planned(archive, tmp_path):
    plan.main(flags(archive, tmp_path / "plan.jsonl", region="179.5,45.1,-179.5,45.9"))
    lines = [json.loads(x) for x in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert lines[0]["columns"][0][0] < 0 < lines[-1]["columns"][-1][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"year": 2019}, "no composite of 2019"),
        ({"year": 2020}, "nothing there"),
        ({"region": "10,46,11,45"}, "is empty"),
        ({"region": "texas"}, "want conus or west,south,east,north"),
        ({"region": "1,2,3"}, "write 'conus' or"),
        ({"archive": "/nowhere/at/all"}, "nothing there"),
        ({"columns_per_shard": 0}, "columns per shard is 0"),
        ({"pixels_per_degree": 7}, "does not divide"),
        ({"pixels_per_degree": 0}, "error: "),
        ({"chip_size": 0}, "error: "),
    ],
)
def test_wrong_settings_are_errors_of_one_line_and_leave_no_plan(archive, tmp_path, capsys, changes, says):
    with pytest.raises(SystemExit) as e:
        plan.main(flags(archive, tmp_path / "plan.jsonl", **changes))
    assert e.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_region_without_any_tile_is_planned_with_a_warning(archive, tmp_path, caplog):
    plan.main(flags(archive, tmp_path / "plan.jsonl", region="-40,0,-39,1"))
    assert "every column will be empty" in caplog.text
    assert all(json.loads(x)["tiles"] == [] for x in (tmp_path / "plan.jsonl").read_text().splitlines())


def test_help_shows_the_flags_and_their_defaults():
    done = subprocess.run(
        [sys.executable, "-m", "kiln.archives.worldcover.plan", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    for text in ("--region", "--columns-per-shard", "(default: 512)", "kiln.archives.worldcover.plan"):
        assert text in done.stdout
