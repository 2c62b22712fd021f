"""Build explorer databases from products and published files, and read them back."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from kiln.archives.worldcover.lattice import Column
from kiln.explorer.build import Select, build, published, published_sets
from kiln.explorer.database import ExplorerDatabase
from kiln.formats.records import Chip
from tests.support.products import DIM, MergedProduct, random_vectors, shard_metadata

GRID = [Column(k, 0, 10) for k in range(10)]  # 100 chips
OTHER = shard_metadata(weights_sha256="b6" * 32, fingerprint="0e" * 32)  # of another model
INT8 = shard_metadata(fingerprint="2b" * 32, vector_dtype="int8", embedding="both")
ENTRY = {"name": "tiles", "layout": "earth-index", "model": "another model"}


def build_database(db: Path, *products: MergedProduct, **select: Any) -> dict[str, Any]:
    """Build a database from products; return what the build returns."""
    return build([p.record_file for p in products], [p.uri for p in products], str(db), Select(**select))


def read_vectors(db: Path) -> dict[str, list[float]]:
    """Return the vectors that a reader of the database sees, by chip id."""
    rows = ExplorerDatabase(str(db)).table.search().limit(1_000_000).to_arrow()
    ids = rows["chip_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, rows["vector"].to_pylist(), strict=True))


def product_vectors(*products: MergedProduct) -> dict[str, list[float]]:
    """Return the vectors of the products by chip id. If two products have a chip, the later one's vector counts."""
    vectors = {}
    for product in products:
        rows = product.rows()
        vectors |= dict(zip(rows["chip_id"].to_pylist(), rows["embeddings"].to_pylist(), strict=True))
    return {k: np.float16(v).tolist() for k, v in vectors.items()}


def file_times(db: Path) -> dict[str, int]:
    """Return the modification time in ns of every file of a database, by relative path."""
    return {str(p.relative_to(db)): p.stat().st_mtime_ns for p in Path(db).rglob("*") if p.is_file()}


def seeded_vectors(seed: int) -> Callable[[Sequence[Chip]], np.ndarray]:
    """Return a function that returns random vectors of chips, for the option `vectors` of `make_product`."""
    return lambda chips: random_vectors(chips, DIM, seed)


def read_state(db: Path) -> tuple[dict[str, Any], int]:
    """Return the state that is stored for the tagged version, and the version."""
    version = ExplorerDatabase(str(db)).table.version
    return json.loads((Path(db) / "state" / f"{version}.json").read_text()), version


def write_published(folder: Path, tile: str, count: int, dim: int = DIM, seed: int = 0) -> dict[str, list[float]]:
    """Write a file in the layout of Earth Index; return its vectors by chip id."""
    folder.mkdir(exist_ok=True)
    vectors = np.random.default_rng([seed, count]).standard_normal((count, dim)).astype(np.float32)
    rows = {
        "id": [f"{tile}-{k}" for k in range(count)],
        "embedding": list(vectors),
        "geometry": shapely.to_wkb([shapely.Point(30.05 + k / 10, -10.5) for k in range(count)]).tolist(),
    }
    pq.write_table(pa.table(rows), folder / f"{tile}_2024-01-01_2025-01-01.parquet")
    return {f"tiles:{i}": v for i, v in zip(rows["id"], np.float16(vectors).tolist(), strict=True)}


def find_published(folder: Path, **changes: Any) -> Any:
    """Return the published files of a folder, as the config entry ENTRY with changes describes them."""
    return published.files_of(published_sets.read_sets([ENTRY | {"files": str(folder)} | changes]))


def dequantised_vectors(product: MergedProduct, column: str = "embeddings") -> dict[str, list[float]]:
    """Return the dequantised vectors of an int8 product in float16, by chip id."""
    rows = product.rows()
    levels = np.array(rows[column].to_pylist(), np.float32)
    scale = rows["scale" if column == "embeddings" else "scale_mean"].to_numpy()
    return dict(zip(rows["chip_id"].to_pylist(), np.float16(levels * scale[:, None]).tolist(), strict=True))
