"""Plan Sentinel-2: which items of the archive are done, in which shards.

The items come from the bucket's S3 inventory (--inventory), from the search of a STAC API (--search), or from a list of
keys and URLs (--items), and the same items make the same plan. Of several versions of a product the newest is kept, and
the halves of one both; only where ids of one tile, platform and day come together are the items read to tell. A shard
holds items of one MGRS grid zone and month, and hardly changes when the archive grows. Every line that is no item is
counted by kind; what looks like an item and cannot be read is listed.
"""

import dataclasses
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from kiln.archives.sentinel2 import ARCHIVE
from kiln.archives.sentinel2.config import Config
from kiln.archives.sentinel2.inventory import Keep, Name, locate, parse_name, read_inventory, read_manifest
from kiln.archives.sentinel2.item import Item, newest, read_item
from kiln.archives.sentinel2.layout import check_way
from kiln.archives.sentinel2.stac_search import box, read_area, search
from kiln.errors import ConfigError, SourceError
from kiln.formats import plan_file
from kiln.formats.plan_file import ShardPlan
from kiln.formats.stable_shards import stable_shards
from kiln.io import storage

BUCKET = "s3://sentinel-cogs"
SIDE = 10980  # pixels of a tile at 10 m
SIZE = 800_000_000  # bytes of a full tile's ten bands and SCL, about: 1.45 GB of uint16 that deflate nearly halves
READERS = 16  # items read at a time
LONGEST = 4096  # characters of a line of a list; a longer one is none
SHOWN = 50  # kinds and unreadable lines that a report names
S3_WEB = re.compile(r"https?://(?:([\w.-]+)\.s3[.-](?:[\w-]+\.)?|s3[.-](?:[\w-]+\.)?)amazonaws\.com/(.+)", re.ASCII)
TILES = re.compile(r"(\d{1,2})(?:([C-HJ-NP-X])([A-Z]{2})?)?", re.ASCII)
DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
log = logging.getLogger(__name__)


@dataclass
class Account:
    """What became of every line of an inventory or list, or of every item that an API gave."""

    lines: int = 0
    items: int = 0
    kept: int = 0
    filtered: int = 0
    cloudy: int = 0
    superseded: int = 0
    duplicates: int = 0
    read: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


class Gathered:
    """The items found so far, by partition and id, and the account of where they came from.

    A place is the address of an item, or the folder of its collection, ending in a slash, if it follows the layout.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.account = Account()
        self.places: dict[str, dict[str, str]] = defaultdict(dict)
        self.names: dict[str, Name] = {}  # of items whose ids do not say it
        self.items: dict[str, Item] = {}  # those that were read
        self.failed: dict[str, str] = {}  # those that could not be, and why

    def add(self, name: Name, place: str, item: Item | None = None) -> None:
        """One item, if the filters take it."""
        self.account.items += 1
        if not self.keep.takes(name):
            self.account.filtered += 1
            return
        if parse_name(name.item_id) is None:
            self.names[name.item_id] = name
        if item is not None:
            self.items[name.item_id] = dataclasses.replace(item, assets={})
        self.put(name.partition, [name.item_id], place)

    def put(self, partition: str, ids: Iterable[str], place: str) -> None:
        """Items that the filters took; of two addresses of one the first by alphabet counts."""
        places = self.places[partition]
        for item_id in ids:
            known = places.setdefault(item_id, place)
            if known != place:
                places[item_id] = min(known, place, key=lambda p: self.address(item_id, p))

    def name(self, item_id: str) -> Name:
        """What an item's id says, or the item itself."""
        return parse_name(item_id) or self.names[item_id]

    def address(self, item_id: str, place: str) -> str:
        """Where the item's document is."""
        return place + self.name(item_id).path if place.endswith("/") else place

    def drop(self, item_id: str) -> None:
        """Forget an item."""
        del self.places[self.name(item_id).partition][item_id]
        self.items.pop(item_id, None)

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))


def canonical(address: str, archive: str) -> str:
    """One spelling of an address: S3 by its own scheme, and what lies in the public bucket below `archive`."""
    if found := S3_WEB.fullmatch(address):
        address = f"s3://{found[1]}/{found[2]}" if found[1] else f"s3://{found[2]}"
    if address.startswith(f"{BUCKET}/"):
        return storage.join(archive, address.removeprefix(f"{BUCKET}/"))
    return address


def name_of(item: Item) -> Name:
    """What an item's id says, else what the item itself says."""
    when, platform = item.datetime, item.platform.upper().replace("SENTINEL-", "S")
    said = (platform, item.zone, item.band, item.square, when.year, when.month, when.day)
    return parse_name(item.item_id) or Name(item.item_id, *said)


# ---------------------------------------------------------------------------------------------------- the three ways


def from_inventory(uri: str, root: str | None, archive: str, keep: Keep) -> Gathered:
    """The items of an S3 inventory. Raises ConfigError as `kiln.archives.sentinel2.inventory` does."""
    gathered = Gathered(keep)
    account = gathered.account
    inventory = read_manifest(uri, root)
    log.info("%s: %d parts, %.1f MB", uri, len(inventory.parts), inventory.size / 1e6)
    for found in read_inventory(inventory, keep):
        account.lines += found.lines
        account.items += found.items
        account.filtered += found.filtered
        account.others.update(found.others)
        account.unreadable += found.unreadable
        for (partition, folder), ids in found.kept.items():
            gathered.put(partition, ids, storage.join(archive, folder))
    account.unreadable.sort()
    return gathered


def from_search(items: Iterable[dict[str, Any]], archive: str, keep: Keep) -> Gathered:
    """The items that an API gave, each as the dictionary of its document."""
    gathered = Gathered(keep)
    for document in items:
        gathered.account.lines += 1
        _add_document(gathered, document, "", archive)
    return gathered


def from_list(uri: str, archive: str, keep: Keep) -> Gathered:
    """The items of a list of keys, URLs and paths, a line each; those that do not follow the layout are read."""
    gathered = Gathered(keep)
    account = gathered.account
    unknown: list[str] = []
    with open_list(uri) as lines:
        for line in lines:
            account.lines += 1
            text = line.strip()
            if not text or text.startswith("#") or len(text) > LONGEST:
                account.others["comment" if text.startswith("#") else "overlong line" if text else "empty line"] += 1
                continue
            anywhere = storage.is_remote(text) or text.startswith(("/", "."))
            address = canonical(text, archive) if anywhere else storage.join(archive, text)
            if located := locate(address):
                gathered.add(located[1], located[0])
            elif anywhere and "." not in address.partition("?")[0].rpartition("/")[2].removesuffix(".json"):
                unknown.append(address)
            else:
                account.unreadable.append(text)
    for address, document in _read_all(unknown, _document):
        if isinstance(document, SourceError):
            account.unreadable.append(str(document))
        else:
            _add_document(gathered, document, address, archive)
    return gathered


@contextmanager
def open_list(uri: str) -> Iterator[Iterable[str]]:
    """The lines of a list. Raises ConfigError for one that is missing or truncated."""
    try:
        with storage.local_copy(uri) as path, path.open("rb") as raw:
            packed = raw.read(2) == plan_file.GZIP_MAGIC
            raw.seek(0)
            stream: Any = gzip.open(raw) if packed else raw  # noqa: SIM115 (closed with the file below it)
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace")
    except SourceError as e:
        raise ConfigError(f"items {e}") from e
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise ConfigError(f"items {uri}: truncated or damaged ({e}); fetch it again") from e


def _add_document(gathered: Gathered, document: dict[str, Any], found_at: str, archive: str) -> None:
    """An item by its document; one that cannot be read as an item is listed."""
    try:
        address = canonical(_home(document, found_at), archive)
        item = read_item(document, address)
    except SourceError as e:
        gathered.account.unreadable.append(str(e))
        return
    located = locate(address)
    same = located is not None and located[1].item_id == item.item_id
    gathered.add(name_of(item), located[0] if located and same else address, item)


def _home(document: Any, found_at: str) -> str:
    """Where an item's document lies: where it was found if that is a file, else where its links say.

    That is its canonical link if that names a JSON file, else itself: each API has an address of its own for it.
    """
    if found_at and not (storage.is_http(found_at) and not found_at.partition("?")[0].endswith(".json")):
        return found_at
    links = document.get("links") if isinstance(document, dict) else None
    said = {k["rel"]: str(k["href"]) for k in links or [] if isinstance(k, dict) and {"rel", "href"} <= k.keys()}
    told = said.get("canonical", "")
    for home in (told if told.endswith(".json") else "", said.get("self", ""), found_at):
        if storage.is_remote(home):
            return home
    raise SourceError(f"{document['id']}: an item of an API that does not say where it is")


def _document(address: str) -> dict[str, Any]:
    try:
        return json.loads(storage.read_bytes(address))
    except ValueError as e:
        raise SourceError(f"{address}: not JSON ({e}), hence no STAC item") from e


def _read_all(addresses: Iterable[str], read: Any) -> Iterator[tuple[str, Any]]:
    """What `read` makes of each address, in order, many at a time; a SourceError comes in place of a result."""

    def one(address: str) -> tuple[str, Any]:
        try:
            return address, read(address)
        except SourceError as e:
            return address, e

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(one, addresses)


# ------------------------------------------------------------------------------------------------- what stays of them


def decide(gathered: Gathered, max_cloud: float | None) -> None:
    """Drop what is too cloudy and what is superseded, reading the items that have to be read for it.

    An item that cannot be read stays, and is told: its shard's ledger will say what is wrong with it.
    """
    account = gathered.account
    account.duplicates = account.items - account.filtered - len(gathered)
    if max_cloud is not None:
        _read_items(gathered, [i for places in gathered.places.values() for i in places])
        for item in list(gathered.items.values()):
            if item.cloud_cover is not None and item.cloud_cover > max_cloud:
                account.cloudy += 1
                gathered.drop(item.item_id)
    several = [ids for ids in _products(gathered) if len(ids) > 1]
    _read_items(gathered, [i for ids in several for i in ids])
    for ids in several:
        _, superseded = newest([gathered.items[i] for i in ids if i in gathered.items])
        for item, winner in superseded:
            log.debug("%s: superseded by %s", item.item_id, winner.item_id)
            account.superseded += 1
            gathered.drop(item.item_id)
    account.undecided = sorted(gathered.failed.values())
    account.kept = len(gathered)


def _products(gathered: Gathered) -> Iterator[list[str]]:
    """The ids of each tile, platform and day, sorted."""

    def product(item_id: str) -> str:
        if name := gathered.names.get(item_id):
            return f"{name.platform} {name.tile} {name.year}{name.month:02d}{name.day:02d}"
        platform, tile, day, _ = item_id.split("_", 3)  # faster than to parse it, for millions
        return f"{platform} {tile.lstrip('T').zfill(5)} {day[:8]}"

    for places in gathered.places.values():
        for _, pairs in groupby(sorted((product(i), i) for i in places), key=itemgetter(0)):
            yield [i for _, i in pairs]


def _read_items(gathered: Gathered, ids: list[str]) -> None:
    """Read the items that were not, without their assets; raises TransientError if a store is busy."""
    wanted = [i for i in ids if i not in gathered.items and i not in gathered.failed]
    missing = {gathered.address(i, gathered.places[gathered.name(i).partition][i]): i for i in wanted}
    gathered.account.read += len(missing)
    if missing:
        log.info("reading %d items", len(missing))
    for address, item in _read_all(missing, lambda a: read_item(storage.read_bytes(a), a)):
        item_id = missing[address]
        if isinstance(item, Item) and item.item_id == item_id:
            gathered.items[item_id] = dataclasses.replace(item, assets={})
        else:
            why = item if isinstance(item, SourceError) else f"{address}: it is {item.item_id}"
            gathered.failed[item_id] = str(why)


def shard_plans(gathered: Gathered, items_per_shard: int, chip_size: int, archive: str) -> Iterator[ShardPlan]:
    """Yield the shards, partition by partition; `expected` chips and `read_bytes` are those of full tiles."""
    for partition, places in sorted(gathered.places.items()):
        for name, ids in stable_shards(places, items_per_shard):
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=partition,
                name=name,
                units=tuple(ids),
                chip_size=chip_size,
                expected=len(ids) * (SIDE // chip_size) ** 2,
                read_bytes=len(ids) * SIZE,
                archive=archive,
                details={"items": {i: gathered.address(i, places[i]) for i in ids}},
            )


def report(account: Account) -> str:
    """The account as text."""
    told = [
        f"{account.lines:,} lines: {account.items:,} items, {account.kept:,} kept, {account.filtered:,} filtered out,"
        f" {account.cloudy:,} too cloudy, {account.superseded:,} older versions, {account.duplicates:,} said twice",
        f"{account.read:,} items were read to tell versions or clouds",
    ]
    told += [f"{n:,} x {what}" for what, n in sorted(account.others.items(), key=lambda o: (-o[1], o[0]))[:SHOWN]]
    for what, lines in (("not an item", account.unreadable), ("kept, though it cannot be read", account.undecided)):
        told += [f"{what}: {line}" for line in lines[:SHOWN]]
        if (more := len(lines) - SHOWN) > 0:
            told.append(f"{what}: {more:,} more")
    return "\n".join(told)


# --------------------------------------------------------------------------------------------------------- planning


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the items that the config asks for.

    Args:
        config: The archive's section of the config.

    Raises:
        ConfigError: If the source of items cannot be read or holds none, or the filters leave none.
        TransientError: If a store or an API is busy.
    """
    gathered = gather(config)
    decide(gathered, config.max_cloud_cover)
    account = gathered.account
    log.info("%s", report(account))
    source = config.inventory or config.search or config.items
    if not account.items:
        raise ConfigError(f"{source}: no item of Sentinel-2 in {account.lines:,} lines")
    if not account.kept:
        raise ConfigError(f"the filters leave none of {account.items:,} items: look at dates, tiles and area")
    yield from shard_plans(gathered, config.items_per_shard, config.chip_size, config.archive)


def gather(config: Config) -> Gathered:
    """Return the items that the config asks for. Raises ConfigError for contradictory settings."""
    if config.chip_size > SIDE:
        raise ConfigError(f"chip_size: expected 8 to {SIDE}, got {config.chip_size}. Take a smaller one.")
    if config.area and config.bbox:
        raise ConfigError("area and bbox: expected one of them, got both. Remove one.")
    if config.inventory_root and not config.inventory:
        raise ConfigError("inventory_root: expected with inventory alone. Remove it.")
    check_way(config.model_dump())
    region = read_area(config.area) if config.area else box(*_checked_bbox(config.bbox)) if config.bbox else None
    dates = _checked_dates(config.dates) if config.dates else None
    keep = Keep(frozenset(config.years), frozenset(config.months), tuple(_tile(str(t)) for t in config.tiles))
    if config.search:
        if region is None and dates is None:
            raise ConfigError(
                "search: expected area, bbox or dates with it, or the whole archive is asked for. Add one."
            )
        items = search(
            config.search, config.collection, region=region, dates=dates, max_cloud=config.max_cloud_cover
        )  # the API's own footprints and times are finer than those of tiles and names
        return from_search(items, config.archive, keep)
    keep = dataclasses.replace(keep, days=_days(dates), region=region)
    if config.inventory:
        return from_inventory(config.inventory, config.inventory_root, config.archive, keep)
    return from_list(str(config.items), config.archive, keep)


def _checked_bbox(bbox: list[float]) -> list[float]:
    west, south, east, north = bbox
    on_earth = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90
    if not (all(map(math.isfinite, bbox)) and on_earth and west != east):
        raise ConfigError(f"bbox: expected degrees, south < north, west and east not the same, got {bbox}. Correct it.")
    return bbox


def _tile(text: str) -> str:
    match = TILES.fullmatch(text.upper())
    if match is None or not 1 <= int(match[1]) <= 60:
        raise ConfigError(
            f"tiles: expected a tile as 29RKH, a grid zone as 29R or a zone as 29, got {text!r}. Correct it."
        )
    return f"{int(match[1]):02d}{match[2] or ''}{match[3] or ''}"


def _checked_dates(text: str) -> str:
    """Return `FROM/TO` with days or `..`, or one day."""
    ends = text.split("/")
    days = [e for e in ends if e != ".."]
    if len(ends) > 2 or not days or not all(map(DAY.fullmatch, days)) or days != sorted(days):
        raise ConfigError(
            f"dates: expected 2020-01-01/2020-12-31, in order, or .. for an open end, got {text!r}. Correct it."
        )
    return text


def _days(dates: str | None) -> tuple[int, int] | None:
    """Return first and last day as numbers, 20200219."""
    if dates is None:
        return None
    first, last = (dates.split("/") * 2)[:2]
    return (0 if first == ".." else int(first.replace("-", "")), 10**8 if last == ".." else int(last.replace("-", "")))
