"""What products cost and what that costs: bytes per million chips and recall@10 for every storage and embedding.

    python -m tests.bench.products [--chips 5000] [--depth 2] [--chip 32]

The vectors are Clay's encoder's, 1024 numbers, of chips cut from the sample's landscape, under seeded untrained weights
of fewer blocks and on smaller chips than the real ones, so that a laptop makes thousands in a minute. Untrained tokens
are all much alike (the mean cosine of two chips is printed), which is harder on rounding than what a trained model
makes. Files are written as shards are, so bytes count every column. Recall@10 is the share of the ten nearest by
cosine among the float32 vectors that is found among the stored ones, over 500 of the chips; it is printed for the
stored numbers and for what the explorer makes of them, float16.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kiln.archives.sensors import WORLDCOVER
from kiln.formats import embeddings_file, vectors
from kiln.model.clay import Geometry
from kiln.model.embedder import Embedder, EmbedPolicy
from kiln.model.weights import untrained_encoder
from kiln.sample.worldcover import DEFAULT_TILES, draw_tile, tile_corner
from tests.support.products import WORLD, YEAR, about, chip_at

DIM, PPD, BATCH, QUERIES, K = 1024, 1200, 64, 500, 10
LEAST_RECALL = {"float32": 1.0, "float16": 0.98, "int8": 0.90}  # what a change may not go below unseen


def pixels(count: int, chip: int) -> np.ndarray:
    """Chips [n, 4, chip, chip] of the sample's landscape, tile by tile, without those in the sea."""
    cut: list[np.ndarray] = []
    for name in DEFAULT_TILES:
        tile = draw_tile(*tile_corner(name), PPD, 2021, 0)
        side = PPD // chip
        tile = tile[:, : side * chip, : side * chip].reshape(4, side, chip, side, chip)
        chips = tile.transpose(1, 3, 0, 2, 4).reshape(-1, 4, chip, chip)
        cut.append(chips[chips.any(axis=1).all(axis=(1, 2))])
    every = np.concatenate(cut)
    return every[np.sort(np.random.default_rng(0).permutation(len(every))[:count])]


def encoded(count: int, chip: int, depth: int) -> tuple[list[Any], vectors.Columns]:
    """Chips with places, and both kinds of vectors [n, D] float32 of them."""
    encoder = untrained_encoder(Geometry(depth=depth), 7)
    embedder = Embedder(encoder, WORLDCOVER, EmbedPolicy("zeros", 10.0, "float32", "both"), BATCH)
    images = pixels(count, chip)
    chips = [chip_at(WORLD, 2021, n // 585, n % 585) for n in range(len(images))]
    found = []
    for first in range(0, len(chips), BATCH):
        some = chips[first : first + BATCH]
        for c, image in zip(some, images[first : first + BATCH], strict=True):
            c.pixels = image
        found.append(embedder(some))
    return chips, vectors.concatenate(found)


def nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The K nearest by cosine [q, K] of queries (rows of `points`), themselves left out."""
    unit = points.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    likeness = unit[queries] @ unit.T
    likeness[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-likeness, K, axis=1)[:, :K]


def recall(true: np.ndarray, found: np.ndarray) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(true.tolist(), found.tolist(), strict=True)]))


def product(chips: list[Any], floats: vectors.Columns, storage: Any, embedding: Any, folder: Path) -> dict[str, Any]:
    """A product of this storage and embedding, written and read again: bytes, and recall by kind of vector."""
    kinds = vectors.KINDS[embedding]
    wanted = {name: floats["embeddings" if kind == "class" else "embeddings_mean"] for name, kind in kinds.items()}
    kiln = about(dimensions=DIM, storage=storage, embedding=embedding)
    columns = embeddings_file.schema(DIM, storage, [YEAR], kiln, embedding)
    path = folder / f"{storage}-{embedding}.parquet"
    with embeddings_file.ShardWriter(path, columns) as out:
        out.append(chips, vectors.store(wanted, storage))
    queries = np.sort(np.random.default_rng(1).permutation(len(chips))[:QUERIES])
    rows = pq.read_table(path)
    made: dict[str, Any] = {
        "storage": storage,
        "embedding": embedding,
        "mb_per_million": round(path.stat().st_size / len(chips)),  # bytes a chip are megabytes a million
        "recall": {},
        "recall_float16": {},
    }
    for name, kind in kinds.items():
        true, stored = nearest(wanted[name], queries), vectors.read(rows, name)
        made["recall"][kind] = round(recall(true, nearest(stored, queries)), 4)
        made["recall_float16"][kind] = round(recall(true, nearest(stored.astype(np.float16), queries)), 4)
    return made


def shown(values: dict[str, float]) -> str:
    """Recall of class and mean, as far as they are kept."""
    return " ".join(f"{values[k]:7.4f}" if k in values else f"{'':7}" for k in ("class", "mean"))


def main(argv: list[str] | None = None) -> None:
    """Print a table and a line of JSON; exits 1 where recall is lower than it should be."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.products", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--chips", type=int, default=5000, help="of the landscape's (default: %(default)s)")
    p.add_argument("--chip", type=int, default=32, help="pixels of a chip's side (default: %(default)s)")
    p.add_argument("--depth", type=int, default=2, help="blocks of the encoder (default: %(default)s)")
    args = p.parse_args(argv)
    chips, floats = encoded(args.chips, args.chip, args.depth)
    alike = {}
    for name, kind in vectors.KINDS["both"].items():
        some = floats[name][np.random.default_rng(2).permutation(len(chips))[:500]].astype(np.float64)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        alike[kind] = round(float((some @ some.T)[np.triu_indices(len(some), 1)].mean()), 4)
    told = ", ".join(f"{kind} {value:.3f}" for kind, value in alike.items())
    print(f"{len(chips)} chips of {args.chip} px, {DIM} numbers, {args.depth} blocks; mean cosine of two chips: {told}")
    print(f"{'':18} {'a million chips':>15}   {'recall@10 of stored':>19}   {'of float16 of them':>19}")
    print(f"{'storage':8} {'embedding':9} {'GB':>15}   {'class':>9} {'mean':>9}   {'class':>9} {'mean':>9}")
    made = []
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        for storage in vectors.VECTOR_DTYPES:
            for embedding in vectors.EMBEDDINGS:
                f = product(chips, floats, storage, embedding, Path(folder))
                made.append(f)
                size = f["mb_per_million"] / 1000
                print(
                    f"{storage:8} {embedding:9} {size:15.2f}     {shown(f['recall'])}     {shown(f['recall_float16'])}"
                )
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
    }
    print(json.dumps({"bench": "products", **machine, "chips": len(chips), "mean_cosine": alike, "products": made}))
    if low := [f for f in made if min(f["recall"].values()) < LEAST_RECALL[f["storage"]]]:
        raise SystemExit(f"recall is below {LEAST_RECALL}: {low}")


if __name__ == "__main__":
    main()
