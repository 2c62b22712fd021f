"""Map tiles: pixels of chips at every zoom, of neighbouring tiles, and over the antimeridian."""

import io

import numpy as np
import pytest
from PIL import Image

from kiln.errors import ConfigError
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.filters import ChipFilter
from kiln.explorer.matrix import map_x, map_y
from kiln.explorer.matrix_cache import open_matrix
from kiln.explorer.web import map_tiles
from kiln.explorer.web.map_tiles import SIZE, draw_tile
from tests.support import explorers


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (SIZE, SIZE))
        return np.asarray(image)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """Build the matrix of a block of 20 x 20 chips at 10 E, 45 N, two single ones, and one over the antimeridian."""
    folder = tmp_path_factory.mktemp("tiles")
    places = [(10 + 0.04 * c, 45 + 0.04 * r) for c in range(20) for r in range(20)]
    places += [(-60.0, -30.0), (-60.0, -30.5), (180.0, 0.0)]
    rng = np.random.default_rng(0)
    rows = [
        explorers.chip(n, lon, lat, rng.standard_normal(4), year=2020 + n % 2) for n, (lon, lat) in enumerate(places)
    ]
    return open_matrix(ExplorerDatabase(explorers.write(folder / "db", rows)), folder / "cache")


def place(lon, lat, z):
    """Return tile and pixel of a place."""
    x, y = min(float(map_x(lon)) * 2**z * SIZE, 2**z * SIZE - 1), float(map_y(lat)) * 2**z * SIZE
    return int(x) // SIZE, int(y) // SIZE, int(x) % SIZE, int(y) % SIZE


@pytest.mark.parametrize("z", [8, 10, 12, 15])
def test_a_filled_box_is_where_the_chip_is(matrix, z):
    rgb = matrix["colour"]
    for row in range(0, len(matrix) - 1, 37):
        x, y, column, line = place(matrix["lon"][row], matrix["lat"][row], z)
        got = pixels(draw_tile(matrix, "colours", z, x, y))
        assert got[line, column, 3] == 255
        assert np.abs(got[line, column, :3].astype(int) - rgb[row]).max() <= 1


def test_a_block_without_gaps_is_drawn_without_gaps(matrix):
    x, y, column, line = place(10.4, 45.4, 9)
    got = pixels(draw_tile(matrix, "coverage", 9, x, y))[..., 3]
    lines, columns = np.nonzero(got)
    inside = got[lines.min() : lines.max() + 1, columns.min() : columns.max() + 1]
    assert (inside > 0).all()
    assert got[line, column]
    left, right = ((float(map_x(v)) * 2**9 - x) * SIZE for v in (9.98, 10.78))
    assert (columns.min(), columns.max() + 1) == (round(max(left, 0)), round(min(right, SIZE)))


def test_tiles_side_by_side_join(matrix):
    """Four tiles, scaled down by two, show chips where their parent tile does."""
    x, y, _, _ = place(10.4, 45.4, 8)
    above = pixels(draw_tile(matrix, "coverage", 8, x, y))[..., 3] > 0
    below = np.zeros((2 * SIZE, 2 * SIZE), bool)
    for dx in (0, 1):
        for dy in (0, 1):
            part = pixels(draw_tile(matrix, "coverage", 9, 2 * x + dx, 2 * y + dy))[..., 3] > 0
            below[dy * SIZE : (dy + 1) * SIZE, dx * SIZE : (dx + 1) * SIZE] = part
    halved = below.reshape(SIZE, 2, SIZE, 2).any(axis=(1, 3))
    assert above.any()
    assert (above != halved).sum() <= 0.05 * above.sum()


@pytest.mark.parametrize("z", [0, 3])
def test_few_chips_are_visible_at_low_zoom(matrix, z):
    x, y, column, line = place(-60, -30, z)
    got = pixels(draw_tile(matrix, "coverage", z, x, y))[..., 3]
    assert got[line - 1 : line + 2, column - 1 : column + 2].all()


def test_many_chips_are_dots_weighted_by_their_count(matrix, monkeypatch):
    monkeypatch.setattr(map_tiles, "FEW_CHIPS", 0)
    got = pixels(draw_tile(matrix, "coverage", 0, 0, 0))[..., 3]
    expected = {place(lon, lat, 0)[:1:-1] for lon, lat in zip(matrix["lon"], matrix["lat"], strict=True)}
    assert {tuple(map(int, p)) for p in np.argwhere(got)} == expected
    _, _, block_x, block_y = place(10.4, 45.4, 0)
    _, _, lone_x, lone_y = place(-60, -30, 0)
    assert got[block_y, block_x] > got[lone_y, lone_x]
    mean = pixels(draw_tile(matrix, "colours", 0, 0, 0))[lone_y, lone_x, :3]
    at = [n for n in range(len(matrix)) if place(matrix["lon"][n], matrix["lat"][n], 0)[2:] == (lone_x, lone_y)]
    assert np.abs(mean - matrix["colour"][at].mean(axis=0)).max() <= 1


def test_a_chip_over_the_antimeridian_is_at_both_edges(matrix):
    z = 10
    west, east = (pixels(draw_tile(matrix, "coverage", z, x, 2**z // 2))[..., 3] > 0 for x in (2**z - 1, 0))
    assert west[:14, -14:].all()
    assert east[:14, :14].all()
    assert not west[:, :100].any()


def test_filters_leave_chips_out(matrix):
    x, y, _, _ = place(10.4, 45.4, 10)
    every = pixels(draw_tile(matrix, "coverage", 10, x, y))[..., 3] > 0
    some = pixels(draw_tile(matrix, "coverage", 10, x, y, ChipFilter(years=(2020,)).mask(matrix)))[..., 3] > 0
    assert 0.3 * every.sum() < some.sum() < 0.7 * every.sum()
    none = draw_tile(matrix, "coverage", 10, x, y, ChipFilter(years=(1999,)).mask(matrix))
    assert not pixels(none)[..., 3].any()


def test_a_tile_without_chips_is_clear(matrix):
    assert draw_tile(matrix, "colours", 10, 0, 0) == map_tiles.empty_tile()
    assert not pixels(map_tiles.empty_tile()).any()


def test_equal_tiles_are_equal_bytes(matrix):
    assert draw_tile(matrix, "colours", 6, 33, 22) == draw_tile(matrix, "colours", 6, 33, 22)


@pytest.mark.parametrize("at", [("x", 0, 0, 0), ("colours", 21, 0, 0), ("colours", -1, 0, 0), ("coverage", 3, 8, 0),
                                ("coverage", 3, 0, -1)])  # fmt: skip
def test_a_tile_that_is_not_on_the_map_is_refused(matrix, at):
    with pytest.raises(ConfigError):
        draw_tile(matrix, *at)
