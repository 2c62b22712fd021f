"""How fast a run is, how long the rest takes, and what it cost so far, by the records of its jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kiln.formats.job_record import JobRecord, JobSums
from kiln.io.text_table import format_duration, format_energy, format_price, format_rate
from kiln.report.costs import DatasetCosts
from kiln.report.status.run import RunStatus

RECENT_JOBS = 50  # whose pace counts
MIN_JOBS = 3  # from which a pace is stated
IDLE_S = 600.0  # without an ended job, beyond the time of the longest recent one


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    Attributes:
        shards: Number of planned shards.
        done: Number of finished shards.
        chips: Embedded chips of the finished shards.
        chips_per_second: Chips of all jobs together in a second, recently; None if no pace is known.
        seconds_left: Seconds until the last shard at the recent pace; None if no pace is known or nothing runs.
        is_idle: Whether no job has ended for a long time.
        sums: Sums of all jobs' records.
        price: Price of these jobs; None if no price is known.
        price_left: Price of the other shards at the mean of their dataset's jobs; None if it is unknown.
    """

    shards: int
    done: int
    chips: int
    chips_per_second: float | None
    seconds_left: float | None
    is_idle: bool
    sums: JobSums
    price: float | None
    price_left: float | None

    @classmethod
    def of(cls, run: RunStatus, now: datetime | None = None) -> "RunProgress":
        """Return the progress of a run at a time, by default the present."""
        partitions = [partition for folder in run.folders for partition in folder.partitions]
        shards, left = sum(len(p.shards) for p in partitions), sum(len(p.missing) for p in partitions)
        records = [record for costs in run.costs for record in costs.records]
        sums = JobSums.of(records)
        pace = _Pace.of(records, now or datetime.now(UTC))
        prices = [costs.price(costs.sums) for costs in run.costs]
        known = [price for price in prices if price is not None]
        return cls(
            shards=shards,
            done=shards - left,
            chips=sum(ledger.embedded for p in partitions for ledger in p.ledgers.values()),
            chips_per_second=pace.chips_per_second if pace else None,
            seconds_left=left / pace.shards_per_second if pace and left and not pace.is_idle else None,
            is_idle=bool(pace and pace.is_idle),
            sums=sums,
            price=sum(known) if len(known) == len(prices) else None,
            price_left=_price_left(run),
        )

    def text(self) -> str:
        """Return the progress as lines."""
        percent = 100 * self.done // self.shards if self.shards else 100
        lines = [f"{percent}%: {self.done:,} of {self.shards:,} shards, {self.chips:,} chips"]
        if self.chips_per_second is not None:
            state = "at last" if self.is_idle or self.seconds_left is None else "now"
            lines.append(f"{format_rate(self.chips_per_second)} chips/s {state}, all jobs together")
        if self.seconds_left is not None:
            lines.append(f"about {format_duration(self.seconds_left)} left at this pace")
        elif self.is_idle and self.done < self.shards:
            lines.append("no job has ended for a long time")
        if self.sums.jobs:
            about = "" if self.sums.energy_is_measured else "about "
            time = f"{format_duration(self.sums.wall_s)} of jobs, {about}{format_energy(self.sums.energy_j)}"
            price = "" if self.price is None else f", price {format_price(self.price)}"
            left = f", about {format_price(self.price_left)} to come" if self.price_left else ""
            lines.append(f"so far {time}{price}{left}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Pace:
    """The pace at which jobs ended lately, all machines together."""

    chips_per_second: float
    shards_per_second: float
    is_idle: bool

    @classmethod
    def of(cls, records: Sequence[JobRecord], now: datetime) -> "_Pace | None":
        """Return the pace, or None for too few jobs.

        Jobs that ran together end together, so the window is at least twice as long as the longest job. It does not
        reach beyond a pause.
        """
        ended = sorted(((datetime.fromisoformat(r.ended).timestamp(), r) for r in records), key=lambda pair: pair[0])
        if len(ended) < MIN_JOBS:
            return None
        longest_s = max(record.wall_s for _, record in ended[-RECENT_JOBS:])
        last, first = ended[-1][0], len(ended) - 1
        while first and ended[first][0] - ended[first - 1][0] <= longest_s + IDLE_S:
            if last - ended[first - 1][0] > 2 * longest_s and len(ended) - first >= RECENT_JOBS:
                break
            first -= 1
        window = ended[first:]
        since, counted = window[0][0], window[1:]  # since the first one ended
        if last - since < longest_s:  # the first jobs alone, which ended almost at once
            since, counted = min(datetime.fromisoformat(record.started).timestamp() for _, record in window), window
        if len(window) < MIN_JOBS or last == since:
            return None
        seconds, chips = last - since, sum(record.chips for _, record in counted)
        idle_s = now.timestamp() - last - longest_s
        return cls(chips / seconds, len(counted) / seconds, idle_s > IDLE_S)


def _price_left(run: RunStatus) -> float | None:
    """Return the price of the missing shards at the mean of their dataset's jobs; None if one has too few jobs."""
    total, by_name = 0.0, {costs.name: costs for costs in run.costs}
    for folder in run.folders:
        costs = by_name.get(folder.folder.name, DatasetCosts("", (), None))
        left = sum(len(partition.missing) for partition in folder.partitions)
        price = costs.price(costs.sums)
        if left and (price is None or len(costs.records) < MIN_JOBS):
            return None
        total += left * (price or 0.0) / max(len(costs.records), 1)
    return total
