"""Tiles of the WorldCover archive: their names, addresses and listing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.archives.worldcover.tiles import (
    find_tiles,
    tile_corner,
    tile_name,
    tile_uri,
)
from kiln.errors import ConfigError
from tests.support.archives import name_of, random_pixels, write_tile


@given(st.integers(-180, 179), st.integers(-90, 89))
def test_tiles_are_named_after_their_south_west_corner(west, south):
    assert tile_name(west, south) == name_of(west, south)
    assert tile_corner(tile_name(west, south)) == (west, south)


def test_tile_uris_follow_the_layout_of_the_archive():
    uri = "s3://esa-worldcover-s2/rgbnir/2021/N37/ESA_WorldCover_10m_2021_v200_N37W122_S2RGBNIR.tif"
    assert tile_uri("s3://esa-worldcover-s2/rgbnir", 2021, "N37W122") == uri
    assert tile_uri("s3://esa-worldcover-s2/rgbnir/", 2020, "S03E006").endswith(
        "/2020/S03/ESA_WorldCover_10m_2020_v100_S03E006_S2RGBNIR.tif"
    )


def test_a_year_that_the_archive_lacks_is_a_config_error(tmp_path):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    with pytest.raises(ConfigError, match="expected 2020 or 2021, got 2019"):
        find_tiles(str(tmp_path), 2019, ["N45E010"])
    with pytest.raises(ConfigError, match=r"expected tiles in .*2020, got none"):
        find_tiles(str(tmp_path), 2020, ["N45E010"])


def test_only_existing_requested_tiles_are_found(tmp_path):
    for west in (10, 11):
        path = write_tile(tmp_path, 2021, west, 45, random_pixels(40, 1))
    found = find_tiles(f"{tmp_path}/", 2021, ["N46E010", "N45E011", "N45E012"])
    assert [(t.name, t.uri, t.size) for t in found] == [("N45E011", str(path), path.stat().st_size)]
