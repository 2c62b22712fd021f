"""The fingerprint: the digest of everything that changes a vector's value, known before anything runs.

It names the folder of a dataset, so that nothing made otherwise can be mixed in. Every dry run imports
this module, so it imports nothing heavy.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kiln.formats.sensor import Sensor


def digest(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
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
    lattice: dict[str, Any],
    embedding: str = "class",
    patches: bool = False,
) -> str:
    """sha256 over what changes a vector's value: the settings, the sensor's table and the recipes.

    `weights` is what `weights_digest` gives; `lattice` says how chips are laid out (chip size, pixels per degree,
    whole chips or quarters, for WorldCover). Files of patches, where they are wanted, lie beside shards of their own.
    """
    return digest(
        {
            "dataset": dataset,
            "embedding": embedding,
            **({"patches": True} if patches else {}),
            "weights": weights,
            "precision": precision,
            "storage": dtype,
            "metadata": metadata,
            "gsd": gsd,
            "max_nodata": float(max_nodata),
            "max_cloud": None if max_cloud is None else float(max_cloud),
            "lattice": lattice,
            "sensor": asdict(sensor),
            "recipes": dict(recipes),
        }
    )
