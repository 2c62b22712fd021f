"""The record of a job, and sums of records."""

import json
import re
from dataclasses import asdict, fields

import pytest

from kiln.errors import ConfigError, SourceError
from kiln.formats.job_record import JobRecord, JobSums, read_job_record, write_job_record
from kiln.formats.json_digest import with_digest
from kiln.io import storage
from tests.support.job_records import make_job_record


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_written_record_is_read_again(request, tmp_path, place):
    root = str(tmp_path / "new") if place == "disk" else request.getfixturevalue("bucket")
    record = make_job_record(processor='Procé ™ "x" & <y>', wall_s=0.1 + 0.2, energy_is_measured=False, chips=10**12)
    uri = storage.join(root, "jobs", "s.json")
    write_job_record(uri, record)
    assert read_job_record(uri) == record
    assert json.loads(storage.read_bytes(uri)) == with_digest(asdict(record))
    assert storage.read_bytes(uri).endswith(b"}\n")


def test_keys_of_a_later_version_are_ignored():
    assert JobRecord.from_json(asdict(make_job_record()) | {"colour": "red"}) == make_job_record()


WITHOUT_A_KEY = {key: value for key, value in asdict(make_job_record()).items() if key != "cpu_j"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        json.dumps(asdict(make_job_record())).encode()[:-20],
        b"\x80\x81",
        b"[]",
        b"null",
        b'"naip"',
        b"{}",
        json.dumps(WITHOUT_A_KEY).encode(),
    ],
    ids=["empty", "cut", "no text", "a list", "null", "a string", "no keys", "a key is missing"],
)
def test_a_damaged_record_or_another_file_is_named(tmp_path, data):
    path = tmp_path / "s.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: expected the record of a job, .* Delete it\."):
        read_job_record(str(path))


def test_a_missing_record_is_reported_as_missing(tmp_path):
    with pytest.raises(SourceError, match=r"none\.json: does not exist"):
        read_job_record(str(tmp_path / "none.json"))


# ----------------------------------------------------------------------------------------------------------------- sums


def test_sums_add_everything_but_the_peak_and_whether_energy_was_measured():
    numbers = [f.name for f in fields(JobSums) if f.name not in ("jobs", "peak_memory_bytes", "energy_is_measured")]
    weights = {name: 10 + n for n, name in enumerate(numbers)}  # another sum for each
    records = [
        make_job_record(**{name: n * weight for name, weight in weights.items()}, peak_memory_bytes=peak)
        for n, peak in ((1, 70), (2, 90), (4, 80))
    ]
    assert asdict(JobSums.of(records)) == {
        "jobs": 3,
        **{name: 7 * weight for name, weight in weights.items()},
        "peak_memory_bytes": 90,
        "energy_is_measured": True,
    }


def test_every_number_of_a_record_that_is_no_setting_has_a_sum():
    settings = {"threads", "batch_size", "chip_px"}
    numbers = {name for name, value in asdict(make_job_record()).items() if isinstance(value, int | float)}
    assert numbers - settings == {f.name for f in fields(JobSums)} - {"jobs"}


@pytest.mark.parametrize(
    ("measured", "expected"), [([True, True], True), ([True, False], False), ([False, False], False)]
)
def test_the_energy_is_measured_if_that_of_every_job_is(measured, expected):
    assert JobSums.of([make_job_record(energy_is_measured=m) for m in measured]).energy_is_measured is expected


def test_an_iterator_of_records_is_summed():
    assert JobSums.of(make_job_record() for _ in range(3)).chips == 300


def test_no_records_have_sums_of_zero():
    assert JobSums.of([]) == JobSums()
    assert JobSums() == JobSums(jobs=0, chips=0, wall_s=0.0, peak_memory_bytes=0, energy_is_measured=True)


def test_the_rate_is_chips_over_the_seconds_of_the_encoder():
    records = [make_job_record(chips=300, encoder_s=10.0), make_job_record(chips=100, encoder_s=6.0)]
    assert JobSums.of(records).chips_per_second == 25


@pytest.mark.parametrize(
    "changes",
    [{"chips": 0, "encoder_s": 0.0}, {"chips": 0, "encoder_s": 3.0}, {"chips": 7, "encoder_s": 0.0}],
    ids=["nothing", "no chips", "no seconds"],
)
def test_without_chips_or_seconds_there_is_no_rate(changes):
    assert JobSums.of([make_job_record(**changes)]).chips_per_second is None


def test_the_energy_is_that_of_processors_and_gpus():
    record = make_job_record(cpu_j=1_800_000.0, gpu_j=9_000_000.0)
    assert JobSums.of([record, record]).energy_j == 21_600_000
