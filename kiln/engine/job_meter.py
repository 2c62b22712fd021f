"""The measurement of a job: seconds, bytes, requests and energy from its beginning to its end."""

import time
from datetime import UTC, datetime

from kiln.engine.options import EmbedOptions
from kiln.engine.statistics import ShardStatistics
from kiln.formats.job_record import JobRecord
from kiln.formats.records import SourceInfo
from kiln.io import gdal, storage
from kiln.io.energy import EnergyMeter
from kiln.io.machine import cpu_name
from kiln.io.memory import peak_memory


class JobMeter:
    """A measurement from its creation to `record`.

    Args:
        device: `cpu` or `cuda:N`.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._started = datetime.now(UTC)
        self._start, self._cpu_s = time.monotonic(), time.process_time()
        self._traffic = storage.traffic() + gdal.traffic()
        self._energy = EnergyMeter(_gpu_uuid(device))

    def record(
        self,
        info: SourceInfo,
        shard: str,
        options: EmbedOptions,
        precision: str,
        statistics: ShardStatistics,
        rows: int,
    ) -> JobRecord:
        """Return the record of the job, which ends now.

        Args:
            info: Description of the job's source.
            shard: Name of the shard.
            options: The job's options.
            precision: Precision of the encoder.
            statistics: Counts of the shard.
            rows: Rows of the embeddings file.
        """
        import torch

        wall_s, energy = time.monotonic() - self._start, self._energy.stop()
        traffic = storage.traffic() + gdal.traffic() - self._traffic
        on_gpu = self._device != "cpu"
        return JobRecord(
            dataset=info.dataset,
            partition=info.partition,
            shard=shard,
            started=self._started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            processor=torch.cuda.get_device_name(self._device) if on_gpu else cpu_name(),
            device=self._device.partition(":")[0],
            threads=torch.get_num_threads(),
            precision=precision,
            batch_size=options.batch_size,
            chip_px=statistics.chip_px,
            chips=statistics.progress.embedded,
            rows=rows,
            wall_s=round(wall_s, 3),
            encoder_s=round(statistics.encoding_s, 3),
            waiting_s=round(statistics.waiting_s, 3),
            reading_s=round(statistics.reading_s, 3),
            cpu_s=round(time.process_time() - self._cpu_s, 3),
            gpu_s=round(wall_s, 3) if on_gpu else 0.0,
            pixel_bytes=statistics.read_bytes,
            network_bytes=traffic.read_bytes,
            disk_bytes=statistics.disk_bytes,
            requests=traffic.requests,
            peak_memory_bytes=peak_memory(),
            cpu_j=round(energy.cpu_j, 3),
            gpu_j=round(energy.gpu_j, 3),
            energy_is_measured=energy.is_measured,
        )


def _gpu_uuid(device: str) -> str:
    """Return the UUID of a GPU as NVML writes it; empty for the CPU."""
    if device == "cpu":
        return ""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
