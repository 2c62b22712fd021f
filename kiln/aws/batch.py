"""Resources of jobs, and those that AWS Batch's executor accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiln.errors import ConfigError


@dataclass(frozen=True)
class JobResources:
    """The resources of a job: CPU cores, memory in MiB, and GPUs."""

    threads: int
    mem_mb: int
    gpus: int = 0

    @property
    def resources(self) -> dict[str, int]:
        """Snakemake's `resources`; the executor's name for GPUs is `_gpus`."""
        return {"mem_mb": self.mem_mb} | ({"_gpus": self.gpus} if self.gpus else {})


def smallest_fit(requested: JobResources) -> JobResources:
    """Return the smallest resources in the executor's table that have at least what is requested.

    The executor itself takes the least memory that it knows for that many cores, even if more was requested.

    Raises:
        ConfigError: The table has no such resources.
    """
    from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING as TABLE

    fits = [(t, m) for m, cores in TABLE.items() for t in cores if t >= requested.threads and m >= requested.mem_mb]
    if not fits:
        raise ConfigError(
            f"resources: expected at most {max(max(cores) for cores in TABLE.values())} threads and {max(TABLE)} MB, "
            f"the most that a job of AWS Batch can have, got {requested.threads} threads and {requested.mem_mb} MB. "
            "Lower them."
        )
    return JobResources(*min(fits), requested.gpus)


def embed_resources(config: Mapping[str, Any]) -> JobResources:
    """Return the configured resources of an embedding job."""
    resources = config["resources"]
    return JobResources(resources["embed_threads"], resources["embed_mem_mb"], int(resources["device"] != "cpu"))
