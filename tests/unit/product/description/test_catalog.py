"""The catalog of a run: valid, complete, and the same after a copy to another place."""

import json
import os
import shutil
from pathlib import Path

import pystac
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import SourceError
from kiln.io import storage
from kiln.product.description.catalog import write_catalog
from tests.support.products import make_product
from tests.support.stac import assert_valid

GRID = [Column(k, 0, 4) for k in range(3)]
DATASET = "worldcover-1a2b3c4d"
OTHER, OWN = "0" * 16, "f" * 16


@pytest.fixture
def run(tmp_path):
    """A run of two partitions; 2021 has an older product too, with other shards."""
    folder = tmp_path / "results" / "sample"
    for name, year, age_s in ((OTHER, 2021, 100), (OWN, 2021, 50), (OWN, 2020, 200)):
        product = folder / DATASET / "products" / str(year) / name
        make_product(tmp_path / f"{name}-{year}", year, product=str(product), columns=GRID)
        os.utime(f"{product}.json", (1_700_000_000 - age_s,) * 2)
    return folder


def children(catalog):
    return [link["href"] for link in json.loads(Path(catalog).read_text())["links"] if link["rel"] == "child"]


def test_the_catalog_is_valid_and_links_every_partition_once(run):
    catalog = write_catalog(str(run), [DATASET], [])
    value = json.loads(Path(catalog).read_text())
    assert_valid(value)
    assert value["id"] == "sample"
    assert children(catalog) == [
        f"./{DATASET}/products/2020/{OWN}/collection.json",
        f"./{DATASET}/products/2021/{OWN}/collection.json",
    ]
    assert [link.get("title") for link in value["links"][1:]] == [
        f"Clay embeddings of ESA WorldCover Sentinel-2 annual composites, {year}" for year in (2020, 2021)
    ]


def test_products_of_the_run_come_before_newer_ones_and_leave_other_partitions(run):
    catalog = write_catalog(str(run), [DATASET], [str(run / DATASET / "products" / "2021" / OTHER)])
    assert children(catalog) == [
        f"./{DATASET}/products/2020/{OWN}/collection.json",
        f"./{DATASET}/products/2021/{OTHER}/collection.json",
    ]


def test_pystac_walks_from_a_copy_of_the_run_to_every_file(run, tmp_path):
    write_catalog(str(run), [DATASET], [])
    shutil.move(run, tmp_path / "elsewhere")
    catalog = pystac.Catalog.from_file(str(tmp_path / "elsewhere" / "catalog.json"))
    items = list(catalog.get_items(recursive=True))
    assert len(items) == 2
    for item in items:
        assert Path(item.assets["embeddings"].get_absolute_href()).is_file()
        assert Path(item.get_collection().assets["ledger"].get_absolute_href()).is_file()


def test_a_product_without_a_record_is_not_linked(run):
    (run / DATASET / "products" / "2020" / f"{OWN}.json").unlink()
    assert len(children(write_catalog(str(run), [DATASET], []))) == 1


def test_a_catalog_in_a_bucket_is_the_same(run, bucket):
    local = write_catalog(str(run), [DATASET], [])
    for path in sorted(run.rglob("*"), key=lambda path: path.stat().st_mtime):
        if path.is_file() and OTHER not in str(path) and path.name != "catalog.json":
            storage.write_bytes(f"{bucket}/sample/{path.relative_to(run)}", path.read_bytes())
    uri = write_catalog(f"{bucket}/sample", [DATASET], [])
    assert storage.read_bytes(uri) == Path(local).read_bytes()


def test_a_record_whose_product_is_gone_is_left_out_with_a_warning(run, caplog):
    shutil.rmtree(run / DATASET / "products" / "2020" / OWN)
    assert len(children(write_catalog(str(run), [DATASET], []))) == 1
    assert f"2020/{OWN}.json: its product is gone, and is left out of the catalog" in caplog.text
    with pytest.raises(SourceError, match=r"collection\.json"):
        write_catalog(str(run), [DATASET], [str(run / DATASET / "products" / "2020" / OWN)])
