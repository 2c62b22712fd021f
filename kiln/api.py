"""Planning and opening shards from Python. `import kiln` shows these functions with the rest of the public API."""

from typing import Any

from kiln.archives.registry import get_archive
from kiln.formats.plan_file import ShardPlan
from kiln.formats.records import Source
from kiln.formats.validation import dotted, validate


def plan(name: str, /, **settings: Any) -> list[ShardPlan]:
    """Plan an archive: decide which units are embedded, in which shards.

    Args:
        name: Name of the archive, as `naip`.
        settings: Keys of the archive's config section, as `states=["nd"]`; config/README.md lists them. Keys that are
            left out have the archive's defaults.

    Returns:
        The shards. Each holds the units that one job embeds.

    Raises:
        ConfigError: If a setting is wrong, the archive cannot be listed, or nothing is left to embed.
        TransientError: If a store is busy.
    """
    return list(get_archive(name).load("plan", "plan_shards")(_read_settings(name, settings)))


def open_source(shard: ShardPlan, /, **settings: Any) -> Source:
    """Open the chips of a planned shard, for `embed`.

    Args:
        shard: A shard of `plan`, or of a plan file.
        settings: Keys of the archive's config section that change chips, as `max_nodata=0.1`.

    Returns:
        The source. Nothing is read before it is embedded.

    Raises:
        ConfigError: If a setting is wrong or the plan does not fit it.
    """
    config = _read_settings(shard.dataset, {**settings, "chip_size": shard.chip_size})
    source: Source = get_archive(shard.dataset).load("source", "open_source")(shard, config)
    return source


def _read_settings(name: str, settings: dict[str, Any]) -> Any:
    return validate(get_archive(name).load("config", "Config"), settings, name=lambda field: dotted((name, *field)))
