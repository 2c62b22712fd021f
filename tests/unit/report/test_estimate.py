"""The estimate of plans: chips, bytes, time, memory and price, before and during a run."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.errors import ConfigError
from kiln.formats.fingerprint import shard_name
from kiln.formats.job_record import JobRecord, write_job_record
from kiln.formats.ledger import LedgerEntry, ledger_table, write_ledger
from kiln.formats.plan_file import ShardPlan, write_plan
from kiln.formats.records import Unit
from kiln.io import storage
from kiln.io.text_table import format_bytes, format_duration, format_rate
from kiln.model.tuning_file import EncoderSetting, tuning_file, write_rates
from kiln.report import estimate
from kiln.report.bounds import NOTHING, Bounded
from kiln.report.estimate import RowSize
from kiln.report.rates import EncoderRate
from scripts import estimate as estimate_script

NUMBERS = {"chips_per_second": 25, "price_per_hour": 0.5, "price_per_gb_month": 0.02}
FOLDER = "results/run/worldcover-1a2b3c4d"
ROW = RowSize(1024, "float32")
JOB = JobRecord(
    dataset="worldcover", partition="2021", shard="s0", started="2026-11-28T10:00:00+00:00",
    ended="2026-11-28T10:10:00+00:00", processor="one", device="cpu", threads=2, precision="float32", batch_size=16,
    chip_px=512, chips=100, rows=100, wall_s=400.0, encoder_s=300.0, waiting_s=1.0, reading_s=50.0, cpu_s=380.0,
    gpu_s=0.0, pixel_bytes=1, network_bytes=3_000_000, disk_bytes=0, requests=10, peak_memory_bytes=900_000_000,
    cpu_j=1.0, gpu_j=0.0, energy_is_measured=False,
)  # fmt: skip


def line(n, *, units=3, expected=900_000, size=4_000_000_000, partition="2021"):
    ids = tuple(f"u{n}.{i}" for i in range(units))
    name = shard_name(f"s{n}", ids)
    return ShardPlan("worldcover", partition, name, ids, 512, expected, size, "s3://esa-worldcover-s2")


def write_lines(*lines, folder=FOLDER, name="plan-abcd.jsonl.gz"):
    write_plan(lines, f"{folder}/{name}")
    return f"{folder}/{name}"


def finish(shard, embedded, *, folder=FOLDER, size=1000, job=True, **values):
    """Write a shard of some bytes, its ledger, and the record of its job."""
    base = f"{folder}/shards/{shard.partition}/{shard.name}"
    storage.write_bytes(f"{base}.parquet", bytes(size))
    entry = LedgerEntry(Unit("u", shard.expected, "", "", True), embedded=embedded)
    entry.skipped_nodata = shard.expected - embedded
    with storage.atomic(f"{base}.ledger.parquet") as path:
        write_ledger(path, ledger_table([entry]))
    if job:
        run, _, dataset = folder.rpartition("/")
        record = replace(JOB, partition=shard.partition, shard=shard.name, chips=embedded, **values)
        write_job_record(f"{run}/runs/jobs/{dataset}/{shard.partition}/{shard.name}.json", record)


def estimate_of(plan, **options):
    """Return the only partition's estimate."""
    (row,) = estimate.estimate_plan(plan, ROW, **options).partitions
    return row


def table(capsys, *arguments, numbers=NUMBERS):
    estimate_script.main([*arguments, "--numbers", json.dumps(numbers)])
    return capsys.readouterr().out


def test_before_the_run_everything_is_at_most_what_the_plan_says(here):
    plan = write_lines(line(0), line(1, units=2, expected=600_000, size=1_000_000_000))
    row = estimate_of(plan, rate=EncoderRate(25, is_configured=False), price_per_hour=0.5)
    assert (row.dataset, row.partition, row.units, row.shards, row.done) == ("worldcover", "2021", 5, 2, 0)
    assert row.chips == row.chips_left == Bounded(1_500_000, "at most")
    assert row.read_left == Bounded(5_000_000_000, "at most")
    assert row.seconds == Bounded(60_000, "at most")
    assert row.price.value == pytest.approx(60_000 / 3600 * 0.5)
    shards = 1_500_000 * 4496 + 2 * 50_000 + 5 * 5_000
    assert row.stored == Bounded(shards + 1_500_000 * 4496 + 50_000 + 5 * 5_000, "at most"), "and the product"


def test_finished_shards_count_by_their_ledgers(here):
    shards = [line(0, expected=100), line(1, expected=200), line(2, expected=300)]
    plan = write_lines(*shards)
    finish(shards[1], 150, job=False)
    stray = replace(shards[0], partition="2020")
    finish(stray, 1, job=False)  # of another partition
    finish(replace(shards[0], name="s9"), 1, job=False)  # of another plan
    row = estimate_of(plan)
    assert (row.shards, row.done) == (3, 1)
    assert row.chips_left == Bounded(400, "at most")
    assert row.chips == Bounded(550, "at most")
    assert row.seconds is None, "no rate is known"
    assert row.price is None


def test_similar_outcomes_are_extrapolated(here):
    shards = [line(n, expected=100, size=10_000_000) for n in range(8)]
    plan = write_lines(*shards)
    for shard in shards[:6]:
        finish(shard, 60)
    row = estimate_of(plan, price_per_hour=0.9)
    assert row.chips == Bounded(480, "about", 560)
    assert row.read_left == Bounded(6_000_000, "about", 20_000_000), "jobs read three of ten planned megabytes"
    assert row.seconds.word == "about"
    assert row.seconds.value == pytest.approx(2 * 400), "a job took 400 s for 60 chips"
    assert row.price.value == pytest.approx(800 / 3600 * 0.9)


def test_a_configured_rate_counts_before_that_of_jobs_and_a_measured_one_after(here):
    shards = [line(0, expected=100), line(1, expected=100)]
    plan = write_lines(*shards)
    finish(shards[0], 100)

    def seconds(rate):
        return estimate_of(plan, rate=rate).seconds.value

    assert seconds(None) == pytest.approx(400)
    assert estimate_of(plan).seconds.word == "at most", "as long as the longest job for its planned chips"
    assert seconds(EncoderRate(1, is_configured=True)) == pytest.approx(100)
    assert seconds(EncoderRate(1, is_configured=False)) == pytest.approx(400)


def test_a_finished_run_is_exact_without_a_rate(here):
    shards = [line(0, expected=100), line(1, expected=100)]
    plan = write_lines(*shards)
    for shard in shards:
        finish(shard, 70, job=False)
    ledgers = sum(path.stat().st_size for path in Path(FOLDER).rglob("*.ledger.parquet"))
    storage.write_bytes(f"{FOLDER}/products/2021/0123456789abcdef.json", b"{}")
    storage.write_bytes(f"{FOLDER}/products/2021/0123456789abcdef/part-0000.parquet", bytes(500))
    row = estimate_of(plan)
    assert (row.chips, row.chips_left, row.read_left) == (Bounded(140), NOTHING, NOTHING)
    assert (row.seconds, row.price) == (NOTHING, NOTHING)
    assert row.stored == Bounded(2 * 1000 + ledgers + 502)


def test_finished_shards_are_found_on_s3(bucket):
    folder = f"{bucket}/results/run/worldcover-1a2b3c4d"
    shards = [line(n, expected=100) for n in range(3)]
    plan = write_lines(*shards, folder=folder)
    finish(shards[1], 40, folder=folder)
    row = estimate_of(plan)
    assert (row.shards, row.done, row.chips) == (3, 1, Bounded(240, "at most"))
    assert row.seconds.value == pytest.approx(200 * 400 / 100)


def test_a_plan_in_the_working_folder_is_found_with_its_shards(here, monkeypatch):
    shards = [line(0), line(1)]
    write_lines(*shards)
    finish(shards[1], 5, job=False)
    monkeypatch.chdir(FOLDER)
    assert estimate_of("plan-abcd.jsonl.gz").done == 1


def test_the_table_says_what_is_left_and_what_it_costs(here, capsys):
    shards = [line(0), line(1)]
    plan = write_lines(*shards)
    finish(shards[0], 900_000, job=False)
    out = table(capsys, "--plans", plan, "--vector-dtype", "float32", "--memory-mb", "4000")
    head, row, database, blank, *notes = out.splitlines()
    assert head.split() == [
        "units", "shards", "done", "chips", "to", "read", "time", "output", "price", "per", "month",
    ]  # fmt: skip
    # 900 000 chips at 25/s are 10 hours, 5.00 at 0.5 an hour; rows have 4496 B in shards and in the product
    assert " ".join(row.split()) == (
        "worldcover 2021 6 2 1 at most 1,800,000 at most 4.0 GB at most 10.0 h at most 12.1 GB "
        "at most 5.00 at most 0.24"
    )
    assert " ".join(database.split()) == "explorer database at most 6.3 GB at most 0.13"
    assert blank == ""
    assert (
        "times and prices by 25 chips/s of the encoder alone (plan.chips_per_second); jobs also start and read" in out
    )
    assert notes[-1] == "An embedding job may take 4,000 MB of memory (resources.embed_mem_mb)."


def test_without_a_rate_the_table_says_how_to_measure_it_and_then_uses_it(here, capsys, monkeypatch):
    plan = write_lines(line(0, expected=3600))
    use = {"untrained": None, "precision": "float32", "device": "cpu", "threads": 2, "batch": 16}
    flags = ["--plans", plan, "--encoder", json.dumps(use), "--chip-px", '{"worldcover": 256}']
    unknown = NUMBERS | {"chips_per_second": None}
    before = table(capsys, *flags, "--tuned", numbers=unknown)
    assert before.splitlines()[1].split().count("unknown") == 2
    assert "times and prices are unknown: run kiln tune on a machine of the run:" in before
    command = "kiln tune --device cpu --threads 2 --precisions float32 --batches 16 --chip-size 256"
    assert f"  {command}\n" in before
    settings = {"precision": "float32", "device": "cpu", "threads": 2, "batch": 16}
    write_rates(tuning_file("cpu"), {EncoderSetting.of(None, **settings, chip_px=128): 9.0})
    assert "unknown" in table(capsys, *flags, "--tuned", numbers=unknown), "of other chips"
    write_rates(tuning_file("cpu"), {EncoderSetting.of(None, **settings, chip_px=256): 0.5})
    after = table(capsys, *flags, "--tuned", numbers=unknown)
    assert "at most 2.0 h" in after
    assert "0.5 chips/s of the encoder alone (kiln tune on this machine); jobs also start and read" in after
    assert "unknown" in table(capsys, *flags, numbers=unknown), "the jobs run on other machines"


def test_the_command_of_an_untrained_encoder_has_its_sizes(here, capsys):
    sizes = {"seed": 7, "dim": 192, "depth": 4, "heads": 3, "mlp_ratio": 4}
    use = {"untrained": sizes, "precision": "float32", "device": "cuda:0", "threads": 1, "batch": 16}
    flags = ["--plans", write_lines(line(0)), "--encoder", json.dumps(use), "--chip-px", '{"worldcover": 64}']
    out = table(capsys, *flags, numbers=NUMBERS | {"chips_per_second": None})
    assert (
        "kiln tune --device cuda --precisions float32 --batches 16 --chip-size 64 --untrained "
        """'{"dim": 192, "depth": 4, "heads": 3, "mlp_ratio": 4}'""" in out
    )


def test_jobs_that_ran_state_their_rate_and_memory(here, capsys):
    shards = [line(0, expected=100), line(1, expected=100)]
    plan = write_lines(*shards)
    finish(shards[0], 100)
    out = table(capsys, "--plans", plan, numbers=NUMBERS | {"chips_per_second": None})
    assert "worldcover: times and prices by the time of 1 finished jobs, without their start." in out
    assert "Its finished jobs took up to 900.0 MB of memory each." in out


def test_several_plans_are_several_rows_in_order(here, capsys):
    one = write_lines(line(0))
    two = write_lines(line(0, partition="2020"), name="other.jsonl.gz")
    rows = table(capsys, "--plans", two, one, "--vector-dtype", "float16", "--dimensions", "8").splitlines()[1:3]
    assert [r.split()[1] for r in rows] == ["2020", "2021"]
    assert "748.9 MB" in rows[0], "900 000 rows of twice 16 + 400 B"


def test_a_plan_of_many_partitions_has_a_row_for_each_and_their_sum(here, capsys):
    lines = [line(n, units=n + 1, partition=f"nd-{2010 + n // 2}") for n in range(8)]
    plan = write_lines(*lines)
    finish(lines[2], 900_000, job=False)
    rows = [r.split() for r in table(capsys, "--plans", plan).splitlines()[1:6]]
    assert [r[1:5] for r in rows[:4]] == [
        ["nd-2010", "3", "2", "0"], ["nd-2011", "7", "2", "1"], ["nd-2012", "11", "2", "0"],
        ["nd-2013", "15", "2", "0"],
    ]  # fmt: skip
    assert rows[4][1:9] == ["in", "all", "36", "8", "1", "at", "most", "7,200,000"]


def test_a_real_plan_is_read(here):
    from kiln.archives.worldcover.config import Config
    from kiln.archives.worldcover.plan import plan_shards
    from tests.support.archives import random_pixels, write_tile

    for west in (-2, -1):
        write_tile(here / "archive", 2021, west, 43, random_pixels(240, 1))
    config = Config(
        archive=str(here / "archive"), years=[2021], region=[-2, 43, 0, 44], chip_size=48, pixels_per_degree=240,
        columns_per_shard=4,
    )  # fmt: skip
    lines = list(plan_shards(config))
    row = estimate_of(write_lines(*lines))
    assert row.units == 10  # 2 degrees are ten columns of 48 px
    assert row.chips == Bounded(10 * 5, "at most")
    assert row.shards == len(lines)
    assert row.read_left.value >= sum(p.stat().st_size for p in (here / "archive").rglob("*.tif"))


def test_an_empty_plan_is_refused(here):
    with pytest.raises(ConfigError, match="got no shard in it"):
        estimate.estimate_plan(write_lines(), ROW)


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"dataset": "worldcover", "shard": "a"}', "[1]", "3"])
def test_the_error_for_a_broken_plan_names_its_line(here, capsys, text):
    path = write_lines(line(0))
    Path(path).write_bytes(Path(path).read_bytes() + gzip.compress(text.encode() + b"\n"))
    with pytest.raises(SystemExit) as e:
        estimate_script.main(["--plans", path, "--numbers", json.dumps(NUMBERS)])
    assert e.value.code == 2
    assert f"{path}, line 2" in capsys.readouterr().err


def test_a_missing_price_is_an_error(here, capsys):
    with pytest.raises(SystemExit):
        estimate_script.main(["--plans", write_lines(line(0)), "--numbers", "{}"])
    assert "plan: expected a number 'price_per_hour', got none" in capsys.readouterr().err


def test_a_damaged_record_of_a_job_is_left_out_with_a_warning(here, caplog):
    shards = [line(0, expected=100), line(1, expected=100)]
    plan = write_lines(*shards)
    finish(shards[0], 100)
    (record,) = Path("results/run/runs/jobs").rglob("*.json")
    record.write_text("{}")
    assert estimate_of(plan).seconds is None
    assert f"{shards[0].name}.json: expected the record of a job, got another file" in caplog.text


def test_of_a_shard_with_a_damaged_ledger_nothing_is_known(here):
    shards = [line(0, expected=100), line(1, expected=100)]
    plan = write_lines(*shards)
    finish(shards[0], 70)
    Path(f"{FOLDER}/shards/2021/{shards[0].name}.ledger.parquet").write_bytes(b"PAR1")
    assert estimate_of(plan).chips == Bounded(200, "at most")


def test_an_estimate_is_limited_as_the_run_is(here, capsys):
    shards = [line(0, expected=100, partition="nd-2019"), line(1, expected=70, partition="va-2016")]
    shards.append(line(2, expected=30, partition="nd-2019"))
    plan = write_lines(*shards)
    finish(shards[0], 40, job=False)
    rows = table(capsys, "--plans", plan, "--partitions", "nd-*").splitlines()
    assert [row.split()[1] for row in rows[1:-4]] == ["nd-2019"]
    rows = table(capsys, "--plans", plan, "--allow-missing").splitlines()
    assert " ".join(rows[1].split()).startswith("worldcover nd-2019 3 1 1 40 0 B 0 s"), "nothing is left to embed"
    with pytest.raises(SystemExit):
        estimate_script.main(["--plans", plan, "--partitions", "ks-*", "--numbers", json.dumps(NUMBERS)])
    assert "expected shards of the run, got none. Check partitions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2.34e9, "2.3 GB"), (5e12, "5.0 TB"),
     (7e15, "7000.0 TB")],
)  # fmt: skip
def test_bytes_are_formatted_with_a_unit(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0.6049, "0.605"), (43.91, "43.9"), (99.96, "100"), (1250.4, "1,250"), (12_345, "12,345")]
)
def test_rates_are_formatted_with_three_digits_or_all_before_the_point(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (1e7, "2,777.8 h")],
)
def test_times_are_formatted_with_a_unit(seconds, text):
    assert format_duration(seconds) == text


def test_the_bytes_of_a_row_depend_on_type_kinds_and_patches():
    assert RowSize(1024, "float32").in_file == 4096 + 400
    assert RowSize(1024, "int8").in_file == 1024 + 4 + 400
    assert RowSize(1024, "float16", "both").in_file == 2 * 2048 + 400
    assert RowSize(1024, "int8").in_database == 2048 + 1024 + 400
    assert RowSize(1024, "int8", "mean", {"naip": 1024}).patch_bytes("naip") == 1024 * 1024 * 2
    assert RowSize(1024, "int8", "mean", {"naip": 1024}).patch_bytes("worldcover") == 0


def test_patches_are_stored_once_for_the_dataset_that_keeps_them(here):
    plan = write_lines(line(0, expected=10))
    (without,) = estimate.estimate_plan(plan, RowSize(1024, "int8", "both", {"naip": 1024})).partitions
    (with_patches,) = estimate.estimate_plan(plan, RowSize(1024, "int8", "both", {"worldcover": 4})).partitions
    assert with_patches.stored.value - without.stored.value == 10 * 4 * 2048
