"""Pictures of WorldCover's chips."""

from dataclasses import astuple

import numpy as np

from kiln.archives.worldcover.picture import RGB_BANDS, STRETCH, read_picture
from tests.support.archives import write_tile

BOX = (-0.7, 43.35, -0.5, 43.55)  # in tile N43W001


def test_digital_numbers_are_stretched_to_8_bits(tmp_path):
    assert RGB_BANDS == (1, 2, 3)
    black, white, gamma = astuple(STRETCH)
    pixels = np.zeros((4, 240, 240), np.uint16)
    for band, value in enumerate((round((black + white) / 2), round(white), 60_000, 9)):
        pixels[band] = value
    shown = read_picture(str(write_tile(tmp_path, 2021, -1, 43, pixels)), BOX)
    assert np.abs(shown.reshape(-1, 3).astype(int) - [int(0.5**gamma * 255), 255, 255]).max() <= 1


def test_nodata_and_pixels_outside_the_tile_are_grey(tmp_path):
    pixels = np.full((4, 240, 240), 700, np.uint16)
    pixels[:, :, :120] = 0
    tile = str(write_tile(tmp_path, 2021, -1, 43, pixels))
    shown = read_picture(tile, (-0.75, 43.25, -0.25, 43.75))
    assert (shown[:, :127] == 128).all()
    assert (shown[:, 129:] != 128).all()
    over = read_picture(tile, (-0.25, 43.25, 0.25, 43.75))
    assert (over[:, :127] != 128).all()
    assert (over[:, 129:] == 128).all()
