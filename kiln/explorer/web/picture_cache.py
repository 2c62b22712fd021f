"""Pictures of chips as PNG, kept on disk up to a size: from the image service, the source, or a grey square.

A picture is kept under the digest of what made it: chip, box, source and the service's settings. Where a service
failed, the source's picture is kept for an hour only, and a service that lets us wait rests for a minute.
"""

import io
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kiln.errors import StorageError
from kiln.explorer import pictures
from kiln.explorer.matrix import BOX
from kiln.formats.fingerprint import digest
from kiln.io import storage

MOST_BYTES = 1 << 30
KEPT = 3600.0  # seconds that a picture is kept which stands in for the service's
SLOW, REST = 5.0, 60.0  # seconds without a picture from a service, after which it rests, and how long
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """A PNG, where it came from (`wms`, `source`, `none`) and why not from a better place."""

    png: bytes
    origin: str
    why: str


class PictureCache:
    """Pictures of rows; safe to ask from several threads."""

    def __init__(self, folder: Path, services: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> None:
        """Raises StorageError if the folder cannot be made."""
        self.folder, self.services, self.most_bytes = folder, services, most_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"{folder}: cannot be written: {os.strerror(e.errno or 0)}") from e
        self._lock = threading.Lock()
        self._resting: dict[str, float] = {}
        self._bytes = sum(size for _, size, _ in self._files())

    def get(self, row: Mapping[str, Any]) -> Shown:
        """The picture of a chip (its facts, `bbox` among them); a grey square where there is none."""
        service = self.services.get(row["dataset"]) or {}
        path = self.folder / f"{digest([row['chip_id'], row['bbox'], row['source'], service, pictures.SIZE])}.png"
        if (kept := self._kept(path)) is not None:
            return kept
        resting = self._resting.get(row["dataset"], 0.0) > time.monotonic()
        began = time.monotonic()
        made = _picture(row, {} if resting else {row["dataset"]: service})
        if service.get("wms") and not resting and made.origin != "wms" and time.monotonic() - began > SLOW:
            self._resting[row["dataset"]] = time.monotonic() + REST
            log.warning("pictures of %s: the service rests for %.0f s: %s", row["dataset"], REST, made.why)
        why = f"the service rests after it failed; {made.why}" if resting else made.why
        shown = Shown(_png(made.pixels, made.origin, why), made.origin, why)
        if made.origin != "none":
            self._keep(path, shown)
        return shown

    def _kept(self, path: Path) -> Shown | None:
        try:
            data, age = path.read_bytes(), time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        with Image.open(io.BytesIO(data)) as image:
            told = dict(image.info)
        if told.get("stands-in") == "yes" and age > KEPT:
            return None
        return Shown(data, str(told.get("origin", "none")), str(told.get("why", "")))

    def _keep(self, path: Path, shown: Shown) -> None:
        try:
            storage.write_bytes(str(path), shown.png)
        except StorageError as e:  # a full disk costs the cache, not the picture
            log.warning("%s", e)
            return
        with self._lock:
            self._bytes += len(shown.png)
            if self._bytes <= self.most_bytes:
                return
            files = sorted(self._files())
            self._bytes = sum(size for _, size, _ in files)
            for _, size, old in files:
                if self._bytes <= 0.8 * self.most_bytes:
                    break
                old.unlink(missing_ok=True)
                self._bytes -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each picture was kept, its bytes, its path."""
        found = []
        for path in self.folder.glob("*.png"):
            try:
                told = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            found.append((told.st_mtime, told.st_size, path))
        return found


def _picture(row: Mapping[str, Any], services: Mapping[str, Any]) -> pictures.Picture:
    """The row's picture, unless its source names something else than a file: GDAL would open much by a name."""
    source = row["source"]
    wms = (services.get(row["dataset"]) or {}).get("wms")
    if not wms and not storage.is_remote(source) and not Path(source).is_file():
        return pictures.Picture(None, "none", f"no service configured; the source {source[:80]} is not on this machine")
    flat = {**row, **dict(zip(BOX, row["bbox"], strict=True))}
    if flat["xmin"] > flat["xmax"]:  # across the antimeridian: the wider part is shown
        flat["xmin"], flat["xmax"] = max(
            [(flat["xmin"], 180.0), (-180.0, flat["xmax"])], key=lambda span: span[1] - span[0]
        )
    return pictures.picture(flat, dict(services))


def _png(pixels: np.ndarray | None, origin: str, why: str) -> bytes:
    """A picture, or a grey square with a cross where there is none; what is said of it is written into it."""
    if pixels is None:
        pixels = np.full((pictures.SIZE, pictures.SIZE, 3), 217, np.uint8)
        line = np.arange(96, 160)
        for shift in (-1, 0, 1):
            pixels[line, line + shift] = pixels[line, pictures.SIZE - 1 - line + shift] = 150
    info, out = PngInfo(), io.BytesIO()
    for name, text in (("origin", origin), ("why", plain(why))):
        info.add_text(name, text)
    info.add_text("stands-in", "yes" if origin == "source" and why != "no service configured" else "no")
    Image.fromarray(pixels, "RGB").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def plain(text: str) -> str:
    """Text for a header: one line of printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))[:300]
