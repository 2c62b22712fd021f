"""Size and recall of products: bytes per million chips and recall@10 for every vector dtype and embedding kind.

    python -m tests.bench.products [--chips 5000] [--depth 2] [--chip 32]

Clay's encoder embeds chips of the sample's landscape to vectors of 1024 numbers. Its weights are untrained and seeded.
It has fewer blocks and smaller chips than usual, so that a laptop embeds thousands of chips in a minute. The vectors of
an untrained model are similar to each other (the mean cosine of two chips is printed), so rounding affects the recall
more than with a trained model. Files are written like shards, so the bytes include every column.

Recall@10 is the fraction of the ten nearest chips by cosine among the float32 vectors that is also found among the
stored vectors, over 500 chips. It is printed for the stored vectors, and for their float16 values in the explorer.
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
from kiln.archives.worldcover.columns import COLUMNS
from kiln.formats import embeddings_file, vectors
from kiln.model.clay import Geometry
from kiln.model.embedder import Embedder, EmbedPolicy
from kiln.model.weights import untrained_encoder
from kiln.sample.worldcover import DEFAULT_TILES, draw_tile, tile_corner
from tests.support.products import WORLD, chip_at, shard_metadata

DIM, PPD, BATCH, QUERIES, K = 1024, 1200, 64, 500, 10
MIN_RECALL = {"float32": 1.0, "float16": 0.98, "int8": 0.90}


def pixels(count: int, chip: int) -> np.ndarray:
    """Return random chips [n, 4, chip, chip] of the sample's landscape, without chips that have sea."""
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
    """Return chips with places, and both kinds of vectors [n, D] float32."""
    encoder = untrained_encoder(Geometry(depth=depth), 7)
    embedder = Embedder(encoder, WORLDCOVER, EmbedPolicy("zeros", 10.0, "float32", "both"), BATCH)
    images = pixels(count, chip)
    chips = [chip_at(WORLD, 2021, n // 585, n % 585) for n in range(len(images))]
    batches = []
    for first in range(0, len(chips), BATCH):
        some = chips[first : first + BATCH]
        for c, image in zip(some, images[first : first + BATCH], strict=True):
            c.pixels = image
        batches.append(embedder(some))
    return chips, vectors.concatenate(batches)


def nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the K nearest rows by cosine [q, K] of queries (rows of `points`), without the queries themselves."""
    unit = points.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit[queries] @ unit.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-cosines, K, axis=1)[:, :K]


def recall(true: np.ndarray, found: np.ndarray) -> float:
    """Return the fraction of the true neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(true.tolist(), found.tolist(), strict=True)]))


def product(
    chips: list[Any], floats: vectors.Columns, vector_dtype: Any, embedding: Any, folder: Path
) -> dict[str, Any]:
    """Write and read a product of a vector dtype and embedding kind; return its size and its recall by kind."""
    kinds = vectors.KINDS[embedding]
    exact = {name: floats["embeddings" if kind == "class" else "embeddings_mean"] for name, kind in kinds.items()}
    kiln = shard_metadata(dimensions=DIM, vector_dtype=vector_dtype, embedding=embedding)
    columns = embeddings_file.schema(DIM, vector_dtype, COLUMNS, kiln, embedding)
    path = folder / f"{vector_dtype}-{embedding}.parquet"
    with embeddings_file.ShardWriter(path, columns) as out:
        out.append(chips, vectors.store(exact, vector_dtype))
    queries = np.sort(np.random.default_rng(1).permutation(len(chips))[:QUERIES])
    rows = pq.read_table(path)
    row: dict[str, Any] = {
        "vector_dtype": vector_dtype,
        "embedding": embedding,
        "mb_per_million": round(path.stat().st_size / len(chips)),  # bytes per chip equal MB per million chips
        "recall": {},
        "recall_float16": {},
    }
    for name, kind in kinds.items():
        true, stored = nearest(exact[name], queries), vectors.read(rows, name)
        row["recall"][kind] = round(recall(true, nearest(stored, queries)), 4)
        row["recall_float16"][kind] = round(recall(true, nearest(stored.astype(np.float16), queries)), 4)
    return row


def shown(values: dict[str, float]) -> str:
    """Return the recalls of class and mean as text, with blanks for a kind that is not stored."""
    return " ".join(f"{values[k]:7.4f}" if k in values else f"{'':7}" for k in ("class", "mean"))


def main(argv: list[str] | None = None) -> None:
    """Print a table and a line of JSON; exit with 1 if a recall is below its limit."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.products", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--chips", type=int, default=5000, help="number of chips (default: %(default)s)")
    p.add_argument("--chip", type=int, default=32, help="pixels of a chip's side (default: %(default)s)")
    p.add_argument("--depth", type=int, default=2, help="blocks of the encoder (default: %(default)s)")
    args = p.parse_args(argv)
    chips, floats = encoded(args.chips, args.chip, args.depth)
    mean_cosines = {}
    for name, kind in vectors.KINDS["both"].items():
        some = floats[name][np.random.default_rng(2).permutation(len(chips))[:500]].astype(np.float64)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        mean_cosines[kind] = round(float((some @ some.T)[np.triu_indices(len(some), 1)].mean()), 4)
    cosines = ", ".join(f"{kind} {value:.3f}" for kind, value in mean_cosines.items())
    print(f"{len(chips)} chips of {args.chip} px, {DIM} numbers, {args.depth} blocks; mean cosine: {cosines}")
    print(f"{'':18} {'a million chips':>15}   {'recall@10 of stored':>19}   {'of float16 of them':>19}")
    print(f"{'vector_dtype':8} {'embedding':9} {'GB':>15}   {'class':>9} {'mean':>9}   {'class':>9} {'mean':>9}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        for vector_dtype in vectors.VECTOR_DTYPES:
            for embedding in vectors.EMBEDDINGS:
                f = product(chips, floats, vector_dtype, embedding, Path(folder))
                rows.append(f)
                size = f["mb_per_million"] / 1000
                print(
                    f"{vector_dtype:8} {embedding:9} {size:15.2f}     {shown(f['recall'])}"
                    f"     {shown(f['recall_float16'])}"
                )
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
    }
    about = {"bench": "products", **machine, "chips": len(chips), "mean_cosine": mean_cosines}
    print(json.dumps({**about, "products": rows}))
    if low := [f for f in rows if min(f["recall"].values()) < MIN_RECALL[f["vector_dtype"]]]:
        raise SystemExit(f"recall is below {MIN_RECALL}: {low}")


if __name__ == "__main__":
    main()
