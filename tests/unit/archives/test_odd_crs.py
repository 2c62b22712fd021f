"""Rasters in unusual CRSs: one with heights is read by its horizontal part, one that has no place on a map fails."""

import pytest
from rasterio.transform import from_origin

from kiln.archives.worldcover.lattice import Lattice, region_columns
from tests.support import items, naip_scenes, sentinel2_scenes, worldcover_source
from tests.support.archives import random_pixels, write_tile

LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'
FAR = from_origin(5e6, 5e9, 1, 1)  # where PROJ returns a place in South America


def naip_chips(root, crs, lattice):
    naip_scenes.write_scene(root, naip_scenes.KEY, naip_scenes.scene_pixels(), crs=crs)
    chips = naip_scenes.read_chips(naip_scenes.make_source(root, lattice=lattice))
    return [(c.chip_id, c.crs, c.footprint, c.center, c.x0, c.y0, c.pixels.tobytes()) for c in chips]


@pytest.mark.parametrize("lattice", ["scene", "utm"])
def test_a_naip_scene_with_heights_has_the_code_and_chips_of_its_horizontal_crs(tmp_path, lattice):
    expected = naip_chips(tmp_path, "EPSG:26914", lattice)
    assert expected[0][1] == "EPSG:26914"
    assert naip_chips(tmp_path, "EPSG:26914+5703", lattice) == expected


@pytest.mark.parametrize("lattice", ["scene", "utm"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": "EPSG:4978"}, "expected a projected CRS in metres, got EPSG:4978."),
        ({"crs": LOCAL}, "expected a projected CRS in metres, got LOCAL_CS"),
        ({"crs": "EPSG:4269+5703"}, "expected a projected CRS in metres, got EPSG:4269 in degrees."),
        ({"transform": FAR}, "expected corners on the Earth, got none in EPSG:26914, from (5e+06, 5e+09) to"),
    ],
    ids=["geocentric", "local", "degrees with heights", "far off"],
)
def test_a_naip_scene_without_a_place_on_a_map_fails(tmp_path, lattice, options, message):
    naip_scenes.write_scene(tmp_path, naip_scenes.KEY, naip_scenes.scene_pixels(), **options)
    ((_, kind, _, reason),) = naip_scenes.read_dropped(naip_scenes.make_source(tmp_path, lattice=lattice))
    assert kind == "failed"
    assert message in reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsg": 32661, "corner": (2e6, 2e6)}, "expected the CRS of a UTM zone, got EPSG:32661."),
        ({"epsg": 32761, "corner": (2e6, 2e6)}, "expected the CRS of a UTM zone, got EPSG:32761."),
        ({"corner": (5e6, 5e9)}, "expected corners on the Earth, got none in EPSG:32629, from (5e+06, 5e+09) to"),
    ],
    ids=["north pole", "south pole", "far off"],
)
def test_a_sentinel2_item_outside_utm_fails(tmp_path, options, message):
    written = items.write_item(tmp_path, **options)
    assert message in sentinel2_scenes.only_reason(sentinel2_scenes.make_source(tmp_path, written))


def test_an_item_whose_own_code_is_no_utm_zone_fails(tmp_path):
    written = items.write_item(tmp_path, crs=None)
    written.change(**{"proj:epsg": 32661})
    reason = sentinel2_scenes.only_reason(sentinel2_scenes.make_source(tmp_path, written))
    assert "expected the CRS of a UTM zone, got 32661." in reason


def test_bands_of_sentinel2_with_heights_have_the_code_of_their_horizontal_crs(tmp_path):
    written = items.write_item(tmp_path, crs="EPSG:32629+5773")
    chips = sentinel2_scenes.read_chips(sentinel2_scenes.make_source(tmp_path, written))
    assert {c.crs for c in chips} == {"EPSG:32629"}


def test_a_tile_of_worldcover_with_heights_is_read(tmp_path):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1), crs="EPSG:4326+5773")
    lattice = Lattice(16, 48)
    source = worldcover_source.make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 11, 46]))
    assert len(worldcover_source.chips_of(worldcover_source.read_events(source))) == 9
