"""What an embedding job took, as a small JSON file per shard. It is never part of a product."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from kiln.errors import ConfigError
from kiln.formats.json_digest import with_digest
from kiln.io import storage


@dataclass(frozen=True)
class JobRecord:
    """What one job took. Seconds, bytes, requests and joules are those of the job alone.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition.
        shard: Name of the shard.
        started: Time of its beginning, ISO 8601 in UTC.
        ended: Time of its end.
        processor: Name of the processor, or of the GPU that encoded.
        device: `cpu` or `cuda`.
        threads: Threads of the encoder.
        precision: Precision of the encoder.
        batch_size: Chips encoded together.
        chip_px: Side of an encoded chip in pixels; 0 if none was encoded.
        chips: Chips encoded; those of checkpoints were encoded by an earlier try.
        rows: Rows of the embeddings file.
        wall_s: Seconds from beginning to end.
        encoder_s: Seconds that the encoder worked.
        waiting_s: Seconds that the encoder waited for chips.
        reading_s: Seconds of all reading threads together.
        cpu_s: Seconds of processor time, of all threads.
        gpu_s: Seconds that a GPU was held.
        pixel_bytes: Bytes of pixels, decoded.
        network_bytes: Bytes read from stores.
        disk_bytes: Bytes read from local files.
        requests: Answered requests to stores.
        peak_memory_bytes: Peak resident memory of the process.
        cpu_j: Energy of processor and memory in joules.
        gpu_j: Energy of the GPU in joules.
        energy_is_measured: Whether counters gave the energy; otherwise it is estimated from the seconds.
    """

    dataset: str
    partition: str
    shard: str
    started: str
    ended: str
    processor: str
    device: str
    threads: int
    precision: str
    batch_size: int
    chip_px: int
    chips: int
    rows: int
    wall_s: float
    encoder_s: float
    waiting_s: float
    reading_s: float
    cpu_s: float
    gpu_s: float
    pixel_bytes: int
    network_bytes: int
    disk_bytes: int
    requests: int
    peak_memory_bytes: int
    cpu_j: float
    gpu_j: float
    energy_is_measured: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of a JSON object. Raises KeyError for another object."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def write_job_record(uri: str, record: JobRecord) -> None:
    """Write a record to a path or s3://."""
    storage.write_bytes(uri, (json.dumps(with_digest(asdict(record)), indent=1) + "\n").encode())


def read_job_record(uri: str) -> JobRecord:
    """Return the record at a path or s3://. Raises ConfigError for another file."""
    try:
        return JobRecord.from_json(json.loads(storage.read_bytes(uri)))
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{uri}: expected the record of a job, got another file ({e}). Delete it.") from e


@dataclass(frozen=True)
class JobSums:
    """The sums of job records.

    Attributes:
        jobs: Number of records.
        peak_memory_bytes: The largest of them.
        energy_is_measured: Whether the energy of every job was measured.
    """

    jobs: int = 0
    chips: int = 0
    rows: int = 0
    wall_s: float = 0.0
    encoder_s: float = 0.0
    waiting_s: float = 0.0
    reading_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    pixel_bytes: int = 0
    network_bytes: int = 0
    disk_bytes: int = 0
    requests: int = 0
    peak_memory_bytes: int = 0
    cpu_j: float = 0.0
    gpu_j: float = 0.0
    energy_is_measured: bool = True

    @classmethod
    def of(cls, records: Iterable[JobRecord]) -> Self:
        """Return the sums of some records."""
        records = list(records)
        summed = [f.name for f in fields(cls) if f.name not in ("jobs", "peak_memory_bytes", "energy_is_measured")]
        return cls(
            jobs=len(records),
            peak_memory_bytes=max((record.peak_memory_bytes for record in records), default=0),
            energy_is_measured=all(record.energy_is_measured for record in records),
            **{name: sum(getattr(record, name) for record in records) for name in summed},
        )

    @property
    def chips_per_second(self) -> float | None:
        """Rate of one job's encoder; None if nothing was encoded."""
        return self.chips / self.encoder_s if self.chips and self.encoder_s else None

    @property
    def energy_j(self) -> float:
        """Energy of processors, memory and GPUs in joules."""
        return self.cpu_j + self.gpu_j
