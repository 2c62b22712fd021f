"""How rasters are opened with GDAL: a small cache, retries, and the settings that the rest of Kiln has."""

import ctypes
import json
import threading
from collections.abc import Callable
from typing import Any

import rasterio
import rasterio._base
from rasterio.session import Session

from kiln.io.aws.settings import DEFAULT_REGION, S3Settings
from kiln.io.storage import Traffic, http, is_http, is_s3, s3_keys, s3_settings, split_s3

OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no search for side files, each a request over http
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    # Bytes of decoded blocks; GDAL's default is a twentieth of the machine's memory. No block is read twice, and
    # reading is 1.07 to 1.14 times as fast with 16 MB as with 256 MB (tests/bench/reading.py).
    "GDAL_CACHEMAX": 16 << 20,
    "CPL_VSIL_NETWORK_STATS_ENABLED": "YES",  # for `traffic`
    # The offsets of a file's blocks are read when it is opened. Read later, a lost answer leaves an offset of 0, which
    # GDAL takes for a block without data: pixels of 0 and no error.
    "GTIFF_USE_DEFER_STRILE_LOADING": "NO",
    # GDAL's defaults, which a variable or a gdalrc would change: each of them changes pixels, places or what fails.
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GTIFF_DIRECT_IO": "NO",
    "GTIFF_POINT_GEO_IGNORE": "NO",
    "GDAL_GEOREF_SOURCES": "PAM,INTERNAL,TABFILE,WORLDFILE",
    "GDAL_RASTERIO_RESAMPLING": "NEAREST",
    "GDAL_FORCE_CACHING": "NO",
    "OSR_USE_APPROX_TMERC": "NO",
}
MAX_MESSAGE_CHARS = 300
SEEK_END = 2


class KeysSession(Session):  # type: ignore[misc]  # rasterio has no types
    """A session of rasterio with given keys, instead of one of boto3 for each context and each open file."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def get_credential_options(self) -> dict[str, str]:
        """Return the keys as options of GDAL."""
        return self.keys


def environment(uri: str) -> rasterio.Env:
    """Return the rasterio context to open and read a raster in.

    Args:
        uri: Path, s3://, http:// or https:// of the raster. Its bucket decides how requests are signed and paid.

    Returns:
        The context, with endpoint, credentials, certificates and proxy that the rest of Kiln uses. Its credentials are
        those of now: take a new context for each read.

    Raises:
        ConfigError: There are no credentials, or settings of AWS are wrong.
        TransientError: Credentials cannot be renewed for the moment.
    """
    options, keys = dict(OPTIONS), {}
    if is_s3(uri):
        bucket, _ = split_s3(uri)
        settings = s3_settings(bucket)
        options |= _s3_options(settings) | _connection_options(settings.ca_bundle, settings.proxy)
        keys = _key_options(bucket)
    elif is_http(uri):
        options |= _connection_options(http.ca_bundle(), http.proxy_of(uri))
    return rasterio.Env(KeysSession(keys), **options)


def _s3_options(settings: S3Settings) -> dict[str, str]:
    scheme, _, host = settings.endpoint.partition("://")
    return {
        "AWS_S3_ENDPOINT": host,
        "AWS_HTTPS": "YES" if scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "TRUE" if settings.virtual_hosts else "FALSE",
        "AWS_REGION": settings.region or DEFAULT_REGION,
        "AWS_NO_SIGN_REQUEST": "YES" if settings.unsigned else "NO",
        "AWS_REQUEST_PAYER": "requester" if settings.requester_pays else "",
    }


def _connection_options(ca_bundle: str, proxy: str) -> dict[str, str]:
    """Return the options for certificates and proxy. rasterio sets a file of its own, which `ca_bundle` replaces."""
    bundle = {"GDAL_CURL_CA_BUNDLE": ca_bundle} if ca_bundle else {}
    return bundle | {"GDAL_HTTP_PROXY": proxy, "GDAL_HTTPS_PROXY": proxy}


def _key_options(bucket: str) -> dict[str, str]:
    keys = s3_keys(bucket)
    if keys is None:
        return {}
    return {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
    }


def traffic() -> Traffic:
    """Return the requests that GDAL has made, and the bytes read with them, since the process began.

    GDAL counts ranges that it requests in parallel for one read as one request; bytes are exact. It counts only if the
    process' first request was made in `environment`.

    rasterio does not wrap GDAL's function for it, which is in the library that rasterio loads.
    """
    library = ctypes.CDLL(rasterio._base.__file__)
    read_statistics, free = library.VSINetworkStatsGetAsSerializedJSON, library.VSIFree
    read_statistics.argtypes, read_statistics.restype, free.argtypes = (
        [ctypes.c_void_p],
        ctypes.c_void_p,
        [ctypes.c_void_p],
    )
    text = read_statistics(None)
    try:
        methods = json.loads(ctypes.string_at(text) or b"{}").get("methods", {})
    finally:
        free(text)
    reading = [methods.get(method, {}) for method in ("GET", "HEAD")]
    return Traffic(sum(m.get("count", 0) for m in reading), sum(m.get("downloaded_bytes", 0) for m in reading))


def forget(uri: str) -> None:
    """Drop what GDAL keeps of a remote file: its size, and its first bytes, also those of a body that was cut.

    rasterio does not wrap GDAL's function for it, which is in the library that rasterio loads.
    """
    clear = ctypes.CDLL(rasterio._base.__file__).VSICurlPartialClearCache
    clear.argtypes, clear.restype = [ctypes.c_char_p], None
    clear(_vsi_path(uri).encode())


def remote_size(uri: str) -> int:
    """Return the bytes that a remote file has for GDAL, which has opened it: without a request. -1 if it cannot tell.

    rasterio does not wrap GDAL's functions for it, which are in the library that rasterio loads.
    """
    library = ctypes.CDLL(rasterio._base.__file__)
    open_file, seek, tell, close = library.VSIFOpenL, library.VSIFSeekL, library.VSIFTellL, library.VSIFCloseL
    open_file.argtypes, open_file.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_void_p
    seek.argtypes, seek.restype = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int], ctypes.c_int
    tell.argtypes, tell.restype = [ctypes.c_void_p], ctypes.c_uint64
    close.argtypes = [ctypes.c_void_p]
    file = open_file(_vsi_path(uri).encode(), b"rb")
    if not file:
        return -1
    try:
        return int(tell(file)) if seek(file, 0, SEEK_END) == 0 else -1
    finally:
        close(file)


def _vsi_path(uri: str) -> str:
    """Return GDAL's name of a remote file."""
    return f"/vsis3/{uri.removeprefix('s3://')}" if is_s3(uri) else f"/vsicurl/{uri}"


def gdal_message(error: BaseException | None, uri: str = "") -> str:
    """Return the messages of an exception and its causes, the innermost first.

    Args:
        error: The exception.
        uri: The file that it is about. Its name is left out: it may be long, and may hold any word.

    Returns:
        The messages, each once.
    """
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    text = "; ".join(dict.fromkeys(reversed(messages)))
    for name in (_vsi_path(uri), uri, uri.partition("://")[2]) if uri else ():
        text = text.replace(name, "the file") if name else text
    return text


def shorten(message: str) -> str:
    """Return the beginning of a message, as long as a reason of the ledger may be."""
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."


class OpenRasters:
    """The open rasters of each thread, at most `max_open` a thread: threads must not share a GDAL dataset.

    GDAL keeps the credentials that a raster was opened with. A raster of others is opened again.
    """

    def __init__(self, max_open: int) -> None:
        self.max_open = max_open
        self._local = threading.local()

    def get(self, uri: str, open_raster: Callable[[], rasterio.DatasetReader]) -> rasterio.DatasetReader:
        """Return the thread's open raster of `uri`; call it inside `environment(uri)`.

        Args:
            uri: The raster.
            open_raster: Opens the raster; called if the thread does not have it open.

        Returns:
            The open raster. It is closed when the thread has opened `max_open` others since.
        """
        rasters: dict[str, rasterio.DatasetReader] = self._local.__dict__.setdefault("rasters", {})
        keys: dict[str, str | None] = self._local.__dict__.setdefault("keys", {})
        key = rasterio.env.getenv().get("AWS_ACCESS_KEY_ID") if rasterio.env.hasenv() else None
        if keys.get(uri) != key:
            self.close(uri)
        if uri not in rasters:
            raster = open_raster()
            while len(rasters) >= self.max_open:
                rasters.pop(next(iter(rasters))).close()
            rasters[uri], keys[uri] = raster, key
        return rasters[uri]

    def close(self, uri: str) -> None:
        """Close the thread's raster of `uri`, if it is open, so that `get` opens it again."""
        if raster := self._local.__dict__.get("rasters", {}).pop(uri, None):
            raster.close()
