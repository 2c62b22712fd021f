"""What is checked before jobs are submitted to AWS: regions of archives, and what reading across regions costs."""

import logging
from functools import cache
from typing import Any

from kiln.aws.batch import archive_region, check_jobs, region_of_jobs, transfer_cost
from kiln.errors import ConfigError
from kiln.workflow.run import Run

log = logging.getLogger(__name__)


def check_executor(settings: Any, remote: Any) -> None:
    """Check queue, role, image and variables of the aws-batch executor. Raises ConfigError unless jobs can run."""
    check_jobs(settings.job_queue, settings.job_role, remote.container_image, tuple(remote.envvars))


class RegionCheck:
    """Stops, or with `allow_cross_region` warns, where jobs would read an archive in another region.

    With every shard in place there is nothing to read, and nothing to report.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.check = cache(self._check)

    def _check(self, dataset: str) -> None:
        """Check one dataset, once. Raises ConfigError where jobs must not be submitted."""
        config, paths = self.run.config, self.run.paths
        here = region_of_jobs()
        there = archive_region(config[dataset]["archive"], config[dataset]["archive_region"])
        if there in (None, here):
            return
        cost = transfer_cost([paths.uri(self.run.datasets[dataset].plan)], config["plan"]["price_per_gb_moved"])
        if not cost:
            return
        message = f"{dataset}: the archive is in {there} and the jobs run in {here}: {cost}"
        if not config["allow_cross_region"]:
            raise ConfigError(f"{message} Take a queue and a bucket of {there}, or set allow_cross_region: true.")
        log.warning(message)
