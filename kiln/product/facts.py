"""What a merge knows about its product once the data is written, before it is described."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kiln.product.part_writer import Part
from kiln.product.record import LedgerFile


@dataclass(frozen=True)
class ProductFacts:
    """A product whose data files are written.

    Attributes:
        parts: Its parts.
        schema: Their Arrow schema, whose fields are described.
        metadata: Their `kiln` metadata.
        counts: Chips of the ledger, by count.
        ledger: The file of the ledger.
    """

    parts: tuple[Part, ...]
    schema: pa.Schema
    metadata: Mapping[str, Any]
    counts: Mapping[str, int]
    ledger: LedgerFile
