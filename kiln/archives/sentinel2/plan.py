"""The plan of Sentinel-2: the items that are embedded, in shards of one MGRS grid zone and month each.

The items come from an S3 inventory, the search of a STAC API, or a list; the same items make the same plan. Of several
versions of a product the newest is selected, and of an acquisition in two halves both. A shard hardly changes when the
archive grows. Every line that is no item is counted by kind; every line that looks like an item and is none is listed.
"""

import logging
import re
from collections.abc import Iterator
from datetime import date, timedelta

from kiln.archives.key_list import report_kinds, report_lines
from kiln.archives.sentinel2 import ARCHIVE
from kiln.archives.sentinel2.config import Config
from kiln.archives.sentinel2.item_lists import ItemCollection, ItemCounts, list_file, list_inventory, list_search
from kiln.archives.sentinel2.item_name import ItemFilter
from kiln.archives.sentinel2.layout import TILE_SIDE_PX, check_item_source
from kiln.archives.sentinel2.other_products import other_product
from kiln.archives.sentinel2.stac_search import read_area, region_of, search
from kiln.archives.sentinel2.versions import select_items
from kiln.archives.stable_shards import stable_shards
from kiln.errors import ConfigError
from kiln.formats.bounding_box import check_bounding_box
from kiln.formats.plan_file import ShardPlan

TILE_BYTES = 1_360_000_000  # of a full tile's ten bands and SCL, uncompressed; deflate nearly halves them
TILES = re.compile(r"(\d{1,2})(?:([C-HJ-NP-X])([A-Z]{2})?)?", re.ASCII)
DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
log = logging.getLogger(__name__)


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the items that the config selects.

    Args:
        config: The archive's section of the config.

    Yields:
        The shards, partition by partition. `details["items"]` holds the address of each item's document.

    Raises:
        ConfigError: If the source of items cannot be read or holds none, or the filters leave none.
        TransientError: If a store or an API is busy.
    """
    collection = list_items(config)
    select_items(collection, config.max_cloud_cover)
    counts = collection.counts
    log.info("%s", report(counts))
    source = config.inventory or config.search or config.items
    if not counts.items:
        first = f" The first: {counts.unreadable[0]}" if counts.unreadable else ""
        raise ConfigError(f"{source}: expected items of Sentinel-2, got none in {counts.lines:,} lines.{first}")
    if not counts.selected:
        raise ConfigError(
            f"{source}: the filters leave none of {counts.items:,} items. Check dates, years, months, tiles and area."
        )
    yield from shard_plans(collection, config.items_per_shard, config.chip_size, config.archive)


def list_items(config: Config) -> ItemCollection:
    """Return the items that the config's source lists and its filter selects.

    Args:
        config: The archive's section of the config.

    Returns:
        The items, of which several may be versions of each other.

    Raises:
        ConfigError: If settings contradict each other, or the source of items cannot be read.
        TransientError: If a store or an API is busy.
    """
    if config.chip_size > TILE_SIDE_PX:
        raise ConfigError(f"chip_size: expected 8 to {TILE_SIDE_PX}, got {config.chip_size}. Take a smaller one.")
    if config.area and config.bbox:
        raise ConfigError("area and bbox: expected one of them, got both. Remove one.")
    if config.inventory_root and not config.inventory:
        raise ConfigError("inventory_root: expected together with inventory, got no inventory. Remove it.")
    check_item_source(config.model_dump())
    region = None
    if config.area:
        region = read_area(config.area)
    elif config.bbox:
        region = region_of(check_bounding_box(config.bbox))
    dates = _checked_dates(config.dates) if config.dates else None
    years, months = frozenset(config.years), frozenset(config.months)
    tiles = tuple(_checked_tile(str(tile)) for tile in config.tiles)
    if config.search:
        if region is None and dates is None:
            raise ConfigError("search: expected area, bbox or dates with it, got none. Add one: the archive is large.")
        if product := other_product(config.collection):
            raise ConfigError(_refusal(config.collection, f"one of {product}"))
        documents = search(
            config.search,
            config.collection,
            region=region,
            dates=_with_neighbours(dates) if dates else None,
            max_cloud=config.max_cloud_cover,
        )
        # The API's footprints are finer than those of tiles, so the filter leaves them to it. Its times are not those
        # of ids: the filter decides about the days.
        collection = list_search(documents, config.archive, ItemFilter(years, months, tiles, _day_numbers(dates)))
        if 0 < len(collection.refusals) == collection.counts.lines:
            raise ConfigError(_refusal(config.collection, f"others: {collection.refusals[0].rstrip('.')}"))
        return collection
    item_filter = ItemFilter(years, months, tiles, _day_numbers(dates), region)
    if config.inventory:
        return list_inventory(config.inventory, config.inventory_root, config.archive, item_filter)
    return list_file(str(config.items), config.archive, item_filter)


def shard_plans(collection: ItemCollection, items_per_shard: int, chip_size: int, archive: str) -> Iterator[ShardPlan]:
    """Yield the shards, partition by partition; `expected` chips and `read_bytes` are at most those of full tiles."""
    for partition, locations in sorted(collection.locations.items()):
        for name, ids in stable_shards(locations, items_per_shard):
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=partition,
                name=name,
                units=tuple(ids),
                chip_size=chip_size,
                expected=len(ids) * (TILE_SIDE_PX // chip_size) ** 2,
                read_bytes=len(ids) * TILE_BYTES,
                archive=archive,
                details={"items": {i: collection.address(i, locations[i]) for i in ids}},
            )


def report(counts: ItemCounts) -> str:
    """Return the counts as text."""
    lines = [
        f"{counts.lines:,} lines: {counts.items:,} items, {counts.selected:,} selected, {counts.filtered:,} filtered "
        f"out, {counts.cloudy:,} too cloudy, {counts.superseded:,} older versions, {counts.duplicates:,} duplicates",
        f"{counts.read:,} items were read for their version or cloud cover",
        *report_kinds(counts.others),
        *report_lines("not an item", counts.unreadable),
        *report_lines("selected, but cannot be read", counts.undecided),
    ]
    return "\n".join(lines)


def _checked_tile(text: str) -> str:
    match = TILES.fullmatch(text.upper())
    if match is None or not 1 <= int(match[1]) <= 60:
        raise ConfigError(
            f"tiles: expected a tile as 29RKH, a grid zone as 29R or a zone as 29, got {text!r}. Correct it."
        )
    return f"{int(match[1]):02d}{match[2] or ''}{match[3] or ''}"


def _checked_dates(text: str) -> str:
    """Return `FROM/TO`, each a day or `..`; for one day, from it to it. Raises ConfigError for another text."""
    if _is_day(text):
        return f"{text}/{text}"
    ends = text.split("/")
    days = [end for end in ends if end != ".."]
    if len(ends) != 2 or not days or not all(map(_is_day, days)) or days != sorted(days):
        raise ConfigError(
            "dates: expected 2020-01-01/2020-12-31, in order, or .. for an open end, or one day, "
            f"got {text!r}. Correct it."
        )
    return text


def _is_day(text: str) -> bool:
    """Return whether a text is a day, as `2020-02-19`, that has a day before and after it."""
    try:
        return bool(DAY.fullmatch(text)) and date.min < date.fromisoformat(text) < date.max
    except ValueError:
        return False


def _refusal(collection: str, what: str) -> str:
    return (
        f"sentinel2.collection: expected a collection with items of Sentinel-2 L2A, got {collection}, {what}. "
        "Set another collection."
    )


def _with_neighbours(dates: str) -> str:
    """Return `FROM/TO` with a day more at either end: an API compares `datetime`, which may pass midnight."""
    first, last = dates.split("/")
    return f"{_shifted(first, -1)}/{_shifted(last, 1)}"


def _shifted(day: str, days: int) -> str:
    """Return a day, moved by some days; `..` as it is."""
    return day if day == ".." else (date.fromisoformat(day) + timedelta(days)).isoformat()


def _day_numbers(dates: str | None) -> tuple[int, int] | None:
    """Return first and last day as numbers, 20200219."""
    if dates is None:
        return None
    first, last = dates.split("/")
    return (0 if first == ".." else int(first.replace("-", "")), 10**8 if last == ".." else int(last.replace("-", "")))
