"""The registry of archives: one record holds everything that shared code must know about an archive.

Shared code loops over `archives()` or asks for `get_archive(name)`, and names no archive itself. The modules of the
archives in `BUILT_IN` are imported when `kiln` is; further ones are named, with commas between them, by the
environment variable KILN_ARCHIVES. Every dry run imports this module, so the records hold heavy functions by name
(`module:function`) and import them when they are called.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiln.errors import ConfigError
from kiln.formats.sensor import Sensor
from kiln.io.buckets import Bucket, register_buckets

BUILT_IN = ("kiln.archives.worldcover", "kiln.archives.naip", "kiln.archives.sentinel2")
EXTRA = "KILN_ARCHIVES"  # environment variable: modules of further archives
PICTURE_SIZE_PX = 256  # side of the picture that an archive's `read_picture` returns


@dataclass(frozen=True)
class Provider:
    """An organisation behind an archive.

    Attributes:
        name: Its name.
        roles: Its roles, as STAC names them: `licensor`, `producer`, `processor`, `host`.
        url: Its page about the archive.
    """

    name: str
    roles: tuple[str, ...]
    url: str


@dataclass(frozen=True)
class Provenance:
    """The facts about an archive in STAC and in the README of a product.

    Attributes:
        title: Title of the archive.
        href: Home page of the archive.
        license: SPDX identifier of the archive's licence; `other` where there is none.
        license_href: Address of the licence.
        license_title: Name of the licence.
        attribution: The sentence with which a product credits the archive.
        providers: The organisations behind the archive.
        keywords: Words by which people find the archive.
        temporal_resolution: What a row's time stands for, as the embedding extension of STAC names it.
    """

    title: str
    href: str
    license: str
    license_href: str
    license_title: str
    attribution: str
    providers: tuple[Provider, ...]
    keywords: tuple[str, ...]
    temporal_resolution: str


@dataclass(frozen=True)
class Archive:
    """One archive.

    Attributes:
        name: The config section, the first part of chip ids and of folder names.
        title: The name in messages.
        recipe: An integer that is raised whenever the same pixels would give other vectors.
        sensor: The bands as the model sees them.
        module: The package of the archive. `<module>.config` holds the pydantic model `Config` of the config section,
            `<module>.columns` the archive's own columns `COLUMNS`, `<module>.plan` the function `plan_shards(config)`,
            `<module>.source` the function `open_source(shard, config)`, `<module>.picture` the function
            `read_picture(source, bbox)`, and `<module>.sample` the function `make_sample(out, seed)`. They are imported
            when they are first used.
            An archive whose embeddings were published before may have `<module>.export`, with the function
            `export_product(partition, parts, ledger, out, version)`.
        lattice: Returns the lattice of chips, as fingerprint and file metadata hold it, from the config section.
            Raises ConfigError for settings that contradict each other.
        provenance: The facts about the archive in STAC.
        plan_keys: The keys of the section that decide which shards there are; they become flags of the plan's command.
        embed_keys: The keys of the section that an embedding job needs; they become flags of its command.
        path_keys: The keys that may name local files, which jobs on other machines cannot see.
        buckets: The archive's S3 buckets.
        composite: Whether a row has no acquisition time of its own: only its year is known.
        checkpointed: Whether finished units of an unfinished shard are saved as checkpoints.
        plan_threads: CPU cores of the planning job.
        notes: The archive's codes in the notes of ledgers, in words.
        sample: The keys of the section that differ in the sample run.
    """

    name: str
    title: str
    recipe: int
    sensor: Sensor
    module: str
    lattice: Callable[[Mapping[str, Any]], dict[str, Any]]
    provenance: Provenance
    plan_keys: tuple[str, ...]
    embed_keys: tuple[str, ...]
    path_keys: tuple[str, ...]
    buckets: tuple[Bucket, ...] = ()
    composite: bool = False
    checkpointed: bool = True
    plan_threads: int = 1
    notes: Mapping[str, str] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)

    def load(self, part: str, name: str) -> Any:
        """Return `name` of the archive's module `part`, imported now."""
        return getattr(importlib.import_module(f"{self.module}.{part}"), name)

    @property
    def schema_file(self) -> Path:
        """The generated JSON schema of the config section, next to the archive's modules."""
        return Path(str(importlib.import_module(self.module).__file__)).parent / "config.schema.json"

    def load_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the config section; from the model itself if no file was generated."""
        if self.schema_file.is_file():
            schema: dict[str, Any] = json.loads(self.schema_file.read_text())
            return schema
        model: Any = self.load("config", "Config")
        return section_schema(model)


def section_schema(model: Any) -> dict[str, Any]:
    """Return the JSON schema of a config section's pydantic model, every key required and without titles."""
    schema: dict[str, Any] = model.model_json_schema(mode="serialization")
    plain: dict[str, Any] = _without_titles(schema)
    return plain


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(v) for v in node] if isinstance(node, list) else node


_ARCHIVES: dict[str, Archive] = {}


def register_archive(archive: Archive) -> None:
    """Add an archive and its buckets. Raises ConfigError if another one has its name."""
    if _ARCHIVES.get(archive.name, archive) is not archive:
        raise ConfigError(f"archive {archive.name}: expected one archive of that name, got two. Rename one.")
    _ARCHIVES[archive.name] = archive
    register_buckets(*archive.buckets)


def load_archives(modules: Iterable[str]) -> None:
    """Import archives' modules and register the `ARCHIVE` of each. Raises ConfigError for a module that has none."""
    for module in modules:
        try:
            register_archive(importlib.import_module(module).ARCHIVE)
        except (ImportError, AttributeError) as e:
            raise ConfigError(
                f"{EXTRA}: expected a module with an ARCHIVE, got {module} ({e}). Correct the name."
            ) from e


def archives() -> dict[str, Archive]:
    """Return all archives by name, in the order of registration."""
    if not _ARCHIVES:
        load_archives(BUILT_IN)
        load_archives(filter(None, os.environ.get(EXTRA, "").split(",")))
    return dict(_ARCHIVES)


def get_archive(name: str) -> Archive:
    """Return one archive. Raises ConfigError for a name that no archive has."""
    if archive := archives().get(name):
        return archive
    raise ConfigError(f"archive {name!r}: expected one of {', '.join(archives())}. Correct the name.")
