"""The rows that an export writes, and what its files state about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kiln.formats.vectors import SCALES

FACTS = ("dataset", "partition", "model", "weights_sha256", "embedding", "fingerprint", "untrained")
FOOTPRINT_COLUMNS = ("geometry", "bbox")  # columns
LAYER = "chips"  # name of the layer of formats that have layers
UNTRAINED = "UNTRAINED weights: for demonstration only."


@dataclass(frozen=True)
class ExportedRows:
    """Rows for a writer.

    Attributes:
        schema: Columns of the batches: those to write, `chip_id`, `geometry`, `bbox`, and the scales of int8 vectors.
        columns: The columns to write, in order. Each format writes the footprint, listed or not, in its way.
        batches: The rows, as tables of these columns.
        metadata: The `kiln` metadata: that of a product, or of several by dataset.
        geometry_types: Geometry types of the footprints; an empty set is unknown.
    """

    schema: pa.Schema
    columns: Sequence[str]
    batches: Iterable[pa.Table]
    metadata: Mapping[str, Any]
    geometry_types: frozenset[str]

    @property
    def vectors(self) -> list[str]:
        """The columns of vectors to write."""
        return [name for name in self.columns if name in SCALES]

    @property
    def plain(self) -> list[str]:
        """The columns to write that are neither vectors, their scales nor the footprint and its bounding box."""
        return [name for name in self.columns if name not in (*SCALES, *SCALES.values(), *FOOTPRINT_COLUMNS)]

    def dimensions(self, column: str) -> int:
        """Return the length of the vectors of a column."""
        return int(self.schema.field(column).type.list_size)

    @property
    def untrained(self) -> bool | None:
        """Whether the weights of any dataset are random; None without metadata."""
        known = [bool(product["untrained"]) for product in products(self.metadata) if "untrained" in product]
        return any(known) if known else None

    def facts(self) -> dict[str, Any]:
        """Return what a file states about its rows: the products, whether their weights are random, the exports."""
        facts = [{name: product[name] for name in FACTS if name in product} for product in products(self.metadata)]
        return {"untrained": self.untrained, "products": facts, "exports": self.metadata.get("exports", [])}


def products(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the metadata of each product: of one, or of the results of a search, whose metadata is by dataset."""
    if isinstance(metadata.get("dataset"), str):
        return [metadata]
    return [{"dataset": name, **value} for name, value in metadata.items() if isinstance(value, Mapping)]
