"""A run as the rules see it: its config, where its files lie, and its datasets. Typed, and tested without Snakemake."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from kiln.archives.registry import Archive, archives
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest, fingerprint, product_digest
from kiln.model.identity import RECIPE, UNTRAINED, weights_digest
from kiln.workflow.config import check_config, typed_config

UNPINNED = "unpinned"  # stands for a digest that the config does not hold yet
Section = Mapping[str, Any]


@dataclass(frozen=True)
class RunPaths:
    """The folders of a run, as Snakemake knows them, and their URIs below the default storage.

    Attributes:
        run: Name of the run.
        storage_root: Prefix of Snakemake's default storage, as `s3://bucket`; empty on a local disk.
        relocate: Maps a path of the run to where a workflow that imports Kiln as a module puts it.
    """

    run: str
    storage_root: str = ""
    relocate: Callable[[str], str] = field(default=str, compare=False)

    @property
    def results(self) -> str:
        """Folder of everything that the run makes but the weights."""
        return f"results/{self.run}"

    @property
    def checkpoints(self) -> str:
        """Folder of the finished units of unfinished shards."""
        return f"checkpoints/{self.run}"

    @property
    def logs(self) -> str:
        """Folder of the jobs' logs."""
        return f"logs/{self.run}"

    @property
    def benchmarks(self) -> str:
        """Folder of the jobs' benchmarks."""
        return f"benchmarks/{self.run}"

    @property
    def costs(self) -> str:
        """Folder of the records of what the run took, by dataset, and below it those of the jobs."""
        return f"{self.results}/runs"

    @property
    def database(self) -> str:
        """Folder of the explorer database."""
        return f"{self.results}/explorer"

    def uri(self, path: str) -> str:
        """Return where a path of the run lies: relocated, and below the default storage, if there is one."""
        place = self.relocate(path)
        return f"{self.storage_root.rstrip('/')}/{place}" if self.storage_root else place

    def exists(self, folder: str) -> bool:
        """Return whether a folder may hold files. A store is not asked while the workflow is parsed."""
        return bool(self.storage_root) or Path(self.relocate(folder)).is_dir()

    def existing_shards(self, folder: str, names: Sequence[str]) -> list[str]:
        """Return those of the named shards that lie in a folder of the run."""
        from kiln.io import storage  # a dry run that does not ask saves the import of boto3

        files = storage.listing(self.uri(folder)) if self.exists(folder) else {}
        return [name for name in names if f"{self.uri(folder)}/{name}.parquet" in files]


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
        if not self.patterns:
            return names
        return {p: shards for p, shards in names.items() if any(fnmatchcase(p, pattern) for pattern in self.patterns)}

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


class Run:
    """A run: what its config asks for.

    Args:
        config: The whole config, checked here.
        storage_root: Prefix of Snakemake's default storage; empty on a local disk.
        resolve_plan: Called with a dataset's name when its shards must be known.
        relocate: Maps a path of the run to where an importing workflow puts it.

    Raises:
        ConfigError: If the config is wrong.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        storage_root: str = "",
        resolve_plan: Callable[[str], Any] = lambda name: None,
        relocate: Callable[[str], str] = str,
    ) -> None:
        self.config = config = typed_config(config)
        check_config(config)
        self.paths = RunPaths(config["run"], storage_root, relocate)
        self.weights_digest = weights_digest(config["model"])
        self._check_combinations()
        self.all_datasets = {
            name: self._dataset(archive, resolve_plan) for name, archive in archives().items() if name in config
        }
        self.datasets = {name: self.all_datasets[name] for name in config["datasets"]}

    def _dataset(self, archive: Archive, resolve_plan: Callable[[str], Any]) -> Dataset:
        config, section = self.config, self.config[archive.name]
        value = fingerprint(
            archive.name,
            sensor=archive.sensor,
            recipes={"clay": RECIPE, archive.name: archive.recipe},
            weights=self.weights_digest or UNPINNED,
            precision=config["model"]["precision"],
            dtype=config["vector_dtype"],
            embedding=config["embedding"],
            patches=config["patches"],
            metadata=section["metadata"],
            gsd=section["gsd"],
            max_nodata=section["max_nodata"],
            max_cloud=section.get("max_cloud"),
            lattice=archive.lattice(section),
        )
        return Dataset(
            archive=archive,
            section=section,
            fingerprint=value,
            paths=self.paths,
            allow_missing=config["allow_missing"],
            patterns=tuple(config["partitions"]),
            resolve_plan=lambda: resolve_plan(archive.name),
        )

    def _check_combinations(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        config = self.config
        for number, entry in enumerate(config["index"]["published"]):
            if (entry.get("layout") is None) == (entry.get("columns") is None):
                raise ConfigError(f"config: index.published[{number}]: expected either layout or columns. Give one.")
        chosen = config["index"]["select"]["embedding"]
        if chosen not in (None, config["embedding"]) and config["embedding"] != "both":
            raise ConfigError(
                f"config: index.select.embedding: expected {config['embedding']}, as embedding is, got {chosen}."
            )
        if config["model"]["precision"] == "int8" and config["resources"]["device"] != "cpu":
            raise ConfigError(
                f"config: model.precision: expected bfloat16 or float32 on {config['resources']['device']}, got int8. "
                "int8 is for CPUs."
            )

    @property
    def status_settings(self) -> dict[str, Any]:
        """The settings that `kiln status` needs of the run: what it is limited to, and the price of a machine."""
        keys = {"partitions": self.config["partitions"], "allow_missing": self.config["allow_missing"]}
        return {**keys, "price_per_hour": self.config["plan"]["price_per_hour"]}

    def dataset(self, name: str) -> Dataset:
        """Return a dataset of the run. Raises ConfigError for one that the config does not ask for."""
        if name not in self.datasets:
            known = ", ".join(self.datasets) or "none"
            raise ConfigError(f"config: datasets: expected {name} among them, got {known}. Add it, with its section.")
        return self.datasets[name]

    # -------------------------------------------------------------------------------------------------------- weights

    @property
    def weights(self) -> str:
        """Path of the extracted encoder; before its digest is known, of the note that states it."""
        model = self.config["model"]
        if self.weights_digest is None:
            return f"results/models/{UNPINNED}-{digest(model['checkpoint'])[:8]}.json"
        return f"results/models/{self.weights_digest[:8]}-{model['precision']}.safetensors"

    @property
    def vector_length(self) -> int:
        """Dimensions of a vector, as the config states them."""
        model = self.config["model"]
        return int(model["untrained"]["dim"]) if model["checkpoint"] == UNTRAINED else 1024

    def require_checkpoint_digest(self) -> None:
        """Raise ConfigError if the checkpoint's digest is unknown: no shard can be embedded then."""
        if self.weights_digest is None:
            raise ConfigError(self._unknown_digest)

    @cached_property
    def _unknown_digest(self) -> str:
        """The message about the digest that the config lacks. It states the digest once the checkpoint was fetched."""
        from kiln.io import storage  # a dry run that does not ask saves the import of boto3

        expected, note = (
            "config: model.sha256: expected the checkpoint's digest, got none.",
            self.paths.uri(self.weights),
        )
        if storage.stat(note):
            return f"{expected} It is {json.loads(storage.read_bytes(note))['sha256']} ({note})."
        return (
            f"{expected} Run `snakemake --cores 1 encoder_weights` with this config: it fetches the checkpoint and "
            "prints the line to paste."
        )

    def plans(self) -> list[str]:
        """Return the plans of all datasets. Raises ConfigError where there is nothing to do."""
        plans = [path for dataset in self.datasets.values() for path in (dataset.names_file, dataset.plan)]
        if not plans and not self.published:
            raise ConfigError("nothing to do: the config turns no dataset on")
        return plans

    # ---------------------------------------------------------------------------------------------------------- index

    @property
    def select(self) -> dict[str, Any]:
        """What goes into the explorer database: the keys that are set."""
        return {k: v for k, v in self.config["index"]["select"].items() if v is not None}

    @property
    def published(self) -> list[dict[str, Any]]:
        """The files by others that go into the explorer database."""
        return list(self.config["index"]["published"])

    def selected_records(self) -> list[str]:
        """Return the records of the products that the explorer database takes.

        Raises:
            ConfigError: If a selected partition does not exist.
        """
        names, partitions = self.select.get("datasets"), self.select.get("partitions")
        chosen = [dataset for name, dataset in self.datasets.items() if not names or name in names]
        known = {partition for dataset in chosen for partition in dataset.shards}
        if unknown := set(partitions or ()) - known:
            raise ConfigError(
                f"config: index.select.partitions: expected some of {', '.join(sorted(known))}, "
                f"got {', '.join(sorted(unknown))}. Correct them."
            )
        records = [dataset.records() for dataset in chosen]
        return [r for by_partition in records for p, r in by_partition.items() if not partitions or p in partitions]

    def required_records(self) -> list[str]:
        """Return `selected_records`. Raises ConfigError if there are none."""
        records = self.selected_records()
        if not records:
            raise ConfigError(
                "nothing to do: no product to index or to draw. Embed something first, or look at index.select."
            )
        return records

    def indexed_records(self) -> list[str]:
        """Return the records that the database is made of. With published files there may be none."""
        if not self.published:
            return self.required_records()
        return self.selected_records() if self.datasets else []

    def selected_products(self) -> list[str]:
        """Return the paths or s3:// of the selected products' folders."""
        return [self.paths.uri(record.removesuffix(".json")) for record in self.selected_records()]

    def index_targets(self) -> list[str]:
        """Return the products and their database. A deleted product is noticed, too."""
        return [*self.indexed_records(), self.index_record()]

    def index_digest(self) -> str:
        """Return what identifies a database: the products in it, what was selected, and which published files."""
        identity = [self.selected_records(), self.select, *([self.published] if self.published else [])]
        return digest(identity)[:16]

    def index_record(self) -> str:
        """Return the record of the explorer database."""
        return f"{self.paths.results}/index/{self.index_digest()}.json"

    def picture(self, name: str) -> str:
        """Return a picture of what the database holds."""
        return f"{self.paths.results}/pictures/{self.index_digest()}/{name}"

    def pictures(self) -> list[str]:
        """Return all pictures. Published files have no ledger: of those alone there is no coverage to draw."""
        of_products = ("coverage.png", "ledger.html", "run.html") if self.indexed_records() else ()
        return [self.picture(name) for name in (self.contact_sheet, *of_products)]

    @property
    def contact_sheet(self) -> str:
        """File name of the contact sheet. It changes with the picture services."""
        return f"similar-{digest(self.config['pictures'])[:8]}.png"
