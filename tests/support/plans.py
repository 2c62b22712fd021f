"""Plans of any archive, made by Kiln from the keys of its config section."""

import gzip
import json
from pathlib import Path
from typing import Any

from kiln.archives.registry import get_archive
from kiln.formats.plan_file import ShardPlan, read_plan, write_plan
from kiln.io import storage


def plan_shards(name: str, /, **settings: Any) -> list[ShardPlan]:
    """Return the shards of an archive, planned with the given keys of its config section."""
    archive = get_archive(name)
    return list(archive.load("plan", "plan_shards")(archive.load("config", "Config")(**settings)))


def write(name: str, output: Path | str, /, names: str | None = None, **settings: Any) -> bytes:
    """Plan an archive; write the plan and return its bytes."""
    archive = get_archive(name)
    config = archive.load("config", "Config")(**settings)
    write_plan(archive.load("plan", "plan_shards")(config), str(output), names)
    return storage.read_bytes(str(output))


def lines(data: bytes) -> list[dict[str, Any]]:
    """Return the lines of a plan without their digests, from the bytes of its file."""
    values = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    return [{key: value for key, value in line.items() if key != "digest"} for line in values]


def units(data: bytes) -> list[str]:
    """Return the units of a plan, from the bytes of its file."""
    return [unit for line in lines(data) for unit in line["units"]]


def make_plan(name: str, path: Path, /, **settings: Any) -> tuple[Path, list[ShardPlan]]:
    """Plan an archive; write the plan and return its path and its shards."""
    write(name, path, **settings)
    return path, list(read_plan(str(path)))
