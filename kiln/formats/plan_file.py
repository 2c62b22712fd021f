"""Plans: gzipped files of one JSON line per shard, the same for every archive."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from kiln.errors import ConfigError
from kiln.io import storage

GZIP_MAGIC = b"\x1f\x8b"
ARRAY_INDEX = "AWS_BATCH_JOB_ARRAY_INDEX"  # set by AWS Batch in the children of an array job


@dataclass(frozen=True)
class ShardPlan:
    """A line of a plan: the units that one job embeds.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition, the product that the shard goes into.
        name: Name of the shard. It ends in a digest of its units.
        units: Ids of the units, in ledger order.
        chip_size: Side of a chip in pixels.
        expected: Chips that the units hold, at most.
        read_bytes: Bytes that the job reads, at most.
        archive: Root of the units' files: folder, https:// or s3://.
        details: What else the archive's source needs, JSON values only.
    """

    dataset: str
    partition: str
    name: str
    units: tuple[str, ...]
    chip_size: int
    expected: int
    read_bytes: int
    archive: str
    details: Mapping[str, Any] = field(default_factory=dict)


KEYS = {f.name for f in fields(ShardPlan)}


def write_plan(shards: Iterable[ShardPlan], output: str, names: str | None = None) -> tuple[int, int]:
    """Write a plan, gzipped without a time, so that equal plans are equal bytes.

    Args:
        shards: The plan's lines.
        output: Path or s3:// of the plan.
        names: Path or s3:// of a small JSON file, written first, for readers that need only the shards' names:
            `{partition: [name, ...]}`.

    Returns:
        The number of shards and the number of units.

    Raises:
        StorageError: If a file cannot be written.
    """
    names_by_partition: dict[str, list[str]] = {}
    units = 0
    with storage.atomic(output) as path:
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            for shard in shards:
                names_by_partition.setdefault(shard.partition, []).append(shard.name)
                units += len(shard.units)
                file.write((json.dumps(asdict(shard)) + "\n").encode())
        if names:
            storage.write_bytes(names, (json.dumps(names_by_partition, indent=0, sort_keys=True) + "\n").encode())
    return sum(map(len, names_by_partition.values())), units


def takes_partition(patterns: Sequence[str], partition: str) -> bool:
    """Return whether a run that is limited to patterns, as `nd-*`, takes a partition. Without patterns it takes all."""
    return not patterns or any(fnmatchcase(partition, pattern) for pattern in patterns)


def read_names(uri: str) -> dict[str, list[str]]:
    """Return the shards' names by partition, as `write_plan` wrote them. Raises ConfigError for another file."""
    try:
        names = json.loads(storage.read_bytes(uri))
        return {partition: list(shards) for partition, shards in names.items()}
    except (ValueError, AttributeError, TypeError) as e:
        raise ConfigError(f"{uri}: expected the names of a plan's shards ({e}). Make the plan again.") from e


def read_plan(uri: str, partition: str | None = None) -> Iterator[ShardPlan]:
    """Yield the plan's shards line by line, since a plan of an archive is larger than its lines.

    Args:
        uri: Path or s3:// of the plan.
        partition: The only partition to yield; None yields all.

    Raises:
        ConfigError: If the file is not a plan.
    """
    data = storage.read_bytes(uri)
    stream: Any = io.BytesIO(data)
    if data.startswith(GZIP_MAGIC):
        stream = gzip.GzipFile(fileobj=stream)
    number = 0
    try:
        for number, line in enumerate(stream, 1):  # noqa: B007 (named in the error)
            shard = _parse_shard(json.loads(line))
            if partition is None or shard.partition == partition:
                yield shard
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ConfigError(f"{uri}: expected a plan, got a damaged file ({e}). Make the plan again.") from e
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{uri}, line {number}: expected a shard of a plan ({e}). Make the plan again.") from None


def _parse_shard(values: Any) -> ShardPlan:
    """Return a line's shard. Raises ValueError or TypeError for another JSON value."""
    if not isinstance(values, dict):
        raise ValueError("not an object")
    if missing := KEYS - values.keys():
        raise ValueError(f"without {', '.join(sorted(missing))}")
    if unknown := values.keys() - KEYS:
        raise ValueError(f"with {', '.join(sorted(unknown))}")
    texts = (values["dataset"], values["partition"], values["name"], values["archive"], *values["units"])
    numbers = (values["chip_size"], values["expected"], values["read_bytes"])
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("a value has another type")
    return ShardPlan(**values | {"units": tuple(values["units"])})


def pick_shard(uri: str, *, name: str | None = None, index: int | None = None) -> ShardPlan | None:
    """Return one shard of a plan.

    Args:
        uri: Path or s3:// of the plan.
        name: Name of the shard.
        index: Line of the shard, counted from 0; used where no name is given.

    Returns:
        The shard, or None for an index past the last line, which is no error.

    Raises:
        ConfigError: If neither name nor index is given, or no shard has the name.
    """
    if name is None and index is None:
        raise ConfigError(f"shard: expected --shard NAME, --index N or {ARRAY_INDEX}, got none of them. Give one.")
    if name is None and index is not None and index < 0:
        raise ConfigError(f"--index: expected a line number from 0, got {index}. Correct it.")
    count = 0
    for count, shard in enumerate(read_plan(uri), 1):
        if shard.name == name if name is not None else count - 1 == index:
            return shard
    if name is not None:
        raise ConfigError(
            f"{uri}: expected a shard of the plan, got {name!r}, which is not one of {count}. Correct it."
        )
    return None
