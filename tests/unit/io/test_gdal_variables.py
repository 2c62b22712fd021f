"""Variables of GDAL and PROJ that another program set change nothing, or stop a job before it blames a scene."""

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from rasterio.transform import from_origin

from kiln.formats.records import Chip, Dropped
from kiln.io.gdal_variables import NO_FILES, leave_out_foreign
from tests.support.naip_scenes import KEY, OTHER_KEY, UNDATED, make_source, read_events, scene_pixels, write_scene

ROOT = Path(__file__).parents[3]
TIME_LIMIT_S = 300
READ = """
import sys
from tests.unit.io.test_gdal_variables import facts
print(*facts(sys.argv[1]), sep="\\n")
"""
OPTIONS = {  # that change pixels, places, or whether a file that is cut off can be read
    "GTIFF_IGNORE_READ_ERRORS": "YES",
    "GTIFF_POINT_GEO_IGNORE": "YES",
    "GTIFF_DIRECT_IO": "YES",
    "GDAL_GEOREF_SOURCES": "WORLDFILE",
    "OSR_USE_APPROX_TMERC": "YES",
}


def facts(root: str) -> list[str]:
    """Return what can be read of the scenes below a folder, a line for each chip or failure."""
    lines = []
    for event in read_events(make_source(root, KEY, OTHER_KEY, UNDATED, lattice="utm")):
        if isinstance(event, Chip):
            digest = hashlib.sha256(event.pixels.tobytes()).hexdigest()
            lines.append(f"{event.chip_id} {event.crs} {event.footprint.wkb_hex} {event.x0!r} {event.y0!r} {digest}")
        elif isinstance(event, Dropped):
            lines.append(f"{event.unit_id} {event.kind} {event.count} {event.reason}")
    return lines


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes: one of points, one of another zone than its key's, and one that is cut off."""
    root = tmp_path_factory.mktemp("archive")
    with rasterio.open(write_scene(root, KEY, scene_pixels()), "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    write_scene(root, OTHER_KEY, scene_pixels(), crs="EPSG:2283", transform=from_origin(11_482_916, 6_600_000, 3, 3))
    cut = write_scene(root, UNDATED, scene_pixels(), crs="EPSG:26911", compress=None, blockysize=8)
    cut.write_bytes(cut.read_bytes()[:-4000])
    return root


@pytest.fixture(scope="module")
def foreign_proj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of a PROJ of another layout."""
    folder = tmp_path_factory.mktemp("qgis") / "proj"
    folder.mkdir()
    with sqlite3.connect(folder / "proj.db") as database:
        database.execute("CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT)")
        versions = [("DATABASE.LAYOUT.VERSION.MAJOR", "1"), ("DATABASE.LAYOUT.VERSION.MINOR", "2")]
        database.executemany("INSERT INTO metadata VALUES (?, ?)", versions)
    database.close()
    return folder


def run(code: str, *args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with further variables in the environment."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S)


def test_commands_read_the_same_whatever_other_programs_set(archive, foreign_proj, tmp_path):
    gdalrc = tmp_path / ".gdal/gdalrc"
    gdalrc.parent.mkdir()
    gdalrc.write_text("[configoptions]\nGDAL_SKIP=GTiff\n")
    hostile = OPTIONS | {
        "HOME": str(tmp_path),
        "PROJ_LIB": str(foreign_proj),
        "PROJ_DATA": str(foreign_proj),
        "GDAL_DATA": str(foreign_proj),
        "GDAL_DRIVER_PATH": str(foreign_proj),
        "GDAL_SKIP": "GTiff",
        "PROJ_NETWORK": "ON",
        "PROJ_USER_WRITABLE_DIRECTORY": str(foreign_proj),
    }
    result = run(f"import scripts.merge{READ}", archive, **hostile)
    expected = facts(str(archive))
    assert result.stdout.splitlines() == expected, result.stderr
    assert {"EPSG:26914", "EPSG:26917"} == {line.split()[1] for line in expected if "utm" in line}
    assert any("not a readable GeoTIFF" in line for line in expected)


def test_a_library_reads_the_same_with_options_that_change_results(archive):
    result = run(READ, archive, **OPTIONS)
    assert result.stdout.splitlines() == facts(str(archive)), result.stderr


@pytest.mark.parametrize("name", ["PROJ_LIB", "PROJ_DATA"])
def test_a_library_stops_with_the_variable_of_a_foreign_database(archive, foreign_proj, name):
    result = run(READ, archive, **{name: str(foreign_proj)})
    error = result.stderr.splitlines()[-1]
    assert error.startswith("kiln.errors.ConfigError: PROJ: expected the database of its own version, got another one")
    assert error.endswith(f", with {name}={foreign_proj}. Unset {name}.")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GDAL_SKIP", "GTiff", "GDAL: expected the driver GTiff, got none, with GDAL_SKIP=GTiff. Unset GDAL_SKIP."),
        ("PROJ_NETWORK", "ON", "PROJ_NETWORK: expected no grids from the network, which move footprints, got ON. "),
    ],
)
def test_a_library_stops_with_a_setting_under_which_no_result_is_right(archive, name, value, message):
    result = run(READ, archive, **{name: value})
    assert f"kiln.errors.ConfigError: {message}" in result.stderr
    assert result.stdout == ""


def test_a_command_logs_what_it_leaves_out():
    code = "import sys; from scripts import plan_units; plan_units.main(sys.argv[1:])"
    args = ["naip", "--manifest", "/nonexistent", "--output", "/nonexistent"]
    result = run(code, *args, PROJ_LIB="/opt/qgis/proj", GDAL_HTTP_TIMEOUT="9")
    first, last = result.stderr.splitlines()
    assert first.endswith(" left out of the environment: PROJ_LIB=/opt/qgis/proj")
    assert (last, result.returncode) == ("error: manifest /nonexistent: does not exist", 2)


def test_settings_of_requests_and_logs_stay():
    names = (
        *("GDAL_HTTP_PROXY", "GDAL_HTTP_HEADER_FILE", "GDAL_CURL_CA_BUNDLE", "PROJ_CURL_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("CPL_CURL_VERBOSE", "CPL_DEBUG", "CPL_AWS_CREDENTIALS_FILE", "CPL_VSIL_CURL_CHUNK_SIZE", "VSI_CACHE"),
        *("AWS_S3_ENDPOINT", "PROJECT", "HOME"),
    )
    stay = dict.fromkeys(names, "1")
    go = dict.fromkeys(("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", "OGR_CT_OP_SELECTION", "VRT_SHARED_SOURCE"), "1")
    environ = stay | go
    assert leave_out_foreign(environ) == go
    assert environ == stay | NO_FILES
    assert leave_out_foreign(environ) == {}


def test_a_build_without_data_of_its_own_keeps_the_folders_of_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    environ = {"PROJ_DATA": "/conda/share/proj", "GDAL_SKIP": "GTiff"}
    assert leave_out_foreign(environ) == {"GDAL_SKIP": "GTiff"}
    assert environ == {"PROJ_DATA": "/conda/share/proj"} | NO_FILES
