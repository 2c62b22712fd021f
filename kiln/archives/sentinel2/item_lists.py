"""The three sources of a plan's items: an S3 inventory, the search of a STAC API, a list of keys and addresses.

The same items give the same collection, whichever source lists them.
"""

import dataclasses
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kiln.archives.key_list import cut_off, cut_off_error, open_lines
from kiln.archives.sentinel2.inventory import read_inventory, read_manifest
from kiln.archives.sentinel2.item import Item, OtherProductError, read_item
from kiln.archives.sentinel2.item_name import ItemFilter, ItemName, locate, parse_name
from kiln.archives.sentinel2.layout import BUCKET
from kiln.errors import SourceError
from kiln.io import storage

READ_THREADS = 16
MAX_LINE_CHARS = 4096
MAX_REFUSED = 100  # first items of a search that are all of another product: the collection is
S3_WEB = re.compile(r"https?://(?:([\w.-]+)\.s3[.-](?:[\w-]+\.)?|s3[.-](?:[\w-]+\.)?)amazonaws\.com/(.+)", re.ASCII)
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class ItemCounts:
    """The counts of a plan: every line of an inventory or list, or every item of an API, is one of them.

    Attributes:
        lines: All of them.
        items: Lines that are items.
        selected: Items that are planned.
        filtered: Items that do not pass the filter.
        cloudy: Items with more cloud than `max_cloud_cover`.
        superseded: Items of which there is a newer version.
        duplicates: Items that are listed again.
        read: Items whose documents were read.
        others: Numbers of other lines, by kind.
        unreadable: Lines that look like items and are none.
        undecided: Errors of planned items whose documents cannot be read.
    """

    lines: int = 0
    items: int = 0
    selected: int = 0
    filtered: int = 0
    cloudy: int = 0
    superseded: int = 0
    duplicates: int = 0
    read: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


class ItemCollection:
    """The items of a plan, by partition and id, with the counts of the lines that they come from.

    A location is the address of an item's document, or, for items that follow the archive's layout, the folder of
    their collection, ending in a slash.

    Attributes:
        counts: The counts.
        locations: Locations by partition and id.
        items: Items whose documents were read, without assets, by id.
        failures: Errors of documents that cannot be read, by id.
        refusals: Why items are of another product, of those whose documents list or search have.
    """

    def __init__(self, item_filter: ItemFilter) -> None:
        self.filter = item_filter
        self.counts = ItemCounts()
        self.locations: dict[str, dict[str, str]] = defaultdict(dict)
        self.items: dict[str, Item] = {}
        self.failures: dict[str, str] = {}
        self.refusals: list[str] = []
        self._names: dict[str, ItemName] = {}  # of ids from which no name can be parsed

    def add(self, name: ItemName, location: str, item: Item | None = None) -> None:
        """Add one item if it passes the filter."""
        self.counts.items += 1
        if not self.filter.matches(name):
            self.counts.filtered += 1
            return
        if parse_name(name.item_id) is None:
            self._names[name.item_id] = name
        if item is not None:
            self.items[name.item_id] = dataclasses.replace(item, assets={})
        self.add_filtered(name.partition, [name.item_id], location)

    def add_filtered(self, partition: str, ids: Iterable[str], location: str) -> None:
        """Add items that pass the filter; of two addresses of one item the first in alphabetical order stays."""
        locations = self.locations[partition]
        for item_id in ids:
            known = locations.setdefault(item_id, location)
            if known != location:
                locations[item_id] = min(known, location, key=lambda at: self.address(item_id, at))

    def own_name(self, item_id: str) -> ItemName | None:
        """Return the name of an item whose id has none; None for other items."""
        return self._names.get(item_id)

    def name(self, item_id: str) -> ItemName:
        """Return an item's name."""
        return parse_name(item_id) or self._names[item_id]

    def address(self, item_id: str, location: str) -> str:
        """Return the address of an item's document."""
        return location + self.name(item_id).path if location.endswith("/") else location

    def remove(self, item_id: str) -> None:
        """Remove an item."""
        del self.locations[self.name(item_id).partition][item_id]
        self.items.pop(item_id, None)

    def ids(self) -> list[str]:
        """Return the ids of all items."""
        return [item_id for locations in self.locations.values() for item_id in locations]

    def __len__(self) -> int:
        return sum(map(len, self.locations.values()))


def canonical(address: str, archive: str) -> str:
    """Return the one spelling of an address: s3:// for S3, and `archive` for the root of the public bucket."""
    if match := S3_WEB.fullmatch(address):
        address = f"s3://{match[1]}/{match[2]}" if match[1] else f"s3://{match[2]}"
    if address.startswith(f"{BUCKET}/"):
        return storage.join(archive, address.removeprefix(f"{BUCKET}/"))
    return address


def list_inventory(uri: str, root: str | None, archive: str, item_filter: ItemFilter) -> ItemCollection:
    """Return the items of an S3 inventory.

    Args:
        uri: Address of its `manifest.json`.
        root: Root of its parts' keys; None: `read_manifest` decides.
        archive: Root of the archive's keys.
        item_filter: The filter on items.

    Returns:
        The items.

    Raises:
        ConfigError: If the inventory cannot be read.
        TransientError: If its store is busy.
    """
    collection = ItemCollection(item_filter)
    counts = collection.counts
    inventory = read_manifest(uri, root)
    log.info("%s: %d parts, %.1f MB", uri, len(inventory.parts), inventory.size / 1e6)
    for part in read_inventory(inventory, item_filter):
        counts.lines += part.lines
        counts.items += part.items
        counts.filtered += part.filtered
        counts.others.update(part.others)
        counts.unreadable += part.unreadable
        for (partition, folder), ids in part.ids.items():
            collection.add_filtered(partition, ids, storage.join(archive, folder))
    counts.unreadable.sort()
    return collection


def list_search(documents: Iterable[dict[str, Any]], archive: str, item_filter: ItemFilter) -> ItemCollection:
    """Return the items of an API's documents; the first ones alone if these are all of another product."""
    collection = ItemCollection(item_filter)
    for document in documents:
        collection.counts.lines += 1
        _add_document(collection, document, "", archive)
        if len(collection.refusals) == collection.counts.lines == MAX_REFUSED:
            break
    return collection


def list_file(uri: str, archive: str, item_filter: ItemFilter) -> ItemCollection:
    """Return the items of a list of keys, URLs and paths, a line each.

    The documents of items that do not follow the archive's layout are read.

    Args:
        uri: Path, s3://, http:// or https:// of the list.
        archive: Root of the archive's keys.
        item_filter: The filter on items.

    Returns:
        The items.

    Raises:
        ConfigError: If the list cannot be read, or is cut off.
        TransientError: If a store is busy.
    """
    collection = ItemCollection(item_filter)
    counts = collection.counts
    outside_layout: list[str] = []
    line = text = address = ""
    with open_lines(uri, "items") as lines:
        for line in lines:
            counts.lines += 1
            text, address = line.strip(), ""
            if not text or text.startswith("#") or len(text) > MAX_LINE_CHARS:
                counts.others["comment" if text.startswith("#") else "overlong line" if text else "empty line"] += 1
                continue
            is_address = storage.is_remote(text) or text.startswith(("/", "."))
            address = canonical(text, archive) if is_address else storage.join(archive, text)
            if located := locate(address):
                collection.add(located[1], located[0])
            elif is_address and "." not in address.partition("?")[0].rpartition("/")[2].removesuffix(".json"):
                outside_layout.append(address)
            else:
                counts.unreadable.append(text)
    last = text if cut_off(line) and not text.startswith("#") else ""
    if last and (counts.items or outside_layout) and not locate(address) and address not in outside_layout:
        raise cut_off_error(f"items {uri}", last, "no item")
    for other, document in read_all(outside_layout, _read_document):
        items = counts.items
        if isinstance(document, SourceError):
            counts.unreadable.append(str(document))
        else:
            _add_document(collection, document, other, archive)
        if last and other == address and counts.items == items:
            raise cut_off_error(f"items {uri}", last, counts.unreadable[-1])
    return collection


def _add_document(collection: ItemCollection, document: dict[str, Any], read_from: str, archive: str) -> None:
    """Add an item by its document; one that cannot be read as an item is counted as unreadable.

    An item of another product is added too if it has a place in a plan, so that the ledger has its refusal.
    """
    try:
        address = canonical(_own_address(document, read_from), archive)
        item = read_item(document, address)
    except SourceError as e:
        collection.counts.unreadable.append(str(e))
        if isinstance(e, OtherProductError):
            collection.refusals.append(str(e))
        return
    if item.refusal:
        collection.refusals.append(item.refusal)
    located = locate(address)
    follows_layout = located is not None and located[1].item_id == item.item_id
    collection.add(_name_of(item), located[0] if located and follows_layout else address, item)


def _name_of(item: Item) -> ItemName:
    """Return the name in an item's id, else one from its properties."""
    day, platform = item.day, item.platform.upper().replace("SENTINEL-", "S")
    properties = (platform, item.zone, item.band, item.square, day.year, day.month, day.day)
    return parse_name(item.item_id) or ItemName(item.item_id, *properties)


def _own_address(document: Any, read_from: str) -> str:
    """Return the address of an item's document: the one that it was read from if that is a file, else its links'.

    That is its canonical link if it names a JSON file, else `self`: every API has an address of its own for an item.
    Raises SourceError for a document without an address.
    """
    if read_from and not (storage.is_http(read_from) and not read_from.partition("?")[0].endswith(".json")):
        return read_from
    links = document.get("links") if isinstance(document, dict) else None
    hrefs = {k["rel"]: str(k["href"]) for k in links or [] if isinstance(k, dict) and {"rel", "href"} <= k.keys()}
    canonical_href = hrefs.get("canonical", "")
    for address in (canonical_href if canonical_href.endswith(".json") else "", hrefs.get("self", ""), read_from):
        if storage.is_remote(address):
            return address
    raise SourceError(f"{document['id']}: expected a link to itself in an item of an API, got none.")


def _read_document(address: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(storage.read_bytes(address))
    except (ValueError, RecursionError) as e:
        raise SourceError(f"{address}: expected a STAC item, got a file that is not JSON ({e}).") from e
    return document


def read_all(addresses: Iterable[str], read: Callable[[str], T]) -> Iterator[tuple[str, T | SourceError]]:
    """Yield each address with the result of `read`, or with its SourceError, in order; many are read at a time."""

    def read_one(address: str) -> tuple[str, T | SourceError]:
        try:
            return address, read(address)
        except SourceError as e:
            return address, e

    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(read_one, addresses)
