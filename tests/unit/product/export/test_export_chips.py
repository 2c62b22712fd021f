"""Exports of every format: sources, choices of columns, streaming, atomic files, errors."""

import json
import logging
import weakref
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pyogrio
import pytest

import kiln
from kiln.errors import ConfigError, SourceError
from kiln.io import storage
from kiln.product.export.export_chips import FILE_FORMATS, FORMATS, format_of
from kiln.product.rows.row_stream import RowStream
from tests.support.exports import write_chips
from tests.support.products import make_product

OUT = {"geoparquet": "out.parquet", "gpkg": "out.gpkg", "geojson": "out.geojson", "csv": "out.csv", "npy": "out"}


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Write 100 chips; return the file and their ids."""
    path = tmp_path_factory.mktemp("export") / "chips.parquet"
    return str(path), write_chips(path)["chip_id"].to_pylist()


def ids_of(out, file_format):
    """Return the ids of an export, read by other tools."""
    if file_format == "npy":
        return Path(out, "ids.txt").read_text().splitlines()
    if file_format in ("gpkg", "geojson"):
        return pyogrio.read_dataframe(out)["chip_id"].tolist()
    return [row[0] for row in duckdb.sql(f"SELECT chip_id FROM '{out}'").fetchall()]


@pytest.mark.parametrize("file_format", OUT)
def test_record_folder_and_part_are_exported_in_order(grid, tmp_path, file_format):
    sources = {"record": grid.record_file, "folder": grid.uri, "part": f"{grid.uri}/{grid.record['files'][1]['name']}"}
    for name, source in sources.items():
        result = kiln.export(source, tmp_path / name / OUT[file_format], file_format, vectors=file_format == "npy")
        parts = grid.rows() if name != "part" else pq.read_table(source)
        assert ids_of(tmp_path / name / OUT[file_format], file_format) == parts["chip_id"].to_pylist()
        assert result.chips == len(parts)
        assert (result.file_format, result.out) == (file_format, str(tmp_path / name / OUT[file_format]))


@pytest.mark.parametrize("file_format", OUT)
def test_a_bucket_is_read_and_written_like_a_folder(chips, bucket, tmp_path, file_format):
    uri, _ = chips
    storage.write_bytes(f"{bucket}/chips.parquet", Path(uri).read_bytes())
    rule, out = kiln.RowFilter(years=(2021,)), OUT[file_format]
    here = kiln.export(uri, tmp_path / out, file_format, row_filter=rule)
    there = kiln.export(f"{bucket}/chips.parquet", f"{bucket}/exports/{out}", file_format, row_filter=rule)
    assert here.sizes == there.sizes
    base = tmp_path / out if file_format == "npy" else tmp_path
    folder = f"{bucket}/exports/{out}" if file_format == "npy" else f"{bucket}/exports"
    for name in here.sizes:
        assert storage.read_bytes(f"{folder}/{name}") == (base / name).read_bytes()


@pytest.mark.parametrize("file_format", OUT)
def test_equal_exports_have_equal_bytes(chips, tmp_path, file_format):
    uri, _ = chips
    for name in ("a", "b"):
        result = kiln.export(uri, tmp_path / name / OUT[file_format], file_format)
    for name in result.sizes:
        paths = [next((tmp_path / folder).rglob(name)) for folder in ("a", "b")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("file_format", OUT)
def test_a_writer_holds_no_batch_but_those_of_a_row_group(grid, tmp_path, monkeypatch, file_format):
    """Batches that a writer still holds when it takes the next one are counted."""
    batches, alive, held = RowStream.batches, [], []

    def counted(self, columns, *args, **options):
        for batch in batches(self, columns, 50, **options):
            held.append(sum(reference() is not None for reference in alive))
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    monkeypatch.setattr(RowStream, "batches", counted)
    monkeypatch.setattr("kiln.product.export.writers.geoparquet.ROW_GROUP", 100)
    kiln.export(grid.record_file, tmp_path / OUT[file_format], file_format, vectors=True)
    assert len(held) > 20
    assert max(held) <= 2


@pytest.mark.parametrize("file_format", OUT)
def test_a_failure_in_the_middle_leaves_what_was_there(grid, tmp_path, file_format):
    damaged = tmp_path / "product"
    for file in grid.record["files"]:
        storage.write_bytes(str(damaged / file["name"]), (Path(grid.uri) / file["name"]).read_bytes())
    last = damaged / grid.record["files"][-1]["name"]
    data = bytearray(last.read_bytes())
    data[1000 : len(data) // 2] = bytes(len(data) // 2 - 1000)
    last.write_bytes(data)
    out = tmp_path / "exports" / OUT[file_format]
    with pytest.raises(SourceError, match="expected a Parquet file, got a damaged one"):
        kiln.export(damaged, out, file_format, vectors=True)
    assert [path for path in out.parent.rglob("*") if path.is_file()] == []
    kiln.export(grid.record_file, out, file_format, row_filter=kiln.RowFilter(years=(1999,)))
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(SourceError):
        kiln.export(damaged, out, file_format, vectors=True)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def test_the_format_is_that_of_the_suffix():
    suffixes = {
        "a.parquet": "geoparquet",
        "s3://b/a.gpkg": "gpkg",
        "a.b.geojson": "geojson",
        "a.csv": "csv",
    }
    assert {name: format_of(name) for name in suffixes} == suffixes
    for name in ("a", "a.shp", "a.json", "folder/", "a.parquet.zip", "vectors.npy"):
        with pytest.raises(ConfigError, match=r"expected a name that ends with one of \.parquet, .* npy and published"):
            format_of(name)
    assert {*FILE_FORMATS, "npy", "published"} == set(FORMATS)


def test_vectors_are_written_by_default_in_parquet_and_numpy(chips, tmp_path):
    uri, _ = chips
    kiln.export(uri, tmp_path / "a.parquet")
    assert "embeddings" in pq.read_schema(tmp_path / "a.parquet").names
    kiln.export(uri, tmp_path / "b.parquet", vectors=False)
    assert "embeddings" not in pq.read_schema(tmp_path / "b.parquet").names
    for name in ("a.gpkg", "a.geojson", "a.csv"):
        kiln.export(uri, tmp_path / name)
        assert b"embeddings" not in (tmp_path / name).read_bytes().replace(b'"embedding":', b"")


@pytest.mark.parametrize(
    ("columns", "vectors", "expected"),
    [
        (["year", "chip_id"], None, ["year", "chip_id"]),
        (["year", "chip_id"], True, ["year", "chip_id", "embeddings"]),
        (["embeddings", "year"], None, ["embeddings", "year"]),
        (["embeddings", "year", "year"], True, ["embeddings", "year"]),
        (["year"], False, ["year"]),
        ([], None, []),
    ],
)
def test_columns_are_those_listed_and_vectors(chips, tmp_path, columns, vectors, expected):
    kiln.export(chips[0], tmp_path / "a.parquet", columns=columns, vectors=vectors)
    assert pq.read_schema(tmp_path / "a.parquet").names == [*expected, "geometry", "bbox"]


@pytest.mark.parametrize(
    ("out", "options", "reason"),
    [
        ("a.shp", {}, "expected a name that ends with one of"),
        ("a.csv", {"file_format": "shapefile"}, "format: expected one of geoparquet, gpkg"),
        ("a.csv", {"columns": ["chip_id", "nothing"]}, "expected columns of the product, got nothing"),
        ("a.csv", {"columns": ["embeddings"], "vectors": False}, "expected columns without vectors, got embeddings"),
        ("a.csv", {"version": "002"}, "version: expected format published, got csv"),
        ("a", {"file_format": "npy", "vectors": False}, "npy: expected vectors and ids"),
        ("a", {"file_format": "npy", "columns": ["chip_id"]}, "npy: expected vectors and ids"),
        ("a", {"file_format": "published", "vectors": True}, "published: expected a product without a choice"),
        ("a", {"file_format": "published", "row_filter": kiln.RowFilter(years=(2021,))}, "published: expected a prod"),
        (".", {"file_format": "csv"}, "expected a file, got a folder"),
        ("folder/", {"file_format": "csv"}, "expected a file, got a folder"),
        ("taken", {"file_format": "npy"}, "expected a folder for format npy, got a file"),
        ("chips.parquet", {}, "expected another place than the source"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, out, options, reason):
    write_chips(tmp_path / "chips.parquet", 3)
    (tmp_path / "taken").write_text("a file")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=reason):
        kiln.export(tmp_path / "chips.parquet", f"{tmp_path}/{out}", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_product_is_never_overwritten(grid):
    before = {path: path.read_bytes() for path in [Path(grid.record_file), *Path(grid.uri).rglob("*.*")]}
    part = f"{grid.uri}/{grid.record['files'][0]['name']}"
    for source in (grid.record_file, grid.uri, f"{grid.uri}/chips", part):
        for out in (grid.record_file, f"{grid.uri}/collection.json", f"{grid.uri}/chips/more.geojson", part):
            with pytest.raises(ConfigError, match="expected another place than the source"):
                kiln.export(source, out, "geojson")
        for out in (grid.uri, f"{grid.uri}/chips", f"{grid.uri}/vectors"):
            with pytest.raises(ConfigError, match="expected another place than the source"):
                kiln.export(source, out, "npy")
    assert {path: path.read_bytes() for path in before} == before
    assert {*before} == {Path(grid.record_file), *Path(grid.uri).rglob("*.*")}


def test_an_export_names_the_product_of_its_source(grid, tmp_path):
    for n, source in enumerate((grid.record_file, grid.uri, f"{grid.uri}/chips")):
        kiln.export(source, tmp_path / f"{n}.parquet", vectors=False)
        exports = json.loads(pq.read_schema(tmp_path / f"{n}.parquet").metadata[b"kiln"])["exports"]
        assert [export["source"] for export in exports] == [Path(grid.uri).name]


def test_weights_of_a_file_without_metadata_are_unknown(tmp_path, caplog):
    write_chips(tmp_path / "chips.parquet", 3, untrained=True)
    pq.write_table(pq.read_table(tmp_path / "chips.parquet").replace_schema_metadata(None), tmp_path / "bare.parquet")
    kiln.export(tmp_path / "bare.parquet", tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["kiln"]["untrained"] is None
    assert "no `kiln` metadata, so the model and its weights are unknown" in caplog.text


def test_types_of_other_writers_are_refused(tmp_path):
    write_chips(tmp_path / "chips.parquet", 3)
    rows = pl.read_parquet(tmp_path / "chips.parquet")
    rows.write_parquet(tmp_path / "polars.parquet")
    duckdb.sql(f"COPY (SELECT * FROM '{tmp_path}/chips.parquet') TO '{tmp_path}/duckdb.parquet'")
    for name in ("polars", "duckdb"):
        with pytest.raises(ConfigError, match=r"expected the types that Kiln writes, got .*, which another tool wrote"):
            kiln.export(tmp_path / f"{name}.parquet", tmp_path / "a.csv")


def test_a_file_without_vectors_has_none_to_export(chips, tmp_path):
    kiln.export(chips[0], tmp_path / "bare.parquet", vectors=False)
    for out, file_format in (("a.csv", None), ("a", "npy")):
        with pytest.raises(ConfigError, match="expected vectors, got a file without them"):
            kiln.export(tmp_path / "bare.parquet", tmp_path / out, file_format, vectors=True)


def test_what_a_reader_should_know_is_logged(tmp_path, caplog):
    write_chips(tmp_path / "chips.parquet", 10, untrained=True)
    with caplog.at_level(logging.WARNING):
        kiln.export(tmp_path / "chips.parquet", tmp_path / "a.csv", row_filter=kiln.RowFilter(years=(1999,)))
        ids = frozenset(["u:1", "u:2", "u:77"])
        kiln.export(tmp_path / "chips.parquet", tmp_path / "b.csv", row_filter=kiln.RowFilter(chip_ids=ids))
    text = caplog.text
    assert text.count("UNTRAINED weights: for demonstration only") == 2
    assert "a.csv: no chip passes the filters; it is empty" in text
    assert "b.csv: 1 of 3 ids are not among its chips" in text


def test_unreadable_sources_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.json: does not exist"):
        kiln.export(tmp_path / "gone.json", tmp_path / "a.csv")
    with pytest.raises(SourceError, match="expected the folder or record of a product, got no part file"):
        kiln.export(tmp_path / "gone", tmp_path / "a.csv")
    with pytest.raises(SourceError, match="expected a Parquet file of chips, got no file"):
        kiln.export(tmp_path / "gone.parquet", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_published_layout_is_a_format(tmp_path):
    product = make_product(tmp_path)
    by_record = kiln.export(product.record_file, tmp_path / "a", "published", version="017")
    by_folder = kiln.export(product.uri, tmp_path / "b", "published")
    assert by_record.chips == by_folder.chips == product.record["rows"]
    assert [name.replace("v017", "v002") for name in by_record.sizes] == list(by_folder.sizes)
    for name, size in by_folder.sizes.items():
        data = (tmp_path / "b" / name).read_bytes()
        assert data == (tmp_path / "a" / name.replace("v002", "v017")).read_bytes()
        assert len(data) == size
