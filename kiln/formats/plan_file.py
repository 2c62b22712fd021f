"""Plans: gzipped files of one JSON line per shard, the same for every archive.

A line ends in a digest of itself, and the name of its shard in a digest of its units, so that a line that was changed
after it was written is refused.
"""

import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest
from kiln.io import storage

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ARRAY_INDEX = "AWS_BATCH_JOB_ARRAY_INDEX"  # set by AWS Batch in the children of an array job
MAX_LINE_BYTES = 64 << 20
MAX_CHIP_PX = 1 << 16
MAX_COUNT = 1 << 53  # of chips and bytes
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,199}", re.ASCII)  # of a file or folder, never a path
UNITS_DIGEST = re.compile(r".*-([0-9a-f]{8})")  # at the end of a shard's name
LINE_DIGEST = b', "digest": "'  # begins the end of a line


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

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"strict": True, "extra": "forbid"}
    dataset: str
    partition: str
    name: str
    units: tuple[str, ...]
    chip_size: int
    expected: int
    read_bytes: int
    archive: str
    details: Mapping[str, Any] = field(default_factory=dict)


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
        ConfigError: If a shard's name is no file name, or does not end in the digest of its units.
        StorageError: If a file cannot be written.
    """
    names_by_partition: dict[str, list[str]] = {}
    units = 0
    with storage.atomic(output) as path:
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            for shard in shards:
                try:
                    _check_names(shard)
                except ValueError as e:
                    raise ConfigError(f"{output}: {e}. Correct the plan of the archive {shard.dataset}.") from None
                names_by_partition.setdefault(shard.partition, []).append(shard.name)
                units += len(shard.units)
                body = json.dumps(asdict(shard)).encode()[:-1]
                file.write(body + LINE_DIGEST + _line_digest(body) + b'"}\n')
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
        if not isinstance(names, dict):
            raise ValueError("not an object")
        for partition, shards in names.items():
            if not isinstance(shards, list):
                raise ValueError(f"{partition[:80]!r} has no list")
            for name in (partition, *shards):
                _check_plain_name(name)
        return names
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{uri}: expected the names of a plan's shards ({e}). Make the plan again.") from e


def read_plan(uri: str, partition: str | None = None, name: str | None = None) -> Iterator[ShardPlan]:
    """Yield the plan's shards line by line, since a plan of an archive is larger than its lines.

    Args:
        uri: Path or s3:// of the plan.
        partition: The only partition to yield; None yields all.
        name: The only name to yield; None yields all.

    Raises:
        ConfigError: If the file is not a plan, or a line is not as it was written.
    """
    stream = gzip.GzipFile(fileobj=io.BytesIO(storage.read_bytes(uri)))
    values = {"partition": partition, "name": name}
    texts = [json.dumps({key: value})[1:-1].encode() for key, value in values.items() if value is not None]
    number = 1
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            body = _line_body(line)
            if body is None or all(text in body for text in texts):  # saves the parsing of most lines
                shard = _parse_shard(line if body is None else body + b"}")
                if partition in (None, shard.partition) and name in (None, shard.name):
                    yield shard
            number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ConfigError(f"{uri}: expected a plan, got a damaged file ({e}). Make the plan again.") from e
    except ValueError as e:
        raise ConfigError(f"{uri}, line {number}: expected a shard of a plan ({e}). Make the plan again.") from None


def _line_body(line: bytes) -> bytes | None:
    """Return what a line's digest fits, without the closing brace; None if the line has none, as in older plans.

    Raises:
        ValueError: If the digest does not fit, or the line has no end.
    """
    if not line.endswith(b"\n"):
        raise ValueError("its end is missing" if len(line) < MAX_LINE_BYTES else f"more than {MAX_LINE_BYTES:,} bytes")
    body, separator, end = line.rpartition(LINE_DIGEST)
    if not separator:
        return None
    if end != _line_digest(body) + b'"}\n':
        raise ValueError("it does not fit its digest")
    return body


def _parse_shard(text: bytes) -> ShardPlan:
    """Return the shard of a line without its digest. Raises ValueError for another line."""
    from pydantic import ValidationError

    from kiln.formats.validation import first_problem

    try:
        shard = _shard_model().validate_json(text)
    except ValidationError as e:
        raise ValueError(first_problem(e)) from None
    _check_names(shard)
    if not shard.units:
        raise ValueError("units: expected one or more, got none")
    for name, value, least, most in (
        ("chip_size", shard.chip_size, 1, MAX_CHIP_PX),
        ("expected", shard.expected, 0, MAX_COUNT),
        ("read_bytes", shard.read_bytes, 0, MAX_COUNT),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name}: expected {least} to {most}, got {str(value)[:20]}")
    return shard


@cache
def _shard_model() -> "TypeAdapter[ShardPlan]":
    """Return the validator of a line. Readers of names alone save the import of pydantic."""
    from pydantic import TypeAdapter

    return TypeAdapter(ShardPlan)


def _line_digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _check_names(shard: ShardPlan) -> None:
    """Raise ValueError unless the names are file names, and the shard's ends in the digest of its units."""
    for name in (shard.dataset, shard.partition, shard.name):
        _check_plain_name(name)
    match, units = UNITS_DIGEST.fullmatch(shard.name), digest(shard.units)[:8]
    if match is None or match[1] != units:
        raise ValueError(f"shard {shard.name}: expected a name that ends in the digest of its units, {units}")


def _check_plain_name(name: Any) -> None:
    """Raise ValueError unless a value is the name of a file or folder, and no path."""
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise ValueError(f"expected a plain file name, got {str(name)[:80]!r}")


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
    shards = read_plan(uri, name=name)
    if name is None:
        return next(itertools.islice(shards, index, None), None)
    if (shard := next(shards, None)) is None:
        raise ConfigError(f"{uri}: expected a shard of the plan, got {name!r}, which is not in it. Correct it.")
    return shard
