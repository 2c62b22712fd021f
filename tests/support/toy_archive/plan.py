"""Plan the toy archive: one listing, one partition per year, and stable shards."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from kiln.archives.stable_shards import stable_shards
from kiln.errors import ConfigError
from kiln.formats.plan_file import ShardPlan
from kiln.io import storage
from tests.support.toy_archive import ARCHIVE
from tests.support.toy_archive.config import Config

CHIPS_PER_TILE = 16  # an estimate


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the tiles that exist."""
    files = storage.listing(config.archive)
    by_year: dict[str, dict[str, int]] = {}
    for uri, stat in files.items():
        path = PurePosixPath(uri)
        if path.suffix == ".npz" and (not config.years or int(path.parent.name) in config.years):
            by_year.setdefault(path.parent.name, {})[f"toy:{path.parent.name}:{path.stem}"] = stat.size
    if not by_year:
        raise ConfigError(
            f"{config.archive}: expected tiles in years' folders, got none. Check toy.archive and toy.years."
        )
    for year, sizes in sorted(by_year.items()):
        for name, units in stable_shards(sizes, config.tiles_per_shard):
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=year,
                name=name,
                units=tuple(units),
                chip_size=config.chip_size,
                expected=len(units) * CHIPS_PER_TILE,
                read_bytes=sum(sizes[unit] for unit in units),
                archive=config.archive,
            )
