"""The estimate of a run: chips, bytes, hours and prices, before it starts and on the way.

The plans say the most there can be. Finished shards have ledgers and sizes, which count exactly; their jobs' records
give rates. `kiln.report.bounds` extrapolates from finished shards to others.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self

from kiln.errors import ConfigError
from kiln.formats import plan_file, vectors
from kiln.formats.job_record import JobRecord
from kiln.formats.ledger import ledger_name
from kiln.formats.patch_file import patches_name
from kiln.io import storage
from kiln.report.bounds import NOTHING, Bounded, extrapolate
from kiln.report.costs import read_costs
from kiln.report.rates import EncoderRate
from kiln.report.status.folders import MAX_READERS, list_files, list_stats, read_ledger

FACTS_BYTES = 400  # of a row without its vector, compressed, at most
UNIT_BYTES = 5_000  # of a unit in ledger and metadata, at most
FILE_BYTES = 50_000  # of the other metadata of a shard with its ledger, and of a product with its STAC, at most
DATABASE_BYTES = 1_000_000  # of an explorer database without a chip, at most
UNKNOWN = "unknown"


@dataclass(frozen=True)
class RowSize:
    """The vectors of a row, which decide its bytes.

    Attributes:
        dimensions: Numbers of a vector.
        vector_dtype: Their dtype in files; the database holds float16.
        embedding: The vectors of a row.
        patches: Stored patches of a chip, by dataset.
    """

    dimensions: int
    vector_dtype: str
    embedding: vectors.Embedding = "class"
    patches: Mapping[str, int] = field(default_factory=dict)

    @property
    def in_file(self) -> int:
        """Bytes of a row in shard or product, at most."""
        vector = self.dimensions * vectors.BYTES[self.vector_dtype] + (4 if self.vector_dtype == "int8" else 0)
        return len(vectors.KINDS[self.embedding]) * vector + FACTS_BYTES

    @property
    def in_database(self) -> int:
        """Bytes of a row in the explorer database, at most: its vector, a byte for each number in the index, facts."""
        return (vectors.BYTES["float16"] + vectors.BYTES["int8"]) * self.dimensions + FACTS_BYTES

    def patch_bytes(self, dataset: str) -> int:
        """Bytes of a chip's patches, stored next to the shard."""
        return vectors.BYTES["float16"] * self.dimensions * self.patches.get(dataset, 0)


@dataclass(frozen=True)
class PartitionEstimate:
    """The sums of one partition of a plan.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition.
        units: Number of units.
        shards: Number of shards.
        done: Number of finished shards.
        chips: Embedded chips of all shards.
        chips_left: Those of the shards that are not finished.
        read_left: Bytes that these shards read.
        stored: Bytes of shards and product.
        seconds: Time of jobs that is left; None if no rate is known.
        price: Its price; None if no rate is known.
    """

    dataset: str
    partition: str
    units: int = 0
    shards: int = 0
    done: int = 0
    chips: Bounded = NOTHING
    chips_left: Bounded = NOTHING
    read_left: Bounded = NOTHING
    stored: Bounded = NOTHING
    seconds: Bounded | None = NOTHING
    price: Bounded | None = NOTHING

    def __add__(self, other: Self) -> Self:
        """Return the sums of both, under the names of the first."""
        return replace(
            self,
            units=self.units + other.units,
            shards=self.shards + other.shards,
            done=self.done + other.done,
            chips=self.chips + other.chips,
            chips_left=self.chips_left + other.chips_left,
            read_left=self.read_left + other.read_left,
            stored=self.stored + other.stored,
            seconds=None if self.seconds is None or other.seconds is None else self.seconds + other.seconds,
            price=None if self.price is None or other.price is None else self.price + other.price,
        )


@dataclass
class Partition:
    """The shards of a partition: the planned ones, and what the finished ones came to.

    Attributes:
        planned: The shards, by name.
        embedded: Chips of each finished shard, by its ledger.
        jobs: Records of the jobs of finished shards, by name of the shard; there may be fewer.
        shard_bytes: Bytes of the finished shards' files.
        product_bytes: Bytes of the product; 0 unless it is merged.
    """

    planned: dict[str, plan_file.ShardPlan] = field(default_factory=dict)
    embedded: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    shard_bytes: int = 0
    product_bytes: int = 0

    @property
    def left(self) -> list[plan_file.ShardPlan]:
        """The shards that are not finished."""
        return [shard for name, shard in self.planned.items() if name not in self.embedded]


@dataclass(frozen=True)
class Scope:
    """What a run is limited to.

    Attributes:
        partitions: Patterns of merge partitions; none takes all.
        allow_missing: Whether nothing is embedded, and only finished shards count.
    """

    partitions: Sequence[str] = ()
    allow_missing: bool = False

    def takes(self, partition: str) -> bool:
        """Return whether a partition is in the run."""
        return plan_file.takes_partition(self.partitions, partition)


EVERYTHING = Scope()


def planned_shards(
    plan: str, files: Mapping[str, storage.Stat] | None = None
) -> Iterator[tuple[plan_file.ShardPlan, bool]]:
    """Yield the shards of a plan, and whether each is finished: in `shards/<partition>/` next to the plan.

    Args:
        plan: Path or s3:// of the plan.
        files: The files of its folder, if they are known; None lists the shards.

    Raises:
        ConfigError: If the file is not a plan, or has no shard.
    """
    folder = folder_of(plan)
    files = list_stats(storage.join(folder, "shards")) if files is None else files
    shard = None
    for shard in plan_file.read_plan(plan):
        yield shard, _shard_file(folder, shard) in files
    if shard is None:
        raise ConfigError(f"{plan}: expected shards, got no shard in it. Check what the config selects.")


@dataclass(frozen=True)
class PlanEstimate:
    """The estimates of a plan by partition, where the rate comes from, and the peak memory of its finished jobs."""

    partitions: Sequence[PartitionEstimate]
    rate_source: str
    peak_memory_bytes: int


def estimate_plan(
    plan: str,
    row_size: RowSize,
    rate: EncoderRate | None = None,
    price_per_hour: float = 0.0,
    scope: Scope = EVERYTHING,
) -> PlanEstimate:
    """Return the estimate of a plan.

    Args:
        plan: Path or s3:// of the plan, in the folder of its dataset.
        row_size: The vectors of a row.
        rate: The rate of one job's encoder: a configured one counts, another where no job left a record.
        price_per_hour: Price of one job's machine.
        scope: What the run is limited to.

    Raises:
        ConfigError: If the file is not a plan, or has no shard in the scope.
    """
    partitions = read_partitions(plan, scope)
    jobs = [job for partition in partitions.values() for job in partition.jobs.values()]
    outcomes = [
        (partition.planned[name].expected, job.wall_s)
        for partition in partitions.values()
        for name, job in partition.jobs.items()
    ]
    pace = Pace.of(outcomes, rate)
    rows = [_estimate(name, partition, row_size, pace, price_per_hour) for name, partition in partitions.items()]
    return PlanEstimate(rows, pace.source, max((job.peak_memory_bytes for job in jobs), default=0))


def read_partitions(plan: str, scope: Scope) -> dict[str, Partition]:
    """Return the partitions of a plan with what its finished shards came to.

    Args:
        plan: Path or s3:// of the plan, in the folder of its dataset.
        scope: What the run is limited to.

    Raises:
        ConfigError: If the file is not a plan, or has no shard in the scope.
    """
    folder = folder_of(plan)
    sizes = list_stats(folder)
    partitions: dict[str, Partition] = {}
    finished: list[plan_file.ShardPlan] = []
    for shard, is_done in planned_shards(plan, sizes):
        if scope.takes(shard.partition) and (is_done or not scope.allow_missing):
            partitions.setdefault(shard.partition, Partition()).planned[shard.name] = shard
            if is_done:
                finished.append(shard)
    if not partitions:
        raise ConfigError(f"{plan}: expected shards of the run, got none. Check partitions and allow_missing.")
    with ThreadPoolExecutor(MAX_READERS) as pool:
        ledgers = pool.map(lambda shard: read_ledger(ledger_name(_shard_file(folder, shard))), finished)
        for shard, ledger in zip(finished, ledgers, strict=True):
            file = _shard_file(folder, shard)
            partition = partitions[shard.partition]
            if any(not failure.unit for failure in ledger.failures):  # damaged: nothing is known of the shard
                continue
            partition.embedded[shard.name] = ledger.embedded
            names = (file, ledger_name(file), patches_name(file))
            partition.shard_bytes += sum(sizes[name].size for name in names if name in sizes)
    run, _, dataset = folder.rpartition("/")
    for job in read_costs(storage.join(run or ".", "runs"), [dataset], None)[0].records:
        if job.partition in partitions and job.shard in partitions[job.partition].embedded:
            partitions[job.partition].jobs[job.shard] = job
    products: dict[str, dict[str, int]] = {}
    for uri, stat in sizes.items():
        place, _, name = uri.removeprefix(f"{folder}/").partition("/")
        if place == "products":
            products.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = stat.size
    for name, partition in partitions.items():
        if not partition.left:
            partition.product_bytes = _product_bytes(products.get(name, {}))
    return partitions


def folder_of(plan: str) -> str:
    """Return the folder of a plan."""
    return plan.rpartition("/")[0] or "."


def _shard_file(folder: str, shard: plan_file.ShardPlan) -> str:
    return storage.join(folder, "shards", shard.partition, f"{shard.name}.parquet")


def _product_bytes(files: Mapping[str, int]) -> int:
    """Return the bytes of a partition's product with one record; 0 for another number of records."""
    records = [name for name in files if "/" not in name and name.endswith(".json")]
    return sum(files.values()) if len(records) == 1 else 0


@dataclass(frozen=True)
class Pace:
    """How long shards take, and how that is known.

    Attributes:
        source: Where it comes from, for a reader; UNKNOWN if nothing is known.
        rate: The rate of one job's encoder alone; None where jobs are known.
        outcomes: Planned chips and seconds of each job that left a record.
    """

    source: str
    rate: EncoderRate | None = None
    outcomes: Sequence[tuple[float, float]] = ()

    @classmethod
    def of(cls, outcomes: Sequence[tuple[float, float]], rate: EncoderRate | None) -> Self:
        """Return the pace by a configured rate, else by the run's own jobs, else by a rate measured before.

        Args:
            outcomes: Planned chips and seconds of each job of the run that left a record.
            rate: The rate of one job's encoder.
        """
        timed = [(planned, seconds) for planned, seconds in outcomes if planned]
        if timed and not (rate and rate.is_configured):
            return cls(f"the time of {len(timed):,} finished jobs, without their start", outcomes=timed)
        return cls(rate.text, rate) if rate else cls(UNKNOWN)

    def seconds(self, chips_left: Bounded, planned_left: Sequence[float]) -> Bounded | None:
        """Return the time of jobs for what is left; None if it is unknown.

        By finished jobs it is at most the longest of them for a planned chip.

        Args:
            chips_left: Chips to encode.
            planned_left: Planned chips of each shard that is left.
        """
        if not chips_left.value:
            return NOTHING
        if self.rate:
            return chips_left * (1 / self.rate.chips_per_second)
        if not self.outcomes:
            return None
        longest = max(seconds / planned for planned, seconds in self.outcomes)
        return extrapolate(self.outcomes, planned_left, longest * sum(planned_left))


def _estimate(
    name: str, partition: Partition, row_size: RowSize, pace: Pace, price_per_hour: float
) -> PartitionEstimate:
    """Return the estimate of one partition."""
    planned, left = partition.planned, partition.left
    dataset = next(iter(planned.values())).dataset
    outcomes = [(planned[shard].expected, chips) for shard, chips in partition.embedded.items()]
    chips_left = extrapolate(outcomes, [shard.expected for shard in left])
    embedded = sum(partition.embedded.values())
    reads = [(planned[s].read_bytes, job.network_bytes + job.disk_bytes) for s, job in partition.jobs.items()]
    seconds = pace.seconds(chips_left, [shard.expected for shard in left])
    units = sum(len(shard.units) for shard in planned.values())
    return PartitionEstimate(
        dataset=dataset,
        partition=name,
        units=units,
        shards=len(planned),
        done=len(partition.embedded),
        chips=chips_left + Bounded(embedded),
        chips_left=chips_left,
        read_left=extrapolate(reads, [shard.read_bytes for shard in left]),
        stored=_stored(partition, dataset, row_size, chips_left, embedded, units),
        seconds=seconds,
        price=None if seconds is None else seconds * (price_per_hour / 3600),
    )


def _stored(
    partition: Partition, dataset: str, row_size: RowSize, chips_left: Bounded, embedded: int, units: int
) -> Bounded:
    """Return the bytes of shards and product: those that are there, and at most those that will be."""
    left = partition.left
    of_left = chips_left * (row_size.in_file + row_size.patch_bytes(dataset))
    metadata = len(left) * FILE_BYTES + sum(len(shard.units) for shard in left) * UNIT_BYTES
    shards = Bounded(partition.shard_bytes) + of_left + Bounded(metadata, "at most" if metadata else "")
    if partition.product_bytes:
        return shards + Bounded(partition.product_bytes)
    product = (chips_left.bound + embedded) * row_size.in_file + FILE_BYTES + units * UNIT_BYTES
    return shards + Bounded(product, "at most")


def database_estimate(folder: str, record_folder: str, chips: Bounded, row_size: RowSize) -> Bounded:
    """Return the bytes of the explorer database: its size if it is there, else at most that of all chips.

    Args:
        folder: Path or s3:// of the database.
        record_folder: Path or s3:// of the folder of its record.
        chips: Chips of all datasets.
        row_size: The vectors of a row.
    """
    is_built = any(file.endswith(".json") for file in list_files(record_folder))
    if is_built and not chips.word:
        return Bounded(sum(stat.size for stat in storage.listing(folder).values()))
    return Bounded(chips.bound * row_size.in_database + DATABASE_BYTES, "at most")
