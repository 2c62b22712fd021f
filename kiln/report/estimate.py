"""The estimate of a run: units, shards, chips, bytes, hours and prices, before it starts and on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from kiln.errors import ConfigError
from kiln.formats import plan_file, vectors
from kiln.io import storage
from kiln.io.text_table import aligned, format_bytes

FACTS_BYTES = 400  # of a row without its vector, compressed, about
SUM_ABOVE = 3  # partitions of a dataset; more get a row with their sum
NO_PATCHES: Mapping[str, int] = MappingProxyType({})
HEAD = ("", "units", "shards", "done", "chips", "to read", "encoder-h", "storage", "compute", "per month")


@dataclass(frozen=True)
class PlanSummary:
    """The sums of one partition of a plan.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition.
        units: Number of units.
        shards: Number of shards.
        done: Number of finished shards.
        chips: Chips of all shards, at most.
        chips_left: Chips of the shards that are not finished, at most.
        read: Bytes of pixels that these shards read.
        stored: Bytes of shards, product and explorer database.
    """

    dataset: str
    partition: str
    units: int = 0
    shards: int = 0
    done: int = 0
    chips: int = 0
    chips_left: int = 0
    read: int = 0
    stored: int = 0

    def __add__(self, other: Self) -> Self:
        """Return the sums of both, under the names of the first."""
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)[2:]}
        return replace(self, **sums)


@dataclass(frozen=True)
class Rates:
    """The rates of an estimate: chips per second of one job's encoder, its price per hour, and that of storage."""

    chips_per_second: float
    price_per_hour: float
    price_per_gb_month: float

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> Self:
        """Return the rates in the section `plan` of the config. Raises ConfigError if one is missing."""
        try:
            return cls(**{field.name: float(section[field.name]) for field in fields(cls)})
        except KeyError as e:
            raise ConfigError(f"plan: expected a number {e}, got none. Add it.") from e


def chip_bytes(vector_length: int, vector_dtype: str, embedding: vectors.Embedding = "class", patches: int = 0) -> int:
    """Return the bytes of a chip in shard, product and explorer database together.

    Args:
        vector_length: Numbers of a vector.
        vector_dtype: Their dtype in files; the database holds float16.
        embedding: The vectors of a row.
        patches: Patches of the chip, stored once as float16.
    """
    vector = vector_length * vectors.BYTES[vector_dtype] + (4 if vector_dtype == "int8" else 0)
    in_files = 2 * (len(vectors.KINDS[embedding]) * vector + FACTS_BYTES)
    return in_files + vectors.BYTES["float16"] * vector_length * (1 + patches) + FACTS_BYTES


def summarise(
    plan: str,
    vector_length: int,
    vector_dtype: str,
    embedding: vectors.Embedding = "class",
    patches: Mapping[str, int] = NO_PATCHES,
) -> list[PlanSummary]:
    """Return the sums of a plan by partition; finished shards are those in `shards/<partition>/` next to the plan.

    Args:
        plan: Path or s3:// of the plan.
        vector_length: Numbers of a vector.
        vector_dtype: Their dtype in files.
        embedding: The vectors of a row.
        patches: Stored patches of a chip by dataset.

    Raises:
        ConfigError: If the file is not a plan, or has no shard.
    """
    folder = storage.join(plan.rpartition("/")[0] or ".", "shards")
    files = storage.listing(folder) if storage.is_s3(folder) or Path(folder).is_dir() else {}
    summaries: dict[str, PlanSummary] = {}
    for shard in plan_file.read_plan(plan):
        done = f"{folder}/{shard.partition}/{shard.name}.parquet" in files
        before = summaries.get(shard.partition, PlanSummary(shard.dataset, shard.partition))
        summaries[shard.partition] = before + PlanSummary(
            shard.dataset,
            shard.partition,
            units=len(shard.units),
            shards=1,
            done=int(done),
            chips=shard.expected,
            chips_left=0 if done else shard.expected,
            read=0 if done else shard.read_bytes,
            stored=shard.expected * chip_bytes(vector_length, vector_dtype, embedding, patches.get(shard.dataset, 0)),
        )
    if not summaries:
        raise ConfigError(f"{plan}: expected shards, got no shard in it. Check what the config selects.")
    return list(summaries.values())


def with_sums(summaries: Sequence[PlanSummary]) -> list[PlanSummary]:
    """Return the partitions, and after those of a dataset that has more than three, their sum."""
    rows: list[PlanSummary] = []
    for dataset, group in groupby(summaries, key=lambda summary: summary.dataset):
        partitions = list(group)
        rows += partitions
        if len(partitions) > SUM_ABOVE:
            rows.append(sum(partitions, PlanSummary(dataset, "in all")))
    return rows


def estimate_text(summaries: Sequence[PlanSummary], rates: Rates) -> str:
    """Return the table of what is left to do and what it costs."""
    rows = [HEAD]
    for summary in with_sums(summaries):
        hours = summary.chips_left / rates.chips_per_second / 3600
        rows.append(
            (
                f"{summary.dataset} {summary.partition}",
                f"{summary.units:,}",
                f"{summary.shards:,}",
                f"{summary.done:,}",
                f"{summary.chips:,}",
                format_bytes(summary.read),
                f"{hours:,.2f}",
                format_bytes(summary.stored),
                f"{hours * rates.price_per_hour:,.2f}",
                f"{summary.stored / 1e9 * rates.price_per_gb_month:,.2f}",
            )
        )
    return "\n".join(
        [
            *aligned(rows),
            "",
            "Storage is that of shards, product and explorer database.",
            f"Chips are the most there can be: sea, clouds and nodata are skipped. Hours are for what is left, at "
            f"{rates.chips_per_second:g} chips/s of one job's encoder; prices as configured under `plan`.",
        ]
    )
