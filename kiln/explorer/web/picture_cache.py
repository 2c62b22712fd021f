"""Pictures of chips as PNG files in a folder of bounded size.

A file's name is the digest of everything that decides the picture: chip, box, source and the service's settings. If
the image service fails, the source's picture is a stand-in that expires after an hour. A service that fails slowly is
paused for a minute.
"""

import io
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kiln.errors import SourceError, StorageError
from kiln.explorer import pictures
from kiln.explorer.matrix import BOX
from kiln.explorer.picture_file import TEXT_CHUNKS, read_picture_info
from kiln.formats.fingerprint import digest
from kiln.io import storage

MAX_BYTES = 1 << 30
STAND_IN_LIFETIME_S = 3600.0
SLOW_S = 5.0  # a service that fails after this time is paused
PAUSE_S = 60.0
MAX_HEADER_CHARACTERS = 300
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedPicture:
    """A PNG and its origin.

    Attributes:
        png: The file's bytes.
        origin: `wms`, `source` or `none`.
        why: Why the picture is not from a better origin.
    """

    png: bytes
    origin: str
    why: str


class PictureCache:
    """The pictures of chips. Several threads may use it."""

    def __init__(self, folder: Path, services: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> None:
        """Create the folder if it does not exist.

        Args:
            folder: The folder of the files.
            services: The config's `pictures`: by dataset, its image service.
            max_bytes: Size of all files, above which the oldest are deleted.

        Raises:
            StorageError: The folder cannot be created.
        """
        self._folder, self._services, self._max_bytes = folder, services, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"{folder}: cannot be written: {os.strerror(e.errno or 0)}") from e
        self._lock = threading.Lock()
        self._paused_until: dict[str, float] = {}
        self._bytes = sum(file.size for file in self._files())

    def get(self, facts: Mapping[str, Any]) -> CachedPicture:
        """Return the picture of a chip, a grey square without one.

        Args:
            facts: The chip's facts, as `ChipFacts.to_json` gives them.
        """
        dataset = facts["dataset"]
        service = self._services.get(dataset) or {}
        key = digest([facts["chip_id"], facts["bbox"], facts["source"], service, pictures.SIZE])
        path = self._folder / f"{key}.png"
        if (cached := _read(path)) is not None:
            return cached
        paused = self._paused_until.get(dataset, 0.0) > time.monotonic()
        started_at = time.monotonic()
        picture = _picture(facts, {} if paused else {dataset: service})
        if service.get("wms") and not paused and picture.origin != "wms" and time.monotonic() - started_at > SLOW_S:
            self._paused_until[dataset] = time.monotonic() + PAUSE_S
            log.warning("pictures of %s: the service is paused for %.0f s: %s", dataset, PAUSE_S, picture.why)
        why = f"the service is paused after a failure; {picture.why}" if paused else picture.why
        encoded = CachedPicture(_encode_png(picture.pixels, picture.origin, why), picture.origin, why)
        if picture.origin != "none":
            self._write(path, encoded)
        return encoded

    def _write(self, path: Path, picture: CachedPicture) -> None:
        """Write a picture, and delete the oldest above the size limit."""
        try:
            storage.write_bytes(str(path), picture.png)
        except StorageError as e:  # without space on the disk, the picture is shown all the same
            log.warning("%s", e)
            return
        with self._lock:
            self._bytes += len(picture.png)
            if self._bytes <= self._max_bytes:
                return
            files = sorted(self._files())
            self._bytes = sum(file.size for file in files)
            for file in files:
                if self._bytes <= 0.8 * self._max_bytes:
                    break
                file.path.unlink(missing_ok=True)
                self._bytes -= file.size

    def _files(self) -> list["_File"]:
        files = []
        for path in self._folder.glob("*.png"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process has deleted it
                continue
            files.append(_File(stat.st_mtime, stat.st_size, path))
        return files


class _File(NamedTuple):
    """A file of the cache; files sort by the time they were written."""

    written_at: float
    size: int
    path: Path


def _read(path: Path) -> CachedPicture | None:
    """Return the picture of a file; None if there is no intact file, or a stand-in that has expired."""
    try:
        data, age_s = path.read_bytes(), time.time() - path.stat().st_mtime
        info = read_picture_info(data)
    except FileNotFoundError:
        return None
    except (OSError, SourceError) as e:
        log.warning("%s: a damaged picture of the cache is made again: %s", path, e)
        return None
    if info.get("stands-in") == "yes" and age_s > STAND_IN_LIFETIME_S:
        return None
    return CachedPicture(data, info["origin"], info["why"])


def _picture(facts: Mapping[str, Any], services: Mapping[str, Any]) -> pictures.Picture:
    """Return the picture of a chip. A local source must be a file: GDAL would also open other things by name."""
    source = facts["source"]
    wms = (services.get(facts["dataset"]) or {}).get("wms")
    if not wms and not storage.is_remote(source) and not Path(source).is_file():
        return pictures.Picture(None, "none", f"{pictures.NO_SERVICE}; the source {source[:80]} is not on this machine")
    row = {**facts, **dict(zip(BOX, facts["bbox"], strict=True))}
    if row["xmin"] > row["xmax"]:  # across the antimeridian: the wider part is shown
        parts = [(row["xmin"], 180.0), (-180.0, row["xmax"])]
        row["xmin"], row["xmax"] = max(parts, key=lambda part: part[1] - part[0])
    return pictures.picture(row, services)


def _encode_png(pixels: pictures.Pixels | None, origin: str, why: str) -> bytes:
    """Return a picture as PNG with its origin as text chunks; a grey square with a cross without a picture."""
    if pixels is None:
        pixels = np.full((pictures.SIZE, pictures.SIZE, 3), 217, np.uint8)
        line = np.arange(96, 160)
        for shift in (-1, 0, 1):
            pixels[line, line + shift] = pixels[line, pictures.SIZE - 1 - line + shift] = 150
    info, out = PngInfo(), io.BytesIO()
    stands_in = "yes" if origin == "source" and why != pictures.NO_SERVICE else "no"
    for name, text in zip(TEXT_CHUNKS, (origin, header_text(why), stands_in), strict=True):
        info.add_text(name, text)
    Image.fromarray(pixels, "RGB").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def header_text(text: str) -> str:
    """Return text for an HTTP header: one line of printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))[:MAX_HEADER_CHARACTERS]
