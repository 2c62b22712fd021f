"""The data card of a product: its facts are those of the files, and its examples run."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from kiln.archives.worldcover.lattice import Column
from tests.support.products import make_product, merge_shards, shard_metadata, write_shards

GRID = [Column(k, 0, 10) for k in range(8)]


def card_of(product):
    return Path(product.uri, "README.md").read_text()


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return make_product(
        tmp_path_factory.mktemp("card"), columns=GRID, kiln=shard_metadata(untrained=True, vector_dtype="int8"),
        skip=lambda c, r: r == 0, fail=lambda c: "a.tif: not | a\nGeoTIFF" if c in (2, 3) else "",
    )  # fmt: skip


def test_facts_are_those_of_the_product(product):
    card = card_of(product)
    assert card.startswith("# Clay embeddings of ESA WorldCover Sentinel-2 annual composites, 2021\n")
    for fact in (
        "| chips | 54, one row each |",
        "| chip | 512 x 512 pixels of 9.277 m, a square of 4,750 m |",
        "| bounding box | -125, 49.5733, -124.659, 49.9573: west, south, east, north in degrees |",
        "| time | 2021-01-01 to 2021-12-31 |",
        "| vectors | class token, 8 numbers, int8 |",
        f"| weights | `{'a5' * 32}` (sha256), untrained |",
        "CC-BY-4.0",
    ):
        assert fact in card, card


def test_untrained_weights_come_first(product):
    assert "UNTRAINED" in card_of(product).split("\n## ")[0]


def test_files_are_listed_with_their_digests(product):
    card = card_of(product)
    (file,) = product.record["files"]
    assert f"| `{file['name']}` | 54 | {file['size']:,} | `{file['sha256']}` |" in card
    assert product.record["ledger"]["sha256"] in card


def test_every_column_is_described(product):
    card = card_of(product)
    for name in pq.read_schema(Path(product.uri, product.record["files"][0]["name"])).names:
        assert f"| `{name}` | " in card


def test_gaps_are_known(product):
    card = card_of(product)
    for row in ("| expected | 80 |", "| embedded | 54 |", "| skipped nodata | 6 |", "| failed | 20 |"):
        assert row in card
    assert "Units: 6 embedded, 2 failed." in card
    assert "units that failed, at least in part: 2." in card
    assert "| a.tif: not \\| a GeoTIFF | 2 |" in card


def test_missing_shards_are_named(tmp_path):
    _, names, folder = write_shards(tmp_path, columns=GRID)
    merge_shards(names[1:], folder, tmp_path / "p", missing=names[:1])
    card = (tmp_path / "p" / "README.md").read_text()
    assert "**Incomplete.** Planned shards that are missing: 1" in card
    assert f"`{names[0]}`" in card.split("## Completeness")[1]


@pytest.mark.parametrize("vector_dtype", ["float32", "float16", "int8"])
def test_the_examples_run_in_the_products_folder(tmp_path, monkeypatch, vector_dtype):
    product = make_product(tmp_path, columns=GRID, kiln=shard_metadata(vector_dtype=vector_dtype))
    monkeypatch.chdir(product.uri)
    examples = re.findall(r"```python\n(.*?)```", card_of(product), re.DOTALL)
    assert len(examples) == 5
    names = {}
    for example in examples:
        exec(example, names)
    rows = product.rows()
    expected = np.array(rows["embeddings"].to_pylist(), np.float32)
    if vector_dtype == "int8":
        expected = expected * rows["scale"].to_numpy()[:, None]
    assert np.allclose(names["matrix"], expected)
    assert len(names["table"]) == len(names["chips"]) == product.record["rows"]
    assert duckdb.sql("SELECT count(*) FROM 'chips/*.parquet'").fetchall() == [(product.record["rows"],)]


def test_a_product_without_chips_has_a_card(tmp_path):
    card = card_of(make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True))
    assert "| chips | 0, one row each |" in card
    assert "| bounding box |" not in card


def test_equal_products_have_equal_cards(tmp_path):
    cards = [card_of(make_product(tmp_path / name, columns=GRID[:3])) for name in "ab"]
    assert cards[0] == cards[1]


def test_tables_have_as_many_cells_as_their_heads(product):
    for table in re.findall(r"(?:^\|.*\n)+", card_of(product), re.MULTILINE):
        cells = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_limits_are_not_rounded(tmp_path):
    kiln = shard_metadata(limits={"max_nodata": 0.025, "max_cloud": 0.005})
    card = card_of(make_product(tmp_path, columns=GRID[:2], kiln=kiln))
    assert "| most nodata in a chip | 2.5% of its pixels |" in card
    assert "| most cloud in a chip | 0.5% of its valid pixels |" in card
