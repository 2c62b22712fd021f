"""The part files of a product, or one file with its columns: their addresses, footers and readers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import ConfigError, SourceError
from kiln.formats.columns import BOX, CHIP, GEOMETRY, PLACE
from kiln.formats.parquet import open_stream, parquet_errors, read_footer
from kiln.formats.vectors import SCALES
from kiln.io import storage
from kiln.io.range_file import RangeFile
from kiln.product.record import ProductFile, check_part, product_folder, read_record

PART = re.compile(r"chips/part-\d+\.parquet")
EARLIER_PART = re.compile(r"part-\d+\.parquet")  # of Kiln 0.2, which wrote parts into the folder itself
ADVICE = "Copy it again. If it is of a product, delete the product's record and merge again."
ALWAYS_READ = ("chip_id", "geometry", "bbox")  # columns that every file of chips has
OWN_TYPES = {column.name: column.dtype for column in (CHIP, GEOMETRY, BOX, *PLACE)}
FILE = ".parquet"  # suffix of an address that is one file and not a product's folder


@dataclass(frozen=True)
class PartFile:
    """A Parquet file of chips, of which the footer was read.

    Attributes:
        uri: Path or s3://.
        version: Size and ETag of the file whose footer was read.
        footer: The footer.
    """

    uri: str
    version: storage.Stat
    footer: pq.FileMetaData

    @property
    def schema(self) -> pa.Schema:
        """The file's columns, with its metadata."""
        return self.footer.schema.to_arrow_schema()

    @property
    def geometry_types(self) -> set[str]:
        """Geometry types of the footprints by the `geo` metadata; an empty set is unknown."""
        geo = json.loads((self.footer.metadata or {}).get(b"geo", b"{}"))
        return set(geo.get("columns", {}).get("geometry", {}).get("geometry_types", []))

    def open(self) -> IO[bytes] | RangeFile:
        """Open the file for reading by ranges."""
        return _open(self.uri, self.version)

    def reader(self, stream: Any) -> pq.ParquetFile:
        """Return a reader over the open file.

        The pieces of a remote row group are fetched together, and held compressed. Those of a local one are read in
        turn, so that a row group is never held.
        """
        return open_stream(stream, self.footer, self.uri, ADVICE, pre_buffer=storage.is_remote(self.uri))


def part_uris(uri: str) -> list[str]:
    """Return the files of a product in order.

    Args:
        uri: The product's folder or record (`.json`), or one file (`.parquet`): path or s3://.

    Raises:
        ConfigError: If the record is another file.
        SourceError: If there is no product.
    """
    return list(_parts_of(uri))


def _parts_of(uri: str) -> dict[str, ProductFile | None]:
    """Return the files of a product in order, with what its record states. Arguments and errors as `part_uris`.

    A folder is read by its record too, so that a lost file is an error. A copy without the record is listed.
    """
    if uri.endswith(FILE):
        return {uri: None}
    folder = product_folder(uri).rstrip("/")
    try:
        return {storage.join(folder, file.name): file for file in read_record(f"{folder}.json").files}
    except SourceError:
        if uri.endswith(".json"):
            raise
    names = sorted(name.removeprefix(storage.join(uri, "")) for name in storage.listing(uri))
    for pattern in (PART, EARLIER_PART):
        if parts := [name for name in names if pattern.fullmatch(name)]:
            return {storage.join(uri, name): None for name in parts}
    raise SourceError(f"{uri}: expected the folder or record of a product, got no part file. Correct the address.")


def open_parts(uri: str) -> list[PartFile]:
    """Read the footers of the files of a product, by ranges.

    Args:
        uri: As for `part_uris`.

    Raises:
        ConfigError: If the record is another file, or a file lacks the columns of footprints, or has types that Kiln
            does not write.
        SourceError: If there is no product, a file is missing, damaged or another than its record states, or files
            have different columns.
    """
    recorded = _parts_of(uri)
    parts = [_read_footer(part) for part in recorded]
    for part, file in zip(parts, recorded.values(), strict=True):
        if file:
            check_part(part.uri.removesuffix(f"/{file.name}"), file, part.version.size, part.footer.num_rows)
    for part in parts[1:]:
        if not part.schema.equals(parts[0].schema):
            raise SourceError(
                f"{part.uri}: expected the columns of {parts[0].uri}, got others. Merge the shards again."
            )
    return parts


def kiln_metadata(parts: Sequence[PartFile]) -> dict[str, Any]:
    """Return the `kiln` metadata of the first part; an empty dict where it has none."""
    values: dict[str, Any] = json.loads((parts[0].footer.metadata or {}).get(b"kiln", b"{}"))
    return values


def _read_footer(uri: str) -> PartFile:
    version = storage.stat(uri)
    if version is None:
        raise SourceError(f"{uri}: expected a Parquet file of chips, got no file. Merge again, or correct the address.")
    with _open(uri, version) as stream, parquet_errors(uri, ADVICE):
        part = PartFile(uri, version, read_footer(stream, version.size, uri, ADVICE))
        schema = part.schema
    if missing := [name for name in ALWAYS_READ if name not in schema.names]:
        raise ConfigError(
            f"{uri}: expected a Parquet file of chips, got one without {', '.join(missing)}. "
            "Give a product, a shard or the results of a search."
        )
    if other := [str(field) for field in schema if not _is_own_type(field)]:
        raise ConfigError(
            f"{uri}: expected the types that Kiln writes, got {', '.join(other)}, which another tool wrote. "
            "Give the product, shard or results themselves."
        )
    return part


def _is_own_type(field: pa.Field) -> bool:
    """Return whether a column has the type that Kiln writes under its name; true for names that Kiln does not use."""
    if field.name in SCALES:
        return bool(pa.types.is_fixed_size_list(field.type))
    return bool(field.type == OWN_TYPES.get(field.name, field.type))


def _open(uri: str, version: storage.Stat) -> IO[bytes] | RangeFile:
    return RangeFile(uri, version) if storage.is_remote(uri) else Path(uri).open("rb")
