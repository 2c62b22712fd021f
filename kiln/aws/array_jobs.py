"""Array jobs of AWS Batch: their description in the run's bucket, the request to Batch, the command of one job.

An array is described by a small file in the run's bucket (`Array`), named by its content. It lists the names of the
array's shards. Job n does the nth, with the command that the workflow's rule would run for it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from kiln.aws import code_bundle
from kiln.aws.batch import JobResources
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest
from kiln.io import storage

MAX_JOBS = 10_000  # of an array, AWS's limit; the minimum is 2
RETRY = {  # AWS may take a spot machine back: the job is tried again. Any other failure would repeat itself.
    "attempts": 5,
    "evaluateOnExit": [
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ],
}
MODULE = "scripts.array_job"  # what the container of a job runs
SHARD, PARTITION, PLAN, WEIGHTS = "{shard}", "{partition}", "{plan}", "{weights}"  # placeholders of a job's values
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedRule:
    """The workflow's embedding rule of one dataset. All files are URIs below the run's storage.

    Attributes:
        dataset: Name of the archive.
        run: Name of the run.
        command: The rule's command as arguments, without its log. It holds the placeholders SHARD, PARTITION, PLAN and
            WEIGHTS (a local path).
        output: The embeddings file, with the placeholders SHARD and PARTITION.
        plans: Plans by merge partition, or one plan of all partitions under ''.
        folder: The dataset's folder.
        weights: The extracted encoder.
        resources: Resources of a job.
        chips_per_second: The configured rate of a job's encoder.
        price_per_hour: The configured price of a job's machine.
    """

    dataset: str
    run: str
    command: tuple[str, ...]
    output: str
    plans: Mapping[str, str]
    folder: str
    weights: str
    resources: JobResources
    chips_per_second: float
    price_per_hour: float


@dataclass(frozen=True)
class Array:
    """The description of an array job, which its jobs read.

    Attributes:
        command, output, plans, weights: As in EmbedRule.
        shards: Merge partition and name of each job's shard.
    """

    command: Sequence[str]
    output: str
    plans: Mapping[str, str]
    weights: str
    shards: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, rule: EmbedRule, shards: Sequence[tuple[str, str]] = ()) -> Self:
        """Return the array of a rule and shards (partition and name)."""
        return cls(rule.command, rule.output, rule.plans, rule.weights, shards)

    def output_of(self, partition: str, shard: str) -> str:
        """Return the embeddings file of a shard."""
        return self.output.replace(PARTITION, partition).replace(SHARD, shard)

    def command_of(self, partition: str, shard: str, weights: str) -> list[str]:
        """Return the command of a shard; `weights` is a local path."""
        plan = self.plans.get(partition) or self.plans[""]
        values = {SHARD: shard, PARTITION: partition, PLAN: plan, WEIGHTS: weights}
        return [reduce(lambda text, name: text.replace(name, values[name]), values, word) for word in self.command]

    def write(self, folder: str) -> str:
        """Write the description into a folder, named by its content. Return its URI."""
        uri = storage.join(folder, f"array-{digest(asdict(self))[:16]}.json")
        storage.write_bytes(uri, (json.dumps(asdict(self), sort_keys=True) + "\n").encode())
        return uri

    @classmethod
    def read(cls, uri: str) -> Self:
        """Read a description.

        Raises:
            ConfigError: The file is something else.
        """
        try:
            return cls(**json.loads(storage.read_bytes(uri)))
        except (ValueError, TypeError) as e:
            raise ConfigError(
                f"{uri}: expected the description of an array job, got another file ({e}). Submit the array again."
            ) from e


def array_sizes(jobs: int) -> list[tuple[int, int]]:
    """Return first job and size of each array for so many jobs: as few arrays as possible, of about equal size."""
    arrays = -(-jobs // MAX_JOBS)
    cuts = [jobs * n // arrays for n in range(arrays + 1)]
    return [(first, end - first) for first, end in pairwise(cuts)]


def prepare_job(array: Array, index: int, weights: Path) -> list[str] | None:
    """Fetch the weights of a job, and return its command.

    Args:
        array: The array's description.
        index: Position of the job's shard.
        weights: Where the weights go.

    Returns:
        The command, or None where there is nothing to do: the shard is finished, or `index` is past the last shard.

    Raises:
        ConfigError: The command does not run one of Kiln's scripts.
    """
    if index >= len(array.shards):
        log.info("number %d is past the end of %d shards: nothing to do", index, len(array.shards))
        return None
    partition, shard = array.shards[index]
    output = array.output_of(partition, shard)
    if storage.stat(output):
        log.info("%s is finished: nothing to do", output)
        return None
    command = array.command_of(partition, shard, str(weights))
    check_is_script(command)
    storage.fetch(array.weights, weights)
    return command


def check_is_script(command: Sequence[str]) -> None:
    """Raise ConfigError unless a command is `python -m scripts.NAME ...`.

    Descriptions lie in a bucket that others may write. A job runs Kiln's scripts alone.
    """
    if tuple(command[:2]) != ("python", "-m") or len(command) < 3 or not command[2].startswith("scripts."):
        raise ConfigError(
            f"array job: expected `python -m scripts.NAME ...`, got `{' '.join(command[:3])}`. Submit the array again."
        )


@dataclass(frozen=True)
class Submission:
    """A request to Batch: where jobs go, what they run and what they need; `code` and `array` are s3:// URIs."""

    name: str
    queue: str
    definition: str
    code: str
    sha256: str
    array: str
    resources: JobResources
    tags: Mapping[str, str]

    def request(self, first: int, size: int) -> dict[str, Any]:
        """Return the request for an array of `size` jobs from shard `first` on, or for one shard that of a plain job.

        AWS takes no array of one job.
        """
        resources = {"VCPU": self.resources.threads, "MEMORY": self.resources.mem_mb}
        if self.resources.gpus:
            resources["GPU"] = self.resources.gpus
        position = ["--index", str(first)] if size == 1 else ["--first", str(first)]
        return {
            "jobName": self.name,
            "jobQueue": self.queue,
            "jobDefinition": self.definition,
            **({} if size == 1 else {"arrayProperties": {"size": size}}),
            "containerOverrides": {
                "command": code_bundle.command(self.code, self.sha256, MODULE, "--array", self.array, *position),
                "resourceRequirements": [{"type": kind, "value": str(n)} for kind, n in resources.items()],
            },
            "retryStrategy": RETRY,
            "tags": dict(self.tags),
            "propagateTags": True,
        }
