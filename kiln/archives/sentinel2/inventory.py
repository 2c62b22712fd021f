"""The S3 inventory of the bucket, which lists Sentinel-2 items by the million.

An inventory is a `manifest.json` and headerless gzipped CSV parts with quoted fields and URL-encoded keys. Parts are
read in processes of their own, block by block: one pass of one regular expression matches the keys of a block's lines.
"""

import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from urllib.parse import unquote_plus

from kiln.archives.key_list import PLAIN_NAME, UNPACK_ERRORS, extension
from kiln.archives.sentinel2.item_name import ItemFilter, locate
from kiln.errors import ConfigError, SourceError, StorageError
from kiln.io import storage

FILE = re.compile(r"(?!S2)\w{1,24}\.\w{1,5}", re.ASCII)  # a file of an item's folder whose name is its kind
OTHER_FIELD = rb'(?:"[^"\n]*+"|[^",\n]*+)'
KEY_FIELD = (  # a file of an item's folder, or a JSON file anywhere, or another key; no backtracking
    rb'"(?:[^/"\n]++/\d{1,2}+/[A-Z]/[A-Z]{2}/\d{4}/\d{1,2}+/[^/"\n]++/(?P<file>[^/"\n]++)(?<!\.json)(?=")'
    rb'|(?P<json>[^"\n]*+)(?<=\.json)|(?P<other>[^"\n]*+))"'
)
VERSION_FIELDS = {  # columns of inventories that list every version of an object; the groups match obsolete ones
    "IsLatest": rb'"?(?:true|(?P<older>false))"?',
    "IsDeleteMarker": rb'"?(?:false|(?P<deleted>true))?"?',
}
BLOCK_BYTES = 1 << 22  # of text, matched at once
MAX_LINE_BYTES = 1 << 20
MIN_PARALLEL_BYTES = 8 << 20  # of all parts; fewer are read without further processes
log = logging.getLogger(__name__)


@dataclass
class PartItems:
    """The items of a part, and the counts of its lines.

    Attributes:
        lines: All lines.
        items: Lines that are items.
        filtered: Items that do not pass the filter.
        ids: Ids of those that pass, by partition and folder of their collection.
        others: Numbers of other lines, by kind.
        unreadable: Keys that look like items and are none.
    """

    lines: int = 0
    items: int = 0
    filtered: int = 0
    ids: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inventory:
    """A manifest: addresses and MD5 digests of its parts, the sum of their bytes, and the columns of their lines."""

    parts: list[tuple[str, str]]
    size: int
    schema: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------- the manifest


def read_manifest(uri: str, root: str | None = None) -> Inventory:
    """Read a manifest.

    Args:
        uri: Path, s3://, http:// or https:// of `manifest.json`.
        root: Root of the parts' keys. None: the destination bucket that the manifest names if it is read from S3, else
            the folder of copied parts: `../data` as in S3, `data`, or the manifest's own.

    Returns:
        The inventory, its parts with their addresses.

    Raises:
        ConfigError: If the file is no manifest of a CSV inventory, or its first part does not exist.
    """
    where = f"inventory {uri}"
    try:
        manifest = json.loads(storage.read_bytes(uri))
    except SourceError as e:
        raise ConfigError(f"inventory {e}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{where}: expected the manifest.json of an S3 inventory, got no JSON ({e}).") from e
    try:
        kind, schema = manifest["fileFormat"], tuple(c.strip() for c in manifest["fileSchema"].split(","))
        files = [(str(f["key"]), str(f["MD5checksum"]).lower(), int(f["size"])) for f in manifest["files"]]
        destination = str(manifest["destinationBucket"]).rpartition(":")[2]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"{where}: expected a manifest of an S3 inventory, got other JSON ({type(e).__name__}: {e})."
        ) from e
    if kind != "CSV" or "Key" not in schema:
        raise ConfigError(f"{where}: expected CSV with a column Key, got {kind} with columns {', '.join(schema)}.")
    if not files:
        raise ConfigError(f"{where}: expected parts, got none. Take the inventory of another day.")
    paths = {key: key for key, _, _ in files}
    if root is None and storage.is_s3(uri):
        root = f"s3://{destination}"
    elif root is None:
        paths = {key: key.rpartition("/")[2] for key in paths}
        root = _folder_of_copied_parts(uri, paths[files[0][0]])
    return Inventory([(storage.join(root, paths[k]), md5) for k, md5, _ in files], sum(f[2] for f in files), schema)


def _folder_of_copied_parts(uri: str, first: str) -> str:
    """Return the folder of the parts of a copied manifest. Raises ConfigError if the first is in no likely folder."""
    home = uri.rpartition("/")[0] or "."
    folders = [f"{home}/../data", f"{home}/data", home]
    if storage.is_http(uri):
        folders[0] = f"{home.rpartition('/')[0]}/data"
    for folder in folders:
        if storage.stat(f"{folder}/{first}") is not None:
            return folder
    raise ConfigError(
        f"inventory {uri}: expected its part {first} in one of {', '.join(folders)}, got none. Set inventory_root."
    )


# ------------------------------------------------------------------------------------------------------- the parts


def read_inventory(inventory: Inventory, item_filter: ItemFilter, workers: int | None = None) -> Iterator[PartItems]:
    """Read the parts of an inventory.

    Args:
        inventory: The inventory.
        item_filter: The filter on items.
        workers: Processes that read. None: one per core, or this process alone for a small inventory.

    Yields:
        The items of each part, in the order in which parts are finished.

    Raises:
        ConfigError: If a part does not exist, has another digest, is damaged or is not CSV of the schema.
        StorageError: If a process was killed.
        TransientError: If a store is busy.
    """
    read = partial(read_part, schema=inventory.schema, item_filter=item_filter)
    cores = len(os.sched_getaffinity(0))
    count = (
        min(len(inventory.parts), cores if inventory.size > MIN_PARALLEL_BYTES else 1) if workers is None else workers
    )
    if count < 2:
        yield from map(read, inventory.parts)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        pending = {pool.submit(read, part) for part in inventory.parts}
        for n, done in enumerate(as_completed(pending), 1):
            log.debug("%d of %d parts read", n, len(inventory.parts))
            pending.discard(done)
            yield done.result()
    except BrokenProcessPool as e:
        raise StorageError("inventory: a process that read it was killed. Check the memory of this machine.") from e
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:  # the parts that they began are not needed
            child.terminate()
            child.join()


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent process, and end when that ends, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def read_part(part: tuple[str, str], schema: tuple[str, ...], item_filter: ItemFilter) -> PartItems:
    """Read a part, given by address and MD5 digest. Raises as `read_inventory`."""
    uri, md5 = part
    items, pattern = PartItems(), line_pattern(schema)
    with storage.temporary_folder() as folder:
        path = _fetch_part(uri, Path(folder) / "part.csv.gz")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if digest != md5:
            raise ConfigError(
                f"inventory part {uri}: expected the MD5 {md5} of the manifest, got {digest}. Download it again."
            )
        try:
            for block in _blocks(path):
                _add_block(block, pattern, item_filter, items, uri)
        except UNPACK_ERRORS as e:
            raise ConfigError(
                f"inventory part {uri}: truncated or damaged ({e}). Take the inventory of another day."
            ) from e
    return items


def _fetch_part(uri: str, path: Path) -> Path:
    """Return the path of a part on this machine: itself, or a copy at `path`."""
    if not storage.is_remote(uri) and Path(uri).is_file():
        return Path(uri)
    try:
        storage.fetch(uri, path)
    except SourceError as e:
        raise ConfigError(f"inventory part {e}") from e
    return path


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the text of a part in blocks of complete lines, each with its end of line."""
    rest = b""
    with gzip.open(path) as file:
        while data := file.read(BLOCK_BYTES):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise gzip.BadGzipFile(f"a line of more than {MAX_LINE_BYTES} bytes")
            yield lines + newline
    if rest:
        yield rest + b"\n"


@cache
def line_pattern(schema: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return the pattern of an inventory's lines, up to the last column that is used."""
    fields = [KEY_FIELD if c == "Key" else VERSION_FIELDS.get(c, OTHER_FIELD) for c in schema]
    last = max(n for n, c in enumerate(schema) if c == "Key" or c in VERSION_FIELDS)
    return re.compile(rb"^" + rb",".join(fields[: last + 1]) + rb"(?=[,\r\n]).*+\n", re.MULTILINE)


def _add_block(block: bytes, pattern: re.Pattern[bytes], item_filter: ItemFilter, items: PartItems, uri: str) -> None:
    """Add the lines of a block to the items of a part."""
    block = block.replace(b"%2F", b"/") if b"%2F" in block else block
    rows, lines = pattern.findall(block), block.count(b"\n")
    if len(rows) != lines:
        bad = next(n for n, line in enumerate(block.splitlines(keepends=True), 1) if not pattern.match(line))
        text = block.splitlines()[bad - 1][:100].decode(errors="replace")
        raise ConfigError(f"inventory part {uri}, line {items.lines + bad}: expected CSV of the schema, got {text!r}.")
    items.lines += lines
    at = {name: n - 1 for name, n in pattern.groupindex.items()}
    if obsolete := [at[name] for name in ("older", "deleted") if name in at]:
        rows = [row for row in rows if not any(row[n] for n in obsolete)]
        items.others["older version or deleted"] += lines - len(rows)
    files = Counter([row[at["file"]] for row in rows])
    files.pop(b"", None)
    for file, count in files.items():
        items.others[_kind_of_file(_decode(file))] += count
    for row in rows:
        if row[at["json"]]:
            _add_json_file(_decode(row[at["json"]]), item_filter, items)
        elif not row[at["file"]]:
            items.others[_kind_outside_layout(_decode(row[at["other"]]))] += 1


def _add_json_file(key: str, item_filter: ItemFilter, items: PartItems) -> None:
    """Add a JSON file, which may be an item."""
    located = locate(key)
    if located is None:
        *folders, folder, file = ["", *key.split("/")]
        if len(folders) != 7:  # of the collection, zone, band, square, year, month, after the empty one
            items.others[_kind_outside_layout(key)] += 1
        elif file != f"{folder}.json":
            items.others[_kind_of_file(file)] += 1
        else:
            items.unreadable.append(key)
        return
    root, name = located
    items.items += 1
    if item_filter.matches(name):
        items.ids.setdefault((name.partition, root), []).append(name.item_id)
    else:
        items.filtered += 1


def _decode(key: bytes) -> str:
    return unquote_plus(key.decode("utf-8", "replace"))


def _kind_of_file(file: str) -> str:
    """Return the kind of a file of an item's folder: its name, or its extension."""
    return file if FILE.fullmatch(file) else f"{extension(file)} of another name"


def _kind_outside_layout(key: str) -> str:
    """Return the kind of a key that does not follow the layout: its first two folders and its extension."""
    parts = key.split("/")
    if len(parts) < 3 or not all(map(PLAIN_NAME.fullmatch, parts[:2])):
        return "no key of the archive"
    return f"{parts[0]}/{parts[1]}, outside the layout, {extension(parts[-1])}"
