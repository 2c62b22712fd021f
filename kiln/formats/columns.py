"""The dictionary of columns: type, unit, meaning and nullability of every column of embeddings files and ledgers.

The fields of the Arrow schemas, the `table:columns` of STAC, docs/product.md and the README of a product come from it.
The columns of vectors are in `vectors.fields`, the own columns of an archive in its module `columns`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

BBOX_SIDES = ("xmin", "ymin", "xmax", "ymax")
BBOX = pa.struct([(side, pa.float64()) for side in BBOX_SIDES])
TYPE_NAMES = {"binary": "WKB", "halffloat": "float16", "float": "float32", "double": "float64"}  # by Arrow's name
TEXTS = pa.dictionary(pa.int32(), pa.string())  # text of few distinct values


@dataclass(frozen=True)
class ColumnSpec:
    """A column of a table.

    Attributes:
        name: Name of the column.
        dtype: Arrow type.
        meaning: What the values are, in a phrase.
        unit: Unit or range of the values; empty for text and counts.
        nullable: Whether a value may be missing.
        condition: When a file has the column; empty if every file has it.
    """

    name: str
    dtype: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False
    condition: str = ""

    @property
    def field(self) -> pa.Field:
        """The field of an Arrow schema, with `description` and `unit` in its metadata."""
        metadata = {"description": self.meaning, **({"unit": self.unit} if self.unit else {})}
        return pa.field(self.name, self.dtype, self.nullable, metadata)


CHIP = ColumnSpec("chip_id", pa.string(), "id of the chip, unique in the world: archive, scene or year, place")
GEOMETRY = ColumnSpec(
    "geometry",
    pa.binary(),
    "footprint of the chip, with its true corners; a MultiPolygon cut at the antimeridian where it crosses",
    "degrees, EPSG:4326",
)
BOX = ColumnSpec(
    "bbox", BBOX, "bounding box of the footprint; xmin > xmax where it crosses the antimeridian", "degrees, EPSG:4326"
)
PLACE = (
    ColumnSpec("crs", pa.string(), "coordinate reference system of the pixels"),
    ColumnSpec("x0", pa.float64(), "west edge of the chip", "units of crs"),
    ColumnSpec("y0", pa.float64(), "north edge of the chip", "units of crs"),
    ColumnSpec("pixel_size", pa.float64(), "side of a pixel", "units of crs"),
    ColumnSpec("col", pa.int32(), "column of the chip in the lattice of its scene or of the world, eastwards"),
    ColumnSpec("row", pa.int32(), "row of the chip in the lattice of its scene or of the world, southwards"),
    ColumnSpec(
        "datetime",
        pa.timestamp("ms", tz="UTC"),
        "acquisition; null if unknown; of a yearly composite June 1st, which stands for the year",
        "UTC",
        nullable=True,
    ),
    ColumnSpec("item_id", pa.string(), "tile or scene that gave most of the chip's valid pixels"),
    ColumnSpec("source", pa.string(), "URI of that tile or scene"),
    ColumnSpec("sources", pa.list_(pa.string()), "URIs of all files that gave pixels, the north-western first"),
    ColumnSpec("nodata_fraction", pa.float32(), "fraction of the chip's pixels without data", "0 to 1"),
    ColumnSpec(
        "cloud_fraction",
        pa.float32(),
        "fraction of the valid pixels that is cloud; null where there is no cloud mask",
        "0 to 1",
        nullable=True,
    ),
)
STAC_ITEM = ColumnSpec(
    "stac_item",
    TEXTS,
    "id of the STAC item that describes the file, in the product's folder items",
    condition="in products",
)

LEDGER = (
    ColumnSpec("unit_id", pa.string(), "id of the unit, with which the ids of its chips begin"),
    ColumnSpec(
        "status",
        pa.string(),
        "embedded: at least one chip has a row; empty: none has, and nothing failed; failed: some or all of it failed",
    ),
    ColumnSpec("reason", pa.string(), "why chips failed, or why no chip has a row; empty if the unit is embedded"),
    ColumnSpec(
        "expected",
        pa.int64(),
        "number of chips: the sum of embedded, skipped (nodata, cloud), deduplicated and failed",
    ),
    ColumnSpec(
        "expected_known",
        pa.bool_(),
        "whether expected is exact; false for a scene that could not be opened, an estimate",
    ),
    ColumnSpec("embedded", pa.int64(), "chips that have a row"),
    ColumnSpec("skipped_nodata", pa.int64(), "chips with more nodata than the limit"),
    ColumnSpec("skipped_cloud", pa.int64(), "chips with more cloud than the limit"),
    ColumnSpec("deduplicated", pa.int64(), "chips that left their lattice cell to another scene's chip; 0 in shards"),
    ColumnSpec("failed", pa.int64(), "chips that could not be read or embedded"),
    ColumnSpec("notes", pa.string(), "facts about the unit, with semicolons between them"),
    ColumnSpec("source", pa.string(), "URI of the unit's file or folder"),
    ColumnSpec("etag", pa.string(), "state of that file, as its store names it; empty where it names none"),
)


def arrow_schema(columns: Iterable[ColumnSpec], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the Arrow schema of columns."""
    return pa.schema([column.field for column in columns], metadata)


def type_text(dtype: pa.DataType) -> str:
    """Return an Arrow type in words, as documents name it."""
    if pa.types.is_dictionary(dtype):
        return f"{type_text(dtype.value_type)} (dictionary)"
    if pa.types.is_fixed_size_list(dtype):
        return f"list of {dtype.list_size} {type_text(dtype.value_type)}"
    if pa.types.is_list(dtype):
        return f"list of {type_text(dtype.value_type)}"
    if pa.types.is_struct(dtype):
        types = {type_text(field.type) for field in dtype}
        return f"struct of {' or '.join(types)}: {', '.join(field.name for field in dtype)}"
    return TYPE_NAMES.get(str(dtype), str(dtype))


def described_columns(schema: pa.Schema) -> list[ColumnSpec]:
    """Return the columns of a schema whose fields carry their descriptions.

    Raises:
        KeyError: If a field has no description.
    """
    columns = []
    for field in schema:
        metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        columns.append(
            ColumnSpec(field.name, field.type, metadata["description"], metadata.get("unit", ""), field.nullable)
        )
    return columns


def markdown_table(columns: Sequence[ColumnSpec], types: Mapping[str, str] | None = None) -> str:
    """Return a Markdown table of columns: name, type, unit, whether null, meaning.

    Args:
        columns: The columns.
        types: Types in words by name, where they differ from `type_text`.
    """
    rows = ["| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for column in columns:
        dtype = (types or {}).get(column.name) or type_text(column.dtype)
        meaning = f"{column.condition}: {column.meaning}" if column.condition else column.meaning
        null = "yes" if column.nullable else ""
        rows.append(f"| `{column.name}` | {dtype} | {column.unit} | {null} | {meaning} |")
    return "\n".join(rows) + "\n"
