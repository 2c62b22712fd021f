"""What a run took: the jobs' records, their sums by dataset with a price, and tables of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from kiln.errors import ConfigError, SourceError
from kiln.formats.job_record import JobRecord, JobSums, read_job_record
from kiln.formats.json_digest import with_digest
from kiln.io import storage
from kiln.io.text_table import format_bytes, format_duration, format_energy, format_price, format_rate
from kiln.report import html_page
from kiln.report.status.folders import MAX_READERS, list_stats
from kiln.report.status.outputs import MAX_CACHED

log = logging.getLogger(__name__)
HEAD = (
    *("dataset", "jobs", "chips", "chips/s", "encoder", "reading", "CPU", "GPU", "jobs' time"),
    *("read", "requests", "peak memory", "energy", "price"),
)
NOTE = (
    "Encoder: time that encoders worked; chips/s: chips over it. Reading: time of all reading threads. CPU and GPU: "
    "time of cores, and time that GPUs were held. Jobs' time is priced; their start is not in it. The last try of each "
    "shard counts. "
)


@dataclass(frozen=True)
class DatasetCosts:
    """What the shards of one dataset's folder took.

    Attributes:
        name: Name of the folder, as `naip-1a2b3c4d`.
        records: Records of the jobs.
        price_per_hour: Price of one job's machine; None if it is unknown.
    """

    name: str
    records: Sequence[JobRecord]
    price_per_hour: float | None

    @property
    def sums(self) -> JobSums:
        """The sums of all jobs."""
        return JobSums.of(self.records)

    def price(self, sums: JobSums) -> float | None:
        """Return the price of jobs: their hours times the price of one job's machine. Their start is not in it."""
        return None if self.price_per_hour is None else sums.wall_s / 3600 * self.price_per_hour

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the dataset's record: the sums in all, by partition, and by processor."""
        return {
            "dataset": self.name,
            "price_per_hour": self.price_per_hour,
            **self._sums_json(self.records),
            "partitions": self._grouped([record.partition for record in self.records]),
            "processors": self._grouped([record.processor for record in self.records]),
        }

    def _grouped(self, keys: Sequence[str]) -> dict[str, Any]:
        return {
            key: self._sums_json([record for record, of in zip(self.records, keys, strict=True) if of == key])
            for key in sorted(set(keys))
        }

    def _sums_json(self, records: Sequence[JobRecord]) -> dict[str, Any]:
        sums = JobSums.of(records)
        values = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(sums).items()}
        price = self.price(sums)
        hours = {"cpu_hours": round(sums.cpu_s / 3600, 6), "gpu_hours": round(sums.gpu_s / 3600, 6)}
        return {
            **values,
            **hours,
            "energy_kwh": round(sums.energy_j / 3.6e6, 6),
            "price": None if price is None else round(price, 6),
        }


def read_costs(
    runs: str, datasets: Sequence[str], price_per_hour: float | None, files: Mapping[str, storage.Stat] | None = None
) -> list[DatasetCosts]:
    """Return what the jobs of datasets took.

    Args:
        runs: Folder of the records, `results/<run>/runs`, a path or s3://.
        datasets: Names of the datasets' folders.
        price_per_hour: Price of one job's machine; None if it is unknown.
        files: Size and time of the files of the run, if they are known; None lists them.

    Returns:
        The costs of each dataset. A file that is no record, or is gone meanwhile, is left out with a warning, as is the
        record of a shard that is not there any more.
    """
    costs, run = [], runs.rstrip("/").rpartition("/")[0] or "."
    with ThreadPoolExecutor(MAX_READERS) as pool:
        for name in datasets:
            folder, shards = storage.join(runs, "jobs", name), storage.join(run, name, "shards")
            stats = list_stats(folder) | list_stats(shards) if files is None else files
            versions = sorted(
                (uri, stat.size, stat.etag, stat.modified)
                for uri, stat in stats.items()
                if uri.startswith(f"{folder}/") and uri.endswith(".json")
                if f"{shards}/{uri.removeprefix(f'{folder}/').removesuffix('.json')}.parquet" in stats
            )
            records = pool.map(lambda version: _read_record(*version), versions)
            costs.append(DatasetCosts(name, [record for record in records if record], price_per_hour))
    return costs


@lru_cache(maxsize=MAX_CACHED)
def _read_record(uri: str, size: int, etag: str, modified: int) -> JobRecord | None:
    """Return a record, read once for each version of its file; None for a damaged one."""
    try:
        return read_job_record(uri)
    except (ConfigError, SourceError) as e:
        log.warning("%s", e)
        return None


def write_cost_records(runs: str, costs: Sequence[DatasetCosts]) -> None:
    """Write `<dataset>.json` for each dataset into the folder of the records."""
    for dataset in costs:
        text = json.dumps(with_digest(dataset.as_json()), indent=1) + "\n"
        storage.write_bytes(storage.join(runs, f"{dataset.name}.json"), text.encode())


def cost_row(name: str, sums: JobSums, price: float | None) -> list[str]:
    """Return the cells of a row below HEAD."""
    rate, about = sums.chips_per_second, "" if sums.energy_is_measured else "about "
    return [
        *(name, f"{sums.jobs:,}", f"{sums.chips:,}", "" if rate is None else format_rate(rate)),
        *map(format_duration, (sums.encoder_s, sums.reading_s, sums.cpu_s, sums.gpu_s, sums.wall_s)),
        *(format_bytes(sums.network_bytes + sums.disk_bytes), f"{sums.requests:,}"),
        *(
            format_bytes(sums.peak_memory_bytes),
            about + format_energy(sums.energy_j),
            "unknown" if price is None else format_price(price),
        ),
    ]


def energy_note(sums: Mapping[str, JobSums]) -> str:
    """Return how the energy of datasets is known."""
    if not any(s.jobs for s in sums.values()):
        return ""
    if all(s.energy_is_measured for s in sums.values()):
        return "Energy was measured by counters of processors and GPUs."
    return "Energy is estimated from processor and GPU time where counters could not be read."


def cost_table(costs: Sequence[DatasetCosts]) -> str:
    """Return the table as HTML, a row per dataset and their sum, with a note."""
    sums = {dataset.name: dataset.sums for dataset in costs}
    rows = [cost_row(dataset.name, sums[dataset.name], dataset.price(sums[dataset.name])) for dataset in costs]
    if len(costs) > 1:
        total = JobSums.of([record for dataset in costs for record in dataset.records])
        rows.append(cost_row("in all", total, costs[0].price(total)))
    body = html_page.table("What the jobs took that embedded the shards", [HEAD, *rows])
    return f"{body}<p class=empty>{NOTE}{energy_note(sums)}</p>"
