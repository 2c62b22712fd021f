"""Exported vectors as NumPy files, with the ids of their chips."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from kiln.formats import vectors
from kiln.formats.arrays import AnyArray
from kiln.io import storage
from kiln.product.export.writers.exported_rows import ExportedRows

FILES = {"embeddings": "vectors.npy", "embeddings_mean": "vectors_mean.npy"}  # by column
IDS, FACTS = "ids.txt", "metadata.json"


def write(out: str, rows: ExportedRows) -> dict[str, int]:
    """Write a folder: vectors [n, D], chip ids in the same order, and `metadata.json`.

    Numbers are float32, or float16 if stored so. The files appear when all of them are complete, `metadata.json` last.

    Args:
        out: Folder or s3:// to write to.
        rows: The rows, with vectors.

    Returns:
        The size in bytes of each file by name.
    """
    files = {column: FILES[column] for column in rows.vectors}
    names = [FACTS, IDS, *files.values()]  # files appear in the opposite order
    with ExitStack() as outputs:
        paths = {name: outputs.enter_context(storage.atomic(storage.join(out, name))) for name in names}
        with ExitStack() as stack:
            ids = stack.enter_context(paths[IDS].open("w", encoding="utf-8"))
            arrays = {
                column: stack.enter_context(npy_writer(paths[name], rows.dimensions(column), _dtype(rows, column)))
                for column, name in files.items()
            }
            for batch in rows.batches:
                ids.writelines(f"{chip_id}\n" for chip_id in batch["chip_id"].to_pylist())
                for column, array in arrays.items():
                    array.append(vectors.read(batch, column))
        paths[FACTS].write_text(json.dumps(rows.facts(), indent=1, sort_keys=True) + "\n")
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        _delete_earlier(out, names)
    return sizes


def _delete_earlier(out: str, names: Sequence[str]) -> None:
    """Delete what would not fit the new files: the metadata, which appear last, and vectors that they do not have."""
    for name in {FACTS, *FILES.values()} - {*names[1:]}:
        if storage.stat(uri := storage.join(out, name)) is not None:
            storage.delete(uri)


class NpyFile:
    """A .npy file of a matrix that grows by rows."""

    def __init__(self, file: BinaryIO, dimensions: int, dtype: DTypeLike) -> None:
        self._file, self.dimensions, self.dtype = file, dimensions, np.dtype(dtype).newbyteorder("<")
        self.rows = 0
        self.write_header()

    def write_header(self) -> None:
        """Write the header at the beginning. NumPy leaves space in it for any number of rows."""
        self._file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, self.dimensions)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: AnyArray) -> None:
        """Append rows [n, D]."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.rows += len(values)


@contextmanager
def npy_writer(path: Path, dimensions: int, dtype: DTypeLike) -> Iterator[NpyFile]:
    """Yield a file to append rows to; its header states their number at the end of the block."""
    with path.open("wb") as file:
        array = NpyFile(file, dimensions, dtype)
        yield array
        array.write_header()


def _dtype(rows: ExportedRows, column: str) -> str:
    is_half = pa.types.is_float16(rows.schema.field(column).type.value_type)
    return "float16" if is_half else "float32"
