"""The STAC of a product: valid, self-contained, and consistent with the files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest

from kiln.archives.registry import archives, get_archive
from kiln.archives.worldcover.lattice import Column
from kiln.formats import embeddings_file, vectors
from kiln.formats.ledger import LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Unit
from kiln.io import storage
from kiln.product.merge import MergeOptions, merge
from tests.support.chips import make_chip
from tests.support.products import (
    DIM,
    digests,
    make_product,
    merge_shards,
    run_merge,
    shard_metadata,
    write_shards,
)
from tests.support.stac import assert_valid, stac_errors

GRID = [Column(k, 0, 20) for k in range(20)]


def load(path):
    return json.loads(Path(path).read_text())


def stac_objects(product):
    """Return the collection and its items on disk, by path."""
    root = Path(product.uri)
    paths = [root / "collection.json", *sorted((root / "items").glob("*.json"))]
    return {p: load(p) for p in paths if p.exists()}


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    run = tmp_path_factory.mktemp("stac")
    kiln = shard_metadata(dimensions=256)
    product = make_product(run, columns=GRID, kiln=kiln, row_group=100, part_bytes=300_000)
    assert len(product.record["files"]) >= 2
    return product


def test_collection_and_items_are_valid_stac(product):
    for value in stac_objects(product).values():
        assert value["stac_version"].startswith("1.")
        assert_valid(value)


def test_the_validation_here_can_fail(product):
    value = next(iter(stac_objects(product).values()))
    assert "'license' is a required property" in str(stac_errors({k: v for k, v in value.items() if k != "license"}))
    assert "embeddings/v0.0.1" in str(stac_errors({**value, "emb:scale": 1}))
    *_, item = stac_objects(product).values()
    for name, extension in (
        ("table:columns", "table"),
        ("proj:code", "projection"),
        ("processing:lineage", "processing"),
    ):
        wrong = {**item, "properties": {**item["properties"], name: [{}]}}
        assert f"/{extension}/v" in str(stac_errors(wrong))
    assert "/file/v" in str(stac_errors({**item, "assets": {"embeddings": {"href": "a", "file:size": "1"}}}))
    assert "'1.0.0' was expected" in str(stac_errors({**value, "stac_version": "1.1.0"}))


def test_there_is_one_item_for_each_part(product):
    whole = stac_objects(product)
    names = {str(p.relative_to(product.uri)) for p in whole}
    assert set(product.record["documents"]) == {*names, "README.md"}
    parts = [v["assets"]["embeddings"]["href"].removeprefix("../") for v in whole.values() if v["type"] == "Feature"]
    assert sorted(parts) == [f["name"] for f in product.record["files"]]


def test_fields_of_the_embedding_extension_are_where_it_wants_them(product):
    for value in stac_objects(product).values():
        rels = {x["rel"]: x for x in value["links"]}
        assert rels["emb:model"]["href"].startswith("https://")
        assert rels["emb:source-data"]["href"].startswith("https://")
        if value["type"] == "Feature":
            assert set(value["assets"]) == {"embeddings"}
            fields = {name for name in value["properties"] if name.startswith("emb:")}
            assert fields == {"emb:preprocessing", "emb:runtime_parameters"}  # no quantisation of float32
            assert value["properties"]["emb:runtime_parameters"]["gsd"] == 10.0  # what the model was given
        else:
            assert value["emb:type"] == "chip"
            assert value["emb:dimensions"] == 256
            assert value["data_type"] == "float32"
            assert value["emb:chip_layout"]["layout_type"] == "regular_grid"
            assert value["emb:chip_layout"]["chip_size"] == [512, 512]
            assert value["item_assets"]["embeddings"]["roles"] == ["data"]


def test_gsd_is_that_of_the_pixels(product):
    for value in stac_objects(product).values():
        fields = value["properties"] if value["type"] == "Feature" else value
        assert fields["gsd"] == pytest.approx(111_319.49 / 12_000, abs=1e-3)  # metres of a degree of a meridian
    collection = next(iter(stac_objects(product).values()))
    assert collection["summaries"]["gsd"] == {"minimum": fields["gsd"], "maximum": fields["gsd"]}


def test_licence_providers_and_keywords_are_those_of_the_archive(product):
    collection = next(iter(stac_objects(product).values()))
    assert collection["license"] == "CC-BY-4.0"
    (licence,) = [x["href"] for x in collection["links"] if x["rel"] == "license"]
    assert licence == "https://creativecommons.org/licenses/by/4.0/"
    assert {role for provider in collection["providers"] for role in provider["roles"]} >= {"producer", "licensor"}
    assert {"embeddings", "Clay", "Sentinel-2"} <= set(collection["keywords"])
    assert "Copernicus" in collection["description"]


@pytest.mark.parametrize("name", list(archives()))
def test_every_archive_states_its_licence_and_providers(name):
    source = get_archive(name).provenance
    assert source.license != "proprietary"
    assert source.license_href.startswith("https://")
    assert source.keywords
    roles = [role for provider in source.providers for role in provider.roles]
    assert {"producer", "licensor"} <= set(roles) <= {"licensor", "producer", "processor", "host"}


def test_tables_are_described_with_every_column(product):
    file = pq.ParquetFile(Path(product.uri) / product.record["files"][0]["name"])
    for value in stac_objects(product).values():
        fields = value["properties"] if value["type"] == "Feature" else value
        assert [c["name"] for c in fields["table:columns"]] == file.schema_arrow.names
        assert all(c["description"] and c["type"] for c in fields["table:columns"])
        assert fields["table:primary_geometry"] == "geometry"
    ledger = next(iter(stac_objects(product).values()))["assets"]["ledger"]
    path = Path(product.uri) / ledger["href"]
    assert [c["name"] for c in ledger["table:columns"]] == pq.read_schema(path).names
    assert ledger["file:size"] == path.stat().st_size
    assert ledger["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()


PARTITIONS = {"worldcover": "2021", "naip": "nd-2019", "sentinel2": "29R-2020-02"}


def product_of(folder, dataset, vector_dtype, embedding):
    """Merge a shard of three chips of an archive; return the product's folder."""
    folder.mkdir()
    lattice = {"chip_size": 64, "lattice": "scene"}
    kiln = shard_metadata(
        dataset=dataset, partition=PARTITIONS[dataset], lattice=lattice, chip_size=64, vector_dtype=vector_dtype,
        embedding=embedding, gsd="actual", metadata="as_trained", limits={"max_nodata": 0.05, "max_cloud": 0.5},
    )  # fmt: skip
    columns = get_archive(dataset).load("columns", "COLUMNS")
    extra = {column.name: None for column in columns}
    chips = [make_chip(n, crs="EPSG:32614", pixel_size=0.6 + n, extra=extra) for n in range(3)]
    schema = embeddings_file.schema(DIM, vector_dtype, columns, kiln, embedding)
    with embeddings_file.ShardWriter(folder / "s.parquet", schema) as out:
        values = {name: np.ones((3, DIM), np.float32) for name in vectors.KINDS[embedding]}
        out.append(chips, vectors.store(values, vector_dtype))
    write_ledger(folder / "s.ledger.parquet", ledger_table([LedgerEntry(Unit("u", 3, "s3://b/i"), embedded=3)]))
    merge_shards(["s"], folder, folder / "p")
    return folder / "p"


@pytest.mark.parametrize("dataset", PARTITIONS)
@pytest.mark.parametrize("vector_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("embedding", ["class", "mean", "both"])
def test_products_of_every_kind_are_valid_with_all_extensions(tmp_path, dataset, vector_dtype, embedding):
    folder = product_of(tmp_path / "run", dataset, vector_dtype, embedding)
    whole = [load(folder / "collection.json"), *map(load, (folder / "items").glob("*.json"))]
    assert [value["type"] for value in whole] == ["Collection", "Feature"]
    for value in whole:
        assert_valid(value)
        fields = value["properties"] if value["type"] == "Feature" else value
        assert fields["gsd"] == 0.6
    assert whole[0]["summaries"]["gsd"] == {"minimum": 0.6, "maximum": 2.6}
    assert len(whole[1]["stac_extensions"]) == 5
    assert whole[1]["properties"]["emb:runtime_parameters"]["gsd"] == "actual"
    quantization = whole[1]["properties"].get("emb:quantization")
    if vector_dtype == "float32":
        assert quantization is None
    else:
        assert (quantization["original_dtype"], quantization["quantized_dtype"]) == ("float32", vector_dtype)
        text = (folder / "items" / quantization["link"]["href"]).read_text()
        assert ("integers times `scale`" if vector_dtype == "int8" else "rounded to the nearest float16") in text


def test_every_prefix_in_use_has_its_extension_declared(product):
    for value in stac_objects(product).values():
        parts = [value, value.get("properties", {}), *value.get("assets", {}).values()]
        used = {k.partition(":")[0] for part in parts for k in part if ":" in k}
        declared = {e.split("/")[3] for e in value["stac_extensions"]}
        assert {"emb", "table", "file"} <= used
        assert {{"emb": "embeddings", "proj": "projection"}.get(u, u) for u in used} <= declared


def test_links_and_assets_are_relative_and_resolve_on_disk(product):
    for path, value in stac_objects(product).items():
        own = [x["href"] for x in value["links"] if not x["rel"].startswith("emb:") and x["rel"] != "license"]
        assert own
        for href in [*own, *(a["href"] for a in value["assets"].values())]:
            assert "://" not in href
            assert not href.startswith("/")
            assert (path.parent / href).resolve().is_file(), href


def test_items_and_collection_point_at_each_other(product):
    whole = stac_objects(product)
    collection = next(iter(whole.values()))
    listed = {(Path(product.uri) / x["href"]).resolve() for x in collection["links"] if x["rel"] == "item"}
    items = {p.resolve(): v for p, v in whole.items() if v["type"] == "Feature"}
    assert listed == set(items)
    for path, item in items.items():
        assert item["collection"] == collection["id"]
        for rel in ("collection", "parent"):
            (href,) = [x["href"] for x in item["links"] if x["rel"] == rel]
            assert (path.parent / href).resolve() == (Path(product.uri) / "collection.json").resolve()


def test_pystac_walks_from_the_collection_to_every_item(product):
    collection = pystac.Collection.from_file(f"{product.uri}/collection.json")
    assert {i.id for i in collection.get_items()} == {v["id"] for v in stac_objects(product).values() if "bbox" in v}


def test_checksums_sizes_and_row_counts_are_those_of_the_files(product):
    for path, value in stac_objects(product).items():
        if value["type"] != "Feature":
            continue
        asset = value["assets"]["embeddings"]
        data = (path.parent / asset["href"]).read_bytes()
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()  # multihash: sha2-256, 32 bytes
        assert value["properties"]["table:row_count"] == pq.ParquetFile(path.parent / asset["href"]).metadata.num_rows


def test_bounds_are_those_of_the_rows(product):
    boxes = []
    for path, value in stac_objects(product).items():
        if value["type"] != "Feature":
            continue
        geo = json.loads(pq.ParquetFile(path.parent / value["assets"]["embeddings"]["href"]).metadata.metadata[b"geo"])
        boxes.append(geo["columns"]["geometry"]["bbox"])
        assert value["bbox"] == boxes[-1]
        ring = value["geometry"]["coordinates"][0]
        assert {tuple(c) for c in ring} == {(x, y) for x in boxes[-1][::2] for y in boxes[-1][1::2]}
    extent = load(f"{product.uri}/collection.json")["extent"]
    side = 512 / 12000
    assert extent["spatial"]["bbox"] == [pytest.approx([-125, 50 - 20 * side, -125 + 20 * side, 50], abs=1e-9)]
    assert extent["temporal"]["interval"] == [["2021-01-01T00:00:00Z", "2021-12-31T23:59:59Z"]]


def test_items_span_the_real_year_of_the_composite(product):
    for value in stac_objects(product).values():
        if value["type"] == "Feature":
            p = value["properties"]
            assert p["datetime"] is None
            assert (p["start_datetime"], p["end_datetime"]) == ("2021-01-01T00:00:00Z", "2021-12-31T23:59:59Z")


def test_the_chip_size_of_quarters_is_that_of_a_quarter(tmp_path):
    lattice = {"chip_size": 512, "pixels_per_degree": 12000, "encode": "quarters"}
    product = make_product(tmp_path, columns=GRID[:2], kiln=shard_metadata(lattice=lattice))
    assert load(f"{product.uri}/collection.json")["emb:chip_layout"]["chip_size"] == [256, 256]


def test_the_description_warns_of_untrained_weights(tmp_path):
    product = make_product(tmp_path / "a", columns=GRID[:2], kiln=shard_metadata(untrained=True))
    assert "UNTRAINED" in load(f"{product.uri}/collection.json")["description"]
    product = make_product(tmp_path / "b", columns=GRID[:2])
    assert "UNTRAINED" not in load(f"{product.uri}/collection.json")["description"]


def test_a_product_without_chips_is_a_valid_collection_without_items(tmp_path):
    product = make_product(tmp_path, columns=GRID[:2], skip=lambda c, r: True)
    ((_, collection),) = stac_objects(product).items()
    assert_valid(collection)
    assert not [x for x in collection["links"] if x["rel"] == "item"]
    assert collection["emb:dimensions"] == DIM
    assert (Path(product.uri) / collection["assets"]["ledger"]["href"]).is_file()


def test_both_kinds_of_vectors_are_named(tmp_path):
    product = make_product(tmp_path, columns=GRID[:3], kiln=shard_metadata(vector_dtype="int8", embedding="both"))
    collection, item = stac_objects(product).values()
    assert item["properties"]["emb:runtime_parameters"]["embedding"] == "both"
    assert item["assets"]["embeddings"]["title"] == "GeoParquet of chips: class token and mean of the patch tokens"
    assert "One Clay v1.5 class token and mean of the patch tokens per chip" in collection["description"]
    assert collection["data_type"] == "int8"
    described = {c["name"]: c["description"] for c in collection["table:columns"]}
    assert described["embeddings_mean"].endswith("the numbers are embeddings_mean * scale_mean")


# ------------------------------------------------------------------------------------------- link to what the jobs took

COSTS = "results/sample/runs/worldcover-1a2b3c4d.json"
PRODUCT = "results/sample/worldcover-1a2b3c4d/products/2021/0123456789abcdef"


def cost_links(value):
    return [link for link in value["links"] if link["rel"] == "kiln:costs"]


@pytest.fixture
def merge_with_costs(tmp_path):
    """A function that merges the same shards to a product, with or without costs."""
    _, names, shards = write_shards(tmp_path / "run", columns=GRID[:3])

    def do(product, costs):
        merge(names, str(shards), str(shards), str(product), options=MergeOptions(costs=costs))

    return do


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_the_collection_links_the_costs_relative_to_the_product(tmp_path, monkeypatch, merge_with_costs, absolute):
    monkeypatch.chdir(tmp_path)
    top = f"{tmp_path}/" if absolute else ""
    merge_with_costs(f"{top}{PRODUCT}", f"{top}{COSTS}")
    collection = load(f"{PRODUCT}/collection.json")
    (link,) = cost_links(collection)
    assert link == {
        "rel": "kiln:costs",
        "href": "../../../../runs/worldcover-1a2b3c4d.json",
        "type": "application/json",
        "title": "What the jobs took",
    }
    assert (Path(PRODUCT) / link["href"]).resolve() == tmp_path / COSTS
    assert_valid(collection)
    items = [load(path) for path in Path(PRODUCT).glob("items/*.json")]
    assert len(items) == 1
    for item in items:
        assert_valid(item)
        assert cost_links(item) == []


def test_the_link_of_a_product_in_a_bucket_stays_in_the_bucket(bucket, merge_with_costs):
    merge_with_costs(f"{bucket}/{PRODUCT}", f"{bucket}/{COSTS}")
    collection = json.loads(storage.read_bytes(f"{bucket}/{PRODUCT}/collection.json"))
    assert [link["href"] for link in cost_links(collection)] == ["../../../../runs/worldcover-1a2b3c4d.json"]
    assert_valid(collection)


def test_the_link_to_another_bucket_is_its_address(bucket, merge_with_costs):
    merge_with_costs(f"{bucket}/{PRODUCT}", "s3://elsewhere/runs/a.json")
    collection = json.loads(storage.read_bytes(f"{bucket}/{PRODUCT}/collection.json"))
    assert [link["href"] for link in cost_links(collection)] == ["s3://elsewhere/runs/a.json"]


def test_without_costs_there_is_no_link_and_everything_else_is_the_same(tmp_path, merge_with_costs):
    files = {}
    for name, costs in (("with", str(tmp_path / COSTS)), ("without", None)):
        merge_with_costs(tmp_path / name, costs)
        files[name] = digests(tmp_path / name)
        collection = load(tmp_path / name / "collection.json")
        assert len(cost_links(collection)) == (costs is not None)
        collection["links"] = [link for link in collection["links"] if link["rel"] != "kiln:costs"]
        files[name]["collection.json"] = collection
    assert files["with"] == files["without"]


def test_the_merge_script_links_the_costs_that_it_is_given(tmp_path, capsys):
    plan, _, shards = write_shards(tmp_path / "run", columns=GRID[:3])
    for name, flags in (("without", []), ("with", [f"--costs={tmp_path}/runs/a.json"])):
        assert run_merge(capsys, plan, shards, tmp_path / name, *flags)[0] == 0
        links = cost_links(load(tmp_path / name / "collection.json"))
        assert [link["href"] for link in links] == ["../runs/a.json"] * len(flags)
