"""Environment variables of GDAL and PROJ that commands leave out, so that no other program's settings change a result.

QGIS, conda and PostGIS set PROJ_LIB or GDAL_DATA to data of other versions. GTIFF_IGNORE_READ_ERRORS reads a file that
is cut off as if it were whole, GTIFF_POINT_GEO_IGNORE moves a scene by half a pixel, and grids that PROJ finds move
footprints. None of them is part of the fingerprint. Wheels bring data of their own, so nothing is lost.

Commands call `leave_out_foreign` before they import rasterio or pyproj. A program that uses Kiln as a library keeps its
environment: there `check_gdal` detects what cannot work, and `kiln/io/gdal.py` sets the options that change results.
"""

import importlib.util
import os
import re
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path

from kiln.errors import ConfigError

FOREIGN = re.compile(r"(?:GDAL|GTIFF|LIBTIFF|OSR|OGR|VRT|PROJ|CPL)_\w+", re.ASCII)
KEPT = re.compile(  # of these: how requests are made, logs, and speed
    r"GDAL_(?:HTTP|CURL)_\w+|PROJ_CURL_CA_BUNDLE|CPL_CURL_\w+|CPL_AWS_\w+|CPL_VSIL_(?!CURL_ALLOWED)\w+|CPL_(?:DEBUG|LOG|TIMESTAMP|TMPDIR)\w*"
    r"|PROJ_DEBUG|GDAL_(?:CACHEMAX|NUM_THREADS)",
    re.ASCII,
)
DATA_FOLDERS = ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "GDAL_DRIVER_PATH")  # needed by builds without data of their own
NO_FILES = {  # so that neither ~/.gdal/gdalrc nor grids in ~/.local/share/proj are read
    "GDAL_CONFIG_FILE": os.devnull,
    "PROJ_USER_WRITABLE_DIRECTORY": os.devnull,
}
PROBE = 26914  # a CRS of NAIP
ON = ("1", "on", "yes", "true")


def leave_out_foreign(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Delete variables of GDAL and PROJ that could change a result, and set `NO_FILES`.

    Args:
        environ: The environment. Programs that this process starts inherit it.

    Returns:
        The deleted variables with their values.
    """
    needed = () if _has_own_data() else DATA_FOLDERS
    names = [n for n in environ if FOREIGN.fullmatch(n) and not KEPT.fullmatch(n) and n not in needed]
    deleted = {name: environ.pop(name) for name in sorted(names)}
    environ.update(NO_FILES)
    return {name: value for name, value in deleted.items() if NO_FILES.get(name) != value}


def _has_own_data() -> bool:
    """Return whether rasterio and pyproj are wheels, which contain the data of their GDAL and PROJ."""
    packages = (("rasterio", "proj_data"), ("rasterio", "gdal_data"), ("pyproj", "proj_dir"))
    specs = [(importlib.util.find_spec(package), folder) for package, folder in packages]
    return all(spec and spec.origin and (Path(spec.origin).parent / folder).is_dir() for spec, folder in specs)


@cache
def check_gdal() -> None:
    """Raise ConfigError unless GDAL reads GeoTIFF, and PROJ knows CRSs by their codes and requests no grids."""
    import pyproj
    import rasterio
    from pyproj.exceptions import ProjError
    from rasterio.errors import CRSError

    with rasterio.Env() as env:
        if "GTiff" not in env.drivers():
            raise ConfigError(f"GDAL: expected the driver GTiff, got none{_cure('GDAL_SKIP', 'GDAL_DRIVER_PATH')}")
    try:
        codes = (rasterio.CRS.from_epsg(PROBE).to_epsg(), pyproj.CRS.from_epsg(PROBE).to_epsg())
        problem = "" if codes == (PROBE, PROBE) else f"another one that does not know EPSG:{PROBE}"
    except (CRSError, ProjError) as e:
        problem = f"another one ({e})"
    if problem:
        raise ConfigError(f"PROJ: expected the database of its own version, got {problem}{_cure(*DATA_FOLDERS)}")
    if (network := os.environ.get("PROJ_NETWORK", "")).lower() in ON:
        raise ConfigError(
            f"PROJ_NETWORK: expected no grids from the network, which move footprints, got {network}. Unset it."
        )


def _cure(*names: str) -> str:
    """Return the end of an error: those of the variables that are set, with what to do."""
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return ". Install rasterio and pyproj again."
    return f", with {', '.join(map('='.join, found.items()))}. Unset {' and '.join(found)}."
