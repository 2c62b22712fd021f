"""What a run took: sums of job records, their price, the written records and the page."""

import json

import pytest

from kiln.formats.job_record import JobSums, write_job_record
from kiln.formats.json_digest import with_digest
from kiln.io import storage
from kiln.io.text_table import format_bytes, format_duration, format_energy, format_price
from kiln.report.costs import HEAD, NOTE, DatasetCosts, cost_table, energy_note, read_costs, write_cost_records
from tests.support.job_records import make_job_record
from tests.unit.report.test_coverage import Page

NAIP, WORLDCOVER = "naip-1a2b3c4d", "worldcover-99aa99aa"
RECORDS = [  # of an hour, half an hour and a quarter
    make_job_record(shard="a", wall_s=3600.0),
    make_job_record(shard="b", wall_s=1800.0, chips=300, encoder_s=30.0, requests=10, peak_memory_bytes=5_000_000_000),
    make_job_record(
        shard="c", partition="va-2016", wall_s=900.0, processor="GPU B", device="cuda", gpu_s=900.0, gpu_j=1_800_000.0
    ),
]


def costs_of(*records, name=NAIP, price=2.0):
    return DatasetCosts(name, list(records), price)


def write_records(runs, name, records):
    """Write records, and the shards that they are of, next to the folder of the records."""
    for record in records:
        shard = f"{name}/shards/{record.partition}/{record.shard}.parquet"
        storage.write_bytes(storage.join(runs.rpartition("/")[0], shard), b"rows")
        write_job_record(storage.join(runs, "jobs", name, record.partition, f"{record.shard}.json"), record)


def page_of(*costs):
    return Page(cost_table(costs))


def row(name, jobs, chips, rate, seconds, read_bytes, requests, peak_bytes, joules, price):
    """Return the cells of a row of the page, with measured energy."""
    read, peak = format_bytes(read_bytes), format_bytes(peak_bytes)
    times, energy = map(format_duration, seconds), format_energy(joules)
    return [name, jobs, chips, rate, *times, read, requests, peak, energy, format_price(price)]


# ------------------------------------------------------------------------------------------------------- sums and price


def test_a_dataset_has_its_sums_and_the_price_of_its_jobs_hours():
    values = costs_of(*RECORDS).as_json()
    assert {key: value for key, value in values.items() if key not in ("partitions", "processors")} == {
        "dataset": NAIP,
        "price_per_hour": 2.0,
        "jobs": 3,
        "chips": 500,
        "rows": 360,
        "wall_s": 6300.0,
        "encoder_s": 70.0,
        "waiting_s": 15.0,
        "reading_s": 5400.0,
        "cpu_s": 21600.0,
        "gpu_s": 900.0,
        "pixel_bytes": 12_000,
        "network_bytes": 9_000_000,
        "disk_bytes": 4_500_000,
        "requests": 2410,
        "peak_memory_bytes": 5_000_000_000,
        "cpu_j": 10_800_000.0,
        "gpu_j": 1_800_000.0,
        "energy_is_measured": True,
        "cpu_hours": 6.0,
        "gpu_hours": 0.25,
        "energy_kwh": 3.5,
        "price": 3.5,
    }


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("partitions", {"nd-2019": (2, 400, 5400.0, 0.0, 3.0), "va-2016": (1, 100, 900.0, 0.25, 0.5)}),
        ("processors", {"CPU A": (2, 400, 5400.0, 0.0, 3.0), "GPU B": (1, 100, 900.0, 0.25, 0.5)}),
    ],
)
def test_a_dataset_has_sums_and_prices_by_partition_and_by_processor(group, expected):
    sums = costs_of(*reversed(RECORDS)).as_json()[group]
    keys = ("jobs", "chips", "wall_s", "gpu_hours", "price")
    assert {name: tuple(values[key] for key in keys) for name, values in sums.items()} == expected
    assert list(sums) == sorted(expected)
    assert [values["peak_memory_bytes"] for values in sums.values()] == [5_000_000_000, 2_000_000_000]


def test_every_group_states_the_same_values():
    values = costs_of(*RECORDS).as_json()
    groups = [*values["partitions"].values(), *values["processors"].values()]
    assert len(groups) == 4
    assert all(
        group.keys() == values.keys() - {"dataset", "price_per_hour", "partitions", "processors"} for group in groups
    )


def test_small_numbers_are_not_rounded_away():
    record = make_job_record(wall_s=0.9, cpu_s=0.072, cpu_j=7.2)
    values = costs_of(record, price=0.5).as_json()
    assert (values["cpu_hours"], values["energy_kwh"], values["price"]) == (0.00002, 0.000002, 0.000125)


# ----------------------------------------------------------------------------------------------------- files of records


@pytest.fixture(params=["disk", "s3"])
def runs(request, tmp_path):
    """A folder of job records, on disk or in a bucket: two datasets, and files that are no records."""
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    runs = storage.join(root, "results", "sample", "runs")
    write_records(runs, NAIP, RECORDS)
    write_records(runs, WORLDCOVER, RECORDS[:1])
    storage.write_bytes(storage.join(runs, "jobs", NAIP, "nd-2019", ".d.json.host.1.partial"), b"{")
    storage.write_bytes(storage.join(runs, "jobs", f"{NAIP}e", "nd-2019", "d.json"), b"of another dataset")
    return runs


def test_records_of_datasets_are_read_and_their_sums_written(runs):
    costs = read_costs(runs, [NAIP, WORLDCOVER], 2.0)
    assert costs == [costs_of(*RECORDS), costs_of(RECORDS[0], name=WORLDCOVER)]
    write_cost_records(runs, costs)
    written = json.loads(storage.read_bytes(storage.join(runs, f"{NAIP}.json")))
    assert written == with_digest(costs_of(*RECORDS).as_json())
    assert json.loads(storage.read_bytes(storage.join(runs, f"{WORLDCOVER}.json")))["price"] == 2.0
    assert read_costs(runs, [NAIP, WORLDCOVER], 2.0) == costs


def test_files_that_are_known_are_not_listed_again(runs):
    files = storage.listing(runs.rpartition("/")[0])
    assert read_costs(runs, [NAIP, WORLDCOVER], 2.0, files) == read_costs(runs, [NAIP, WORLDCOVER], 2.0)
    without_a = {uri: stat for uri, stat in files.items() if not uri.endswith("/a.json")}
    assert [costs.records for costs in read_costs(runs, [NAIP, WORLDCOVER], 2.0, without_a)] == [RECORDS[1:], []]


def test_a_dataset_without_records_is_an_empty_row(runs):
    (costs,) = read_costs(runs, ["sentinel2-00000000"], 2.0)
    assert costs.records == []
    write_cost_records(runs, [costs])
    values = json.loads(storage.read_bytes(storage.join(runs, "sentinel2-00000000.json")))
    assert (values["jobs"], values["price"], values["partitions"], values["processors"]) == (0, 0.0, {}, {})
    assert page_of(costs).tables[0][1][1] == row("sentinel2-00000000", "0", "0", "", [0, 0, 0, 0, 0], 0, "0", 0, 0, 0)


def test_a_record_of_a_later_try_replaces_the_one_that_was_read(runs):
    read_costs(runs, [WORLDCOVER], 2.0)
    later = make_job_record(shard="a", wall_s=1800.25)
    write_records(runs, WORLDCOVER, [later])
    assert read_costs(runs, [WORLDCOVER], 2.0)[0].records == [later]


def test_a_record_without_its_shard_does_not_count(runs):
    storage.delete(storage.join(runs.rpartition("/")[0], f"{NAIP}/shards/va-2016/c.parquet"))
    assert read_costs(runs, [NAIP], 2.0)[0].records == RECORDS[:2]


def test_without_a_price_costs_have_none():
    costs = costs_of(*RECORDS, price=None)
    assert costs.price(costs.sums) is None
    assert costs.as_json()["price"] is None
    assert page_of(costs).tables[0][1][1][-1] == "unknown"


def test_a_damaged_record_is_named_and_left_out(runs, caplog):
    uri = storage.join(runs, "jobs", NAIP, "nd-2019", "b.json")
    storage.write_bytes(uri, storage.read_bytes(uri)[:100])
    assert [len(costs.records) for costs in read_costs(runs, [WORLDCOVER, NAIP], 2.0)] == [1, 2]
    assert f"{uri}: expected the record of a job" in caplog.text


def test_equal_records_give_equal_files_in_any_order(tmp_path):
    written = []
    for name, records in (("a", RECORDS), ("b", RECORDS[::-1])):
        write_records(str(tmp_path / name), NAIP, records)
        write_cost_records(str(tmp_path / name), read_costs(str(tmp_path / name), [NAIP], 2.0))
        written.append((tmp_path / name / f"{NAIP}.json").read_bytes())
    assert written[0] == written[1]


# ----------------------------------------------------------------------------------------------------------------- page


def test_the_page_has_a_row_for_each_dataset_and_one_for_all():
    (table,) = page_of(costs_of(*RECORDS), costs_of(RECORDS[0], name=WORLDCOVER)).tables
    assert [cells for _, cells in table] == [
        list(HEAD),
        row(NAIP, "3", "500", "7.14", [70, 5400, 21600, 900, 6300], 13_500_000, "2,410", 5e9, 12_600_000, 3.5),
        row(WORLDCOVER, "1", "100", "5", [20, 1800, 7200, 0, 3600], 4_500_000, "1,200", 2e9, 3_600_000, 2.0),
        row("in all", "4", "600", "6.67", [90, 7200, 28800, 900, 9900], 18_000_000, "3,610", 5e9, 16_200_000, 5.5),
    ]


def test_one_dataset_has_no_row_for_all():
    (table,) = page_of(costs_of(*RECORDS)).tables
    assert [cells[0] for _, cells in table] == ["dataset", NAIP]


def test_energy_is_about_a_number_only_if_it_is_estimated():
    estimated = costs_of(*RECORDS, make_job_record(energy_is_measured=False), name=WORLDCOVER)
    (table,) = page_of(costs_of(*RECORDS), estimated).tables
    energy = [cells[HEAD.index("energy")] for _, cells in table[1:]]
    assert energy == [format_energy(12_600_000), *(f"about {format_energy(j)}" for j in (16_200_000, 28_800_000))]


def test_a_note_states_how_the_energy_is_known():
    measured, estimated = JobSums(jobs=1), JobSums(jobs=1, energy_is_measured=False)
    assert energy_note({"a": JobSums()}) == "", "without a job there is no energy"
    assert "was measured by counters" in energy_note({"a": measured, "b": measured})
    assert "is estimated" in energy_note({"a": measured, "b": estimated})
    page = page_of(costs_of(make_job_record(energy_is_measured=False)))
    assert energy_note({"a": estimated}) in "".join(page.text)


def test_the_page_explains_its_columns_and_shows_names_as_they_are():
    page = page_of(costs_of(*RECORDS, name="<b>naip</b> & co"))
    assert page.tables[0][1][1][0] == "<b>naip</b> & co"
    assert "b" not in page.tags
    text = "".join(page.text)
    assert text.startswith("What the jobs took")
    assert NOTE.strip() in text


def test_a_page_of_no_datasets_has_only_a_head():
    assert [cells for _, cells in page_of().tables[0]] == [list(HEAD)]
