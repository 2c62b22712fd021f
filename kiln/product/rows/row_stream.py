"""The rows of a product that a filter leaves, read in batches: of row groups that may have some, by ranges."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import ConfigError
from kiln.formats.parquet import check_dictionaries, parquet_errors
from kiln.product.rows.part_files import ADVICE, PartFile, kiln_metadata, open_parts
from kiln.product.rows.row_filter import EVERY_ROW, RowFilter

BATCH_ROWS = 2048  # 8 MB of float32 vectors of 1024 numbers


@dataclass(frozen=True)
class RowStream:
    """Rows of the files of a product. A batch at a time is in memory, and the columns that the filter reads.

    Attributes:
        uri: Path or s3:// of the product, for errors.
        parts: Its files, with the same columns each.
        row_filter: Conditions of the rows.
    """

    uri: str
    parts: tuple[PartFile, ...]
    row_filter: RowFilter = EVERY_ROW

    def __post_init__(self) -> None:
        """Raise ConfigError if the files lack a column that the filter reads."""
        self.row_filter.columns(self.schema.names, self.uri)

    @property
    def schema(self) -> pa.Schema:
        """The columns, without metadata."""
        return self.parts[0].schema.remove_metadata()

    @property
    def metadata(self) -> dict[str, Any]:
        """The `kiln` metadata."""
        return kiln_metadata(self.parts)

    @property
    def rows(self) -> int:
        """Number of rows without the filter."""
        return sum(part.footer.num_rows for part in self.parts)

    @property
    def rows_to_read(self) -> int:
        """Number of rows of the row groups that may have rows for the filter."""
        return sum(part.footer.row_group(group).num_rows for part in self.parts for group in self._groups(part))

    @property
    def geometry_types(self) -> set[str]:
        """Geometry types of the footprints; an empty set where a file with rows does not state them."""
        types = [part.geometry_types for part in self.parts if part.footer.num_rows]
        return set().union(*types) if all(types) else set()

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ConfigError for columns that the files do not have."""
        names = self.schema.names
        if unknown := [name for name in columns if name not in names]:
            raise ConfigError(
                f"{self.uri}: expected columns of the product, got {', '.join(unknown)}. It has {', '.join(names)}."
            )

    def batches(
        self, columns: Sequence[str], batch_rows: int = BATCH_ROWS, advance: Callable[[int], None] = lambda rows: None
    ) -> Iterator[pa.Table]:
        """Yield the rows in order, without empty batches.

        Args:
            columns: Columns to read.
            batch_rows: Maximum number of rows of a batch.
            advance: Called with the number of rows that were read or passed over.

        Yields:
            Tables of these columns in the file's order, without metadata.

        Raises:
            ConfigError: If a column does not exist.
            SourceError: If a file is damaged, or changed since its footer was read.
        """
        self.check_columns(columns)
        needed = [name for name in self.schema.names if name in columns]
        for part in self.parts:
            with part.open() as stream:
                with parquet_errors(part.uri, ADVICE):
                    reader = part.reader(stream)
                for group in self._groups(part):
                    yield from self._group_batches(part, reader, group, needed, batch_rows, advance)

    def _groups(self, part: PartFile) -> list[int]:
        """Return the row groups of a file that may have rows for the filter."""
        return [g for g in range(part.footer.num_row_groups) if self.row_filter.may_pass(part.footer, g)]

    def _group_batches(
        self,
        part: PartFile,
        reader: pq.ParquetFile,
        group: int,
        columns: list[str],
        batch_rows: int,
        advance: Callable[[int], None],
    ) -> Iterator[pa.Table]:
        """Yield the rows of a row group. Other columns than the filter's are read only where a row passes."""
        rows = part.footer.row_group(group).num_rows
        passes = np.ones(rows, bool)
        if condition := self.row_filter.columns(self.schema.names, self.uri):
            with parquet_errors(part.uri, ADVICE):
                passes = self.row_filter.mask(reader.read_row_group(group, condition))
        last = int(np.flatnonzero(passes)[-1]) if passes.any() else -1
        batches = reader.iter_batches(batch_rows, row_groups=[group], columns=columns)
        start = 0
        while start <= last:
            with parquet_errors(part.uri, ADVICE):
                batch = next(batches)
                check_dictionaries(batch)
            own = passes[start : start + len(batch)]
            start += len(batch)
            table = pa.Table.from_batches([batch]).select(columns).replace_schema_metadata(None)
            if not own.all():
                table = table.take(pa.array(np.flatnonzero(own)))
            if len(table):
                yield table
            advance(len(own))
        advance(rows - min(start, rows))


def open_rows(uri: str, row_filter: RowFilter = EVERY_ROW) -> RowStream:
    """Open the rows of a product. Only the footers are read.

    Args:
        uri: The product's folder or record (`.json`), or one file (`.parquet`): path or s3://.
        row_filter: Conditions of the rows.

    Raises:
        ConfigError: If the record is another file, or a file lacks a column of the filter.
        SourceError: If there is no product, or a file is missing or damaged.
    """
    return RowStream(uri, tuple(open_parts(uri)), row_filter)
