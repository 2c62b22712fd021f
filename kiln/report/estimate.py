"""Say what a run takes before it runs, and how far it is: units, shards, chips, bytes, hours, storage, price."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Self

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats import plan_file, vectors
from kiln.io import storage
from kiln.io.text_table import aligned

log = logging.getLogger(__name__)
ROW_BYTES = 400  # of a row besides its vector, compressed, about
SEVERAL = 3  # partitions; more get a sum


@dataclass(frozen=True)
class Summary:
    """One partition: counts, bytes to read and to store, how many shards are done."""

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
        """The sums of both, under this one's name."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[2:]}
        return replace(self, **sums)


def row_bytes(dim: int, store: str, embedding: str = "class", patches: int = 0) -> int:
    """What a chip takes in shard, product and explorer database together; `patches` are kept once, beside the shard."""
    vector = dim * vectors.BYTES[store] + (4 if store == "int8" else 0)
    in_files = 2 * (len(vectors.KINDS[embedding]) * vector + ROW_BYTES)
    return in_files + vectors.BYTES["float16"] * dim * (1 + patches) + ROW_BYTES


def summarise(
    plan: str, dim: int, store: str, embedding: str = "class", patches: Mapping[str, int] = MappingProxyType({})
) -> list[Summary]:
    """A plan's sums by partition; finished shards are those in `shards/<partition>/` beside it.

    `patches` of a chip, by dataset, are those that are kept.
    """
    folder = storage.join(plan.rpartition("/")[0] or ".", "shards")
    there = storage.listing(folder) if storage.is_s3(folder) or Path(folder).is_dir() else {}
    made: dict[str, Summary] = {}
    for line in plan_file.read_plan(plan):
        done = f"{folder}/{line.partition}/{line.name}.parquet" in there
        before = made.get(line.partition, Summary(line.dataset, line.partition))
        made[line.partition] = before + Summary(
            line.dataset,
            line.partition,
            units=len(line.units),
            shards=1,
            done=int(done),
            chips=line.expected,
            chips_left=0 if done else line.expected,
            read=0 if done else line.read_bytes,
            stored=line.expected * row_bytes(dim, store, embedding, patches.get(line.dataset, 0)),
        )
    if not made:
        raise ConfigError(f"{plan}: no shard in it")
    return list(made.values())


def totals(summaries: Sequence[Summary]) -> list[Summary]:
    """The rows to show: partitions, and under those of a dataset that has several, their sum."""
    rows = []
    for dataset, group in groupby(summaries, key=lambda s: s.dataset):
        several = list(group)
        rows += several
        if len(several) > SEVERAL:
            rows.append(sum(several, Summary(dataset, "in all")))
    return rows


def report(summaries: Sequence[Summary], numbers: dict[str, float]) -> str:
    """The table: what is left to do and what it costs at the configured rate and prices."""
    head = ("", "units", "shards", "done", "chips", "to read", "encoder-h", "storage", "compute", "per month")
    rows = [head]
    for s in totals(summaries):
        hours = s.chips_left / numbers["chips_per_second"] / 3600
        rows.append(
            (
                f"{s.dataset} {s.partition}",
                f"{s.units:,}",
                f"{s.shards:,}",
                f"{s.done:,}",
                f"{s.chips:,}",
                human(s.read),
                f"{hours:,.2f}",
                human(s.stored),
                f"{hours * numbers['price_per_hour']:,.2f}",
                f"{s.stored / 1e9 * numbers['price_per_gb_month']:,.2f}",
            )
        )
    return "\n".join(
        [
            *aligned(rows),
            "",
            "Storage is that of shards, product and explorer database.",
            f"Chips are the most there can be: sea, clouds and nodata are skipped. Hours are for what is left, at "
            f"{numbers['chips_per_second']:g} chips/s of one job's encoder; prices as configured under `plan`.",
        ]
    )


def human(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def main(argv: list[str] | None = None) -> None:
    """Print the plan."""
    p = command_line.parser(__doc__, "kiln.report.estimate")
    p.add_argument("--plans", nargs="+", required=True, help="paths or s3:// of the plans, where the run keeps them")
    p.add_argument("--numbers", type=json.loads, required=True, help="JSON, `plan` of the config: rate and prices")
    p.add_argument("--dimensions", type=int, default=1024, help="of a vector")
    p.add_argument("--storage", choices=vectors.VECTOR_DTYPES, default="float16", help="type of the vectors")
    p.add_argument("--embedding", choices=vectors.EMBEDDINGS, default="class", help="which of them are kept")
    p.add_argument("--patches", type=json.loads, default={}, help="JSON: patches of a chip that are kept, by dataset")
    args = p.parse_args(argv)

    def work() -> None:
        found = [
            s for x in args.plans for s in summarise(x, args.dimensions, args.storage, args.embedding, args.patches)
        ]
        print(report(found, args.numbers))

    command_line.run(work)


if __name__ == "__main__":
    main()
