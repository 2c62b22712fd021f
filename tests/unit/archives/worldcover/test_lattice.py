"""The world lattice: the published columns, any region of the world, stable shards."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kiln.archives.worldcover import lattice
from kiln.archives.worldcover.lattice import Column, Lattice, region_columns, shards, unit_id
from kiln.errors import ConfigError


def box(grid: Lattice, col: int, row: int) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """West, south, east, north of a lattice chip in exact degrees, from the definition."""
    west = Fraction(-125) + Fraction(col * grid.chip, grid.ppd)
    north = Fraction(50) - Fraction(row * grid.chip, grid.ppd)
    return west, north - Fraction(grid.chip, grid.ppd), west + Fraction(grid.chip, grid.ppd), north


# ---------------------------------------------------------------------------------------------------------------- conus


def test_conus_is_1359_columns_of_609_rows():
    columns = region_columns(Lattice(512), "conus")
    assert len(columns) == 1359
    assert {c.rows for c in columns} == {609}
    assert {c.row for c in columns} == {0}
    assert [c.col for c in columns] == list(range(1359))


def test_column_k_of_conus_starts_512_k_pixels_east_of_125_west_and_50_north():
    grid = Lattice(512)
    for k in (0, 1, 117, 1358):
        assert grid.x(k) - grid.x(0) == 512 * k
        assert grid.lon(grid.x(k)) == float(Fraction(-125) + Fraction(512 * k, 12000))
        assert (grid.x(k) - 660000) / 512 == k
    assert grid.lat(grid.y(0)) == 50
    assert grid.lat(grid.y(609)) == float(50 - Fraction(609 * 512, 12000))
    assert grid.lat(grid.y(609)) > 24
    assert grid.lon(grid.x(1359)) == pytest.approx(-67.016, abs=1e-9)


def test_ids_count_pixels_of_the_world_from_its_north_west_corner():
    grid = Lattice(512)
    assert lattice.chip_id(grid, 2021, grid.x(0), grid.y(0)) == "worldcover:2021:512:x0660000:y0480000"
    assert lattice.chip_id(grid, 2020, grid.x(2), grid.y(3)) == "worldcover:2020:512:x0661024:y0481536"
    assert unit_id(grid, 2021, Column(2, 0, 609)) == "worldcover:2021:512:x0661024:y0480000:r609"


def test_ids_at_a_lower_resolution_count_native_pixels():
    grid = Lattice(64, 1200)
    assert lattice.chip_id(grid, 2021, grid.x(1), grid.y(1)) == "worldcover:2021:64:x0660640:y0480640"


@pytest.mark.parametrize("ppd", [7, 11, 24000, 11999])
def test_a_resolution_that_does_not_divide_the_native_one_is_a_config_error(ppd):
    with pytest.raises(ConfigError, match=f"expected a divisor of 12000, got {ppd}"):
        Lattice(64, ppd)


@pytest.mark.parametrize(("chip", "ppd"), [(0, 12000), (-8, 12000), (64, 0), (64, -1200)])
def test_sizes_that_are_not_positive_are_config_errors(chip, ppd):
    with pytest.raises(ConfigError):
        region_columns(Lattice(chip, ppd), [0, 0, 1, 1])


# -------------------------------------------------------------------------------------------------------------- regions


GRIDS = st.builds(Lattice, st.sampled_from([8, 24, 40, 56, 64, 100]), st.sampled_from([24, 40, 60, 96]))


@settings(deadline=None)
@given(
    GRIDS,
    st.floats(-180, 180),
    st.floats(0.001, 9),
    st.floats(-60, 84),
    st.floats(0.001, 5),
)
def test_a_region_has_exactly_the_chips_that_intersect_it(grid, west, width, south, height):
    east = west + width if west + width <= 180 else west + width - 360
    north = min(south + height, 84.0)
    step = Fraction(grid.chip, grid.ppd)
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    # Avoid ties: an edge within a millionth of a pixel of a chip's edge counts as equal to it.
    for value, start in itertools.chain(((v, -125) for s in spans for v in s), ((v, 50) for v in (south, north))):
        off = (Fraction(value) - start) / step % 1
        assume(off == 0 or min(off, 1 - off) > Fraction(1, 10**5))
    assume(south < north)
    assume(west != east)

    def intersects(col: int, row: int) -> bool:
        left, bottom, right, top = box(grid, col, row)
        if left < -180 or right > 180:
            return False  # it would cross the antimeridian
        wide = any(left < Fraction(e) and right > Fraction(w) for w, e in spans)
        return wide and bottom < Fraction(north) and top > Fraction(south)

    def around(value: float, start: int, sign: int) -> int:
        return int((Fraction(value) - start) * sign // step)

    candidates = {
        (col, row)
        for w, e in spans
        for col in range(around(w, -125, 1) - 2, around(e, -125, 1) + 3)
        for row in range(around(north, 50, -1) - 2, around(south, 50, -1) + 3)
    }
    expected = {c for c in candidates if intersects(*c)}
    if not expected:
        with pytest.raises(ConfigError, match="expected at least one chip"):
            region_columns(grid, [west, south, east, north])
        return
    columns = region_columns(grid, [west, south, east, north])
    assert len(set(columns)) == len(columns)
    assert {(c.col, c.row + r) for c in columns for r in range(c.rows)} == expected
    assert columns == sorted(columns)
    for c in columns:
        assert grid.x(c.col) >= 0
        assert grid.x(c.col) + grid.chip <= 360 * grid.ppd


@pytest.mark.parametrize("region", [[-125, 49, -124, 50], [10, -34, 11, -33], [-70, -60, -69, -59], [179, 0, 180, 1]])
def test_regions_of_whole_degrees_have_no_chip_beyond_their_edges(region):
    grid = Lattice(512)
    columns = region_columns(grid, region)
    first, last = columns[0], columns[-1]
    assert box(grid, first.col - 1, 0)[2] <= region[0] < box(grid, first.col, 0)[2]
    assert box(grid, last.col, 0)[0] < region[2]
    assert box(grid, last.col + 1, 0)[0] >= region[2] or box(grid, last.col + 1, 0)[2] > 180
    below = box(grid, columns[0].col, columns[0].row + columns[0].rows)
    above = box(grid, columns[0].col, columns[0].row - 1)
    assert below[3] <= region[1]
    assert above[1] >= region[3]


@given(GRIDS, st.integers(-300, 900), st.integers(-60, 300), st.integers(1, 5), st.integers(1, 5))
def test_a_region_of_chip_edges_has_only_those_chips(grid, col, row, wide, high):
    west, _, _, north = box(grid, col, row)
    _, south, east, _ = box(grid, col + wide - 1, row + high - 1)
    assume(-180 <= west < east <= 180)
    assume(-60 <= south < north <= 84)
    columns = region_columns(grid, [float(v) for v in (west, south, east, north)])
    assert columns == [Column(k, row, high) for k in range(col, col + wide)]


def test_swapped_west_and_east_are_refused_with_the_width_and_the_number_of_chips():
    with pytest.raises(ConfigError, match=r"region: .* 358 degrees wide and holds 35,800 chips. A box across"):
        region_columns(Lattice(12, 120), [1, 43, -1, 44])
    assert len(region_columns(Lattice(12, 120), [90, 43, -90, 44])) == 1800


def test_a_region_over_the_antimeridian_has_chips_on_both_sides_and_none_across():
    grid = Lattice(512)
    across = region_columns(grid, [179.5, 0, -179.5, 1])
    parts = {*region_columns(grid, [179.5, 0, 180, 1]), *region_columns(grid, [-180, 0, -179.5, 1])}
    assert set(across) == parts
    lons = [grid.lon(grid.x(c.col)) for c in across]
    assert min(lons) < -179.4
    assert max(lons) > 179.4
    assert all(lon >= -180 and lon + 512 / 12000 <= 180 for lon in lons)


def test_every_region_is_on_one_lattice():
    grid = Lattice(512)
    small = region_columns(grid, [-100.3, 40.1, -100.1, 40.2])
    conus = {c.col for c in region_columns(grid, "conus")}
    assert {c.col for c in small} <= conus


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("texas", "expected conus or"),
        ([1, 2, 3], "expected .west, south, east, north. in degrees"),
        ([10, 5, 10, 6], "expected .west, south, east, north. in degrees"),
        ([10, 6, 11, 5], "expected .west, south, east, north. in degrees"),
        ([10, 5, 11, 5], "expected .west, south, east, north. in degrees"),
        ([10, 85, 11, 89], "expected latitudes within -60 to 84"),
        ([10, -89, 11, -61], "expected latitudes within -60 to 84"),
        ([-181, 0, 0, 1], "expected .west, south, east, north. in degrees"),
        ([0, -91, 1, 1], "expected .west, south, east, north. in degrees"),
        ([float("nan"), 0, 1, 1], "expected .west, south, east, north. in degrees"),
        ([0, 0, float("inf"), 1], "expected .west, south, east, north. in degrees"),
    ],
)
def test_an_empty_or_impossible_region_is_a_config_error(region, message):
    with pytest.raises(ConfigError, match=message):
        region_columns(Lattice(512), region)


def test_a_region_that_no_chip_covers_is_a_config_error():
    grid = Lattice(512)  # 512 does not divide the 660000 pixels from -180 to -125
    with pytest.raises(ConfigError, match="expected at least one chip of 512 px"):
        region_columns(grid, [-180, 0, -179.999, 1])


def test_latitudes_are_clipped_to_the_archive():
    grid = Lattice(512)
    assert region_columns(grid, [0, 80, 1, 90]) == region_columns(grid, [0, 80, 1, 84])
    assert region_columns(grid, [0, -90, 1, -59]) == region_columns(grid, [0, -60, 1, -59])


# --------------------------------------------------------------------------------------------------------------- shards


@given(st.integers(-900, 900), st.integers(1, 60), st.integers(1, 9), st.sampled_from(["west", "east"]))
def test_one_column_more_changes_at_most_two_shards(first, count, per_shard, side):
    grid = Lattice(512)
    columns = [Column(k, 3, 7) for k in range(first, first + count)]
    wider = [Column(first - 1, 3, 7), *columns] if side == "west" else [*columns, Column(first + count, 3, 7)]
    before, after = ({s.name for s in shards(grid, 2021, c, per_shard)} for c in (columns, wider))
    assert len(before ^ after) <= 2


@given(st.integers(-900, 900), st.integers(1, 60), st.integers(1, 9))
def test_shards_hold_every_column_once_in_order_within_the_requested_size(first, count, per_shard):
    columns = [Column(k, 3, 7) for k in range(first, first + count)]
    planned = shards(Lattice(512), 2021, columns, per_shard)
    assert [c for s in planned for c in s.columns] == columns
    assert max(len(s.columns) for s in planned) <= per_shard
    assert len({s.name for s in planned}) == len(planned) <= count // per_shard + 2


def test_the_name_of_a_shard_depends_on_its_units_year_and_height():
    grid = Lattice(512)
    one = [Column(0, 0, 5), Column(1, 0, 5)]
    names = {
        shards(grid, 2021, one, 8)[0].name,
        shards(grid, 2020, one, 8)[0].name,
        shards(grid, 2021, [Column(0, 0, 6), Column(1, 0, 6)], 8)[0].name,
        shards(grid, 2021, one[:1], 8)[0].name,
        shards(Lattice(256), 2021, one, 8)[0].name,
    }
    assert len(names) == 5
    assert shards(grid, 2021, one, 8)[0].name == shards(grid, 2021, list(one), 8)[0].name


def test_shards_do_not_cross_the_antimeridian():
    grid = Lattice(512)
    for shard in shards(grid, 2021, region_columns(grid, [179.8, 0, -179.8, 1]), 64):
        assert len({grid.lon(grid.x(c.col)) > 0 for c in shard.columns}) == 1
