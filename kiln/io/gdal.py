"""How GDAL is asked: bounded, patient and anonymous where the bucket is public. Used wherever a raster is opened."""

import os
import threading
from collections.abc import Callable
from typing import Any

import rasterio

from kiln.errors import TransientError
from kiln.io.buckets import known_bucket
from kiln.io.storage import is_s3, split_s3

OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no look for side files, which over http is a request each
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    # Bytes of decoded blocks, by default a twentieth of the machine. No block is wanted twice: 256 MB were memory for
    # nothing, and reading is 1.07 to 1.14 times as fast with 16 (tests/bench/reading.py).
    "GDAL_CACHEMAX": 16 << 20,
}


def environment(uri: str) -> rasterio.Env:
    """The context to open and read a raster at `uri` in, with the AWS_* settings that the rest of Kiln uses."""
    options = dict(OPTIONS)
    if is_s3(uri) and (bucket := known_bucket(split_s3(uri)[0])):
        access = {"AWS_REQUEST_PAYER": "requester"} if bucket.requester_pays else {"AWS_NO_SIGN_REQUEST": "YES"}
        options |= {**access, "AWS_REGION": bucket.region}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL", ""):  # GDAL has a name of its own for it
        scheme, _, host = endpoint.partition("://")
        options |= {
            "AWS_S3_ENDPOINT": host,
            "AWS_HTTPS": "YES" if scheme == "https" else "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    return rasterio.Env(**options)


def reason(e: BaseException) -> str:
    """What GDAL said, from the exception and its causes; a failing host or quota is TransientError, raised here."""
    said = []
    while e is not None:
        said.append(str(e))
        e = e.__cause__ or e.__context__
    text = "; ".join(dict.fromkeys(said))
    passing = ("response_code=5", "response code: 5", "response code: 429", "Could not resolve", "timed out", "Timeout")
    if any(p in text for p in passing):
        raise TransientError(text)
    return text[:200]


class Handles:
    """Open rasters, of which each thread has its own; those that a thread asked for last stay open."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._local = threading.local()

    def get(self, uri: str, opened: Callable[[], rasterio.DatasetReader]) -> rasterio.DatasetReader:
        """The thread's handle, to be asked for inside `environment(uri)`; `opened` makes one that it has not."""
        handles: dict[str, rasterio.DatasetReader] = self._local.__dict__.setdefault("handles", {})
        if uri not in handles:
            file = opened()
            while len(handles) >= self.keep:
                handles.pop(next(iter(handles))).close()
            handles[uri] = file
        return handles[uri]

    def forget(self, uri: str) -> None:
        """Open it anew the next time that this thread asks."""
        if handle := self._local.handles.pop(uri, None):
            handle.close()
