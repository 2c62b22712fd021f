"""Export the chips of a product, of a part of it or of a search to files that other tools read."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kiln.errors import ConfigError
from kiln.formats.vectors import SCALES
from kiln.io import storage
from kiln.io.progress import Progress
from kiln.product.export.published import DEFAULT_VERSION, export_published
from kiln.product.export.writers import csv, geojson, geopackage, geoparquet, numpy_folder
from kiln.product.export.writers.exported_rows import ExportedRows
from kiln.product.part_writer import CHIPS
from kiln.product.record import product_folder, read_record
from kiln.product.rows.part_files import ALWAYS_READ, FILE
from kiln.product.rows.row_filter import EVERY_ROW, RowFilter
from kiln.product.rows.row_stream import RowStream, open_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileFormat:
    """A format of one file.

    Attributes:
        suffixes: Endings of its files' names.
        write: Its writer.
        vectors: Whether vectors are written by default.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Path, ExportedRows], None]
    vectors: bool


FILE_FORMATS = {
    "geoparquet": FileFormat((".parquet",), geoparquet.write, True),
    "gpkg": FileFormat((".gpkg",), geopackage.write, False),
    "geojson": FileFormat((".geojson",), geojson.write, False),
    "csv": FileFormat((".csv",), csv.write, False),
}
NPY, PUBLISHED = "npy", "published"  # formats of a folder
FORMATS = (*FILE_FORMATS, NPY, PUBLISHED)


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        out: Path or s3:// of the file or folder.
        file_format: Its format.
        chips: Number of chips.
        sizes: Bytes of each file by name; below the folder, if `out` is one.
    """

    out: str
    file_format: str
    chips: int
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


def export_chips(
    source: str | Path,
    out: str | Path,
    file_format: str | None = None,
    *,
    row_filter: RowFilter = EVERY_ROW,
    vectors: bool | None = None,
    columns: Sequence[str] | None = None,
    version: str | None = None,
) -> ExportResult:
    """Write the chips of a product that a filter leaves to a file, or to a folder of NumPy files.

    Rows are read and written in batches, in the product's order. Files on s3:// are read by ranges. Nothing is at `out`
    until it is complete.

    Args:
        source: The product's record (`.json`) or folder, or one file with its columns (`.parquet`): a part, a shard, or
            the results of a search. Path or s3://.
        out: Path or s3:// of the file; of the folder for `npy` and `published`.
        file_format: `geoparquet`, `gpkg`, `geojson`, `csv`, `npy` or `published`. None takes that of the name's suffix:
            .parquet, .gpkg, .geojson or .csv.
        row_filter: Conditions of the chips.
        vectors: Whether to write vectors. None writes those in `columns`; without `columns`, all in GeoParquet and
            NumPy files, and none in others.
        columns: Columns to write, in this order; None writes all. The footprint is always written.
        version: Version of the published series, by default 002; for `published` only.

    Returns:
        The files and the number of chips.

    Raises:
        ConfigError: If an argument does not fit the format, or the source lacks a column.
        SourceError: If a file of the source is missing or damaged.
        StorageError: If `out` cannot be written.

    Example:
        >>> export_chips("results/sample/naip-1a2b3c4d/products/nd-2019/0123456789abcdef.json", "clear.gpkg",
        ...              row_filter=RowFilter(max_cloud=0.1))
    """
    source, out = str(source), str(out)
    file_format = file_format or format_of(out)
    if file_format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {file_format}. Correct it.")
    if version is not None and file_format != PUBLISHED:
        raise ConfigError(f"version: expected format published, got {file_format}. Leave the version out.")
    _check_kind(out, file_format)
    _check_other(out, source)
    if file_format == PUBLISHED:
        if row_filter != EVERY_ROW or vectors is not None or columns is not None:
            raise ConfigError(
                "published: expected a product without a choice of rows or columns, got one. Leave it out."
            )
        return _export_published(source, out, version or DEFAULT_VERSION)
    rows = open_rows(source, row_filter)
    _check_other(out, source, [part.uri for part in rows.parts])
    names = _columns(rows, file_format, vectors, columns)
    return _Export(rows, names).write(out, file_format)


def format_of(out: str) -> str:
    """Return the format of a file by the suffix of its name. Raises ConfigError for another suffix."""
    for name, file_format in FILE_FORMATS.items():
        if out.endswith(file_format.suffixes):
            return name
    suffixes = [suffix for file_format in FILE_FORMATS.values() for suffix in file_format.suffixes]
    raise ConfigError(
        f"{out}: expected a name that ends with one of {', '.join(suffixes)}, got another. Rename it, or state the "
        f"format; {NPY} and {PUBLISHED} write a folder."
    )


def _check_kind(out: str, file_format: str) -> None:
    """Raise ConfigError if `out` is a folder and a file is written, or the other way round."""
    if file_format in FILE_FORMATS:
        if out.endswith("/") or (not storage.is_remote(out) and Path(out).is_dir()):
            raise ConfigError(f"{out}: expected a file, got a folder. Give the file a name.")
    elif storage.stat(out) is not None:
        raise ConfigError(f"{out}: expected a folder for format {file_format}, got a file. Choose another name.")


def _check_other(out: str, source: str, parts: Sequence[str] = ()) -> None:
    """Raise ConfigError if `out` is a file of the source: its record, its folder, or anything in it."""
    folder = _product_of(source)
    own = {_absolute(uri) for uri in (source, f"{folder}.json", *parts)}
    place, inside = _absolute(out), f"{_absolute(folder)}/"
    if place in own or f"{place}/".startswith(inside):
        raise ConfigError(f"{out}: expected another place than the source, got the source. Choose another name.")


def _product_of(source: str) -> str:
    """Return the folder of the product that a source is or is a part of; of another file, the file itself."""
    folder = product_folder(source).rstrip("/")
    parent, _, name = folder.rpartition("/")
    if folder.endswith(FILE):
        product, _, chips = parent.rpartition("/")
        return product if chips == CHIPS and product else folder
    return parent if name == CHIPS and parent else folder


def _absolute(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else str(Path(uri).resolve())


def _columns(rows: RowStream, file_format: str, vectors: bool | None, columns: Sequence[str] | None) -> list[str]:
    """Return the columns to write, with the scale of an int8 vector after it and of no other."""
    stored = [name for name in SCALES if name in rows.schema.names]
    if file_format == NPY:
        if columns is not None or vectors is False:
            raise ConfigError("npy: expected vectors and ids, got a choice of columns. Leave it out.")
        vectors = True
    if isinstance(columns, str):
        raise ConfigError(f"columns: expected a sequence of names, got the text {columns!r}. Correct it.")
    if columns is not None:
        rows.check_columns(columns)
        chosen = list(dict.fromkeys(columns))
        if vectors is False and (given := [name for name in chosen if name in stored]):
            raise ConfigError(f"columns: expected columns without vectors, got {', '.join(given)}. Leave them out.")
        chosen += [name for name in stored if vectors and name not in chosen]
    else:
        default = FILE_FORMATS[file_format].vectors if file_format in FILE_FORMATS else True
        with_vectors = default if vectors is None else vectors
        chosen = [name for name in rows.schema.names if with_vectors or name not in stored]
    if vectors and not stored:
        raise ConfigError(
            f"{rows.uri}: expected vectors, got a file without them. Search with --parquet and --embeddings."
        )
    values = [name for name in chosen if name not in SCALES.values()]
    return [n for name in values for n in (name, SCALES.get(name, "")) if n in rows.schema.names]


def _export_published(source: str, out: str, version: str) -> ExportResult:
    if source.endswith(FILE):
        raise ConfigError(f"{source}: expected the record or folder of a product, got one file. Give the record.")
    record_uri = source if source.endswith(".json") else f"{source.rstrip('/')}.json"
    names = export_published(record_uri, out, version)
    stats = {name: storage.stat(storage.join(out, name)) for name in names}
    sizes = {name: stat.size for name, stat in stats.items() if stat is not None}
    return ExportResult(out, PUBLISHED, read_record(record_uri).rows, sizes)


class _Export:
    """An export of rows to one place.

    Attributes:
        chips: Number of rows that were passed to the writer so far.
    """

    def __init__(self, rows: RowStream, columns: Sequence[str]) -> None:
        self.rows, self.columns, self.chips = rows, columns, 0

    def write(self, out: str, file_format: str) -> ExportResult:
        """Write the rows, and warn of what a reader should know."""
        progress = Progress(self.rows.rows_to_read, Path(out).name, embeds=False)
        needed = [name for name in self.rows.schema.names if name in {*self.columns, *ALWAYS_READ}]
        exported = ExportedRows(
            schema=pa.schema([self.rows.schema.field(name) for name in needed]),
            columns=self.columns,
            batches=self._counted(needed, progress),
            metadata=self._metadata(),
            geometry_types=frozenset(self.rows.geometry_types),
        )
        try:
            sizes = _write(out, file_format, exported)
        finally:
            progress.close()
        if exported.untrained is None:
            log.warning("%s: no `kiln` metadata, so the model and its weights are unknown", self.rows.uri)
        elif exported.untrained:
            log.warning("%s: UNTRAINED weights: for demonstration only", out)
        if not self.chips:
            log.warning("%s: no chip passes the filters; it is empty", out)
        ids = self.rows.row_filter.chip_ids
        if ids is not None and self.chips < len(ids):
            log.warning("%s: %d of %d ids are not among its chips", out, len(ids) - self.chips, len(ids))
        return ExportResult(out, file_format, self.chips, sizes)

    def _counted(self, columns: Sequence[str], progress: Progress) -> Iterator[pa.Table]:
        for batch in self.rows.batches(columns, advance=progress.advance):
            self.chips += len(batch)
            yield batch

    def _metadata(self) -> dict[str, Any]:
        """Return the source's `kiln` metadata with this export added to `exports`.

        An export names its source without the folder, so that copies of a product have equal exports.
        """
        metadata = self.rows.metadata
        name = _product_of(self.rows.uri).rpartition("/")[2]
        export = {"source": name, "source_rows": self.rows.rows, "filter": self.rows.row_filter.as_json()}
        return metadata | {"exports": [*metadata.get("exports", []), export]}


def _write(out: str, file_format: str, rows: ExportedRows) -> dict[str, int]:
    """Write the rows and return the bytes of each file by name."""
    if file_format == NPY:
        return numpy_folder.write(out, rows)
    with storage.atomic(out) as path:
        FILE_FORMATS[file_format].write(path, rows)
        return {out.rpartition("/")[2]: path.stat().st_size}
