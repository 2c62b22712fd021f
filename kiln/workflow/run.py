"""A run as the rules see it: its config, its datasets, its weights and its database. Tested without Snakemake."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from kiln.archives.registry import Archive, archives
from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest, fingerprint
from kiln.model.identity import RECIPE, UNTRAINED, weights_digest
from kiln.workflow.config import check_config, typed_config
from kiln.workflow.dataset import Dataset
from kiln.workflow.paths import RunPaths

UNPINNED = "unpinned"  # stands for a digest that the config does not hold yet


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
