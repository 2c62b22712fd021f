"""The fingerprint: the digest of everything that changes a vector's value, known before anything runs.

It names the folder of a dataset, so that nothing made otherwise can be mixed in. Read by the Snakefile when it is
parsed, hence without torch: the `RECIPE` of a module is read off its source.
"""

import ast
import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from scripts.kiln.errors import ConfigError
from scripts.kiln.sensors import SENSORS

UNTRAINED = "untrained"  # as `model.checkpoint`: seeded random weights
PRECISIONS = ("float32", "bfloat16", "int8")  # of `model.precision`


@cache
def recipe(module: str) -> int:
    """The integer `RECIPE` of a module beside this one, without importing it."""
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "RECIPE" for t in node.targets):
            return int(ast.literal_eval(node.value))
    raise ConfigError(f"scripts/kiln/{module}.py has no RECIPE")


def digest(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_untrained(settings: Any) -> None:
    """Raise ConfigError unless `model.untrained` describes an encoder that can be."""
    names = ("seed", "dim", "depth", "heads", "mlp_ratio")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(n), int) for n in names):
        raise ConfigError(f"model.untrained: {settings!r}: want the whole numbers {', '.join(names)}")
    dim, heads = settings["dim"], settings["heads"]
    if dim < 16 or min(heads, settings["depth"], settings["mlp_ratio"]) < 1 or dim % 4 or dim % heads:
        raise ConfigError(f"model.untrained: dim {dim} must be 16 or more and divide by 4 and by heads {heads}")


def weights_digest(model: dict[str, Any]) -> str | None:
    """What identifies the weights: the checkpoint's sha256; for untrained ones that of seed and geometry."""
    if model["checkpoint"] == UNTRAINED:
        check_untrained(model["untrained"])
        return digest({"untrained": model["untrained"], "recipe": recipe("clay")})
    return model.get("sha256") or None


def fingerprint(
    dataset: str,
    *,
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
            "sensor": asdict(SENSORS[dataset]),
            "recipes": {m: recipe(m) for m in ("clay", dataset)},
        }
    )
