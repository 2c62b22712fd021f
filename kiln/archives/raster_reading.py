"""Reading pixels for the archives' sources: retries, the height of strips, and checks that every raster needs."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.windows import Window

from kiln.errors import SourceError
from kiln.io import gdal, storage

RETRY_PAUSES_S = (0.2, 1.0)  # before each further try of a remote read
T = TypeVar("T")
SQUARE_TOLERANCE = 1e-6  # relative difference of the sides of a pixel that counts as square
MIN_STRIP_ROWS = 256  # of one read, so that a file without tiles is not read line by line
WORLD_FILES = (".tfw", ".tifw", ".j2w", ".jp2w", ".wld")
SIDECAR_OPTIONS = {  # for GDAL to read `.aux.xml` and world files, for what the file itself does not state
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # the names are tried; folders of archives are too large to be listed
    "GDAL_GEOREF_SOURCES": "INTERNAL,PAM,TABFILE,WORLDFILE",
}


def strip_rows(block_rows: int) -> int:
    """Return the rows of one read: a multiple of the file's block height that is not tiny."""
    return block_rows * max(1, MIN_STRIP_ROWS // block_rows)


def read_with_retry(
    uri: str, read: Callable[[], T], close: Callable[[], None], error_of: Callable[[RasterioError], SourceError]
) -> T:
    """Open or read a file, and again after a remote failure, since GDAL does not mark transient failures.

    Args:
        uri: The file.
        read: Opens the file if it is not open, and returns what is read of it.
        close: Closes the file, if it is open, after a failed read.
        error_of: Returns the error for the last failure, or raises TransientError.

    Returns:
        What `read` returns.

    Raises:
        SourceError: If the file cannot be read.
        TransientError: If its store may answer later.
    """
    pauses = RETRY_PAUSES_S if storage.is_remote(uri) else ()
    for pause in (*pauses, None):
        try:
            return read()
        except RasterioError as e:
            close()
            if pause is None:
                raise error_of(e) from e
        gdal.forget(uri)
        time.sleep(pause)
    raise AssertionError


def open_raster(uri: str, version: storage.Stat) -> rasterio.DatasetReader:
    """Open a file for reading, in `gdal.environment`.

    Args:
        uri: The file.
        version: Its version, as `storage.stat` returned it.

    Returns:
        The open file.

    Raises:
        RasterioIOError: If GDAL cannot open it, or was given another size than its version has.
    """
    file = open_with_sidecars(uri)
    if storage.is_remote(uri) and version.size >= 0 and (size := gdal.remote_size(uri)) != version.size:
        file.close()
        raise RasterioIOError(f"expected {version.size} bytes, got {size} bytes")
    return file


def open_with_sidecars(uri: str) -> rasterio.DatasetReader:
    """Open a file, in `gdal.environment`; of a local one without CRS or transform, with these from its sidecars.

    Sidecars of other files are not searched for: over a network each name that is tried is a request.

    Args:
        uri: The file.

    Returns:
        The open file.

    Raises:
        RasterioIOError: If GDAL cannot open it.
    """
    file = rasterio.open(uri)
    if storage.is_remote(uri) or not (file.crs is None or file.transform.is_identity):
        return file
    file.close()
    with rasterio.Env(**SIDECAR_OPTIONS):
        return rasterio.open(uri)


def sidecar_versions(uri: str) -> list[str]:
    """Return sizes and times of the sidecars that a local file has, which may place it."""
    if storage.is_remote(uri):
        return []
    stem = str(Path(uri).with_suffix(""))
    stats = {name: storage.stat(name) for name in (f"{uri}.aux.xml", *(stem + suffix for suffix in WORLD_FILES))}
    return [f"{name} {stat.size} {stat.modified}" for name, stat in stats.items() if stat]


def check_crs(uri: str, file: rasterio.DatasetReader) -> None:
    """Raise SourceError unless an open file has a CRS."""
    if file.crs is None:
        places = "the file" if storage.is_remote(uri) else "the file or its .aux.xml"
        raise SourceError(f"{uri}: expected a CRS in {places}, got none. Write it into the file.")


def horizontal(crs: rasterio.CRS) -> rasterio.CRS:
    """Return the horizontal part of a CRS with heights, which alone has the EPSG code of a grid; others as they are."""
    wkt = crs.to_wkt()
    if not wkt.startswith("COMPD_CS"):
        return crs
    return rasterio.CRS.from_wkt(pyproj.CRS.from_wkt(wkt).sub_crs_list[0].to_wkt())


def check_on_earth(uri: str, width: int, height: int, transform: Affine, crs: str) -> None:
    """Raise SourceError unless the corners of a north-up image lie on the Earth.

    Beyond the domain of a projection PROJ returns places too; on the way back they are other ones.

    Args:
        uri: The file's address, for errors.
        width: Columns of the image.
        height: Rows of the image.
        transform: From its pixels to its CRS.
        crs: Its CRS, as EPSG code or WKT.
    """
    x = transform.c + np.array([0, width, 0, width]) * transform.a
    y = transform.f + np.array([0, 0, height, height]) * transform.e
    try:
        degrees = to_degrees(crs).transform(x, y)
        back = to_degrees(crs).transform(*degrees, direction=pyproj.enums.TransformDirection.INVERSE)
    except ProjError as e:
        raise SourceError(f"{uri}: expected a CRS on the Earth, got one that PROJ cannot use: {e}") from e
    if not np.isfinite(degrees).all() or not (np.abs(np.array(back) - [x, y]) < transform.a).all():
        raise SourceError(
            f"{uri}: expected corners on the Earth, got none in {crs[:60]}, from ({x[0]:g}, {y[0]:g}) to "
            f"({x[-1]:g}, {y[-1]:g})."
        )


def check_transform(uri: str, file: rasterio.DatasetReader) -> None:
    """Raise SourceError unless an open file has a transform from pixels to its CRS."""
    if file.transform.is_identity:
        places = "the file" if storage.is_remote(uri) else "the file, its .aux.xml or a world file"
        raise SourceError(f"{uri}: expected a transform in {places}, got none. Write it into the file.")


def read_pixels(
    file: rasterio.DatasetReader,
    bands: Sequence[int] | None = None,
    window: Window | None = None,
    shape: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """Return pixels of an open file, all of its bands by default.

    rasterio's own `read` asks for masks first, which it does not return, and holds the GIL while it does: GDAL then
    requests the headers of all overviews, and no other thread of Python runs until the store has answered.

    Args:
        file: A file whose bands have one dtype.
        bands: Numbers of bands, counted from 1.
        window: The part to read; the file's whole extent by default.
        shape: Rows and columns to return, where fewer are wanted than there are.

    Returns:
        Pixels [bands, rows, cols].

    Raises:
        RasterioIOError: If GDAL cannot read them.
    """
    numbers = list(bands or file.indexes)
    part = window or Window(0, 0, file.width, file.height)
    rows, cols = shape or (int(part.height), int(part.width))
    pixels: NDArray[Any] = np.zeros((len(numbers), rows, cols), file.dtypes[0])
    file._read(numbers, pixels, part, None)
    return pixels


def check_square_pixels(uri: str, transform: Affine, max_difference: float = SQUARE_TOLERANCE) -> None:
    """Raise SourceError unless the grid is north-up and its pixels are square.

    Args:
        uri: The file's address, for errors.
        transform: From pixels to the CRS.
        max_difference: Relative difference of a pixel's sides that is allowed.
    """
    t, expected = transform, f"{uri}: expected pixels that are square and north-up, got"
    if t.b or t.d or t.a <= 0 or t.e >= 0:
        raise SourceError(f"{expected} the transform {tuple(t)[:6]}.")
    if off_square(t) > max_difference:
        raise SourceError(f"{expected} pixels of {t.a:.6g} x {-t.e:.6g}, {off_square(t):.2%} off square.")


def off_square(transform: Affine) -> float:
    """Return the relative difference of the sides of a north-up grid's pixels."""
    return abs(transform.a + transform.e) / float(transform.a)


def valid_pixels(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask [rows, cols] of pixels [bands, rows, cols] that are not 0 in all bands."""
    mask: NDArray[np.bool_] = np.logical_or.reduce(pixels, axis=0)  # twice as fast as a comparison with 0
    return mask


@cache
def to_degrees(crs: str) -> pyproj.Transformer:
    """Return the transformer from a CRS to longitude and latitude."""
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
