"""Array jobs of AWS Batch: what an array is, what is asked of Batch for it, and what one of its jobs reads.

An array is described by a small file in the run's bucket (`Array`), named by its content: a plan filtered down to the
names of its shards. Job n does the nth, and runs what the Snakefile's rule would run for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Self

from kiln.aws import code_bundle
from kiln.aws.embed_rule import PARTITION, PLAN, SHARD, WEIGHTS, EmbedRule
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest
from kiln.io import storage

MOST = 10_000  # jobs of an array, AWS's limit; the fewest are 2
RETRY = {  # as the published run: a machine that is taken back is no fault of the job, anything else would fail again
    "attempts": 5,
    "evaluateOnExit": [
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ],
}
MODULE = "kiln.aws.array_job"


@dataclass(frozen=True)
class Array:
    """What the jobs of an array have in common; all files are s3:// URIs, `command` as in EmbedRule.

    Job n does `shards[n]`: merge partition and name.
    """

    command: Sequence[str]
    output: str
    plans: Mapping[str, str]
    weights: str
    shards: Sequence[Sequence[str]] = ()

    @classmethod
    def of(cls, rule: EmbedRule, shards: Sequence[tuple[str, str]] = ()) -> Self:
        """An array of the rule's jobs."""
        return cls(rule.command, rule.output, rule.plans, rule.weights, shards)

    def output_of(self, partition: str, shard: str) -> str:
        """The file of a shard."""
        return self.output.replace(PARTITION, partition).replace(SHARD, shard)

    def command_of(self, partition: str, shard: str, weights: str) -> list[str]:
        """The command of a shard, with the weights at a local path."""
        plan = self.plans.get(partition) or self.plans[""]
        values = {SHARD: shard, PARTITION: partition, PLAN: plan, WEIGHTS: weights}
        return [reduce(lambda text, name: text.replace(name, values[name]), values, a) for a in self.command]

    def write(self, folder: str) -> str:
        """Put the description in place, named by its content; returns its URI."""
        uri = storage.join(folder, f"array-{digest(asdict(self))[:16]}.json")
        storage.write_bytes(uri, (json.dumps(asdict(self), sort_keys=True) + "\n").encode())
        return uri

    @classmethod
    def read(cls, uri: str) -> Self:
        """The description at a URI. Raises ConfigError for another file."""
        try:
            return cls(**json.loads(storage.read_bytes(uri)))
        except (ValueError, TypeError) as e:
            raise ConfigError(f"{uri}: not the description of an array job ({e}); submit it again") from e


def pieces(jobs: int) -> list[tuple[int, int]]:
    """First job and size of each array that so many jobs take: as few as may be, alike in size, none above MOST."""
    arrays = -(-jobs // MOST)
    cuts = [jobs * n // arrays for n in range(arrays + 1)]
    return [(a, b - a) for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Submission:
    """Where jobs go, what they are made of and what they take; `code` and `array` are s3:// URIs."""

    name: str
    queue: str
    definition: str
    code: str
    sha256: str
    array: str
    threads: int
    mem_mb: int
    gpus: int
    tags: Mapping[str, str]

    def request(self, first: int, size: int) -> dict[str, Any]:
        """What Batch is asked for: an array of `size` jobs from shard `first` on, or for one shard a plain job."""
        resources = {"VCPU": self.threads, "MEMORY": self.mem_mb} | ({"GPU": self.gpus} if self.gpus else {})
        which = ["--index", str(first)] if size == 1 else ["--first", str(first)]
        return {
            "jobName": self.name,
            "jobQueue": self.queue,
            "jobDefinition": self.definition,
            **({} if size == 1 else {"arrayProperties": {"size": size}}),
            "containerOverrides": {
                "command": code_bundle.command(self.code, self.sha256, MODULE, "--array", self.array, *which),
                "resourceRequirements": [{"type": kind, "value": str(n)} for kind, n in resources.items()],
            },
            "retryStrategy": RETRY,
            "tags": dict(self.tags),
            "propagateTags": True,
        }
