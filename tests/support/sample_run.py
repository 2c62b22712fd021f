"""Digests of the sample run's results that are equal on every machine. They leave out vectors and versions."""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests import DATA

PINS = DATA / "sample_pins.json"
VECTORS = ("embeddings", "embeddings_mean", "scale", "scale_mean")


def table_digest(path: Path) -> str:
    """Return the sha256 of a Parquet file's rows, in order, without vectors and metadata."""
    table = pq.read_table(path)
    plain = table.select([name for name in table.column_names if name not in VECTORS]).replace_schema_metadata(None)
    decoded = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in plain.columns]
    rows = pa.table(decoded, names=plain.column_names).to_pylist()
    return hashlib.sha256(json.dumps(rows, default=_text, sort_keys=True).encode()).hexdigest()


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def content_digests(run: Path) -> dict[str, str]:
    """Return the digests of shards, ledgers, products and STAC collections below a run's folder."""
    digests = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if "/shards/" in name or "/products/" in name:
            if path.suffix == ".parquet":
                digests[name] = table_digest(path)
            elif path.name == "collection.json":
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


if __name__ == "__main__":
    PINS.write_text(json.dumps(content_digests(Path(sys.argv[1])), indent=1, sort_keys=True) + "\n")
