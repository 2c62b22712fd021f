"""Plans: files of one JSON line per shard, written by `scripts/plan_*`, read by everything after."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from kiln.errors import ConfigError
from kiln.io import storage

GZIP = b"\x1f\x8b"
INDEX = "AWS_BATCH_JOB_ARRAY_INDEX"  # set by AWS Batch in the children of an array job
KEYS = {"dataset", "shard", "partition", "units", "expected", "bytes"}


def write_plan(lines: Iterable[dict[str, Any]], output: str, names: str | None = None) -> tuple[int, int]:
    """Write a plan, gzipped without a time, so that equal plans are equal bytes; returns shards and units.

    `names` is a small JSON file, written first, for who needs only the shards' names: {partition: [name, ...]}.
    """
    shards: dict[str, list[str]] = {}
    units = 0
    with storage.atomic(output) as path:
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            for line in lines:
                shards.setdefault(line["partition"], []).append(line["shard"])
                units += len(line["units"])
                file.write((json.dumps(line) + "\n").encode())
        if names:
            storage.write_bytes(names, (json.dumps(shards, indent=0, sort_keys=True) + "\n").encode())
    return sum(map(len, shards.values())), units


def read_names(uri: str) -> dict[str, list[str]]:
    """The shards' names by partition, as `write_plan` wrote them. Raises ConfigError for another file."""
    try:
        names = json.loads(storage.read_bytes(uri))
        return {partition: list(shards) for partition, shards in names.items()}
    except (ValueError, AttributeError, TypeError) as e:
        raise ConfigError(f"{uri}: not the names of a plan ({e}); make the plan again") from e


def read_plan(uri: str, partition: str | None = None) -> Iterator[dict[str, Any]]:
    """The plan's shards, of one partition or of all, line by line: a plan of an archive is larger than its lines.

    Raises ConfigError for a file that is no plan.
    """
    data = storage.read_bytes(uri)
    stream: Any = io.BytesIO(data)
    if data.startswith(GZIP):
        stream = gzip.GzipFile(fileobj=stream)
    n = 0
    try:
        for n, line in enumerate(stream, 1):  # noqa: B007 (told in the error)
            shard = json.loads(line)
            if missing := KEYS - set(shard):
                raise ValueError(f"without {', '.join(sorted(missing))}")
            if partition is None or shard["partition"] == partition:
                yield shard
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ConfigError(f"{uri}: a damaged plan ({e}); make it again") from e
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{uri}, line {n}: not a shard of a plan ({e}); make the plan again") from None


def pick(uri: str, *, shard: str | None, index: int | None) -> dict[str, Any] | None:
    """The plan's shard of that name, or line `index` counted from 0; None past the last line, which is no error.

    Raises ConfigError if neither is given, or there is no shard of that name.
    """
    if shard is None and index is None:
        raise ConfigError(f"say which shard: --shard NAME, --index N, or {INDEX} in the environment")
    if shard is None and index < 0:
        raise ConfigError(f"--index {index}: lines count from 0")
    n = -1
    for n, line in enumerate(read_plan(uri)):
        if line["shard"] == shard if shard is not None else n == index:
            return line
    if shard is not None:
        raise ConfigError(f"{uri}: no shard {shard!r} among {n + 1}")
    return None
