"""Reading Parquet files: in batches, and with Kiln's errors for damaged files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kiln.errors import SourceError

BUFFER_BYTES = 1 << 20  # read at a time, so that a row group is never held in memory


@contextmanager
def parquet_errors(path: Path | str, advice: str = "Delete it.") -> Iterator[None]:
    """Raise SourceError, naming `path` and what to do, for a file that Arrow cannot read as Parquet."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as e:
        reason = str(e).splitlines()[0][:120]
        raise SourceError(f"{path}: expected a Parquet file, got a damaged one ({reason}). {advice}") from e


def open_file(path: Path) -> pq.ParquetFile:
    """Return a Parquet file that is read in pieces. Raises SourceError for a damaged file."""
    with parquet_errors(path):
        return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


def read_batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows.

    Args:
        path: The Parquet file.
        rows: Largest number of rows of a batch.
        columns: Names of the columns to read; None reads all.

    Raises:
        SourceError: If the file, or a page of it, is damaged.
    """
    batches = open_file(path).iter_batches(rows, columns=columns)
    while True:
        with parquet_errors(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
