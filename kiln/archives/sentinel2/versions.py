"""Versions of items: which of several items of one acquisition a plan selects, and which are too cloudy."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from kiln.archives.sentinel2.item import Item, read_item
from kiln.archives.sentinel2.item_lists import ItemCollection, read_all
from kiln.errors import SourceError
from kiln.io import storage

log = logging.getLogger(__name__)


def select_items(collection: ItemCollection, max_cloud_cover: float | None) -> None:
    """Remove items that are too cloudy and items that a newer version supersedes.

    Only the documents that decide are read. An item whose document cannot be read stays and is counted: its error
    appears in its shard's ledger.

    Args:
        collection: The items; they are removed from it, and counted.
        max_cloud_cover: Maximum cloud cover in percent; None: no limit, and no document is read for it.

    Raises:
        TransientError: If a store is busy.
    """
    counts = collection.counts
    counts.duplicates = counts.items - counts.filtered - len(collection)
    if max_cloud_cover is not None:
        _read_items(collection, collection.ids())
        for item in list(collection.items.values()):
            if item.cloud_cover is not None and item.cloud_cover > max_cloud_cover:
                counts.cloudy += 1
                collection.remove(item.item_id)
    groups = [ids for ids in _acquisitions(collection) if len(ids) > 1]
    _read_items(collection, [item_id for ids in groups for item_id in ids])
    for ids in groups:
        _, superseded = newest([collection.items[i] for i in ids if i in collection.items])
        for item, winner in superseded:
            log.debug("%s: superseded by %s", item.item_id, winner.item_id)
            counts.superseded += 1
            collection.remove(item.item_id)
    counts.undecided = sorted(collection.failures.values())
    counts.selected = len(collection)


def _acquisitions(collection: ItemCollection) -> Iterator[list[str]]:
    """Yield the sorted ids of each tile, platform and day."""

    def acquisition(item_id: str) -> str:
        if name := collection.own_name(item_id):
            return f"{name.platform} {name.tile} {name.year}{name.month:02d}{name.day:02d}"
        platform, tile, day, _ = item_id.split("_", 3)  # faster than parsing millions of ids
        return f"{platform} {tile.lstrip('T').zfill(5)} {day[:8]}"

    for locations in collection.locations.values():
        for _, pairs in groupby(sorted((acquisition(i), i) for i in locations), key=itemgetter(0)):
            yield [item_id for _, item_id in pairs]


def _read_items(collection: ItemCollection, ids: list[str]) -> None:
    """Read the documents that were not read yet. Raises TransientError if a store is busy."""
    unread = [i for i in ids if i not in collection.items and i not in collection.failures]
    addresses = {collection.address(i, collection.locations[collection.name(i).partition][i]): i for i in unread}
    collection.counts.read += len(addresses)
    if addresses:
        log.info("reading %d items", len(addresses))
    for address, item in read_all(addresses, lambda uri: read_item(storage.read_bytes(uri), uri)):
        item_id = addresses[address]
        if isinstance(item, SourceError):
            collection.failures[item_id] = str(item)
        elif item.item_id == item_id:
            collection.items[item_id] = dataclasses.replace(item, assets={})
        else:
            collection.failures[item_id] = f"{address}: expected item {item_id}, got {item.item_id}."


def newest(items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, Item]]]:
    """Divide items into those that stay and those that a newer version supersedes.

    Versions of one product have equal tile, platform, day and sensing time of the datastrip. Of these the highest
    baseline stays, then the latest processed, then the first by name. Items with other sensing times are halves of a
    scene that two datastrips cover, and all stay. An item without a sensing time supersedes none. `_0_` and `_1_` in
    names decide nothing. An item that is given twice stays once.

    Args:
        items: The items, in any order.

    Returns:
        The items that stay, in the order given, and the superseded ones, each with the item that supersedes it.
    """
    by_id: dict[str, Item] = {}
    for item in items:
        by_id[item.item_id] = _better(by_id.get(item.item_id, item), item)
    best: dict[tuple[str, ...], Item] = {}
    for item in by_id.values():
        best[_product_key(item)] = _better(best.get(_product_key(item), item), item)
    current: list[Item] = []
    superseded: list[tuple[Item, Item]] = []
    done: set[str] = set()
    for item in items:
        winner = best[_product_key(by_id[item.item_id])]
        if item == winner and item.item_id not in done:
            current.append(item)
            done.add(item.item_id)
        else:
            superseded.append((item, winner))
    return current, superseded


def _product_key(item: Item) -> tuple[str, ...]:
    """Return the key that versions of one product share; no other item has that of one without a sensing time."""
    is_alone = item.refusal or not item.sensing  # an L1C product has the sensing time of its L2A
    return (*item.product, item.item_id if is_alone else item.sensing)


def _better(a: Item, b: Item) -> Item:
    """Return the one of two versions that stays, in whichever order they are given."""
    if a.version != b.version:
        return max(a, b, key=lambda item: item.version)
    return min(a, b, key=lambda item: (item.item_id, item.href))
