"""Say what a run takes before it runs, and how far it is: units, shards, chips, bytes, hours, storage, price."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.kiln import cli, plans, storage
from scripts.kiln.errors import ConfigError

log = logging.getLogger(__name__)
ROW_BYTES = 400  # of a row besides its vector, compressed, about
BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Summary:
    """One partition: counts, bytes to read and to store, how many shards are done."""

    dataset: str
    partition: str
    units: int
    shards: int
    done: int
    chips: int
    chips_left: int
    read: int
    stored: int


def summarise(plan: str, dim: int, store: str) -> Summary:
    """A plan's sums; finished shards are those in `shards/<partition>/` beside it."""
    lines = plans.read_plan(plan)
    if not lines:
        raise ConfigError(f"{plan}: no shard in it")
    partition = lines[0]["partition"]
    folder = storage.join(plan.rpartition("/")[0] or ".", "shards", partition)
    there = storage.listing(folder) if storage.is_s3(folder) or Path(folder).is_dir() else {}
    done = [x for x in lines if f"{folder}/{x['shard']}.parquet" in there]
    finished = {x["shard"] for x in done}
    left = [x for x in lines if x["shard"] not in finished]
    chips = sum(x["expected"] for x in lines)
    return Summary(
        lines[0]["dataset"],
        partition,
        sum(len(x["units"]) for x in lines),
        len(lines),
        len(done),
        chips,
        sum(x["expected"] for x in left),
        sum(x["bytes"] for x in left),
        chips * (2 * (dim * BYTES[store] + ROW_BYTES) + dim * BYTES["float16"] + ROW_BYTES),
    )


def report(summaries: Sequence[Summary], numbers: dict[str, float]) -> str:
    """The table: what is left to do and what it costs at the configured rate and prices."""
    head = ("", "units", "shards", "done", "chips", "to read", "encoder-h", "storage", "compute", "per month")
    rows = [head]
    for s in summaries:
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
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join(
        [
            *text,
            "",
            "Storage is that of shards, product and explorer database.",
            f"Chips are the most there can be: open sea and nodata are skipped. Hours are for what is left, at "
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
    p = cli.parser(__doc__, "scripts.plan")
    p.add_argument("--plans", nargs="+", required=True, help="paths or s3:// of the plans, where the run keeps them")
    p.add_argument("--numbers", type=json.loads, required=True, help="JSON, `plan` of the config: rate and prices")
    p.add_argument("--dimensions", type=int, default=1024, help="of a vector")
    p.add_argument("--storage", choices=tuple(BYTES), default="float32", help="type of the vectors")
    args = p.parse_args(argv)

    def work() -> None:
        found = [summarise(x, args.dimensions, args.storage) for x in args.plans]
        print(report(found, args.numbers))

    cli.run(work)


if __name__ == "__main__":
    main()
