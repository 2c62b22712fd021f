"""What identifies the encoder: its recipe, precisions and weights. Every dry run imports this module: nothing heavy."""

from typing import Any

from kiln.errors import ConfigError
from kiln.formats.fingerprint import digest

RECIPE = 1  # raised whenever the same pixels and weights would give other vectors
UNTRAINED = "untrained"  # as `model.checkpoint`: seeded random weights
PRECISIONS = ("float32", "bfloat16", "int8")  # of `model.precision`


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
        return digest({"untrained": model["untrained"], "recipe": RECIPE})
    return model.get("sha256") or None
