"""An archive's part of a run: its folder, its plan, and the names of its shards and products."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kiln.archives.registry import Archive
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest, product_digest
from kiln.workflow.paths import RunPaths

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """An archive's part of a run: its folder, its plan, and the names of its shards and products.

    Attributes:
        archive: The archive's record.
        section: The archive's section of the config.
        fingerprint: sha256 of everything that changes a vector.
        paths: The run's folders.
        allow_missing: Whether products are merged from the shards that exist.
        patterns: Patterns of the partitions that the run is limited to; none takes all.
        resolve_plan: Returns once the plan is made. Snakemake's checkpoint raises an exception until then.
    """

    archive: Archive
    section: Section
    fingerprint: str
    paths: RunPaths
    allow_missing: bool
    patterns: tuple[str, ...]
    resolve_plan: Callable[[], Any] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the archive."""
        return self.archive.name

    @property
    def folder(self) -> str:
        """Folder of plan, shards and products. Its name holds the fingerprint, so nothing stale can be mixed in."""
        return f"{self.paths.results}/{self.folder_name}"

    @property
    def folder_name(self) -> str:
        """Name of the folder."""
        return f"{self.name}-{self.fingerprint[:8]}"

    @property
    def plan_flags(self) -> list[str]:
        """The flags of the plan's command that decide which shards there are."""
        return section_flags(self.section, self.archive.plan_keys)

    @property
    def plan(self) -> str:
        """The plan's path. Its name changes with the plan's flags."""
        return f"{self.folder}/plan-{digest(self.plan_flags)[:8]}.jsonl.gz"

    @property
    def names_file(self) -> str:
        """The small file of the shards' names, next to the plan."""
        return self.plan.replace(".jsonl.gz", ".json")

    @property
    def may_have_shards(self) -> bool:
        """Whether shards may exist already, which remade weights must not cause to be embedded again."""
        return self.paths.exists(f"{self.folder}/shards")

    @property
    def checkpoints_folder(self) -> str:
        """Folder of the finished units of unfinished shards."""
        return f"{self.paths.checkpoints}/{self.folder_name}"

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Names of the planned shards by partition. Raises Snakemake's exception until the plan is made."""
        from kiln.formats import plan_file  # a dry run that does not ask saves the import of boto3

        self.resolve_plan()
        names = plan_file.read_names(self.paths.uri(self.names_file))
        return {p: shards for p, shards in names.items() if plan_file.takes_partition(self.patterns, p)}

    @cached_property
    def merged_shards(self) -> dict[str, list[str]]:
        """Names of the shards to merge by partition: all, or those that exist with `allow_missing`."""
        if not self.allow_missing:
            return self.shards
        return {p: self.paths.existing_shards(self.shard_folder(p), names) for p, names in self.shards.items()}

    @property
    def cost_record(self) -> str:
        """The record of what the dataset's shards took."""
        return f"{self.paths.costs}/{self.folder_name}.json"

    @property
    def job_records(self) -> str:
        """Folder of the jobs' records, by partition and shard."""
        return f"{self.paths.costs}/jobs/{self.folder_name}"

    def shard_folder(self, partition: str) -> str:
        """Return the folder of a partition's shards and ledgers."""
        return f"{self.folder}/shards/{partition}"

    def shard_files(self, partition: str, names: Sequence[str]) -> list[str]:
        """Return the embeddings files of the named shards."""
        return [f"{self.shard_folder(partition)}/{name}.parquet" for name in names]

    @property
    def merge_flags(self) -> list[str]:
        """The flags of the merge that change a product."""
        return ["--deduplicate"] if self.section.get("deduplicate") else []

    def record(self, partition: str) -> str:
        """Return the product's record, named after its shards and how they are merged."""
        name = product_digest(self.merged_shards[partition], self.merge_flags)
        return f"{self.folder}/products/{partition}/{name}.json"

    def records(self) -> dict[str, str]:
        """Return the records by partition; none for a partition without a shard to merge."""
        return {partition: self.record(partition) for partition, names in self.merged_shards.items() if names}

    def targets(self) -> list[str]:
        """Return the files that the dataset asks for.

        The plan comes first: it lies directly in the folder, so one listing of a store shows the rest.

        Raises:
            ConfigError: If `partitions` leaves none.
        """
        self._check_patterns()
        shards = [] if self.allow_missing else self.all_shard_files
        return [self.names_file, self.plan, *shards, *self.records().values()]

    def shard_targets(self) -> list[str]:
        """Return plan and shards, without the products that are merged from them.

        Raises:
            ConfigError: If `partitions` leaves none, or `allow_missing` says that nothing is embedded.
        """
        self._check_patterns()
        if self.allow_missing:
            raise ConfigError(
                "config: allow_missing: expected false where shards are asked for, got true, with which nothing is "
                "embedded. Change it, or ask for another target."
            )
        return [self.names_file, self.plan, *self.all_shard_files]

    @property
    def all_shard_files(self) -> list[str]:
        """The embeddings files of all shards."""
        return [file for partition, names in self.shards.items() for file in self.shard_files(partition, names)]

    def _check_patterns(self) -> None:
        """Raise ConfigError if no partition fits the patterns."""
        if not self.shards:
            raise ConfigError(
                f"config: partitions: expected patterns that fit a partition of {self.name}, "
                f"got {list(self.patterns)}. Look at {self.paths.uri(self.names_file)}."
            )

    @property
    def encoded_px(self) -> int:
        """Side in pixels of what is encoded to a row."""
        return int(self.section["chip_size"]) // (2 if self.section.get("encode") == "quarters" else 1)

    @property
    def patches_per_chip(self) -> int:
        """Patches of a row, each 8 x 8 px."""
        return (self.encoded_px // 8) ** 2


def section_flags(section: Section, keys: Sequence[str]) -> list[str]:
    """Return keys of a config section as command-line flags. Null and empty values give no flag."""
    flags = []
    for key in keys:
        value, flag = section[key], f"--{key.replace('_', '-')}"
        if value is None or value == [] or value is False:
            continue
        if value is True:
            flags.append(flag)
        elif isinstance(value, list) and len(value) == 4 and key in ("bbox", "region"):
            flags.append(f"{flag}={','.join(map(str, value))}")  # one argument, since a west may be negative
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={value}" if str(value).startswith("-") else flag)
            flags += [] if str(value).startswith("-") else [str(value)]
    return flags
