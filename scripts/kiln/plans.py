"""Plans: files of one JSON line per shard, written by `scripts/plan_*`, read by everything after."""

import gzip
import json
import zlib
from typing import Any

from scripts.kiln import storage
from scripts.kiln.errors import ConfigError

GZIP = b"\x1f\x8b"
INDEX = "AWS_BATCH_JOB_ARRAY_INDEX"  # set by AWS Batch in the children of an array job


def read_plan(uri: str) -> list[dict[str, Any]]:
    """The plan's shards. Raises ConfigError for a file that is no plan."""
    lines = []
    data = storage.read_bytes(uri)
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise ConfigError(f"{uri}: a damaged plan ({e}); make it again") from e
    for n, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        try:
            shard = json.loads(line)
            if not {"dataset", "shard", "partition", "units", "expected", "bytes"} <= set(shard):
                raise ValueError("keys are missing")
        except (ValueError, TypeError) as e:
            raise ConfigError(f"{uri}, line {n}: not a shard of a plan ({e}); make the plan again") from None
        lines.append(shard)
    return lines


def pick(plan: list[dict[str, Any]], uri: str, *, shard: str | None, index: int | None) -> dict[str, Any] | None:
    """The shard of that name, or line `index` counted from 0; None past the last line, which is no error.

    Raises ConfigError if neither is given, or there is no shard of that name.
    """
    if shard is not None:
        for line in plan:
            if line["shard"] == shard:
                return line
        raise ConfigError(f"{uri}: no shard {shard!r} among {len(plan)}")
    if index is None:
        raise ConfigError(f"say which shard: --shard NAME, --index N, or {INDEX} in the environment")
    if index < 0:
        raise ConfigError(f"--index {index}: lines count from 0")
    return plan[index] if index < len(plan) else None
