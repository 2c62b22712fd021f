"""The embeddings file: the columns and metadata that all archives share, and the writer of a shard."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import shapely

from kiln.errors import SourceError
from kiln.formats import vectors
from kiln.formats.arrays import Float64Array, ObjectArray
from kiln.formats.columns import BBOX, BOX, CHIP, GEOMETRY, PLACE, ColumnSpec, arrow_schema
from kiln.formats.extent import Extent
from kiln.formats.geoparquet import ROW_GROUP, GeoParquetWriter
from kiln.formats.parquet import ADVICE, read_schema
from kiln.formats.records import Chip

WKB_HEAD_BYTES = 5
MAX_LONGITUDE = 180 - 1e-9  # degrees; a larger one lies on the antimeridian


def schema(
    dimensions: int,
    vector_dtype: vectors.VectorDtype,
    extra: Sequence[ColumnSpec],
    metadata: Mapping[str, Any],
    embedding: vectors.Embedding = "class",
) -> pa.Schema:
    """Return the schema of an embeddings file.

    Args:
        dimensions: Numbers of a vector.
        vector_dtype: Dtype of the vectors.
        extra: The archive's own columns, which follow the common ones.
        metadata: JSON values of the file's `kiln` metadata.
        embedding: Kind of vectors, or both.

    Returns:
        The schema.
    """
    columns = [CHIP, *vectors.fields(dimensions, vector_dtype, embedding), GEOMETRY, BOX, *PLACE, *extra]
    return arrow_schema(columns, {"kiln": json.dumps(metadata, sort_keys=True)})


def chip_table(chips: Sequence[Chip], columns: vectors.Columns, file_schema: pa.Schema) -> pa.Table:
    """Return chips and their vectors as rows of an embeddings file.

    Args:
        chips: The chips, n of them.
        columns: Their vectors and scales, n rows each, as `vectors.store` returns them.
        file_schema: The file's schema.

    Returns:
        A table of n rows in the order of `chips`.
    """
    footprints = np.array([chip.footprint for chip in chips], dtype=object)
    boxes = bounding_boxes(footprints)
    arrays: dict[str, Any] = {
        **vectors.to_arrow(columns, file_schema),
        "geometry": pa.array(shapely.to_wkb(footprints, byte_order=1), pa.binary()),
        "bbox": pa.StructArray.from_arrays([pa.array(boxes[:, side]) for side in range(4)], fields=list(BBOX)),
    }
    common = Chip.__dataclass_fields__
    for column in file_schema:
        name = column.name
        if name not in arrays:
            values = [getattr(chip, name) if name in common else chip.extra[name] for chip in chips]
            arrays[name] = pa.array(values, column.type)
    return pa.table([arrays[column.name] for column in file_schema], schema=file_schema)


def bounding_boxes(footprints: ObjectArray) -> Float64Array:
    """Return the bounding boxes of footprints as RFC 7946 defines them.

    Args:
        footprints: Geometries [n] in EPSG:4326. One that crosses the antimeridian is a MultiPolygon cut there.

    Returns:
        West, south, east and north [n, 4] in degrees; west > east across the antimeridian.
    """
    boxes: Float64Array = shapely.bounds(footprints).reshape(-1, 4)
    is_multi = shapely.get_type_id(footprints) == shapely.GeometryType.MULTIPOLYGON
    for n in np.flatnonzero(is_multi & (boxes[:, 0] <= -MAX_LONGITUDE) & (boxes[:, 2] >= MAX_LONGITUDE)):
        parts = shapely.bounds(shapely.get_parts(footprints[n]))
        eastern = parts[:, 0] + parts[:, 2] > 0  # in the eastern hemisphere: west of the antimeridian
        west, east = parts[eastern, 0].min(), parts[~eastern, 2].max()
        if west > east:  # else it goes around the world
            boxes[n, [0, 2]] = west, east
    return boxes


def box_centres(boxes: pa.StructArray) -> tuple[Float64Array, Float64Array]:
    """Return longitudes and latitudes [n] in degrees of the centres of `bbox` values [n]."""
    west, south, east, north = (np.asarray(boxes.field(side.name)) for side in BBOX)
    lon = (west + east) / 2
    crosses = west > east  # the antimeridian
    lon[crosses] += np.where(lon[crosses] > 0, -180, 180)
    return lon, (south + north) / 2


def read_metadata(path: Path, where: str | None = None, advice: str = ADVICE) -> dict[str, Any]:
    """Return the `kiln` metadata of an embeddings file.

    Args:
        path: The file on this machine.
        where: Name of the file for errors, if it is a copy.
        advice: What to do about a damaged file.

    Raises:
        SourceError: If it is another or a damaged file.
    """
    metadata = read_schema(path, where, advice).metadata or {}
    if b"kiln" not in metadata:
        raise SourceError(f"{where or path}: expected an embeddings file of Kiln, got another Parquet file. Remove it.")
    values: dict[str, Any] = json.loads(metadata[b"kiln"])
    return values


class ShardWriter:
    """A writer of embeddings files. It holds at most two row groups in memory.

    Every row group but the last has `row_group` rows, so the file depends on the rows alone and not on their batches.
    """

    def __init__(self, path: Path, file_schema: pa.Schema, row_group: int = ROW_GROUP) -> None:
        self.schema, self.row_group = file_schema, row_group
        self.rows = 0  # appended so far
        self._file = GeoParquetWriter(path, file_schema)
        self._stack = ExitStack()
        self._chips: list[Chip] = []
        self._columns: list[vectors.Columns] = []
        self._tables: list[pa.Table] = []

    def append(self, chips: Sequence[Chip], columns: vectors.Columns) -> None:
        """Append chips with their vectors, as `vectors.store` returns them."""
        self._chips.extend(chips)
        self._columns.append(columns)
        self.rows += len(chips)
        if len(self._chips) >= self.row_group:
            self._write_row_groups(last=False)

    def append_rows(self, table: pa.Table) -> None:
        """Append rows that `chip_table` returned."""
        self._collect_chips()
        self._tables.append(table.cast(self.schema))
        self.rows += len(table)
        if sum(map(len, self._tables)) >= self.row_group:
            self._write_row_groups(last=False)

    def _collect_chips(self) -> None:
        if self._chips:
            self._tables.append(chip_table(self._chips, vectors.concatenate(self._columns), self.schema))
        self._chips, self._columns = [], []

    def _write_row_groups(self, *, last: bool) -> None:
        """Write the full row groups; with `last` the rest too."""
        self._collect_chips()
        waiting = pa.concat_tables([self.schema.empty_table(), *self._tables])
        start = 0
        while len(waiting) - start >= self.row_group or (last and start < len(waiting)):
            group = waiting.slice(start, self.row_group)
            self._file.write(_canonical(group, self.schema), extent(group))
            start += self.row_group
        self._tables = [waiting.slice(start)] if start < len(waiting) else []

    def __enter__(self) -> Self:
        self._stack.enter_context(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._stack.__exit__(kind, e, trace)  # the file is not kept
            return
        with self._stack:
            self._write_row_groups(last=True)
            if not self._file.rows:
                empty = self.schema.empty_table()
                self._file.write(empty, Extent())


def _canonical(group: pa.Table, file_schema: pa.Schema) -> pa.Table:
    """Return the rows in one chunk, each dictionary built from them in order: equal rows become equal bytes."""
    plain = pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in file_schema])
    return group.cast(plain).combine_chunks().cast(file_schema)


def extent(group: pa.Table) -> Extent:
    """Return the extent of rows, by their columns `bbox` and `geometry`."""
    if not len(group):
        return Extent()
    boxes = group["bbox"].combine_chunks()
    sides = np.stack([np.asarray(boxes.field(side.name)) for side in BBOX], axis=1)
    return Extent.of_boxes(sides, _geometry_types(group["geometry"].combine_chunks()))


def _geometry_types(footprints: pa.BinaryArray) -> frozenset[str]:
    """Return the types of geometries [n], n > 0, by the head of their WKB: the byte order, 1, and the type, a uint32.

    Parsing the geometries would take as long as all else that a merge does with their rows.
    """
    _, offsets, data = footprints.buffers()
    starts = np.frombuffer(offsets, np.int32)[footprints.offset :][: len(footprints)]
    heads = np.frombuffer(data, np.uint8)[starts[:, None] + np.arange(WKB_HEAD_BYTES)]
    first_of_type = np.unique(heads, axis=0, return_index=True)[1]
    return frozenset(shapely.from_wkb(footprints[int(n)].as_py()).geom_type for n in first_of_type)
