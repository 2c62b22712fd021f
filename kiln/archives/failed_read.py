"""The judgement of a failed read of a raster: whether the network, a setting or the file is at fault.

What GDAL reports over a network is no evidence against a file: a cut body, a reset connection or a firewall look to it
like damage, and it keeps the bytes of a cut body. A remote file is at fault only if it cannot be read here, from a
copy that another client fetched.
"""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from kiln.errors import ConfigError, SourceError, TransientError
from kiln.io import gdal, storage
from kiln.io.fault import Fault, judge

MAX_COPIES = 2  # that are kept; the reads of a broken file fail one after the other


class LocalCopies:
    """Local copies of remote files that GDAL could not read. They are deleted with the object."""

    def __init__(self) -> None:
        self._folder: storage.TemporaryFolder | None = None  # of the first copy
        self._paths: dict[tuple[str, storage.Stat], Path] = {}
        self._numbers = itertools.count()  # files of different items have the same names
        self._lock = threading.Lock()

    def get(self, uri: str, version: storage.Stat) -> Path:
        """Return the path of a copy, fetched at the first request.

        Args:
            uri: The remote file.
            version: The version to expect, as `storage.stat` returned it.

        Raises:
            SourceError: If there is no such file, or it changed while it was fetched.
            StorageError: If the copy cannot be written.
            TransientError: If the store does not answer, or the file has another version.
        """
        key = (uri, version)
        with self._lock:
            if key not in self._paths:
                while len(self._paths) >= MAX_COPIES:
                    self._paths.pop(next(iter(self._paths))).unlink()
                if self._folder is None:
                    self._folder = storage.temporary_folder("kiln-copies-")
                path = Path(self._folder.name) / f"{next(self._numbers)}-{Path(uri).name}"
                storage.fetch(uri, path)
                if storage.stat(uri) != version:
                    path.unlink()
                    raise TransientError(f"{uri}: was replaced while it was read. Try again.")
                self._paths[key] = path
            return self._paths[key]


def fault_of_file(
    uri: str,
    version: storage.Stat,
    error: RasterioError,
    problem: str,
    copies: LocalCopies,
    read: Callable[[rasterio.DatasetReader], Any],
) -> SourceError:
    """Return the error of a file that is at fault, after all tries.

    A message that names the network or a setting decides by itself. Any other one is no evidence over a network: then
    a copy is fetched and read here.

    Args:
        uri: The file, which exists in this version.
        version: Its version, as `storage.stat` returned it.
        error: What GDAL reported.
        problem: What is wrong with the file, in a phrase such as `not a readable GeoTIFF`.
        copies: Where remote files are fetched to.
        read: Reads from an open raster what could not be read.

    Raises:
        ConfigError: If a person must correct a setting: credentials, certificates, a proxy.
        SourceError: If the file is not there any more.
        StorageError: If there is no place for a copy.
        TransientError: If the network or the store is at fault: the message says so, or the file can be read from a
            copy, or it cannot be fetched.
    """
    message = gdal.gdal_message(error, uri)
    if storage.is_remote(uri):
        verdict = judge(message)
        if verdict.fault is Fault.SETUP:
            raise ConfigError(f"{uri}: cannot be read ({gdal.shorten(message)}). {verdict.advice}") from error
        if verdict.fault is not Fault.UNKNOWN:
            raise TransientError(f"{uri}: the network failed ({gdal.shorten(message)}). Try again.") from error
        copy = copies.get(uri, version)
        try:
            with rasterio.open(copy) as file:
                read(file)
        except RasterioError as own:
            message = gdal.gdal_message(own, str(copy))
        else:
            raise TransientError(
                f"{uri}: the network failed ({gdal.shorten(message)}), since a copy of the file can be read. Try again."
            ) from error
    return SourceError(f"{uri}: {problem} ({gdal.shorten(message)})")


def confirmed_stat(uri: str, expected: storage.Stat) -> storage.Stat | None:
    """Return a file's version, or None if it is gone. What differs from the expected version is asked for twice.

    Raises:
        SourceError, TransientError: As `storage.stat`; TransientError if the two answers differ.
    """
    stat = storage.stat(uri)
    if stat != expected and storage.stat(uri) != stat:
        raise TransientError(f"{uri}: the store's answers about its version differ. Try again.")
    return stat
