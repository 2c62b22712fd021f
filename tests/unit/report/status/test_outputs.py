"""The states of products and of the explorer database, by the files of a run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.errors import TransientError
from kiln.formats.fingerprint import product_digest
from kiln.io import storage
from kiln.product.record import read_record, write_record
from kiln.report.status import outputs
from kiln.report.status.outputs import Output, database_state, product_state
from tests.unit.report.status.test_folders import FOLDER, to_s3, write_product

RUN = "results/sample"
SHARDS = ["a", "b"]
COUNTS = (70, 80)  # embedded, in all
MERGED_S = 1000  # when the product was merged
TITLE = "worldcover 2021"


@pytest.fixture(autouse=True)
def _nothing_was_read():
    outputs._read_version.cache_clear()  # by relative path, size and time, which are the same in every test


def set_time(path, seconds):
    os.utime(path, (seconds, seconds))


def write_shard(name, *, size=4, at_s=MERGED_S - 1):
    path = Path(FOLDER) / "shards" / "2021" / f"{name}.parquet"
    storage.write_bytes(str(path), b"x" * size)
    set_time(path, at_s)


def merge_shards(shards=SHARDS, *flags, at_s=MERGED_S, counts=COUNTS, partition="2021"):
    """Write a product; return the path of its record."""
    record = f"{write_product(FOLDER, partition, [shards, *flags] if flags else shards)}.json"
    assert record == f"{FOLDER}/products/{partition}/{product_digest(shards, flags)}.json"
    embedded, expected = counts
    write_record(record, replace(read_record(record), counts={"embedded": embedded, "expected": expected}))
    set_time(record, at_s)
    return record


def write_merged():
    """Write the shards and a product of them; return the path of its record."""
    for name in SHARDS:
        write_shard(name)
    return merge_shards()


def state(shards=SHARDS, counts=COUNTS):
    return product_state(FOLDER, FOLDER, "2021", shards, counts, storage.listing("results"))


def part_of(record, name="chips/part-0000.parquet"):
    return Path(record.removesuffix(".json")) / name


# ------------------------------------------------------------------------------------------------------------- products


def test_a_product_waits_for_its_shards(here):
    assert state() == Output("waits", note="for its shards")
    write_shard("a")
    assert state() == Output("waits", note="for its shards")
    merge_shards(["a"])
    assert state() == Output("waits", note="for its shards"), "also with a product of fewer shards"


def test_a_product_is_missing(here):
    for name in SHARDS:
        write_shard(name)
    storage.write_bytes(f"{FOLDER}/products/2020/{product_digest(SHARDS)}.json", b"of another partition")
    storage.write_bytes(f"{FOLDER}/products/2021/notes.json", b"no record")
    storage.write_bytes(f"{FOLDER}/products/2021/{product_digest(SHARDS)}/chips/part-0000.parquet", b"without a record")
    assert state() == Output("missing")


def test_a_product_is_merged(here):
    record = write_merged()
    assert record == f"{FOLDER}/products/2021/{product_digest(SHARDS)}.json"
    assert state() == Output("merged", record)


def test_a_product_with_one_row_per_cell_is_merged(here):
    for name in SHARDS:
        write_shard(name)
    assert state() == Output("missing")
    record = merge_shards(SHARDS, "--deduplicate")
    assert state() == Output("merged", record)


def test_of_two_products_the_newest_counts(here):
    first = write_merged()
    second = merge_shards(SHARDS, "--deduplicate", at_s=MERGED_S + 10)
    part_of(first).unlink()
    assert state() == Output("merged", second)
    set_time(second, MERGED_S - 10)
    assert state().state == "damaged"
    assert state().record == first


def test_a_product_of_other_shards_is_outdated(here):
    write_merged()
    write_shard("c")
    assert state(["a", "b", "c"]) == Output("outdated", note="of other shards")
    assert state(["b", "a"]) == Output("outdated", note="of other shards"), "the order is part of the identity"


def test_shards_that_were_deleted_after_the_merge_leave_the_product(here):
    record = write_merged()
    (Path(FOLDER) / "shards/2021/a.parquet").unlink()
    assert state() == Output("merged", record)


@pytest.mark.parametrize("counts", [(71, 80), (70, 81)], ids=["embedded", "in all"])
def test_a_newer_shard_with_other_counts_makes_the_product_outdated(here, counts):
    record = write_merged()
    assert state(counts=counts) == Output("merged", record), "the shard is not newer"
    write_shard("b", at_s=MERGED_S + 1)
    assert state(counts=counts) == Output("outdated", record, "of older shards")


def test_a_newer_small_shard_with_the_same_counts_is_no_reason(here):
    """Snakemake compares the content of a small input; embedding it again gives the same."""
    record = write_merged()
    write_shard("b", at_s=MERGED_S + 1)
    assert state() == Output("merged", record)


def test_a_newer_large_shard_makes_the_product_outdated(here, monkeypatch):
    monkeypatch.setattr(outputs, "CHECKSUM_BYTES", 100)
    record = write_merged()
    write_shard("b", size=100, at_s=MERGED_S + 1)
    assert state() == Output("merged", record)
    write_shard("b", size=101, at_s=MERGED_S + 1)
    assert state() == Output("outdated", record, "of older shards")
    write_shard("b", size=101, at_s=MERGED_S)
    assert state() == Output("merged", record)


@pytest.mark.parametrize("name", ["chips/part-0000.parquet", "ledger.parquet", "collection.json"])
def test_a_product_without_one_of_its_files_is_damaged(here, name):
    record = write_merged()
    part_of(record, name).unlink()
    assert state() == Output("damaged", record, f"{name} is gone")


@pytest.mark.parametrize("name", ["chips/part-0000.parquet", "ledger.parquet"])
def test_a_product_with_a_file_of_another_size_is_damaged(here, name):
    record = write_merged()
    part_of(record, name).write_bytes(b"cut")
    assert state() == Output("damaged", record, f"{name} has another size")


def test_the_size_of_stac_files_is_not_recorded(here):
    record = write_merged()
    part_of(record, "collection.json").write_bytes(b'{"title": "by hand"}')
    assert state() == Output("merged", record)


def test_the_first_of_several_losses_is_named(here):
    record = write_merged()
    for name in ("chips/part-0000.parquet", "ledger.parquet"):
        part_of(record, name).unlink()
    assert state() == Output("damaged", record, "chips/part-0000.parquet is gone, and others")


@pytest.mark.parametrize("text", ["", "[]", '{"dataset": "worldcover"}'])
def test_a_product_whose_record_is_damaged_is_damaged(here, text):
    record = write_merged()
    Path(record).write_text(text)
    assert state() == Output("damaged", record, "its record cannot be read")


def test_a_store_that_does_not_answer_is_no_damage(here, monkeypatch):
    write_merged()

    def fail(uri):
        raise TransientError(f"{uri}: the store answers SlowDown. Try again later.")

    monkeypatch.setattr(outputs, "read_record", fail)
    with pytest.raises(TransientError):
        state()


def test_a_product_on_object_storage_has_its_path_in_the_workflow(here, bucket):
    record = write_merged()
    to_s3(here, f"{bucket}/deep")
    remote = f"{bucket}/deep/{FOLDER}"
    stats = storage.listing(remote)
    assert product_state(remote, FOLDER, "2021", SHARDS, COUNTS, stats) == Output("merged", record)
    stats.pop(f"{bucket}/deep/{part_of(record)}")
    assert product_state(remote, FOLDER, "2021", SHARDS, COUNTS, stats) == Output(
        "damaged", record, "chips/part-0000.parquet is gone"
    )


# ------------------------------------------------------------------------------------------------------------- database


def write_database(*records, name="0123456789abcdef", at_s=MERGED_S):
    """Write a database of products; return the path of its record."""
    storage.write_bytes(f"{RUN}/explorer/chips.lance/data/1.lance", b"rows")
    record = f"{RUN}/index/{name}.json"
    products = [json.loads(Path(product).read_text()) for product in records]
    storage.write_bytes(record, json.dumps({"products": products}).encode())
    set_time(record, at_s)
    return record


def database(products):
    return database_state(RUN, RUN, products, storage.listing(RUN))


@pytest.mark.parametrize("state", ["missing", "outdated", "damaged", "waits"])
def test_a_database_waits_for_every_product(here, state):
    products = {TITLE: Output("merged", "x.json"), "worldcover 2020": Output(state)}
    assert database(products) == Output("waits", note="for the products")
    assert database({TITLE: products[TITLE]}) == Output("missing")


def test_a_database_of_the_products_is_merged(here):
    product = write_merged()
    database_record = write_database(product)
    assert database({TITLE: Output("merged", product)}) == Output("merged", database_record)


def test_files_without_a_record_are_no_database(here):
    product = write_merged()
    write_database(product, name="notes")
    assert database({TITLE: Output("merged", product)}) == Output("missing")


def test_a_database_without_its_files_is_damaged(here):
    product = write_merged()
    record = write_database(product)
    table = Path(RUN) / "explorer/chips.lance/data/1.lance"
    table.rename(Path(RUN) / "explorer" / "status.json")
    assert database({TITLE: Output("merged", product)}) == Output("damaged", record, "its files are gone")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"products": [1]}', '{"products": [{"dataset": "worldcover"}]}'])
def test_a_database_whose_record_is_damaged_is_damaged(here, text):
    product = write_merged()
    record = write_database(product)
    Path(record).write_text(text)
    assert database({TITLE: Output("merged", product)}) == Output("damaged", record, "its record cannot be read")


def test_a_database_of_a_product_that_changed_is_outdated(here):
    product = write_merged()
    record = write_database(product)
    assert database({TITLE: Output("merged", product)}).state == "merged"
    merge_shards(counts=(71, 80), at_s=MERGED_S + 1)
    assert database({TITLE: Output("merged", product)}) == Output("outdated", record, f"of an older product: {TITLE}")


def test_the_record_of_a_product_is_read_once_for_each_version(here, monkeypatch):
    product = write_merged()
    write_database(product)
    reads, read = [], outputs.read_record

    def counted(uri):
        reads.append(uri)
        return read(uri)

    monkeypatch.setattr(outputs, "read_record", counted)
    for _ in range(2):
        assert state() == Output("merged", product)
        assert database({TITLE: Output("merged", product)}).state == "merged"
    assert reads == [product]
    merge_shards(at_s=MERGED_S + 1)
    assert state() == Output("merged", product)
    assert reads == [product] * 2


@pytest.mark.parametrize("state", ["missing", "outdated", "damaged", "waits"])
def test_a_database_of_a_product_that_is_not_merged_now_is_outdated(here, state):
    product = write_merged()
    record = write_database(product)
    assert database({TITLE: Output(state, product)}) == Output("outdated", record, f"of an older product: {TITLE}")


def test_a_database_of_a_product_whose_record_is_damaged_is_outdated(here):
    product = write_merged()
    record = write_database(product)
    Path(product).write_text("{}")
    assert database({TITLE: Output("merged", product)}) == Output("outdated", record, f"of an older product: {TITLE}")


def test_products_that_a_database_is_without_are_named(here):
    product = write_merged()
    record = write_database(product)
    products = {
        "worldcover 2023": Output("missing"),
        TITLE: Output("merged", product),
        "worldcover 2022": Output("merged", "results/x.json"),
    }
    assert database(products) == Output("merged", record, "without worldcover 2022, worldcover 2023")


def test_a_database_of_published_files_alone_has_no_products(here):
    record = write_database()
    assert database({}) == Output("merged", record)


def test_what_a_database_holds_beyond_the_products_is_no_reason(here):
    """As the products of an earlier plan."""
    product, other = write_merged(), merge_shards(partition="2020")
    record = write_database(product, other)
    assert database({TITLE: Output("merged", product)}) == Output("merged", record)


def test_of_two_records_the_newest_counts(here):
    product = write_merged()
    write_database(name="ffffffffffffffff", at_s=MERGED_S)
    newest = write_database(product, name="0" * 16, at_s=MERGED_S + 1)
    assert database({TITLE: Output("merged", product)}) == Output("merged", newest)


def test_a_store_that_does_not_answer_is_no_older_product(here, monkeypatch):
    product = write_merged()
    write_database(product)

    def fail(uri):
        raise TransientError(f"{uri}: the store answers SlowDown. Try again later.")

    monkeypatch.setattr(outputs, "read_record", fail)
    with pytest.raises(TransientError):
        database({TITLE: Output("merged", product)})


def test_a_database_on_object_storage_is_compared_with_the_products_there(here, bucket):
    product = write_merged()
    record = write_database(product)
    to_s3(here, f"{bucket}/deep")
    merge_shards(counts=(0, 0))  # on the disk, which must not matter
    remote, products = f"{bucket}/deep/{RUN}", {TITLE: Output("merged", product)}
    assert database_state(remote, RUN, products, storage.listing(remote)) == Output("merged", record)
