"""The sources of a database's rows, products of Kiln and published files, and the selection of their rows."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kiln.errors import ConfigError, SourceError
from kiln.explorer.database import VECTOR, cells, vector_space
from kiln.formats import embeddings_file, vectors
from kiln.formats.bounding_box import Bounds, check_bounding_box
from kiln.formats.fingerprint import digest
from kiln.formats.parquet import read_batches, read_footer_of
from kiln.io import storage
from kiln.product.record import ProductFile, check_part, check_part_content, merge_again

BATCH_ROWS = 2048
ID_COLUMNS = ("chip_id", "bbox", "year", "datetime")  # columns that decide which rows are selected
UNUSED = ("sources", "crs")  # columns of products that the explorer table does not have
KINDS = ("class", "mean")


class RowSource(Protocol):
    """A source of rows: a product or a published file."""

    @property
    def uri(self) -> str:
        """Path or URI."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""

    @property
    def partition(self) -> str:
        """Name of the part of the dataset."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, partition and digest of the content."""

    @property
    def expected_rows(self) -> int:
        """Number of rows, if it is known without reading; else 0."""

    @property
    def dropped(self) -> Counter[str]:
        """Rows that the last read left out, by reason."""

    def metadata(self, embedding: str | None) -> dict[str, Any]:
        """Return the `kiln` metadata of the rows, with the kind of vectors that `embedding` selects."""

    def vector_column(self, names: Sequence[str], embedding: str | None) -> str:
        """Return the column of vectors of that kind, among the columns of a batch."""

    def read_ids(self) -> Iterator[pa.RecordBatch]:
        """Read at least the columns of ID_COLUMNS that there are."""

    def read(self, embedding: str | None) -> Iterator[pa.RecordBatch]:
        """Read the columns of the explorer table, a few thousand rows at a time."""


@dataclass(frozen=True)
class Product:
    """A merged product.

    Attributes:
        record: Content of its record.
        uri: Folder of its files.
    """

    record: Mapping[str, Any]
    uri: str

    @property
    def dataset(self) -> str:
        """Name of the archive."""
        return str(self.record["dataset"])

    @property
    def partition(self) -> str:
        """Name of the partition."""
        return str(self.record["partition"])

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, partition and digest of the content."""
        return self.dataset, self.partition, digest([self.record["fingerprint"], self.record["files"]])

    @property
    def expected_rows(self) -> int:
        """Number of rows."""
        return int(self.record.get("rows", 0))

    @property
    def dropped(self) -> Counter[str]:
        """No row of a product is left out."""
        return Counter()

    def metadata(self, embedding: str | None) -> dict[str, Any]:
        """Return the `kiln` metadata of its files. Raise ConfigError if they do not hold vectors of that kind."""
        uri = storage.join(self.uri, self.record["files"][0]["name"])
        with storage.local_copy(uri) as path:
            metadata = embeddings_file.read_metadata(path, uri, merge_again(self.uri))
        return metadata | {"embedding": vectors.select_kind(metadata["embedding"], embedding, self.uri)}

    def vector_column(self, names: Sequence[str], embedding: str | None) -> str:
        """Return the column of vectors of a kind."""
        return vectors.vector_column(names, embedding)

    def read_ids(self) -> Iterator[pa.RecordBatch]:
        """Read the columns of ID_COLUMNS, and no vector. Each file is held against the digest of the record."""
        for file, path, names in self._files():
            check_part_content(self.uri, file, path)
            yield from self._batches(file, path, [n for n in names if n in ID_COLUMNS])

    def read(self, embedding: str | None) -> Iterator[pa.RecordBatch]:
        """Read the columns of the explorer table."""
        for file, path, names in self._files():
            yield from self._batches(file, path, vectors.searched_columns(names, embedding, UNUSED))

    def _batches(self, file: ProductFile, path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of a file. Raise SourceError for a damaged one."""
        uri = storage.join(self.uri, file.name)
        yield from read_batches(path, BATCH_ROWS, columns, uri, merge_again(self.uri))

    def _files(self) -> Iterator[tuple[ProductFile, Path, list[str]]]:
        """Yield the product's files, one at a time: as recorded, their path on this machine, and their columns.

        Raises SourceError for a file of another size or number of rows, or with a damaged footer.
        """
        for values in self.record["files"]:
            file = ProductFile(**values)
            uri = storage.join(self.uri, file.name)
            with storage.local_copy(uri) as path:
                footer = read_footer_of(path, uri, merge_again(self.uri))
                check_part(self.uri, file, path.stat().st_size, footer.num_rows)
                yield file, path, footer.schema.to_arrow_schema().names


@dataclass(frozen=True)
class Select:
    """Which rows a database takes: every field that is set.

    Attributes:
        datasets: Products of these archives; published files always go in.
        partitions: Products of these partitions; published files always go in.
        years: Rows of these years.
        embedding: Kind of vectors of Kiln's own products: `class` or `mean`; None: the class token if there is one.
        bbox: Rows with their centre in this box: west, south, east, north in degrees; west > east crosses the
            antimeridian.
        max_rows: Maximum number of rows.
    """

    datasets: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    embedding: str | None = None
    bbox: Bounds | None = None
    max_rows: int = 10_000_000

    def __post_init__(self) -> None:
        """Raise ConfigError for a wrong box or kind."""
        if self.bbox is not None:
            check_bounding_box(self.bbox)
        if self.embedding not in (None, *KINDS):
            raise ConfigError(f"index.select.embedding: expected {' or '.join(KINDS)}, got {self.embedding!r}.")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Select":
        """Parse `index.select` of the config; null is not set. Raise ConfigError for an unknown name."""
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ConfigError(f"index.select: unknown {', '.join(unknown)}. Remove it.")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
        return cls(**given)

    def takes_product(self, product: Product) -> bool:
        """Return whether a product's dataset and partition are selected."""
        return (not self.datasets or product.dataset in self.datasets) and (
            not self.partitions or product.partition in self.partitions
        )

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Return which rows of a batch are selected, [n]."""
        keep = np.ones(len(batch), bool)
        if self.years:
            keep &= np.isin(np.asarray(_year(batch)), self.years)
        if self.bbox:
            (lon, lat), (west, south, east, north) = embeddings_file.box_centres(batch["bbox"]), self.bbox
            keep &= (lon >= west) & (lon <= east) if west < east else (lon >= west) | (lon <= east)
            keep &= (lat >= south) & (lat <= north)
        return keep

    def check_rows(self, rows: int) -> None:
        """Raise ConfigError for more rows than `max_rows`."""
        if rows > self.max_rows:
            raise ConfigError(
                f"index.select.max_rows: expected at most {self.max_rows} chips, got {rows}. Raise it (a million chips "
                "of 1024 numbers take 2 GB), or select datasets, partitions, years or a bbox."
            )


def read_products(records: Sequence[str], products: Sequence[str]) -> list[Product]:
    """Return the products of records, in order of their keys.

    Args:
        records: Paths or URIs of the records.
        products: Folders of the products' files, one for each record.

    Raises:
        ConfigError: A file is not the record of a product.
    """
    merged = []
    for record, uri in zip(records, products, strict=True):
        try:
            product = Product(json.loads(storage.read_bytes(record)), uri)
            product.key  # noqa: B018 (raises for another JSON)
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{record}: expected the record of a product, got another file ({e}). Merge again."
            ) from e
        merged.append(product)
    return sorted(merged, key=lambda p: p.key)


def table_metadata(sources: Sequence[RowSource], embedding: str | None = None) -> tuple[dict[str, Any], int]:
    """Return the `kiln` metadata of a table by dataset, and the length D of its vectors.

    Args:
        sources: The sources of its rows, at least one.
        embedding: The kind of vectors of Kiln's own products.

    Raises:
        ConfigError: Vectors of different weights, kinds or lengths, which must never be searched together; or a product
            without the kind.
    """
    by_dataset: dict[str, Any] = {}
    for source in sources:
        metadata = source.metadata(embedding)
        for per_product in ("sources", "partition", "missing_shards", "dequantisation"):
            metadata.pop(per_product, None)
        known = by_dataset.setdefault(source.dataset, metadata)
        if known["fingerprint"] != metadata["fingerprint"]:
            raise ConfigError(f"{source.uri}: two fingerprints of {metadata['dataset']} cannot be in one database")
    spaces = {vector_space(m) for m in by_dataset.values()}
    if len(spaces) > 1:
        described = "; ".join(
            f"{name}: {', '.join(filter(None, (m['model'], m['embedding'], str(m['dimensions']))))} numbers"
            for name, m in sorted(by_dataset.items())
        )
        raise ConfigError(
            f"vectors of {len(spaces)} different weights, kinds or lengths cannot be searched together ({described}): "
            "give each its own run, or --db"
        )
    return by_dataset, int(next(iter(by_dataset.values()))["dimensions"])


def table_rows(source: RowSource, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows of a source with the columns of the explorer table, a few thousand at a time.

    Raises:
        SourceError: A vector does not fit float16, or a file is broken.
    """
    columns = schema.remove_metadata()
    for batch in source.read(select.embedding):
        keep = select.mask(batch)
        rows = _table_rows(batch, source, select, columns)
        if keep.any():
            yield rows.filter(pa.array(keep))


def selected_ids(source: RowSource, select: Select) -> list[str]:
    """Return the ids of a source's selected rows."""
    ids: list[str] = []
    for batch in source.read_ids():
        ids += batch["chip_id"].filter(pa.array(select.mask(batch))).to_pylist()
    return ids


def _table_rows(batch: pa.RecordBatch, source: RowSource, select: Select, schema: pa.Schema) -> pa.RecordBatch:
    lon, lat = embeddings_file.box_centres(batch["bbox"])
    numbers = vectors.read(batch, source.vector_column(batch.schema.names, select.embedding))
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        halves = numbers.astype(np.float16)
    finite = vectors.finite_rows({VECTOR: halves})
    if not finite.all():
        chip_id = batch["chip_id"][int(np.flatnonzero(~finite)[0])]
        raise SourceError(f"{chip_id}: its vector does not fit float16")
    arrays: dict[str, Any] = {
        **vectors.to_arrow({VECTOR: halves}, schema),
        "dataset": pa.array([source.dataset] * len(batch)),
        "year": _year(batch),
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "cell": pa.array(cells(lon, lat)),
        **{k: batch["bbox"].field(k) for k in ("xmin", "ymin", "xmax", "ymax")},
    }
    return pa.RecordBatch.from_arrays(
        [arrays.get(f.name, batch[f.name] if f.name in batch.schema.names else None) for f in schema], schema=schema
    )


def _year(batch: pa.RecordBatch) -> pa.Array:
    """Return the partition's year if the dataset has one, else the year of the acquisition."""
    years = batch["year"] if "year" in batch.schema.names else pc.year(batch["datetime"])
    return years.cast(pa.int16())
