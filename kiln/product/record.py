"""The record of a product: a small JSON file next to the product's folder, written last."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from kiln.errors import ConfigError, SourceError
from kiln.formats.json_digest import with_digest
from kiln.io import storage

OPTIONAL = ("deduplicated", "document_sha256")  # left out where they are false or empty
RECORD_NAME = re.compile(r"[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class ProductFile:
    """A file of a product: name below its folder, bytes, digest in hex, rows of a part."""

    name: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class LedgerFile:
    """The ledger of a product: name below its folder, bytes, digest in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ProductRecord:
    """A product.

    Attributes:
        dataset: Name of the archive.
        partition: Merge partition.
        fingerprint: Fingerprint of the embeddings.
        weights_sha256: Digest of the encoder's weights.
        untrained: Whether the weights are random.
        shards: Digest of the names of the merged shards.
        missing_shards: Names of planned shards that were not merged.
        rows: Rows of all parts.
        counts: Chips of the ledger, by the names of LEDGER_COUNTS.
        units: Number of units by status.
        files: The parts, in order.
        ledger: The ledger.
        documents: Names of the STAC files and of the data card.
        document_sha256: Their digests in hex, by name; none in records of older versions.
        tag: Short digest of the fingerprint and the parts.
        deduplicated: Whether the product has one row per lattice cell.
    """

    dataset: str
    partition: str
    fingerprint: str
    weights_sha256: str
    untrained: bool
    shards: str
    missing_shards: tuple[str, ...]
    rows: int
    counts: Mapping[str, int]
    units: Mapping[str, int]
    files: tuple[ProductFile, ...]
    ledger: LedgerFile
    documents: tuple[str, ...]
    tag: str
    deduplicated: bool = False
    document_sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Dataset and partition, for tables and maps."""
        return f"{self.dataset} {self.partition}"

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the record's file."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        optional = {name: values.pop(name) for name in OPTIONAL}
        return values | {name: value for name, value in optional.items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of a JSON object. Raises KeyError or TypeError for another object.

        Records of Kiln 0.2 name the STAC files `stac`, and have no count `deduplicated`.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"{type(values).__name__} in place of an object")
        values = {"documents": values.get("stac"), **values}
        fields = {name: values[name] for name in cls.__dataclass_fields__ if name not in OPTIONAL}
        return cls(
            **fields
            | {
                "missing_shards": tuple(values["missing_shards"]),
                "files": tuple(ProductFile(**file) for file in values["files"]),
                "ledger": LedgerFile(**values["ledger"]),
                "counts": {"deduplicated": 0, **values["counts"]},
                "documents": tuple(values["documents"]),
                "deduplicated": bool(values.get("deduplicated")),
                "document_sha256": dict(values.get("document_sha256", {})),
            }
        )


def read_record(uri: str) -> ProductRecord:
    """Return the record of a product.

    Args:
        uri: Path or s3:// of the record, a JSON file.

    Raises:
        ConfigError: If the file is not the record of a product.
        SourceError: If there is no file.
    """
    data = storage.read_bytes(uri)
    try:
        return ProductRecord.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{uri}: expected the record of a product, got another file ({e}). Merge again.") from e


def write_record(uri: str, record: ProductRecord) -> None:
    """Write the record to a path or s3://, with a digest of its own."""
    storage.write_bytes(uri, (json.dumps(with_digest(record.as_json()), indent=1, sort_keys=True) + "\n").encode())


def merge_again(product: str) -> str:
    """Return what to do about a damaged file of a product, by its folder."""
    return f"Delete {product}.json and run Snakemake again, which merges the product anew."


def check_part(product: str, file: ProductFile, size: int, rows: int) -> None:
    """Raise SourceError unless a part has the size and rows that its product's record states."""
    if (size, rows) != (file.size, file.rows):
        raise SourceError(
            f"{storage.join(product, file.name)}: expected {file.size} bytes and {file.rows} rows as in its record, "
            f"got {size} and {rows}. {merge_again(product)}"
        )


def check_part_content(product: str, file: ProductFile, path: Path) -> None:
    """Raise SourceError unless the copy of a part at `path` has the sha256 that its product's record states."""
    if (sha256 := storage.sha256(path)) != file.sha256:
        raise SourceError(
            f"{storage.join(product, file.name)}: expected sha256 {file.sha256} as in its record, got {sha256}. "
            f"{merge_again(product)}"
        )


def product_folder(record_uri: str) -> str:
    """Return the folder of the product by the URI of its record: the name without .json."""
    return record_uri.removesuffix(".json")
