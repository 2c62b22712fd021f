"""What a job took: its record, which states this job alone and does not change its files."""

import json
import time
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pynvml
import pytest
import torch

from kiln.engine.accounting import Ledger
from kiln.engine.job import EmbedOptions, embed_shard
from kiln.engine.job_meter import JobMeter
from kiln.engine.statistics import ShardStatistics
from kiln.errors import TooManyFailuresError
from kiln.formats.job_record import JobRecord, read_job_record
from kiln.formats.records import Dropped, Unit
from kiln.io import disk_reads, energy, storage
from kiln.io.storage import Traffic
from kiln.model.embedder import Embedder
from tests.support.chips import ListSource, make_chip, make_info
from tests.support.embed_jobs import read_files
from tests.support.naip_scenes import KEY, OTHER_KEY, make_source, scene_pixels, write_scene
from tests.support.traffic import served

OPTIONS = EmbedOptions(threads=1, batch_size=5, read_threads=2)
PAUSE_S = 0.01


@pytest.fixture
def archive(tmp_path):
    """A folder of two scenes of six chips each."""
    for seed, key in enumerate((KEY, OTHER_KEY)):
        write_scene(tmp_path / "archive", key, scene_pixels(seed=seed))
    return tmp_path / "archive"


@pytest.fixture
def embed(tmp_path, encoder_file):
    """A function that embeds a source as the shard `s` and returns the job's result."""

    def do(source, folder="shards", **options):
        output = storage.join(str(tmp_path / folder), "s.parquet")
        return embed_shard(source, **{"weights": encoder_file, "output": output, "options": OPTIONS} | options)

    return do


class Slow(ListSource):
    """A source of two units of three chips, whose reads take time and processor time."""

    def __init__(self):
        events = [make_chip(n, unit) for unit in "ab" for n in range(3)]
        super().__init__(events, {"a": 3, "b": 3}, make_info(partition="2021"))

    def units(self):
        return [Unit(u, n, f"s3://b/{u}", f"etag-{u}", True, "1") for u, n in self.expected.items()]

    def _load(self, event, n):
        end = time.thread_time() + PAUSE_S
        while time.thread_time() < end:
            pass
        return super()._load(event, n)


# ------------------------------------------------------------------------------------------------------- a job's record


def test_the_record_states_the_shard_its_chips_and_the_settings(tmp_path, archive, embed):
    source = make_source(archive, KEY, OTHER_KEY, partition="nd-2019")
    uri = str(tmp_path / "runs" / "s.json")
    result = embed(source, job_record=uri)
    record = read_job_record(uri)
    assert record == result.job
    known = {
        "dataset": "naip",
        "partition": "nd-2019",
        "shard": "s",
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "batch_size": 5,
        "chip_px": 16,
        "chips": 12,
        "rows": 12,
        "gpu_s": 0.0,
        "gpu_j": 0.0,
        "network_bytes": 0,
        "requests": 0,
    }
    assert {key: value for key, value in asdict(record).items() if key in known} == known
    assert result.rows == 12
    assert record.pixel_bytes >= 12 * 4 * 16 * 16
    assert record.peak_memory_bytes > 10_000_000


def test_a_record_has_plain_values_of_its_types(tmp_path, archive, embed):
    embed(make_source(archive), job_record=str(tmp_path / "s.json"))
    values = json.loads((tmp_path / "s.json").read_text())
    assert len(values.pop("content_sha256")) == 64
    types = {f.name: f.type for f in fields(JobRecord)}
    assert values.keys() == types.keys()
    assert {key: type(value) for key, value in values.items()} == types


def test_seconds_are_those_of_the_encoder_the_reads_and_the_job(embed, monkeypatch):
    start_batch = Embedder.start
    monkeypatch.setattr(Embedder, "start", lambda self, chips: time.sleep(PAUSE_S) or start_batch(self, chips))
    before, began = time.monotonic(), datetime.now(UTC)
    record = embed(Slow()).job
    lasted = time.monotonic() - before
    assert record.encoder_s >= 2 * PAUSE_S  # two batches
    assert record.encoder_s + record.waiting_s <= record.wall_s + 0.002  # each is rounded
    assert record.wall_s <= lasted + 0.001
    assert record.reading_s >= 6 * PAUSE_S  # of all threads
    assert record.cpu_s >= 6 * PAUSE_S
    started, ended = (datetime.fromisoformat(text) for text in (record.started, record.ended))
    assert began - timedelta(seconds=1) <= started <= ended <= datetime.now(UTC)
    assert started.utcoffset() == timedelta(0)


def test_energy_without_counters_is_estimated_from_the_processor_time(embed, monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    record = embed(Slow()).job
    assert record.energy_is_measured is False
    assert 6 * PAUSE_S * energy.WATTS_PER_CORE <= record.cpu_j <= (record.cpu_s + 0.001) * energy.WATTS_PER_CORE


@pytest.mark.skipif(not disk_reads.ACCOUNT.exists(), reason="only Linux counts the reads of a thread")
def test_local_scenes_count_as_bytes_of_the_disk(archive, embed):
    record = embed(make_source(archive, KEY, OTHER_KEY)).job
    assert record.disk_bytes >= sum((archive / key).stat().st_size for key in (KEY, OTHER_KEY))
    assert (record.network_bytes, record.requests) == (0, 0)


def test_requests_and_bytes_of_a_remote_archive_are_those_of_its_server(archive, embed, serve):
    server = serve({f"/{key}": (archive / key).read_bytes() for key in (KEY, OTHER_KEY)})
    record = embed(make_source(server.url, KEY, OTHER_KEY)).job
    assert record.chips == 12
    assert Traffic(record.requests, record.network_bytes) == served(server)
    assert {method for method, _, _ in server.requests} == {"HEAD", "GET"}
    sizes = [len(data) for data in server.files.values()]
    assert sum(sizes) / 2 < record.network_bytes <= sum(sizes)


def test_traffic_before_a_job_is_not_the_jobs(archive, embed, serve):
    server = serve({f"/{KEY}": (archive / KEY).read_bytes()})
    storage.read_bytes(f"{server.url}/{KEY}")
    record = embed(make_source(archive)).job
    assert (record.network_bytes, record.requests) == (0, 0)


def test_a_record_in_a_bucket_and_files_in_a_bucket_are_no_traffic_of_the_job(bucket, embed):
    uri = f"{bucket}/runs/s.json"
    result = embed(Slow(), output=f"{bucket}/s.parquet", job_record=uri)
    assert (result.job.requests, result.job.network_bytes) == (0, 0)
    assert read_job_record(uri) == result.job
    assert set(storage.listing(bucket)) == {f"{bucket}/{name}" for name in ("s.parquet", "s.ledger.parquet")} | {uri}


# -------------------------------------------------------------------------------------------- with and without a record


def test_files_are_the_same_bytes_with_and_without_a_record(tmp_path, archive, embed):
    embed(make_source(archive, KEY, OTHER_KEY), "without")
    embed(make_source(archive, KEY, OTHER_KEY), "with", job_record=str(tmp_path / "s.json"))
    files = read_files(tmp_path / "with")
    assert files == read_files(tmp_path / "without")
    assert set(files) == {"s.parquet", "s.ledger.parquet"}


def test_without_a_place_the_result_has_the_record_and_no_file_is_written(tmp_path, embed):
    assert embed(Slow()).job.chips == 6
    assert list(tmp_path.rglob("*.json")) == []


def test_a_job_that_fails_writes_no_record(tmp_path, embed):
    source = Slow()
    source.events[0] = Dropped("a", "failed", 1, "a.tif: unreadable")
    options = EmbedOptions(max_failed_fraction=0)
    with pytest.raises(TooManyFailuresError):
        embed(source, options=options, job_record=str(tmp_path / "s.json"))
    assert list(tmp_path.rglob("*.json")) == []


def test_the_record_is_in_place_before_the_embeddings_file(tmp_path, embed, monkeypatch):
    written, atomic = [], storage.LocalStore.atomic
    monkeypatch.setattr(storage.LocalStore, "atomic", lambda self, uri: Recorded(atomic(self, uri), uri, written))
    embed(Slow(), job_record=str(tmp_path / "s.json"))
    names = [uri.rpartition("/")[2] for uri in written]
    assert names == ["s.ledger.parquet", "s.json", "s.parquet"]


class Recorded:
    """A context that appends a name to a list when it ends."""

    def __init__(self, context, name, ended):
        self.context, self.name, self.ended = context, name, ended

    def __enter__(self):
        return self.context.__enter__()

    def __exit__(self, *error):
        self.ended.append(self.name)
        return self.context.__exit__(*error)


def test_a_resumed_job_counts_only_the_chips_that_it_encoded(tmp_path, embed, encoded):
    job = {
        "checkpoints": str(tmp_path / "checkpoints"),
        "job_record": str(tmp_path / "s.json"),
        "options": EmbedOptions(threads=1, batch_size=1, max_failed_fraction=0),
    }
    failing = Slow()
    failing.events[-1] = Dropped("b", "failed", 1, "b.tif: unreadable")
    with pytest.raises(TooManyFailuresError):
        embed(failing, **job)
    encoded.clear()
    retried = Slow()
    retried.reads = lambda: list(ListSource.reads(retried))[3:]  # those of the second unit
    embed(retried, **job)
    record = read_job_record(job["job_record"])
    assert (record.chips, record.rows) == (len(encoded), 6) == (3, 6)


# ------------------------------------------------------------------------------------------------------------- on a GPU


def test_a_job_on_a_gpu_states_its_name_its_hours_and_its_energy(monkeypatch):
    uuid, joules = "11111111-2222-3333-4444-555555555555", iter([5000, 5040])
    gpu = SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {"cuda:1": gpu}.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "GPU of the test"}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {f"GPU-{uuid}": "handle"}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: next(joules) * 1000)
    meter = JobMeter("cuda:1")
    time.sleep(PAUSE_S)
    statistics = ShardStatistics("s", Ledger([], {}), frozenset())
    record = meter.record(make_info(), "s", OPTIONS, "bfloat16", statistics, 7)
    assert (record.processor, record.device, record.precision) == ("GPU of the test", "cuda", "bfloat16")
    assert record.gpu_s == record.wall_s >= PAUSE_S
    assert record.gpu_j == 40
    assert (record.rows, record.chips) == (7, 0)
