"""The keys of Sentinel-2 items, which of them are wanted, and the S3 inventory that lists them by the million.

An inventory is a `manifest.json` and headerless gzipped CSV parts with quoted fields and URL-encoded keys. Parts are
read in processes of their own, block by block: one pass of one regular expression finds the keys of a block's lines.
"""

import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import pyproj
import shapely
from shapely.affinity import translate

from kiln.errors import ConfigError, SourceError, StorageError, TransientError
from kiln.io import storage

COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # letters of 100 km squares from west to east, by zone modulo 3
ROWS = "ABCDEFGHJKLMNPQRSTUV"  # from the equator northwards, again every 2000 km; even zones begin at F
BANDS = "CDEFGHJKLMNPQRSTUVWX"  # of 8 degrees of latitude from -80; X has 12
NAME = re.compile(
    r"(S2[A-D])_T?(\d{1,2})([C-HJ-NP-X])([A-Z]{2})_(\d{4})(\d{2})(\d{2})(?:T\d{6})?_(?:\d+_)?L2A", re.ASCII
)
FILE = re.compile(r"(?!S2)\w{1,24}\.\w{1,5}", re.ASCII)  # a file of an item's folder whose name says its kind
WORD = re.compile(r"[\w.-]{1,80}", re.ASCII)
OTHER = rb'(?:"[^"\n]*+"|[^",\n]*+)'  # a field of any other column
KEY = (  # a file of an item's folder, or a JSON file anywhere, or anything else; no backtracking
    rb'"(?:[^/"\n]++/\d{1,2}+/[A-Z]/[A-Z]{2}/\d{4}/\d{1,2}+/[^/"\n]++/(?P<file>[^/"\n]++)(?<!\.json)(?=")'
    rb'|(?P<json>[^"\n]*+)(?<=\.json)|(?P<other>[^"\n]*+))"'
)
FLAGS = {  # columns of inventories that list every version of an object; what is no longer there is in the group
    "IsLatest": rb'"?(?:true|(?P<older>false))"?',
    "IsDeleteMarker": rb'"?(?:false|(?P<deleted>true))?"?',
}
BLOCK = 1 << 22  # bytes of text looked at together
LONGEST = 1 << 20  # bytes of a line; a longer one is none
SMALL = 8 << 20  # bytes of all parts that are not worth a process
TRIES = 3  # of fetching a part; each goes on where the last one broke off
UNPACKING = (EOFError, zlib.error, gzip.BadGzipFile)  # what damaged archives raise
log = logging.getLogger(__name__)


class Name(NamedTuple):
    """What an item's id says, or the item itself where its id says nothing."""

    item_id: str
    platform: str
    zone: int
    band: str
    square: str
    year: int
    month: int
    day: int

    @property
    def tile(self) -> str:
        """`29RKH`."""
        return f"{self.zone:02d}{self.band}{self.square}"

    @property
    def partition(self) -> str:
        """What it is merged with, MGRS grid zone and month: `29R-2020-02`."""
        return f"{self.zone:02d}{self.band}-{self.year}-{self.month:02d}"

    @property
    def path(self) -> str:
        """Where the archive keeps the item below the folder of its collection; months have no leading zero."""
        place = f"{self.zone}/{self.band}/{self.square}/{self.year}/{self.month}"
        return f"{place}/{self.item_id}/{self.item_id}.json"


def parse_name(item_id: str) -> Name | None:
    """What an id such as `S2A_29RKH_20200219_0_L2A` or `S2B_T38XNF_20230415T084353_L2A` says; None for another one."""
    found = NAME.fullmatch(item_id)
    if found is None:
        return None
    platform, zone, band, square, year, month, day = found.groups()
    name = Name(item_id, platform, int(zone), band, square, int(year), int(month), int(day))
    possible = 1 <= name.zone <= 60 and square[0] in COLUMNS[name.zone % 3] and square[1] in ROWS
    return name if possible and 1 <= name.month <= 12 and 1 <= name.day <= 31 else None


def locate(address: str) -> tuple[str, Name] | None:
    """The folder of its collection and the name of an item whose address follows the archive's layout, else None."""
    name = parse_name(address.rpartition("/")[2].removesuffix(".json"))
    if name is None or not address.endswith(name.path):
        return None
    root = address[: -len(name.path)]
    return (root, name) if not root or root.endswith("/") else None


@cache
def _to_degrees(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def footprint(tile: str) -> shapely.Polygon:
    """What a Sentinel-2 tile such as `29RKH` can cover, in degrees; longitudes go past 180 in zones 1 and 60.

    A tile is 109.8 km wide and high from the north-west corner of its 100 km square, moved by up to 40 m west and
    north to whole 60 m. The hull of that is taken, as items draw straight lines from corner to corner.
    """
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    south = 10_000_000 if band < "N" else 0
    latitude = 78 if band == "X" else 8 * BANDS.index(band) - 76
    north = ((ROWS.index(row) - 5 * (zone % 2 == 0)) % 20) * 100_000
    middle = latitude * 110_950 + south  # of the band, within a few kilometres; rows come again every 2000
    north += round((middle - north - 50_000) / 2_000_000) * 2_000_000
    east = (COLUMNS[zone % 3].index(column) + 1) * 100_000
    box = shapely.box(east - 40, north - 9_800, east + 109_800, north + 100_040)
    x, y = shapely.segmentize(box, 20_000).exterior.xy
    lon, lat = _to_degrees((32_700 if south else 32_600) + zone).transform(x, y)
    centre = 6 * zone - 183
    turned = [(centre + (a - centre + 180) % 360 - 180, b) for a, b in zip(lon, lat, strict=True)]
    return shapely.Polygon(turned).convex_hull


@dataclass(frozen=True)
class Keep:
    """Which items: every field that is set.

    `tiles` are tiles or what they begin with (`29RKH`, `29R`, `29`), `days` the first and last as numbers 20200219,
    `region` a geometry in degrees that the tile's footprint meets.
    """

    years: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    tiles: tuple[str, ...] = ()
    days: tuple[int, int] | None = None
    region: Any = None
    _met: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def takes(self, name: Name) -> bool:
        """Whether the filters take an item."""
        if (self.years and name.year not in self.years) or (self.months and name.month not in self.months):
            return False
        if self.days and not self.days[0] <= name.year * 10_000 + name.month * 100 + name.day <= self.days[1]:
            return False
        tile = name.tile
        if self.tiles and not tile.startswith(self.tiles):
            return False
        if self.region is None:
            return True
        if tile not in self._met:
            shape = footprint(tile)
            self._met[tile] = any(self.region.intersects(translate(shape, turn)) for turn in (0, -360, 360))
        return self._met[tile]


@dataclass
class Found:
    """What a part holds: ids by partition and the folder of their collection, and what the other lines are."""

    lines: int = 0
    items: int = 0
    filtered: int = 0
    kept: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inventory:
    """A manifest: addresses and MD5 digests of its parts, their bytes together, and the columns of their lines."""

    parts: list[tuple[str, str]]
    size: int
    schema: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------- the manifest


def read_manifest(uri: str, root: str | None = None) -> Inventory:
    """The inventory that a manifest describes.

    Its parts lie below `root` by their whole keys; without `root` in the destination bucket that it names if it is
    read from S3 itself, else where S3 has them (`../data`), in `data` beside it, or beside it. Raises ConfigError for
    what is no manifest of a CSV inventory.
    """
    try:
        said = json.loads(storage.read_bytes(uri))
    except SourceError as e:
        raise ConfigError(f"inventory {e}") from e
    except ValueError as e:
        raise ConfigError(f"inventory {uri}: not JSON ({e}); want the manifest.json of an S3 inventory") from e
    try:
        kind, schema = said["fileFormat"], tuple(c.strip() for c in said["fileSchema"].split(","))
        files = [(str(f["key"]), str(f["MD5checksum"]).lower(), int(f["size"])) for f in said["files"]]
        destination = str(said["destinationBucket"]).rpartition(":")[2]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"inventory {uri}: no manifest of an S3 inventory ({type(e).__name__}: {e})") from e
    if kind != "CSV" or "Key" not in schema:
        raise ConfigError(f"inventory {uri}: {kind} with columns {', '.join(schema)}; want CSV with a column Key")
    if not files:
        raise ConfigError(f"inventory {uri}: it has no parts; take one of another day")
    where = {key: key for key, _, _ in files}
    if root is None and storage.is_s3(uri):
        root = f"s3://{destination}"
    elif root is None:
        where = {key: key.rpartition("/")[2] for key in where}
        root = _beside(uri, where[files[0][0]])
    return Inventory([(storage.join(root, where[k]), md5) for k, md5, _ in files], sum(f[2] for f in files), schema)


def _beside(uri: str, first: str) -> str:
    """The folder of the parts of a manifest that somebody copied. Raises ConfigError if the first is nowhere."""
    home = uri.rpartition("/")[0] or "."
    folders = [f"{home}/../data", f"{home}/data", home]
    if storage.is_http(uri):
        folders[0] = f"{home.rpartition('/')[0]}/data"
    for folder in folders:
        if storage.stat(f"{folder}/{first}") is not None:
            return folder
    raise ConfigError(f"inventory {uri}: its part {first} is in none of {', '.join(folders)}; say --inventory-root")


# ------------------------------------------------------------------------------------------------------- the parts


def read_inventory(inventory: Inventory, keep: Keep, workers: int | None = None) -> Iterator[Found]:
    """What the parts hold, as they are done; small inventories are read here, others in a process per core.

    Raises ConfigError for a part that is missing, has another digest, is damaged or is not CSV of the schema.
    """
    look = partial(read_part, schema=inventory.schema, keep=keep)
    cores = len(os.sched_getaffinity(0))
    count = min(len(inventory.parts), cores if inventory.size > SMALL else 1) if workers is None else workers
    if count < 2:
        yield from map(look, inventory.parts)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        waiting = {pool.submit(look, part) for part in inventory.parts}
        for n, done in enumerate(as_completed(waiting), 1):
            log.debug("%d of %d parts read", n, len(inventory.parts))
            waiting.discard(done)
            yield done.result()
    except BrokenProcessPool as e:
        raise StorageError("a process that read the inventory was killed; is there memory enough?") from e
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:  # nobody waits for what they have begun
            child.terminate()
            child.join()


def _end_with_parent() -> None:
    """Leave the keyboard to the parent, and end when it is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def read_part(part: tuple[str, str], schema: tuple[str, ...], keep: Keep) -> Found:
    """What a part holds, by address and MD5 digest; raises as `read_inventory`."""
    uri, md5 = part
    found, pattern = Found(), line_pattern(schema)
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        path = _fetched(uri, Path(folder) / "part.csv.gz")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if digest != md5:
            raise ConfigError(f"inventory part {uri}: its MD5 is {digest}, the manifest says {md5}; fetch it again")
        try:
            for block in _blocks(path):
                _take(block, pattern, keep, found, uri)
        except UNPACKING as e:
            raise ConfigError(f"inventory part {uri}: truncated or damaged ({e}); take one of another day") from e
    return found


def _fetched(uri: str, path: Path) -> Path:
    """A part on this machine: itself, or a copy at `path`."""
    if not storage.is_remote(uri) and Path(uri).is_file():
        return Path(uri)
    try:
        for left in reversed(range(TRIES)):
            try:
                storage.fetch(uri, path)
                break
            except TransientError as e:
                if not left:
                    raise
                log.info("%s; once more", e)
    except SourceError as e:
        raise ConfigError(f"inventory part {e}") from e
    return path


def _blocks(path: Path) -> Iterator[bytes]:
    """The text of a part in blocks of whole lines, each with its end of line."""
    rest = b""
    with gzip.open(path) as file:
        while data := file.read(BLOCK):
            whole, end, rest_of_it = (rest + data).rpartition(b"\n")
            if len(rest := rest_of_it) > LONGEST:
                raise gzip.BadGzipFile("a line without an end")
            yield whole + end
    if rest:
        yield rest + b"\n"


@cache
def line_pattern(schema: tuple[str, ...]) -> re.Pattern[bytes]:
    """What the lines of an inventory look like, as far as the last column that matters."""
    fields = [KEY if c == "Key" else FLAGS.get(c, OTHER) for c in schema]
    last = max(n for n, c in enumerate(schema) if c == "Key" or c in FLAGS)
    return re.compile(rb"^" + rb",".join(fields[: last + 1]) + rb"(?=[,\r\n]).*+\n", re.MULTILINE)


def _take(block: bytes, pattern: re.Pattern[bytes], keep: Keep, found: Found, uri: str) -> None:
    """Add the lines of a block to what was found."""
    block = block.replace(b"%2F", b"/") if b"%2F" in block else block
    rows, lines = pattern.findall(block), block.count(b"\n")
    if len(rows) != lines:
        bad = next(n for n, line in enumerate(block.splitlines(keepends=True), 1) if not pattern.match(line))
        text = block.splitlines()[bad - 1][:100].decode(errors="replace")
        raise ConfigError(f"inventory part {uri}, line {found.lines + bad}: not CSV of the schema: {text!r}")
    found.lines += lines
    at = {name: n - 1 for name, n in pattern.groupindex.items()}
    if gone := [at[name] for name in ("older", "deleted") if name in at]:
        rows = [row for row in rows if not any(row[n] for n in gone)]
        found.others["older version or deleted"] += lines - len(rows)
    files = Counter([row[at["file"]] for row in rows])
    files.pop(b"", None)
    for file, count in files.items():
        found.others[_kind(_text(file))] += count
    for row in rows:
        if row[at["json"]]:
            _take_json(_text(row[at["json"]]), keep, found)
        elif not row[at["file"]]:
            found.others[_outside(_text(row[at["other"]]))] += 1


def _take_json(key: str, keep: Keep, found: Found) -> None:
    located = locate(key)
    if located is None:
        *folders, folder, file = ["", *key.split("/")]
        if len(folders) != 7:  # of the collection, zone, band, square, year, month, after the empty one
            found.others[_outside(key)] += 1
        elif file != f"{folder}.json":
            found.others[_kind(file)] += 1
        else:
            found.unreadable.append(key)
        return
    root, name = located
    found.items += 1
    if keep.takes(name):
        found.kept.setdefault((name.partition, root), []).append(name.item_id)
    else:
        found.filtered += 1


def _text(key: bytes) -> str:
    return unquote_plus(key.decode("utf-8", "replace"))


def _kind(file: str) -> str:
    """What a file of an item's folder is."""
    return file if FILE.fullmatch(file) else f"{_extension(file)} of another name"


def _outside(key: str) -> str:
    """What a key is that does not follow the layout: its first two folders and its extension."""
    parts = key.split("/")
    if len(parts) < 3 or not all(map(WORD.fullmatch, parts[:2])):
        return "no key of the archive"
    return f"{parts[0]}/{parts[1]}, outside the layout, {_extension(parts[-1])}"


def _extension(file: str) -> str:
    _, dot, extension = file.rpartition(".")
    return f".{extension}" if dot and WORD.fullmatch(extension) and len(extension) < 9 else "without extension"
