"""Georeferencing of local files in sidecars: `.aux.xml` and world files, for what the file itself does not state."""

from dataclasses import replace
from html import escape

import numpy as np
import pyproj
import pytest
from rasterio.transform import from_origin

from kiln.archives.raster_picture import read_window
from kiln.archives.raster_reading import WORLD_FILES
from kiln.archives.worldcover.lattice import Lattice, region_columns
from kiln.errors import SourceError
from tests.support import items, naip_scenes, sentinel2_scenes, worldcover_source
from tests.support.archives import random_pixels, write_tile

SRS = '<SRS dataAxisToSRSAxisMapping="1,2">{}</SRS>'
GEO_TRANSFORM = "<GeoTransform>{}, {}, {}, {}, {}, {}</GeoTransform>"
OWN = {"crs": "EPSG:26914", "transform": naip_scenes.TRANSFORM}
OTHER_PLACE = from_origin(400_000, 5_000_000, 2, 2)


def aux_xml(crs=None, transform=None):
    """Return the text of an `.aux.xml`."""
    parts = [SRS.format(escape(pyproj.CRS(crs).to_wkt("WKT1_GDAL")))] if crs else []
    parts += [GEO_TRANSFORM.format(*transform.to_gdal())] if transform else []
    return f"<PAMDataset>{''.join(parts)}</PAMDataset>"


def world_file(transform):
    """Return the text of a world file, which states the centre of the first pixel."""
    x, y = transform * (0.5, 0.5)
    return "\n".join(map(repr, (transform.a, transform.d, transform.b, transform.e, x, y)))


AUX = aux_xml(**OWN)
WORLD = world_file(naip_scenes.TRANSFORM)
NO_CRS, NO_PLACE = {"crs": None}, {"transform": None}
SIDECARS = {  # what the file lacks, and its sidecars by suffix; `.tif.aux.xml` is appended to the name
    "aux.xml": (NO_CRS | NO_PLACE, {".tif.aux.xml": AUX}),
    "aux.xml with the CRS": (NO_CRS, {".tif.aux.xml": aux_xml(crs="EPSG:26914")}),
    "aux.xml with the transform": (NO_PLACE, {".tif.aux.xml": aux_xml(transform=naip_scenes.TRANSFORM)}),
    "tfw": (NO_PLACE, {".tfw": WORLD}),
    "tifw": (NO_PLACE, {".tifw": WORLD}),
    "wld": (NO_PLACE, {".wld": WORLD}),
    "tfw and aux.xml": (NO_CRS | NO_PLACE, {".tfw": WORLD, ".tif.aux.xml": aux_xml(crs="EPSG:26914")}),
    "its own first": ({}, {".tif.aux.xml": aux_xml("EPSG:26915", OTHER_PLACE), ".tfw": world_file(OTHER_PLACE)}),
    "its own CRS first": (NO_PLACE, {".tif.aux.xml": aux_xml("EPSG:26915", naip_scenes.TRANSFORM)}),
    "its own transform first": (NO_CRS, {".tif.aux.xml": aux_xml("EPSG:26914", OTHER_PLACE)}),
}


def comparable(chips):
    return [replace(chip, pixels=chip.pixels.tobytes()) for chip in chips]


def write_sidecars(path, sidecars):
    for suffix, text in sidecars.items():
        path.with_suffix(suffix).write_text(text)


@pytest.mark.parametrize("kind", SIDECARS)
def test_a_sidecar_states_what_the_file_does_not(tmp_path, kind):
    lacks, sidecars = SIDECARS[kind]
    naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels())
    expected = comparable(naip_scenes.read_chips(naip_scenes.make_source(tmp_path)))
    path = naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels(), **lacks)
    write_sidecars(path, sidecars)
    assert len(expected) == 6
    assert comparable(naip_scenes.read_chips(naip_scenes.make_source(tmp_path))) == expected


@pytest.mark.parametrize(
    ("lacks", "sidecars", "message"),
    [
        (NO_CRS, {}, "expected a CRS in the file or its .aux.xml, got none. Write it into the file."),
        (NO_PLACE, {}, "expected a transform in the file, its .aux.xml or a world file, got none. Write it"),
        (NO_CRS | NO_PLACE, {".tfw": WORLD}, "expected a CRS in the file or its .aux.xml, got none."),
        (NO_CRS, {".prj": pyproj.CRS(26914).to_wkt("WKT1_ESRI")}, "expected a CRS in the file or its .aux.xml"),
        (NO_CRS, {".tif.aux.xml": "<PAMDataset><SRS>"}, "expected a CRS in the file or its .aux.xml, got none."),
    ],
    ids=["no CRS", "no transform", "no CRS with a tfw", "a prj alone", "a broken aux.xml"],
)
def test_the_reason_names_what_is_missing(tmp_path, lacks, sidecars, message):
    path = naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels(), **lacks)
    write_sidecars(path, sidecars)
    reason = naip_scenes.only_reason(naip_scenes.make_source(tmp_path))
    assert reason.startswith(f"{path}: {message}")


def test_sidecars_of_remote_files_are_not_requested(tmp_path, serve):
    path = naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels(), **NO_CRS)
    name = f"/{naip_scenes.KEY}"
    server = serve({name: path.read_bytes(), f"{name}.aux.xml": AUX.encode()})
    reason = naip_scenes.only_reason(naip_scenes.make_source(server.url))
    assert reason == f"{server.url}{name}: expected a CRS in the file, got none. Write it into the file."
    assert {path for _, path, _ in server.requests} == {name}


def test_bands_of_sentinel2_are_placed_by_sidecars(tmp_path):
    written = items.write_item(tmp_path)
    expected = comparable(sentinel2_scenes.read_chips(sentinel2_scenes.make_source(tmp_path, written)))
    for name, side in (("B04", 64), ("B08", 64), ("B11", 32), ("SCL", 32)):
        path = written.folder / f"{name}.tif"
        pixels = written.scl[::2, ::2] if name == "SCL" else written.bands[list(items.FILES.values()).index(name)]
        place = from_origin(*items.CORNER, 640 / side, 640 / side)
        path.unlink()
        items.write_raster(path, pixels[:: 64 // side, :: 64 // side] if name == "B11" else pixels, 64, items.CORNER,
                           None, **NO_CRS, **NO_PLACE)  # fmt: skip
        write_sidecars(path, {".tif.aux.xml": aux_xml("EPSG:32629", place)})
    written.change(**{"proj:epsg": None})
    assert comparable(sentinel2_scenes.read_chips(sentinel2_scenes.make_source(tmp_path, written))) == expected


@pytest.mark.parametrize("name", ["B02", "B11", "SCL"])
def test_a_band_without_transform_is_named(tmp_path, name):
    written = items.write_item(tmp_path)
    path = written.folder / f"{name}.tif"
    pixels = {"B02": written.bands[0], "B11": written.bands[8][::2, ::2], "SCL": written.scl[::2, ::2]}[name]
    path.unlink()
    items.write_raster(path, pixels, 64, items.CORNER, 32629, **NO_PLACE)
    reason = sentinel2_scenes.only_reason(sentinel2_scenes.make_source(tmp_path, written))
    assert reason.startswith(f"{path}: expected a transform in the file, its .aux.xml or a world file, got none.")


def test_tiles_of_worldcover_are_placed_by_sidecars(tmp_path):
    lattice = Lattice(16, 48)
    columns = region_columns(lattice, [10, 45, 11, 46])

    def read():
        source = worldcover_source.make_source(tmp_path, lattice, columns)
        return comparable(worldcover_source.chips_of(worldcover_source.read_events(source)))

    write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1))
    expected = read()
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1), **NO_CRS, **NO_PLACE)
    write_sidecars(path, {".tif.aux.xml": aux_xml("EPSG:4326", from_origin(10, 46, 1 / 48, 1 / 48))})
    assert len(expected) == 9
    assert read() == expected


def test_pictures_read_sidecars_and_name_a_missing_crs(tmp_path):
    bounds = (10.2, 45.2, 10.8, 45.8)
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1))
    expected = read_window(str(path), (1, 2, 3), bounds)
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1), **NO_CRS, **NO_PLACE)
    with pytest.raises(SourceError, match=r"expected a CRS in the file or its \.aux\.xml, got none"):
        read_window(str(path), (1, 2, 3), bounds)
    write_sidecars(path, {".tif.aux.xml": aux_xml("EPSG:4326", from_origin(10, 46, 1 / 48, 1 / 48))})
    assert expected.any()
    assert np.array_equal(read_window(str(path), (1, 2, 3), bounds), expected)


@pytest.mark.parametrize("suffix", [".tif.aux.xml", *WORLD_FILES])
def test_checkpoints_of_a_unit_are_not_used_after_a_change_of_its_sidecar(tmp_path, suffix):
    path = naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels())
    written = items.write_item(tmp_path)

    def versions():
        sources = naip_scenes.make_source(tmp_path), sentinel2_scenes.make_source(tmp_path, written)
        for source in sources:
            source.check()
        return [unit.version for source in sources for unit in source.units()]

    found = [versions()]
    for text in (WORLD, WORLD + "\n"):
        write_sidecars(path, {suffix: text})
        write_sidecars(written.folder / "B04.tif", {suffix: text})
        found.append(versions())
    assert found[0][0].startswith(str(path))
    assert all(len(set(column)) == 3 for column in zip(*found, strict=True))
    assert versions() == found[-1]
