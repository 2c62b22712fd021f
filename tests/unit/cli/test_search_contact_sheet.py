"""`kiln search --png`: the contact sheet of a search."""

import json

import numpy as np
import pytest
from PIL import Image

from kiln.archives.worldcover.lattice import Lattice
from kiln.cli import search
from kiln.explorer.contact_sheet import COLUMNS as SHEET_COLUMNS
from tests.support.archives import write_tile
from tests.support.products import WORLD, chip_at, make_product, shard_metadata
from tests.support.searches import COLUMNS, build_database, search_error, search_output

SMALL = Lattice(24, 240)  # a tenth of a degree a chip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Build a database of the 10 x 10 chips of a tile of noise."""
    run = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(4)
    pixels = rng.integers(200, 2600, (4, 240, 240)).astype(np.uint16)
    tile = write_tile(run / "archive", 2021, -125, 49, pixels)
    product = make_product(run, columns=COLUMNS, lattice=SMALL, source=str(tile), kiln=shard_metadata(untrained=True))
    return build_database(run, product)


def cells_of(png, hits):
    """Return the pictures of a sheet, located by its layout: a large one, then five per line."""
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    lines = max(2, -(-hits // SHEET_COLUMNS))
    assert pixels.shape[:2] == pytest.approx(((2.32 * lines + 1.35) * 110, (2.0 * 7 + 0.7) * 110), abs=1)
    height, width = pixels.shape[:2]
    top = 0.85 * 110
    line = (height - 0.85 * 110 - 0.5 * 110) / lines
    column = width / 7
    large = pixels[int(top + 30) : int(top + 1.2 * line), 60 : int(1.6 * column)]
    small = []
    for n in range(hits):
        r, c = divmod(n, SHEET_COLUMNS)
        y, x = int(top + r * line + 0.35 * line), int((c + 2.35) * column)
        small.append(pixels[y : y + 50, x : x + 50])
    return large, small


def test_the_sheet_shows_every_chip_and_warns_of_untrained_weights(scene, tmp_path, capsys):
    png = tmp_path / "sheet.png"
    chip = chip_at(SMALL, 2021, 5, 5).chip_id
    search_output(capsys, scene, "--chip", chip, "-k", "7", "--png", str(png))
    large, small = cells_of(png, 7)
    for picture in (large, *small):
        assert np.ptp(picture.reshape(-1, 3), axis=0).min() > 60  # noise, not a blank
    with Image.open(png) as image:
        top = np.asarray(image.convert("RGB")).astype(int)[:80]
    red = (top[..., 0] > 150) & (top[..., 1] < 80) & (top[..., 2] < 80)
    assert red.sum() > 100  # the warning of untrained weights
    assert list(tmp_path.iterdir()) == [png]


def test_equal_queries_draw_equal_bytes(scene, tmp_path, capsys):
    for name in "ab":
        search_output(capsys, scene, "--example", "-k", "5", "--png", str(tmp_path / f"{name}.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_more_results_make_a_taller_sheet(scene, tmp_path, capsys):
    search_output(capsys, scene, "--example", "-k", "17", "--png", str(tmp_path / "a.png"))
    _, small = cells_of(tmp_path / "a.png", 17)
    assert all(np.ptp(s.reshape(-1, 3), axis=0).min() > 60 for s in small)


def test_missing_pictures_are_drawn_grey(tmp_path, capsys, caplog):
    product = make_product(tmp_path, columns=COLUMNS[:2], source=str(tmp_path / "gone.tif"))
    services = json.dumps({"worldcover": {"wms": {"url": "http://127.0.0.1:9/", "version": "1.3.0", "layers": "a"}}})
    png = tmp_path / "sheet.png"
    with caplog.at_level("INFO"):
        search.main(
            ["--db", build_database(tmp_path, product), "--chip", chip_at(WORLD, 2021, 1, 3).chip_id, "-k", "4",
             "--png", str(png), "--pictures", services]
        )  # fmt: skip
    large, small = cells_of(png, 4)
    for picture in (*small, large):
        grey = (np.abs(picture - np.array([0xD9, 0xD9, 0xD6])).max(axis=-1) <= 1).mean()
        assert grey > 0.7
    assert "5 missing" in caplog.text
    assert "the service does not answer" in caplog.text
    assert "gone.tif" in caplog.text


def test_a_sheet_that_cannot_be_written_is_an_error(scene, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, message = search_error(capsys, scene, "--example", "--png", str(tmp_path / "file" / "a.png"))
    assert code == 1
    assert "cannot be written" in message
