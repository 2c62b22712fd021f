"""Plan NAIP: which scenes of the bucket's manifest are done, in which shards.

Reads the manifest as a stream (path, https:// or s3://, requester-pays; plain, gzip or zip), keeps the scenes that the
filters take, of several releases of one scene the newest, and writes one line of JSON per shard, gzipped. A shard holds
scenes of one state and year, and hardly changes when the manifest grows. Every line that is no scene is counted by
kind; what looks like a scene and cannot be read is listed.
"""

import gzip
import io
import logging
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kiln.archives.naip import ARCHIVE
from kiln.archives.naip.config import Config
from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.errors import ConfigError, SourceError
from kiln.formats.plan_file import ShardPlan
from kiln.formats.stable_shards import stable_shards
from kiln.io import storage

LONGEST = 1024  # characters of a key; a longer line is none
UNPACKING = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)  # what damaged archives raise
SHOWN = 50  # kinds and unreadable keys that a report names
WORD = re.compile(r"[\w.-]{1,80}", re.ASCII)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keep:
    """Which scenes: every field that is set. `bbox` [west, south, east, north] meets the scene's quarter quadrangle."""

    states: frozenset[str] = frozenset()
    years: frozenset[int] = frozenset()
    cm: frozenset[int] = frozenset()
    bbox: tuple[float, float, float, float] | None = None

    def takes(self, scene: SceneKey) -> bool:
        """Whether the filters take a scene."""
        if (self.states and scene.state not in self.states) or (self.years and scene.year not in self.years):
            return False
        if self.cm and scene.cm not in self.cm:
            return False
        if self.bbox is None:
            return True
        west, south, east, north = scene.bounds
        return west <= self.bbox[2] and east >= self.bbox[0] and south <= self.bbox[3] and north >= self.bbox[1]


@dataclass
class Account:
    """What became of every line of the manifest."""

    lines: int = 0
    scenes: int = 0
    kept: int = 0
    filtered: int = 0
    superseded: int = 0
    duplicates: int = 0
    undated: int = 0
    next_year: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


@contextmanager
def open_manifest(uri: str) -> Iterator[Iterable[str]]:
    """The lines of a manifest. Raises ConfigError for one that is missing, truncated or no text."""
    try:
        with storage.local_copy(uri) as path, path.open("rb") as raw:
            head = raw.read(4)
            raw.seek(0)
            if head.startswith(b"\x1f\x8b"):
                stream: Any = gzip.open(raw)  # noqa: SIM115 (closed with the file below it)
            elif head == b"PK\x03\x04":
                archive = zipfile.ZipFile(raw)
                files = [i for i in archive.infolist() if not i.is_dir()]
                try:
                    stream = archive.open(max(files, key=lambda i: i.file_size))
                except (RuntimeError, NotImplementedError) as e:  # asks for a password; packed in an unknown way
                    raise ConfigError(f"manifest {uri}: a zip that cannot be unpacked ({e}); unpack it first") from e
            else:
                stream = raw
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace")
    except SourceError as e:
        raise ConfigError(f"manifest {e}") from e
    except UNPACKING as e:
        raise ConfigError(f"manifest {uri}: truncated or damaged ({e}); fetch it again") from e


Scene = tuple[str, int, int]  # key, chips and bytes by estimate


def read_scenes(lines: Iterable[str], keep: Keep, chip: int) -> tuple[dict[str, list[Scene]], Account]:
    """The scenes to do by partition, and the account of every line."""
    account = Account()
    newest: dict[str, dict[str, tuple[tuple[str, bool], Scene]]] = {}  # partition -> scene -> rank, what is planned
    for line in lines:
        account.lines += 1
        key = line.strip()
        scene = parse_key(key) if len(key) <= LONGEST else None
        if scene is None:
            if "/rgbir_cog/" in key and key.endswith(".tif") and len(key) <= LONGEST:
                account.unreadable.append(key)
            else:
                account.others[kind(key)] += 1
            continue
        account.scenes += 1
        if not keep.takes(scene):
            account.filtered += 1
            continue
        siblings, name = newest.setdefault(scene.partition, {}), scene.scene
        known = siblings.get(name)
        rank = (scene.released, scene.at_home)
        if known is None or rank > known[0] or (rank == known[0] and key < known[1][0]):
            siblings[name] = (rank, (key, *scene.estimate(chip)))
        if known is not None:
            account.duplicates += known[1][0] == key
            account.superseded += known[1][0] != key
            continue
        account.kept += 1
        account.undated += not scene.acquired
        account.next_year += scene.acquired[:4] == str(scene.year + 1)
    return {p: [planned for _, planned in scenes.values()] for p, scenes in newest.items()}, account


def kind(key: str) -> str:
    """What a line is that is no scene: the folder of its kind and its extension."""
    if len(key) > LONGEST:
        return "overlong line"
    parts = key.split("/")
    if not key:
        return "empty line"
    if len(parts) < 4 or not WORD.fullmatch(parts[3]) or not WORD.fullmatch(parts[-1]):
        return "no key of the archive"
    return f"{parts[3]} .{key.rpartition('.')[2]}" if "." in parts[-1] else f"{parts[3]} without extension"


def shard_plans(
    partitions: dict[str, list[Scene]], archive: str, scenes_per_shard: int, chip_size: int
) -> Iterator[ShardPlan]:
    """Yield the shards, partition by partition; `expected` chips and `read_bytes` are estimates from the keys."""
    for partition in sorted(partitions):
        sizes = {key: (chips, size) for key, chips, size in partitions[partition]}
        for name, keys in stable_shards(sizes, scenes_per_shard):
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=partition,
                name=name,
                units=tuple(keys),
                chip_size=chip_size,
                expected=sum(sizes[k][0] for k in keys),
                read_bytes=sum(sizes[k][1] for k in keys),
                archive=archive,
            )


def report(account: Account) -> str:
    """The account as text."""
    told = [
        f"{account.lines:,} lines: {account.scenes:,} scenes, {account.kept:,} kept, {account.filtered:,} filtered out,"
        f" {account.superseded:,} older releases, {account.duplicates:,} said twice",
        f"of those kept {account.undated:,} have no date, {account.next_year:,} a date of the year after the path's",
    ]
    told += [f"{n:,} x {what}" for what, n in sorted(account.others.items(), key=lambda o: (-o[1], o[0]))[:SHOWN]]
    told += [f"cannot be read, though it looks like a scene: {key}" for key in account.unreadable[:SHOWN]]
    if (more := len(account.unreadable) - SHOWN) > 0:
        told.append(f"and {more:,} more that cannot be read")
    return "\n".join(told)


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the scenes that the config asks for.

    Args:
        config: The archive's section of the config.

    Raises:
        ConfigError: If the manifest cannot be read or holds no scene, or the filters leave none.
    """
    keep = Keep(
        frozenset(config.states), frozenset(config.years), frozenset(config.resolutions), _checked_bbox(config.bbox)
    )
    with open_manifest(config.manifest) as lines:
        partitions, account = read_scenes(lines, keep, config.chip_size)
    log.info("%s", report(account))
    if not account.scenes:
        raise ConfigError(f"manifest {config.manifest}: no scene in {account.lines} lines; is it NAIP's list of keys?")
    if not account.kept:
        raise ConfigError(f"the filters leave none of {account.scenes:,} scenes: look at states, years and bbox")
    yield from shard_plans(partitions, config.archive, config.scenes_per_shard, config.chip_size)


def _checked_bbox(bbox: list[float] | None) -> tuple[float, float, float, float] | None:
    if bbox is None:
        return None
    west, south, east, north = bbox
    if not all(map(math.isfinite, bbox)) or west >= east or south >= north:
        raise ConfigError(f"bbox: expected west < east and south < north in degrees, got {bbox}. Correct it.")
    return west, south, east, north
