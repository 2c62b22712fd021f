"""WorldCover's plan: its shards and tiles, and the settings that it refuses."""

import boto3
import pytest
from pydantic import ValidationError

from kiln.archives.worldcover import plan
from kiln.errors import ConfigError
from tests.support import plans
from tests.support.archives import random_pixels, tile_path, write_tile


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    for west in (10, 12):
        write_tile(root, 2021, west, 45, random_pixels(48, west))
    return root


def settings(root, **changes):
    return {
        "archive": str(root),
        "years": [2021],
        "region": [10.2, 45.1, 12.7, 45.9],
        "chip_size": 16,
        "pixels_per_degree": 48,
        "columns_per_shard": 3,
    } | changes


def shards_of(root, **changes):
    return plans.plan_shards("worldcover", **settings(root, **changes))


def test_shards_contain_what_their_jobs_need(archive, tmp_path):
    shards = shards_of(archive)
    columns = [c for s in shards for c in s.details["columns"]]
    assert [c[0] for c in columns] == list(
        range(405, 414)
    )  # 45 columns of 1/3 degree per 15 degrees: 405 is at 10 east
    assert [len(s.units) for s in shards] == [3, 3, 3]
    assert len({s.name for s in shards}) == 3
    uris = {w: str(tile_path(archive, 2021, w, 45)) for w in (10, 12)}
    size = {w: tile_path(archive, 2021, w, 45).stat().st_size for w in (10, 12)}
    assert [s.details["tiles"] for s in shards] == [
        [["N45E010", uris[10], size[10], ""]],
        [],
        [["N45E012", uris[12], size[12], ""]],
    ]
    for s in shards:
        assert (s.dataset, s.partition, s.details["year"], s.chip_size) == ("worldcover", "2021", 2021, 16)
        assert s.archive == str(archive)
    assert [s.expected for s in shards] == [9, 9, 9]  # three columns of three chips
    assert [s.read_bytes for s in shards] == [size[10], 0, size[12]]


def test_a_plan_of_quarters_expects_four_rows_per_chip(archive):
    assert [s.expected for s in shards_of(archive, encode="quarters")] == [36] * 3


def test_bytes_are_at_most_those_of_the_tiles_blocks_that_a_shard_reads(archive, monkeypatch):
    size = tile_path(archive, 2021, 10, 45).stat().st_size

    def read_bytes():  # of columns 404 and 405, of which the second reads the first third of a tile of 48 px
        return [s.read_bytes for s in shards_of(archive, region=[9.7, 45.1, 10.3, 45.9])]

    assert read_bytes() == [0, size], "never more than the tile"
    monkeypatch.setattr(plan, "HEADER_BYTES", 100)
    monkeypatch.setattr(plan, "BLOCK_PX", 16)
    assert read_bytes() == [0, 100 + 16 * 48 * 8], "as if it were not compressed"
    monkeypatch.setattr(plan, "BLOCK_PX", 12)
    assert read_bytes() == [0, 100 + 24 * 48 * 8], "whole blocks"


def test_two_years_are_planned_one_after_the_other(archive, tmp_path):
    root = tmp_path / "archive"
    for year in (2020, 2021):
        write_tile(root, year, 10, 45, random_pixels(48, year))
    assert [s.partition for s in shards_of(root, years=[2020, 2021])] == ["2020"] * 3 + ["2021"] * 3


def test_equal_archives_and_regions_make_byte_equal_plans(archive, tmp_path):
    one, two = (plans.write("worldcover", tmp_path / name, **settings(archive)) for name in "ab")
    assert one == two


def test_a_new_tile_elsewhere_changes_no_other_line(archive, tmp_path):
    root = tmp_path / "archive"
    for west in (10, 12):
        path = tile_path(root, 2021, west, 45)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tile_path(archive, 2021, west, 45).read_bytes())
    before = shards_of(root)
    write_tile(root, 2021, 11, 45, random_pixels(48, 1))
    after = shards_of(root)
    assert [s.name for s in before] == [s.name for s in after]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_plan_of_a_bucket_is_written_to_the_bucket_with_etags(archive, bucket):
    path = tile_path(archive, 2021, 10, 45)
    name = bucket.removeprefix("s3://")
    client = boto3.client("s3")
    client.upload_file(str(path), name, f"wc/{path.relative_to(archive)}")
    (tile,) = plans.lines(plans.write("worldcover", f"{bucket}/runs/plan.gz", **settings(f"{bucket}/wc")))[0][
        "details"
    ]["tiles"]
    head = client.head_object(Bucket=name, Key=f"wc/{path.relative_to(archive)}")
    assert tile == ["N45E010", f"{bucket}/wc/{path.relative_to(archive)}", path.stat().st_size, head["ETag"].strip('"')]


def test_a_region_across_the_antimeridian_is_planned(archive):
    shards = shards_of(archive, region=[179.5, 45.1, -179.5, 45.9])
    assert shards[0].details["columns"][0][0] < 0 < shards[-1].details["columns"][-1][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"years": [2020]}, "expected tiles in .*2020, got none"),
        ({"region": [10, 46, 11, 45]}, "region: expected .west, south, east, north."),
        ({"archive": "/nowhere/at/all"}, "expected tiles in .*, got none"),
        ({"pixels_per_degree": 11}, "pixels_per_degree: expected a divisor of 12000, got 11"),
    ],
)
def test_impossible_settings_are_refused(archive, changes, message):
    with pytest.raises(ConfigError, match=message):
        shards_of(archive, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"years": [2019]}, {"years": []}, {"region": "texas"}, {"region": [1, 2, 3]}, {"columns_per_shard": 0},
        {"pixels_per_degree": 0}, {"chip_size": 0}, {"chip_size": 20},
    ],
)  # fmt: skip
def test_the_config_model_refuses_values_out_of_range(archive, changes):
    with pytest.raises(ValidationError):
        shards_of(archive, **changes)


def test_a_region_without_any_tile_is_planned_with_a_warning(archive, caplog):
    shards = shards_of(archive, region=[-40, 0, -39, 1])
    assert "Every column of 2021 will be empty" in caplog.text
    assert all(s.details["tiles"] == [] for s in shards)
