"""The fingerprint: the digest of everything that changes a vector's value, known before any job runs.

It is part of the name of a dataset's folder, so vectors of different settings never mix. Every dry run imports this
module, so it imports no large library.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kiln.formats.sensor import Sensor


def digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fingerprint(
    dataset: str,
    *,
    sensor: Sensor,
    recipes: Mapping[str, int],
    weights: str,
    precision: str,
    dtype: str,
    metadata: str,
    gsd: str,
    max_nodata: float,
    max_cloud: float | None,
    lattice: Mapping[str, Any],
    embedding: str = "class",
    patches: bool = False,
) -> str:
    """Return the fingerprint of a dataset.

    Args:
        dataset: Name of the archive.
        sensor: The bands as the model sees them.
        recipes: Recipes by name. A recipe is an integer that is raised whenever code would give other vectors.
        weights: Digest of the weights, as `weights_digest` returns it.
        precision: Precision of the encoder.
        dtype: Dtype of the vectors in the files.
        metadata: Date and place that the model is given.
        gsd: Pixel size that the model is given.
        max_nodata: Largest fraction of nodata in an embedded chip.
        max_cloud: Largest fraction of cloud in an embedded chip; None for an archive without a cloud filter.
        lattice: The lattice of chips, as `chip_size` in pixels.
        embedding: Kind of vectors.
        patches: Whether patch vectors are written too; their shards are never mixed with shards without patches.

    Returns:
        sha256 in hex.
    """
    return digest(
        {
            "dataset": dataset,
            "embedding": embedding,
            **({"patches": True} if patches else {}),
            "weights": weights,
            "precision": precision,
            "vector_dtype": dtype,
            "metadata": metadata,
            "gsd": gsd,
            "max_nodata": float(max_nodata),
            "max_cloud": None if max_cloud is None else float(max_cloud),
            "lattice": dict(lattice),
            "sensor": asdict(sensor),
            "recipes": dict(recipes),
        }
    )


def product_digest(shards: Sequence[str], merge_flags: Sequence[str] = ()) -> str:
    """Return the name of a product's record and folder: a digest of its shards and of how they are merged.

    Args:
        shards: Names of the shards.
        merge_flags: The flags of the merge that change a product.
    """
    return digest([shards, *merge_flags] if merge_flags else shards)[:16]


def shard_name(place: str, units: Sequence[str]) -> str:
    """Return the name of a shard: its place among the shards, the number of its units, and a digest of them."""
    return f"{place}-{len(units):03d}-{digest(units)[:8]}"
