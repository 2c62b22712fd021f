"""The encoder's identity: its recipe, precision and weights. Every dry run imports this module: no large library."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest

RECIPE = 1  # raised whenever the same pixels and weights would give other vectors
UNTRAINED = "untrained"  # as `model.checkpoint`: seeded random weights
Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_SIZES = ("seed", "dim", "depth", "heads", "mlp_ratio")  # keys of `model.untrained`


def check_untrained(settings: Any) -> None:
    """Raise ConfigError unless `settings`, the config's `model.untrained`, describe an encoder that can be built."""
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), int) for name in _SIZES):
        raise ConfigError(f"model.untrained: expected the integers {', '.join(_SIZES)}, got {settings!r}. Correct it.")
    dim, heads = settings["dim"], settings["heads"]
    if min(heads, settings["depth"], settings["mlp_ratio"]) < 1:
        raise ConfigError(
            f"model.untrained: expected heads, depth and mlp_ratio of 1 or more, got {settings!r}. Correct it."
        )
    if dim < 16 or dim % 4 or dim % heads:
        raise ConfigError(
            f"model.untrained.dim: expected 16 or more, a multiple of 4 and of heads {heads}, got {dim}. Correct it."
        )


def weights_digest(model: Mapping[str, Any]) -> str | None:
    """Return the digest that identifies the weights.

    Args:
        model: The config's section `model`.

    Returns:
        The checkpoint's sha256; a digest of seed and sizes for untrained weights; None if the config has no digest.

    Raises:
        ConfigError: If `model.untrained` is impossible.
    """
    if model["checkpoint"] == UNTRAINED:
        check_untrained(model["untrained"])
        return digest({"untrained": model["untrained"], "recipe": RECIPE})
    return model.get("sha256") or None
