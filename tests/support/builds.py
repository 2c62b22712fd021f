"""Build explorer databases from products and published files, and read them back."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from kiln.archives.worldcover.lattice import Column
from kiln.explorer.build import Select, build, published, published_sets
from kiln.explorer.database import ExplorerDatabase
from tests.support.products import DIM, about, drawn

GRID = [Column(k, 0, 10) for k in range(10)]  # 100 chips
OTHER = about(weights_sha256="b6" * 32, fingerprint="0e" * 32)


def build_of(db, *made, **select):
    return build([m.record_file for m in made], [m.uri for m in made], str(db), Select(**select))


def ready(db):
    """Return the vectors that a reader of the database sees, by chip id."""
    rows = ExplorerDatabase(str(db)).table.search().limit(1_000_000).to_arrow()
    ids = rows["chip_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, rows["vector"].to_pylist(), strict=True))


def wanted(*made):
    """Return the vectors of the products by chip id. If two products have a chip, the later one's vector counts."""
    vectors = {}
    for m in made:
        rows = m.rows()
        vectors |= dict(zip(rows["chip_id"].to_pylist(), rows["embeddings"].to_pylist(), strict=True))
    return {k: np.float16(v).tolist() for k, v in vectors.items()}


def files(db):
    return {str(p.relative_to(db)): p.stat().st_mtime_ns for p in Path(db).rglob("*") if p.is_file()}


def seeded(seed):
    return lambda chips: drawn(chips, DIM, seed)


def state_of(db):
    """Return the state that is stored for the tagged version, and the version."""
    version = ExplorerDatabase(str(db)).table.version
    return json.loads((Path(db) / "state" / f"{version}.json").read_text()), version


ENTRY = {"name": "tiles", "layout": "earth-index", "model": "another model"}


def publish(folder, tile, count, dim=DIM, seed=0):
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


def published_of(folder, **changes):
    return published.files_of(published_sets.read_sets([ENTRY | {"files": str(folder)} | changes]))


INT8 = about(fingerprint="2b" * 32, storage="int8", embedding="both")


def numbers(made, column="embeddings"):
    """Return the dequantised vectors of an int8 product in float16, by chip id."""
    rows = made.rows()
    levels = np.array(rows[column].to_pylist(), np.float32)
    scale = rows["scale" if column == "embeddings" else "scale_mean"].to_numpy()
    return dict(zip(rows["chip_id"].to_pylist(), np.float16(levels * scale[:, None]).tolist(), strict=True))
