"""The planning script: flags of every archive's config section, one-line errors, one plan in every process."""

import os
import subprocess
import sys

import pytest

from kiln.formats.plan_file import read_names, read_plan
from scripts import plan_units
from tests import ROOT
from tests.support import plans

ITEMS = [f"S2A_{tile}_2020{month:02d}05_0_L2A" for tile in ("29RKH", "30TVL", "31NAA") for month in (2, 3)]
KEYS = [f"nd/2019/100cm/rgbir_cog/47099/m_47099{n}_se_14_1_20190904.tif" for n in range(51, 60)]


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.txt"
    tiles = {item: item.split("_")[1] for item in ITEMS}
    path.write_text(
        "".join(
            f"sentinel-s2-l2a-cogs/{int(t[:2])}/{t[2]}/{t[3:]}/2020/{int(i[14:16])}/{i}/{i}.json\n"
            for i, t in tiles.items()
        )
    )
    return str(path)


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.txt"
    path.write_text("".join(f"{key}\n" for key in KEYS))
    return str(path)


def test_list_flags_accept_several_values_and_a_box_may_start_with_a_minus(tmp_path, items):
    output, names = str(tmp_path / "plan.gz"), str(tmp_path / "names.json")
    dates = ["--dates", "2020-01-01/2020-02-28"]
    flags = ["--tiles", "29RKH", "30T", *dates, "--bbox", "-20,-10,10,60", "--years", "2020", "--months", "2", "3"]
    plan_units.main(["sentinel2", "--items", items, *flags, "--output", output, "--names", names])
    assert sorted(unit for shard in read_plan(output) for unit in shard.units) == [ITEMS[0], ITEMS[2]]
    assert set(read_names(names)) == {"29R-2020-02", "30T-2020-02"}


def test_years_of_worldcover_are_a_list_and_a_region_is_a_name_or_a_box(tmp_path):
    archive = tmp_path / "archive"
    for year in (2020, 2021):
        (archive / str(year)).mkdir(parents=True)
        (archive / str(year) / "x.tif").write_bytes(b"x")
    flags = ["--archive", str(archive), "--chip-size", "1024", "--columns-per-shard", "500"]
    for region, shards in (("conus", 4), ("-97,43,-96,44", 2)):
        output = str(tmp_path / "plan.gz")
        plan_units.main(["worldcover", *flags, "--years", "2020", "2021", "--region", region, "--output", output])
        assert len(list(read_plan(output))) == shards


def test_the_plan_is_the_same_bytes_in_another_process_with_another_hash_seed(tmp_path, manifest):
    here = plans.write("naip", tmp_path / "here.gz", manifest=manifest, scenes_per_shard=2)
    command = [sys.executable, "-m", "scripts.plan_units", "naip", "--manifest", manifest, "--scenes-per-shard", "2"]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([*command, "--output", str(tmp_path / "there.gz")], cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "there.gz").read_bytes() == here


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sentinel2", "--items", "i", "--items-per-shard", "0"], "--items-per-shard: "),
        (["sentinel2", "--items", "i", "--chip-size", "20"], "--chip-size: "),
        (["sentinel2", "--items", "i", "--months", "13"], "--months: "),
        (["sentinel2", "--items", "i", "--bbox=1,2,3"], "--bbox: "),
        (["sentinel2", "--items", "i", "--dates", "2020"], "--dates: "),
        (["sentinel2", "--bbox=0,0,1,1"], "expected exactly one of inventory, search, items, got none"),
        (["naip", "--manifest", "m", "--scenes-per-shard", "-5"], "--scenes-per-shard: "),
        (["naip", "--manifest", "m", "--bbox=a,b,c,d"], "--bbox: "),
        (["naip", "--manifest", "m", "--states", "North"], "--states: "),
        (["worldcover", "--region", "texas"], "--region: "),
        (["worldcover", "--years", "2019"], "--years: "),
    ],
)
def test_wrong_flags_are_errors_of_one_line_that_leave_no_plan(tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as e:
        plan_units.main([*argv, "--output", str(tmp_path / "out" / "plan.gz")])
    assert e.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.glob("out/*"))


def test_help_lists_the_keys_of_the_archives_section():
    command = [sys.executable, "-m", "scripts.plan_units", "worldcover", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(flag in done.stdout for flag in ("--region", "--columns-per-shard", "--output", "--names"))
