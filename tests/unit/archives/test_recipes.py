"""Every archive's golden chip has the stored vector, unless RECIPE was raised."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from kiln.archives.registry import archives, get_archive
from kiln.model.identity import PRECISIONS, RECIPE
from tests.support import golden_recipes

BUILT_IN = tuple(golden_recipes.SOURCES)
CASES = [(name, precision) for name in BUILT_IN for precision in golden_recipes.precisions()]


def changed(chip, **values):
    for name, value in values.items():
        setattr(chip, name, value)
    return chip


CHANGES = {
    "a pixel further west": lambda c: changed(c, pixels=np.roll(c.pixels, 1, axis=2)),
    "bands in another order": lambda c: changed(c, pixels=c.pixels[::-1].copy()),
    "no date": lambda c: changed(c, datetime=None),
    "latitude before longitude": lambda c: changed(c, center=c.center[::-1]),
}
SMALL_CHANGES = {
    "two bands swapped": lambda c: changed(c, pixels=c.pixels[[1, 0, *range(2, len(c.pixels))]]),
    "a week later": lambda c: changed(c, datetime=c.datetime + timedelta(days=7)),
    "ten degrees further east": lambda c: changed(c, center=(c.center[0] + 10, c.center[1])),
}


@pytest.fixture(scope="module")
def stored():
    return golden_recipes.read()


def test_every_archive_has_a_golden_chip_on_every_precision(stored):
    assert set(stored) == set(BUILT_IN) >= {"worldcover", "naip", "sentinel2"}
    assert set(BUILT_IN) <= set(archives())
    assert all(set(by_precision) == set(PRECISIONS) for by_precision in stored.values())


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_the_golden_chip_has_the_stored_vector_and_recipe(stored, name, precision):
    vector = golden_recipes.embed_golden(name, precision)
    golden_recipes.check(name, precision, stored[name][precision], vector, get_archive(name).recipe, RECIPE)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_change_of_pixels_time_or_place_exceeds_the_bounds(stored, name, precision, change):
    golden = replace(stored[name][precision], machine={})  # as on another machine, without the digest
    vector = golden_recipes.embed_golden(name, precision, change)
    with pytest.raises(AssertionError, match=r"another vector .deviation .* RECIPE is unchanged.*golden_recipes"):
        golden_recipes.check(name, precision, golden, vector, get_archive(name).recipe, RECIPE)


@pytest.mark.parametrize("change", SMALL_CHANGES.values(), ids=SMALL_CHANGES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_small_change_exceeds_the_bounds_of_float32(stored, name, change):
    golden = replace(stored[name]["float32"], machine={})
    assert golden_recipes.difference(golden, golden_recipes.embed_golden(name, "float32", change), "float32")


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_another_mean_exceeds_the_bounds(stored, name, precision):
    golden = replace(stored[name][precision], machine={})
    factor = 1.1 if precision == "float32" else 2.0
    assert golden_recipes.difference(
        golden, golden_recipes.embed_golden(name, precision, mean_factor=factor), precision
    )


@pytest.mark.parametrize(("recipe", "model_recipe"), [(1, 0), (0, 1), (1, 1)])
def test_a_raised_recipe_needs_a_new_file(stored, recipe, model_recipe):
    golden = stored["naip"]["float32"]
    raised = (golden.recipe + recipe, golden.model_recipe + model_recipe)
    with pytest.raises(AssertionError, match=r"naip: expected RECIPE .* Run `python -m tests.support.golden_recipes`"):
        golden_recipes.check("naip", "float32", golden, golden.vector, *raised)


def test_other_bits_count_only_on_the_same_kind_of_machine(stored):
    golden = stored["naip"]["float32"]
    near = golden.vector.copy()
    near[0] += 1e-4
    same, other = replace(golden, machine=golden_recipes.machine()), replace(golden, machine={"torch": "0"})
    assert "other bits" in golden_recipes.difference(same, near, "float32")
    assert golden_recipes.difference(other, near, "float32") == ""
