"""The coverage map and the ledger page."""

from html.parser import HTMLParser

import numpy as np
import pytest
import shapely
from matplotlib.figure import Figure
from PIL import Image

from kiln.archives.worldcover.columns import COLUMNS
from kiln.archives.worldcover.lattice import Column
from kiln.formats import embeddings_file
from kiln.formats.ledger import LEDGER_COUNTS, LEDGER_SCHEMA, write_ledger
from kiln.io import storage
from kiln.product.record import LedgerFile, ProductFile, ProductRecord, read_record
from kiln.report import coverage, ledger_page
from scripts import coverage as coverage_script
from tests.support.chips import make_chip
from tests.support.products import make_product, shard_metadata

GRID = [Column(k, 0, 10) for k in range(10)]
SIDE = 512 / 12000
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A parsed page: tables as lists of (class of the row, texts of its cells). Tags that do not close are an error."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tables, self.text, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append((dict(attrs).get("class"), []))
        if tag in ("td", "th"):
            self.tables[-1][-1][1].append("")

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][1][-1] += data


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Write products of two years; in 2021 one column failed with a reason that contains HTML, and one is sea."""
    run = tmp_path_factory.mktemp("coverage")
    reason = "tile <script>alert(\"x\")</script> & 'more' unreadable"
    return (
        make_product(run, 2020, columns=GRID),
        make_product(run, 2021, columns=GRID, fail=lambda c: reason if c == 6 else "", skip=lambda c, r: c == 2),
    )


def records_of(*products, **changes):
    return [ProductRecord.from_json(m.record | changes) for m in products]


def page_of(*products):
    return ledger_page.ledger_page(records_of(*products), [m.uri for m in products])


# -------------------------------------------------------------------------------------------------------- raster


def chips_of(*boxes):
    return np.array([[*b] for b in boxes], float)


def test_every_cell_counts_the_chips_that_cover_it():
    chips = chips_of((0, 0, 1, 1), (1, 0, 2, 1), (0, 1, 2, 2), (0, 1, 1, 2))
    grid = coverage.coverage_raster(chips, (0.0, 0.0, 3.0, 2.0))
    assert grid.shape == (600, 900)
    assert (grid[300:, :600] == 1).all()  # south
    assert (grid[:300, :300] == 2).all()  # north-west, twice
    assert (grid[:300, 300:600] == 1).all()
    assert (grid[:, 600:] == 0).all()


def test_neighbouring_chips_neither_overlap_nor_leave_gaps(products):
    chips = coverage.read_boxes(records_of(products[0])[0], products[0].uri)
    assert chips.shape == (100, 4)
    west, south = chips[:, :2].min(axis=0)
    east, north = chips[:, 2:4].max(axis=0)
    assert (coverage.coverage_raster(chips, (west, south, east, north)) == 1).all()


def test_a_chip_smaller_than_a_cell_still_shows():
    chips = chips_of((10.0, 10.0, 10.001, 10.001))
    assert coverage.coverage_raster(chips, (0.0, 0.0, 20.0, 20.0)).sum() == 1


def test_the_longer_side_has_the_cells():
    assert coverage.coverage_raster(np.empty((0, 4)), (0.0, 0.0, 10.0, 40.0)).shape == (900, 225)


def test_boxes_are_those_of_all_parts(tmp_path):
    product = make_product(tmp_path, columns=GRID, kiln=shard_metadata(dimensions=256), row_group=20, part_bytes=60_000)
    assert len(product.record["files"]) > 1
    assert len(coverage.read_boxes(records_of(product)[0], product.uri)) == 100


# ----------------------------------------------------------------------------------------------------------- map


def pixel_counts(path):
    """Return width, height, the fraction of pixels in the colour of full coverage, and the number of red ones."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    full = (np.abs(pixels - [0x0F, 0x76, 0x6E]).max(axis=-1) <= 2).mean()
    red = ((pixels[..., 0] > 160) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)).sum()
    return pixels.shape[1], pixels.shape[0], full, red


def test_the_map_has_a_panel_for_each_product(products, tmp_path):
    for n in (1, 2):
        coverage.draw_coverage(records_of(*products[:n]), [m.uri for m in products[:n]], tmp_path / f"{n}.png")
    one, two = pixel_counts(tmp_path / "1.png"), pixel_counts(tmp_path / "2.png")
    assert two[0] == pytest.approx(2 * one[0], abs=2)
    assert two[1] == one[1]
    assert one[2] > 0.3
    assert 0.2 < two[2] < one[2]  # two columns are missing in 2021
    assert one[3] == 0 < two[3]  # failures are written in red


def test_untrained_weights_and_missing_shards_are_marked_on_the_map(tmp_path):
    product = make_product(tmp_path / "a", columns=GRID[:2], kiln=shard_metadata(untrained=True))
    coverage.draw_coverage(records_of(product), [product.uri], tmp_path / "a.png")
    assert pixel_counts(tmp_path / "a.png")[3] > 50
    missing = records_of(make_product(tmp_path / "b", columns=GRID[:2]), missing_shards=["x"])
    coverage.draw_coverage(missing, [str(tmp_path / "b/products/2021")], tmp_path / "b.png")
    assert pixel_counts(tmp_path / "b.png")[3] > 50


def test_a_product_without_chips_is_an_empty_map(tmp_path):
    product = make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True)
    coverage.draw_coverage(records_of(product), [product.uri], tmp_path / "a.png")
    assert pixel_counts(tmp_path / "a.png")[2] == 0


def test_one_chip_is_a_map(tmp_path):
    product = make_product(tmp_path, columns=[Column(3, 4, 1)])
    coverage.draw_coverage(records_of(product), [product.uri], tmp_path / "a.png")
    assert pixel_counts(tmp_path / "a.png")[2] > 0.2


def test_equal_products_make_equal_maps(products, tmp_path):
    for name in "ab":
        coverage.draw_coverage(records_of(products[1]), [products[1].uri], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---------------------------------------------------------------------------------------------------------- page


def test_the_page_has_totals_and_every_unit(products):
    page = Page(page_of(*products))
    totals, units = page.tables
    assert [c for _, c in totals[1:]] == [
        ["worldcover 2020", "100", "100", "0", "0", "0", "0", "10 embedded"],
        ["worldcover 2021", "100", "80", "10", "0", "0", "10", "8 embedded, 1 empty, 1 failed"],
    ]
    assert len(units) == 1 + 20
    assert "".join(page.text).startswith("Ledger")


def test_failed_units_come_first_of_their_product(products):
    _, units = Page(page_of(products[1])).tables
    assert [kind for kind, _ in units[1:]] == ["failed"] + ["embedded"] * 2 + ["empty"] + ["embedded"] * 6
    failed = units[1][1]
    assert failed[0].startswith("worldcover:2021:512:x0663072:")
    assert failed[1:8] == ["10", "0", "0", "0", "0", "10", "failed"]


def test_failed_units_come_first_of_all_products(products):
    _, units = Page(page_of(*products)).tables
    assert units[1][0] == "failed"


def test_reasons_are_shown_as_they_are_and_escaped(products):
    text = page_of(products[1])
    assert "<script" not in text
    page = Page(text)
    assert "script" not in page.tags
    assert page.tables[1][1][1][8] == "tile <script>alert(\"x\")</script> & 'more' unreadable"


def test_a_long_ledger_is_cut_after_the_failed_units_with_a_note(tmp_path, monkeypatch):
    product = make_product(tmp_path, columns=GRID, fail=lambda c: "broken" if c > 6 else "")
    monkeypatch.setattr(ledger_page, "MAX_ROWS", 5)
    page = Page(page_of(product))
    assert [kind for kind, _ in page.tables[1][1:]] == ["failed"] * 3 + ["embedded"] * 2
    assert "5 more units are in the products' ledger.parquet" in "".join(page.text)


def test_untrained_weights_and_missing_shards_are_reported_on_the_page(products, tmp_path):
    assert "UNTRAINED" not in page_of(*products)
    assert "are missing" not in page_of(*products)
    product = make_product(tmp_path, columns=GRID[:2], kiln=shard_metadata(untrained=True))
    records = records_of(product, missing_shards=["a", "b", "c"])
    page = Page(ledger_page.ledger_page(records, [product.uri]))
    assert "UNTRAINED weights" in "".join(page.text)
    assert "3 shards are missing" in "".join(page.text)


def test_the_main_writes_both(products, tmp_path, capsys):
    png, page = tmp_path / "map.png", tmp_path / "ledger.html"
    records = [m.record_file for m in products]
    coverage_script.main(["--records", *records, "--map", str(png), "--ledger", str(page)])
    assert pixel_counts(png)[2] > 0.2
    assert page.read_text() == page_of(*products)
    with pytest.raises(SystemExit) as e:
        coverage_script.main(["--records", *records, "--products", "one", "--map", str(png), "--ledger", str(page)])
    assert e.value.code == 2
    assert "--products: expected 2 folders, got 1" in capsys.readouterr().err


def test_pages_and_maps_of_a_product_on_s3(bucket, tmp_path):
    product = make_product(tmp_path, columns=GRID, product=f"{bucket}/products/2021")
    coverage_script.main(
        ["--records", product.record_file, "--map", f"{bucket}/map.png", "--ledger", f"{bucket}/ledger.html"]
    )

    assert storage.read_bytes(f"{bucket}/map.png")[:4] == b"\x89PNG"
    assert storage.read_bytes(f"{bucket}/ledger.html").decode() == page_of(product)
    assert read_record(product.record_file).as_json() == product.record


# ------------------------------------------------------------------------------------------------ the antimeridian

TWO_SIDES = ((178.5, 0, 179.5, 1), (179.5, 0, -179.5, 1), (-179.5, 0, -178.5, 1))


def product_of(folder, *footprints):
    """Write a product of one file; return its record."""
    columns = embeddings_file.schema(2, "float32", COLUMNS, shard_metadata())
    part = folder / "chips/part-0000.parquet"
    part.parent.mkdir(parents=True)
    with embeddings_file.ShardWriter(part, columns) as out:
        chips = [make_chip(n, footprint=f) for n, f in enumerate(footprints)]
        out.append(chips, {"embeddings": np.ones((len(chips), 2), np.float32)})
    write_ledger(folder / "ledger.parquet", LEDGER_SCHEMA.empty_table())
    counts = dict.fromkeys(LEDGER_COUNTS, 0) | {"embedded": len(chips)}
    return ProductRecord(
        dataset="sentinel2", partition=folder.name, fingerprint="f1" * 32, weights_sha256="a5" * 32, untrained=False,
        shards="s", missing_shards=(), rows=len(chips), counts=counts, units={}, documents=(), tag="t",
        files=(ProductFile(part.relative_to(folder).as_posix(), part.stat().st_size, "d", len(chips)),),
        ledger=LedgerFile("ledger.parquet", 1, "d"),
    )  # fmt: skip


def footprint(west, south, east, north):
    if west < east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def test_chips_near_and_over_the_antimeridian_are_drawn_side_by_side(tmp_path):
    record = product_of(tmp_path / "a", *(footprint(*b) for b in TWO_SIDES))
    chips = coverage.read_boxes(record, str(tmp_path / "a"))
    assert chips[1, :4].tolist() == [179.5, 0, 180.5, 1]
    (moved,) = coverage.join_over_antimeridian([chips])
    assert moved[:, [0, 2]].tolist() == [[178.5, 179.5], [179.5, 180.5], [180.5, 181.5]]
    assert coverage.map_bounds([moved])[::2] == pytest.approx((178.38, 181.62))
    assert (coverage.coverage_raster(moved, (178.5, 0.0, 181.5, 1.0)) == 1).all()


def test_chips_of_two_products_on_either_side_share_a_narrow_frame():
    moved = coverage.join_over_antimeridian([chips_of(TWO_SIDES[0]), chips_of(TWO_SIDES[2]), np.empty((0, 4))])
    assert [m[:, 0].tolist() for m in moved] == [[178.5], [180.5], []]
    assert coverage.map_bounds(moved)[2] < 182


@pytest.mark.parametrize(
    "boxes",
    [
        [(-125, 40, -124, 41), (-70, 40, -69, 41)],
        [(-1, 0, 0, 1), (0, 0, 1, 1)],  # on both sides of Greenwich
        [(-179.5, 0, -178.5, 1), (178.5, 0, 179.5, 1), (10, 50, 11, 51), (-80, 0, -79, 1)],  # of all the world
        [(-180, 80, 180, 90)],
        [],
    ],
)
def test_other_chips_stay_where_they_are(boxes):
    chips = chips_of(*boxes) if boxes else np.empty((0, 4))
    assert np.array_equal(coverage.join_over_antimeridian([chips])[0], chips)


def test_the_map_of_chips_over_the_antimeridian_is_not_as_wide_as_the_world(tmp_path):
    record = product_of(tmp_path / "a", *(footprint(*b) for b in TWO_SIDES))
    coverage.draw_coverage([record], [str(tmp_path / "a")], tmp_path / "a.png")
    elsewhere = product_of(tmp_path / "b", *(footprint(8.5 + n, 0, 9.5 + n, 1) for n in range(3)))
    coverage.draw_coverage([elsewhere], [str(tmp_path / "b")], tmp_path / "b.png")
    assert pixel_counts(tmp_path / "a.png")[2] == pytest.approx(pixel_counts(tmp_path / "b.png")[2], rel=0.05)
    assert pixel_counts(tmp_path / "a.png")[2] > 0.1


def test_longitudes_above_180_are_labelled_as_western_ones():
    figure = Figure()
    axes = figure.add_subplot()
    panel = coverage.Panel("a", chips_of((178.5, 0, 181.5, 1)), dict.fromkeys(LEDGER_COUNTS, 0))
    coverage.draw_panel(axes, panel, (178.0, 0.0, 182.0, 1.0))
    figure.canvas.draw()
    labels = {label.get_text().replace("\N{MINUS SIGN}", "-") for label in axes.get_xticklabels()}
    assert {"179", "-180", "-179"} <= labels
    assert not any(float(x) > 180 for x in labels if x)


def test_codes_in_notes_are_words_in_the_page():
    notes = "offset_flag_missing; offset_subtracted; scl_impossible (12 px)"
    assert ledger_page.readable_notes("sentinel2:S2A_1", notes) == (
        "no flag states whether the offset was removed; the offset of 1000 was subtracted; "
        "SCL has classes that it does not define (12 px)"
    )
    assert ledger_page.readable_notes("naip:nd:2019:m", "no date in the name") == "no date in the name"
    assert ledger_page.readable_notes("gone:x", "no_offset") == "no_offset"
