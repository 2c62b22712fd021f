"""The contact sheet: the choice of an example, the warning of untrained weights, and the empty sheet."""

import numpy as np
import pytest
from PIL import Image

from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.explorer.api import open_explorer
from kiln.explorer.contact_sheet import choose_example, draw_contact_sheet, find_example, write_contact_sheet
from kiln.explorer.filters import ChipFilter
from kiln.explorer.search import Query
from scripts import picture_similar
from tests.support.archives import write_tile
from tests.support.products import WORLD, chip_at, make_product, shard_metadata
from tests.support.searches import build_database

COLUMNS = [Column(k, 0, 10) for k in range(10)]
SMALL = Lattice(24, 240)  # a tenth of a degree a chip


def grouped_vectors(chips, group, noise):
    """Return vectors of noise, but nearly one direction for the chips of a group."""
    out = noise.standard_normal((len(chips), 32))
    for n, c in enumerate(chips):
        if (c.col, c.row) in group:
            out[n] = 5 + 0.1 * out[n]
    return out


@pytest.fixture(scope="module")
def years(tmp_path_factory):
    """Build a database of 100 chips in each of two years; open it."""
    run = tmp_path_factory.mktemp("years")
    return open_explorer(build_database(run, *(make_product(run, year, columns=COLUMNS) for year in (2020, 2021))))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Build a database of the 10 x 10 chips of a tile of noise."""
    run = tmp_path_factory.mktemp("scene")
    pixels = np.random.default_rng(4).integers(200, 2600, (4, 240, 240)).astype(np.uint16)
    tile = write_tile(run / "archive", 2021, -125, 49, pixels)
    product = make_product(run, columns=COLUMNS, lattice=SMALL, source=str(tile), kiln=shard_metadata(untrained=True))
    return build_database(run, product)


def test_an_example_stands_out_more_than_others(tmp_path):
    """The example is one of ten similar chips among noise."""
    group, noise = {(c, 4) for c in range(10)}, np.random.default_rng(3)
    product = make_product(
        tmp_path,
        columns=COLUMNS,
        vectors=lambda chips: grouped_vectors(chips, group, noise),
        kiln=shard_metadata(dimensions=32),
    )
    ids = {chip_at(WORLD, 2021, c, r).chip_id for c, r in group}
    assert choose_example(open_explorer(build_database(tmp_path, product)), 5, {}).chip_id in ids


def test_an_example_is_not_a_uniform_chip(tmp_path):
    """Six similar chips show a sea with one island. The chip of the island is the example."""
    group, noise = {(c, 4) for c in range(6)}, np.random.default_rng(3)
    for island in (1, 4):
        run = tmp_path / str(island)
        pixels = np.full((4, 240, 240), 300, np.uint16)
        here = slice(24 * island, 24 * island + 24)
        pixels[:, 96:120, here] = noise.integers(200, 2600, (4, 24, 24))
        tile = str(write_tile(run / "archive", 2021, -125, 49, pixels))
        product = make_product(
            run, columns=COLUMNS, lattice=SMALL, source=tile, kiln=shard_metadata(dimensions=32),
            vectors=lambda chips: grouped_vectors(chips, group, noise),
        )  # fmt: skip
        example = choose_example(open_explorer(build_database(run, product)), 5, {})
        assert example.chip_id == chip_at(SMALL, 2021, island, 4).chip_id


def test_an_example_is_of_the_newest_year_of_the_filters(years):
    result = find_example(years, 4, {})
    assert {result.reference.year, *(h.chip.year for h in result.hits)} == {2021}
    older = find_example(years, 4, {}, ChipFilter(years=(2020,)))
    assert {older.reference.year, *(h.chip.year for h in older.hits)} == {2020}
    assert find_example(years, 4, {}, ChipFilter(years=(1999,))) is None


def test_trained_weights_are_not_called_untrained(scene, tmp_path):
    explorer = open_explorer(scene)
    result = explorer.find(Query(likes=(chip_at(SMALL, 2021, 5, 5).chip_id,), k=3))
    tops = []
    for untrained in (False, True):
        path = tmp_path / f"{untrained}.png"
        draw_contact_sheet(result.reference, result.hits, {}, untrained=untrained, path=path)
        with Image.open(path) as image:
            tops.append(np.asarray(image.convert("RGB")).astype(int)[:80])
    red = [((t[..., 0] > 150) & (t[..., 1] < 80) & (t[..., 2] < 80)).sum() for t in tops]
    assert red[0] == 0 < red[1]


def test_without_a_result_the_sheet_is_empty_and_a_warning_is_logged(tmp_path, caplog):
    write_contact_sheet(str(tmp_path / "a.png"), None, {}, untrained=False)
    assert "the filters leave no chip" in caplog.text
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"


def test_the_script_draws_the_example_and_lists_its_neighbours(scene, tmp_path, capsys):
    picture_similar.main(["--db", scene, "-k", "5", "--png", str(tmp_path / "a.png")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["like", "1", "2", "3", "4", "5"]
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_script_draws_an_empty_sheet_of_an_empty_database(tmp_path, capsys):
    product = make_product(tmp_path, columns=COLUMNS[:2], skip=lambda c, r: True)
    picture_similar.main(["--db", build_database(tmp_path, product), "--png", str(tmp_path / "a.png")])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "a.png").exists()
