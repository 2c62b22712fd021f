"""The estimate of a run as a table, with notes on where its rates come from."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from kiln.errors import ConfigError
from kiln.formats import plan_file
from kiln.io import storage
from kiln.io.text_table import aligned, format_bytes, format_duration, format_price
from kiln.report.bounds import NOTHING, Bounded
from kiln.report.estimate import (
    EVERYTHING,
    UNKNOWN,
    PartitionEstimate,
    PlanEstimate,
    RowSize,
    Scope,
    database_estimate,
    estimate_plan,
    folder_of,
)
from kiln.report.rates import EncoderRate, EncoderUse

SUM_ABOVE = 3  # partitions of a dataset; more get a row with their sum
HEAD = ("", "units", "shards", "done", "chips", "to read", "time", "output", "price", "per month")


def with_sums(estimates: Sequence[PartitionEstimate]) -> list[PartitionEstimate]:
    """Return the partitions, and after those of a dataset that has more than three, their sum."""
    rows: list[PartitionEstimate] = []
    for dataset, group in groupby(estimates, key=lambda estimate: estimate.dataset):
        partitions = list(group)
        rows += partitions
        if len(partitions) > SUM_ABOVE:
            rows.append(sum(partitions, PartitionEstimate(dataset, "in all")))
    return rows


def estimate_text(
    estimates: Sequence[PartitionEstimate], database: Bounded, price_per_gb_month: float, notes: Sequence[str]
) -> str:
    """Return the table of what is left to do and what it costs, and notes below it.

    Args:
        estimates: The partitions of all datasets.
        database: Bytes of the explorer database.
        price_per_gb_month: Price of storage.
        notes: Sentences about rates and memory.
    """

    def row(estimate: PartitionEstimate) -> list[str]:
        return [
            *(f"{estimate.dataset} {estimate.partition}", f"{estimate.units:,}"),
            *(f"{estimate.shards:,}", f"{estimate.done:,}", estimate.chips.text("{:,.0f}".format)),
            estimate.read_left.text(format_bytes),
            UNKNOWN if estimate.seconds is None else estimate.seconds.text(format_duration),
            estimate.stored.text(format_bytes),
            UNKNOWN if estimate.price is None else estimate.price.text(format_price),
            (estimate.stored * (price_per_gb_month / 1e9)).text(format_price),
        ]

    per_month = (database * (price_per_gb_month / 1e9)).text(format_price)
    last = ["explorer database", *[""] * 6, database.text(format_bytes), "", per_month]
    return "\n".join([*aligned([HEAD, *map(row, with_sums(estimates)), last]), "", *notes])


def run_estimate_text(
    plans: Sequence[str],
    row_size: RowSize,
    numbers: Mapping[str, Any],
    *,
    use: EncoderUse | None = None,
    chip_px: Mapping[str, int] = MappingProxyType({}),
    tuning: str | None = None,
    memory_mb: int | None = None,
    scope: Scope = EVERYTHING,
) -> str:
    """Return the estimate of a run as text.

    Args:
        plans: Paths or s3:// of the plans, each in the folder of its dataset.
        row_size: The vectors of a row.
        numbers: The section `plan` of the config.
        use: How the run uses the encoder; None if that is unknown.
        chip_px: Side of an encoded chip, by dataset.
        tuning: Folder of the rates that `kiln tune` measured; None where jobs run on other machines.
        memory_mb: Memory of an embedding job in MB.
        scope: What the run is limited to.

    Raises:
        ConfigError: If a number is missing, or a file is damaged.
    """
    try:
        price_per_hour, per_gb = float(numbers["price_per_hour"]), float(numbers["price_per_gb_month"])
    except KeyError as e:
        raise ConfigError(f"plan: expected a number {e}, got none. Add it.") from e
    configured = numbers.get("chips_per_second")
    given = EncoderRate(float(configured), is_configured=True) if configured else None
    estimates: list[PartitionEstimate] = []
    datasets_of_note: dict[str, list[str]] = {}
    for plan in plans:
        dataset = next((shard.dataset for shard in plan_file.read_plan(plan)), "")
        px = chip_px.get(dataset)
        measured = use.measured(px, tuning) if use and px and tuning else None
        estimate = estimate_plan(plan, row_size, given or measured, price_per_hour, scope)
        estimates += estimate.partitions
        datasets_of_note.setdefault(_rate_note(estimate, use, px), []).append(dataset)
    notes = ["Output: shards, ledgers and products. At most: there may be less, because of sea, clouds and nodata."]
    notes += [f"{', '.join(datasets)}: {note}" for note, datasets in datasets_of_note.items()]
    if memory_mb:
        notes.append(f"An embedding job may take {memory_mb:,} MB of memory (resources.embed_mem_mb).")
    folder = folder_of(folder_of(plans[0]))
    chips = sum((estimate.chips for estimate in estimates), NOTHING)
    database = database_estimate(storage.join(folder, "explorer"), storage.join(folder, "index"), chips, row_size)
    return estimate_text(estimates, database, per_gb, notes)


def _rate_note(estimate: PlanEstimate, use: EncoderUse | None, chip_px: int | None) -> str:
    """Return where the hours and the price of a dataset come from, or how to measure the rate."""
    memory = estimate.peak_memory_bytes
    peak = f" Its finished jobs took up to {format_bytes(memory)} of memory each." if memory else ""
    if estimate.rate_source != UNKNOWN:
        return f"times and prices by {estimate.rate_source}.{peak}"
    command = use.tune_command(chip_px) if use and chip_px else "kiln tune"
    return f"times and prices are unknown: run kiln tune on a machine of the run:\n  {command}"
