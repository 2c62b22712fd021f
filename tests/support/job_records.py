"""Records of jobs with given numbers."""

from typing import Any

from kiln.formats.job_record import JobRecord


def make_job_record(**changes: Any) -> JobRecord:
    """Return the record of a job that embedded 100 chips in 20 s of an hour."""
    values: dict[str, Any] = {
        "dataset": "naip",
        "partition": "nd-2019",
        "shard": "nd-2019-00000",
        "started": "2026-03-01T10:00:00+00:00",
        "ended": "2026-03-01T11:00:00+00:00",
        "processor": "CPU A",
        "device": "cpu",
        "threads": 4,
        "precision": "float32",
        "batch_size": 8,
        "chip_px": 256,
        "chips": 100,
        "rows": 120,
        "wall_s": 3600.0,
        "encoder_s": 20.0,
        "waiting_s": 5.0,
        "reading_s": 1800.0,
        "cpu_s": 7200.0,
        "gpu_s": 0.0,
        "pixel_bytes": 4000,
        "network_bytes": 3_000_000,
        "disk_bytes": 1_500_000,
        "requests": 1200,
        "peak_memory_bytes": 2_000_000_000,
        "cpu_j": 3_600_000.0,
        "gpu_j": 0.0,
        "energy_is_measured": True,
    }
    return JobRecord(**(values | changes))
