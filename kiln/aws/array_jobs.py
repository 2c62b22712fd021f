"""Array jobs of AWS Batch: their description in the run's bucket, the request to Batch, the command of one job.

An array is described by a small file in the run's bucket (`Array`), named by its content. It lists the names of the
array's shards. Job n does the nth, with the command that the workflow's rule would run for it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from kiln.aws import code_bundle
from kiln.aws.batch import JobResources, embed_resources, smallest_fit
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest
from kiln.io import storage
from kiln.workflow.commands import OUTPUT, PARTITION, SHARD, THREADS, WEIGHTS, embed_command, fill
from kiln.workflow.run import Run

MAX_JOBS = 10_000  # of an array, AWS's limit; the minimum is 2
RETRY = {  # AWS may take a spot machine back: the job is tried again. Any other failure would repeat itself.
    "attempts": 5,
    "evaluateOnExit": [
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ],
}
MODULE = "scripts.array_job"  # what the container of a job runs
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedRule:
    """The embedding jobs of a dataset. All files are URIs below the run's storage.

    Attributes:
        dataset: Name of the archive.
        run: Name of the run.
        command: A job's command, with the tokens SHARD, PARTITION and WEIGHTS (a local path) of kiln.workflow.commands.
        output: The embeddings file, with the tokens SHARD and PARTITION.
        plan: The dataset's plan.
        partitions: Patterns of the partitions that the run is limited to; none takes all.
        folder: The dataset's folder.
        weights: The extracted encoder.
        resources: Resources of a job.
        chips_per_second: The configured rate of a job's encoder; None if it is unknown.
        price_per_hour: The configured price of a job's machine.
    """

    dataset: str
    run: str
    command: tuple[str, ...]
    output: str
    plan: str
    partitions: tuple[str, ...]
    folder: str
    weights: str
    resources: JobResources
    chips_per_second: float | None
    price_per_hour: float


def embed_rule(run: Run, name: str) -> EmbedRule:
    """Return the embedding jobs of a run's dataset. They run the same command as the workflow's rule.

    Raises:
        ConfigError: The config does not name the dataset, or AWS Batch has no such resources.
    """
    dataset, uri, rates = run.dataset(name), run.paths.uri, run.config["plan"]
    resources = smallest_fit(embed_resources(run.config))
    (output,) = dataset.shard_files(PARTITION, [SHARD])
    later = {token: token for token in (PARTITION, SHARD, WEIGHTS)}
    values = {**later, OUTPUT: uri(output), THREADS: str(resources.threads)}
    return EmbedRule(
        dataset=name,
        run=run.paths.run,
        command=tuple(fill(embed_command(run, dataset), values)),
        output=uri(output),
        plan=uri(dataset.plan),
        partitions=dataset.patterns,
        folder=uri(dataset.folder),
        weights=uri(run.weights),
        resources=resources,
        chips_per_second=rates["chips_per_second"],
        price_per_hour=rates["price_per_hour"],
    )


@dataclass(frozen=True)
class Array:
    """The description of an array job, which its jobs read.

    Attributes:
        command, output, weights: As in EmbedRule.
        shards: Merge partition and name of each job's shard.
    """

    command: Sequence[str]
    output: str
    weights: str
    shards: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, rule: EmbedRule, shards: Sequence[tuple[str, str]] = ()) -> Self:
        """Return the array of a rule and shards (partition and name)."""
        return cls(rule.command, rule.output, rule.weights, shards)

    def output_of(self, partition: str, shard: str) -> str:
        """Return the embeddings file of a shard."""
        return fill([self.output], {PARTITION: partition, SHARD: shard})[0]

    def command_of(self, partition: str, shard: str, weights: str) -> list[str]:
        """Return the command of a shard; `weights` is a local path."""
        return fill(self.command, {PARTITION: partition, SHARD: shard, WEIGHTS: weights})

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
