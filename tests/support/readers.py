"""Readers of other projects, each as a function that returns the number of rows in a product's folder `chips/`.

A folder is a path, or a prefix `s3://` on the store that the environment names.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import geopandas as gpd
import lonboard
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyogrio

from kiln.io import storage


def endpoint() -> str:
    """Return host and port of the store."""
    return os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")


def arrow_place(folder: str) -> tuple[str, fs.FileSystem | None]:
    """Return the path of a folder and its filesystem, as pyarrow wants them."""
    if not folder.startswith("s3://"):
        return folder, None
    store = fs.S3FileSystem(endpoint_override=endpoint(), scheme="http", region="us-east-1")
    return folder.removeprefix("s3://"), store


def arrow_table(folder: str) -> pa.Table:
    """Return all rows as pyarrow reads them."""
    path, store = arrow_place(folder)
    return ds.dataset(path, filesystem=store).to_table()


def duckdb_setup(home: Path) -> list[str]:
    """Return the statements that load DuckDB's extensions spatial and httpfs, and state the secret of the store."""
    statements = [f"SET extension_directory = '{home / '.duckdb' / 'extensions'}'", "LOAD spatial", "LOAD httpfs"]
    if "AWS_ENDPOINT_URL" in os.environ:
        keys = f"KEY_ID 'a', SECRET 'b', ENDPOINT '{endpoint()}', URL_STYLE 'path', USE_SSL false"
        statements.append(f"CREATE SECRET (TYPE s3, {keys})")
    return statements


def connection(home: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection with the extensions and the secret of the store."""
    con = duckdb.connect()
    for statement in duckdb_setup(home):
        con.sql(statement)
    return con


def parts(folder: str) -> list[str]:
    """Return the files of a folder."""
    return [uri for uri in storage.listing(folder) if uri.endswith(".parquet")]


def count_pyarrow(folder: str, home: Path) -> int:
    """Count with a pyarrow dataset."""
    path, store = arrow_place(folder)
    return int(ds.dataset(path, filesystem=store).count_rows())


def count_geopandas(folder: str, home: Path) -> int:
    """Count the geometries that geopandas reads."""
    path, store = arrow_place(folder)
    frame = gpd.read_parquet(path, filesystem=store)
    assert frame.crs.to_epsg() == 4326
    return int(frame.geometry.notna().sum())


def count_duckdb(folder: str, home: Path) -> int:
    """Count with DuckDB's Parquet reader."""
    with connection(home) as con:
        return _one(con.sql(f"SELECT count(*) FROM '{folder}/*.parquet'"))


def count_duckdb_spatial(folder: str, home: Path) -> int:
    """Count the geometries that DuckDB's spatial extension finds in the bounds of all of them."""
    with connection(home) as con:
        chips = f"(SELECT geometry FROM '{folder}/*.parquet')"
        bounds = f"(SELECT ST_Extent_Agg(geometry) FROM {chips})"
        return _one(con.sql(f"SELECT count(*) FROM {chips} WHERE ST_Intersects(geometry, {bounds}::GEOMETRY)"))


def _one(relation: duckdb.DuckDBPyRelation) -> int:
    row = relation.fetchone()
    assert row is not None
    return int(row[0])


def count_polars(folder: str, home: Path) -> int:
    """Count with Polars, lazily."""
    options = {}
    if folder.startswith("s3://"):
        options = {
            "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
            "aws_region": "us-east-1",
            "aws_allow_http": "true",
        }
    rows = pl.scan_parquet(f"{folder}/*.parquet", storage_options=options)
    return int(rows.select(pl.len()).collect().item())


def count_lonboard(folder: str, home: Path) -> int:
    """Count the rows of lonboard's table."""
    return len(lonboard.PolygonLayer(table=arrow_table(folder)).table)


def count_torchgeo(folder: str, home: Path) -> int:
    """Count the samples of TorchGeo's dataset of Clay embeddings, and take the first."""
    dataset = clay_embeddings()(folder)
    assert dataset[0]["embedding"].ndim == 1
    return len(dataset)


def clay_embeddings() -> Any:
    """Return TorchGeo's class `ClayEmbeddings`.

    TorchGeo's package imports all of its datasets, and for them torchvision, whose published builds do not fit a CPU
    build of torch. Both are left out.
    """
    root = Path(str(importlib.util.find_spec("torchgeo").origin)).parent  # type: ignore[union-attr]
    others = {
        "torchvision": {},
        "torchvision.datasets": {"ImageFolder": object},
        "torchvision.datasets.folder": {"default_loader": None},
        "torchvision.utils": {"draw_segmentation_masks": None},
        "torchgeo.datasets": {"__path__": [str(root / "datasets")]},
    }
    before = {name: sys.modules.get(name) for name in others}
    for name, content in others.items():
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__dict__.update(content)
    try:
        return importlib.import_module("torchgeo.datasets.clay").ClayEmbeddings
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})


def count_gdal(folder: str, home: Path) -> int:
    """Count the features that GDAL's driver ADBC finds with DuckDB's library."""
    library = home / "libduckdb.so"  # the name by which the driver knows that it is DuckDB
    if not library.exists():
        library.symlink_to(str(importlib.util.find_spec("_duckdb").origin))  # type: ignore[union-attr]
    options = {"ADBC_DRIVER": str(library), "PRELUDE_STATEMENTS": "; ".join(duckdb_setup(home))}
    layers = [pyogrio.read_info(f"ADBC:{part}", **options) for part in parts(folder)]
    assert {layer["crs"] for layer in layers} == {"EPSG:4326"}
    return sum(int(layer["features"]) for layer in layers)


READERS: dict[str, Callable[[str, Path], int]] = {
    "pyarrow": count_pyarrow,
    "geopandas": count_geopandas,
    "duckdb": count_duckdb,
    "duckdb spatial": count_duckdb_spatial,
    "polars": count_polars,
    "lonboard": count_lonboard,
    "torchgeo": count_torchgeo,
    "gdal": count_gdal,
}
