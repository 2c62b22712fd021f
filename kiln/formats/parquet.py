"""Reading and writing Parquet files, with checksums of every page and of the footer, and Kiln's errors for damage.

No other module calls pyarrow's readers and writers of Parquet. Files without checksums, as of other writers or of an
older Kiln, are read too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import SourceError
from kiln.formats.footer_digest import (
    KEY,
    MAGIC,
    PLACEHOLDER,
    check_footer_digest,
    read_raw_footer,
    write_footer_digest,
)

BUFFER_BYTES = 1 << 20  # read at a time, so that a row group is never held in memory
ADVICE = "Delete it. If it is of a run, run Snakemake again, which makes it anew."


def open_writer(path: Path, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Return a writer whose pages have checksums. `options` are those of pyarrow. Close it with `close_writer`."""
    return pq.ParquetWriter(path, schema, write_page_checksum=True, **options)


def close_writer(writer: pq.ParquetWriter, path: Path) -> None:
    """Complete a file of `open_writer` with its footer and the footer's digest."""
    writer.add_key_value_metadata({KEY: PLACEHOLDER})
    writer.close()
    write_footer_digest(path)


def write_table(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a file with checksums. `options` are those of pyarrow's writer."""
    writer = open_writer(path, table.schema, **options)
    try:
        writer.write_table(table)
    except BaseException:
        writer.close()
        raise
    close_writer(writer, path)


@contextmanager
def parquet_errors(where: Path | str, advice: str = ADVICE) -> Iterator[None]:
    """Raise SourceError, naming the file and what to do, for a file that Arrow cannot read as Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise SourceError(f"{where}: expected a Parquet file, got a damaged one ({reason}). {advice}") from e


def check_dictionaries(rows: pa.RecordBatch | pa.Table | None) -> None:
    """Raise ArrowInvalid for a code without an entry.

    The headers of pages have no checksums. If that of a dictionary's page rots, Arrow returns fewer entries.
    """
    for column in rows.columns if rows is not None else ():
        if pa.types.is_dictionary(column.type):
            column.validate(full=True)


def read_footer(stream: IO[bytes] | Any, size: int, where: Path | str, advice: str = ADVICE) -> pq.FileMetaData:
    """Return the footer of an open file, checked by its digest.

    Args:
        stream: The file.
        size: Its bytes.
        where: Name of the file, for errors.
        advice: What to do about a damaged file.

    Raises:
        SourceError: If the file is damaged or another one.
    """
    try:
        footer = read_raw_footer(stream, size, str(where))
        check_footer_digest(footer, str(where))
    except SourceError as e:
        raise SourceError(f"{e} {advice}") from None
    with parquet_errors(where, advice):
        return pq.read_metadata(pa.BufferReader(footer + len(footer).to_bytes(4, "little") + MAGIC))


def read_footer_of(path: Path, where: Path | str | None = None, advice: str = ADVICE) -> pq.FileMetaData:
    """Return the footer of a local file. Arguments and errors as `open_file`."""
    with parquet_errors(where or path, advice), path.open("rb") as stream:
        return read_footer(stream, path.stat().st_size, where or path, advice)


def open_file(path: Path, where: Path | str | None = None, advice: str = ADVICE) -> pq.ParquetFile:
    """Return a Parquet file that is read in pieces.

    Args:
        path: The file on this machine.
        where: Name of the file for errors, if it is a copy.
        advice: What to do about a damaged file.

    Raises:
        SourceError: If the footer is damaged. Reads of damaged pages raise the errors that `parquet_errors` turns.
    """
    return open_stream(path, read_footer_of(path, where, advice), where or path, advice)


def open_stream(
    source: Any, footer: pq.FileMetaData, where: Path | str, advice: str = ADVICE, *, pre_buffer: bool = False
) -> pq.ParquetFile:
    """Return a reader over a path or open file whose footer was read. Pages are checked as they are read.

    Args:
        source: Path or open file.
        footer: Its footer.
        where: Name of the file, for errors.
        advice: What to do about a damaged file.
        pre_buffer: Fetch the pieces of a row group together, and hold them compressed. Otherwise they are read in
            turn, so that a row group is never held.

    Raises:
        SourceError: If the file is damaged.
    """
    buffer_bytes = 0 if pre_buffer else BUFFER_BYTES
    with parquet_errors(where, advice):
        return pq.ParquetFile(
            source,
            metadata=footer,
            buffer_size=buffer_bytes,
            pre_buffer=pre_buffer,
            page_checksum_verification=True,
        )


def read_schema(path: Path, where: Path | str | None = None, advice: str = ADVICE) -> pa.Schema:
    """Return the columns of a local file with its metadata. Arguments and errors as `open_file`."""
    return open_file(path, where, advice).schema_arrow


def read_table(path: Path, where: Path | str | None = None, advice: str = ADVICE, **options: Any) -> pa.Table:
    """Return rows of a local file.

    Args:
        path: The file on this machine.
        where: Name of the file for errors, if it is a copy.
        advice: What to do about a damaged file.
        options: Those of `pyarrow.parquet.read_table`.

    Raises:
        SourceError: If the file is damaged.
    """
    read_footer_of(path, where, advice)
    with parquet_errors(where or path, advice):
        table = pq.read_table(path, page_checksum_verification=True, **options)
        check_dictionaries(table)
    return table


def read_batches(
    path: Path, rows: int, columns: list[str] | None = None, where: Path | str | None = None, advice: str = ADVICE
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows.

    Args:
        path: The Parquet file.
        rows: Largest number of rows of a batch.
        columns: Names of the columns to read; None reads all.
        where: Name of the file for errors, if it is a copy.
        advice: What to do about a damaged file.

    Raises:
        SourceError: If the file, or a page of it, is damaged, or has fewer rows than its footer says.
    """
    file = open_file(path, where, advice)
    batches, count = file.iter_batches(rows, columns=columns), 0
    while True:
        with parquet_errors(where or path, advice):
            batch = next(batches, None)
            check_dictionaries(batch)
        if batch is None:
            break
        count += len(batch)
        yield batch
    if columns != [] and count != file.metadata.num_rows:
        raise SourceError(f"{where or path}: expected {file.metadata.num_rows} rows, got {count}. {advice}")
