"""Matrices of whole numbers: int8 weights and activations of seven bits, twice as fast as float32 ones on x86 CPUs.

A row of weights has a scale of its own, and so has a token, whatever else is in its batch; products and sums are exact,
so that every processor comes to the same. Seven bits, since processors without VNNI add pairs of products in 16 bits.
Of a block only the matrices that a LayerNorm feeds are in whole numbers: no number there is far from the others. Those
behind the attention and the GELU would double what rounding does to a vector (tests/bench/encoder.py).
"""

import warnings

import torch
from torch import Tensor, nn

from kiln.errors import ConfigError

WEIGHTS = 127  # the largest weight of a row
TOKENS, ZERO = 63, 64  # the largest activation of a token, and what stands for none
MATRICES = ("0.to_qkv", "1.net.1")  # of a block, by the names of clay.Transformer
LEAST = 1e-12  # of a scale: a row of zeros stays one


def check(device: str) -> None:
    """Raise ConfigError where such matrices cannot be multiplied."""
    if device != "cpu":
        raise ConfigError(f"model.precision int8 is for CPUs, not --device {device}: take bfloat16, or device cpu")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ConfigError(
            "model.precision int8 wants an x86 processor (torch has no FBGEMM here): take another precision"
        )


class Int8Linear(nn.Module):
    """A linear layer [.., K] to [.., N] float32 of `weight` int8 [N, K], `scale` float32 [N] and perhaps `bias` [N]."""

    def __init__(self, of: nn.Linear) -> None:
        """Of the sizes of a linear layer; the numbers are those of a state that is loaded."""
        super().__init__()
        self.register_buffer("weight", torch.empty_like(of.weight, dtype=torch.int8, requires_grad=False))
        self.register_buffer("scale", torch.empty_like(of.weight[:, 0], requires_grad=False))
        self.bias = of.bias
        self._packed: torch.ScriptObject | None = None  # as the processor wants it, made by the first batch

    def forward(self, x: Tensor) -> Tensor:
        """[.., K] float32 to [.., N] float32."""
        if self._packed is None:
            check(str(x.device))
            torch.backends.quantized.engine = "fbgemm"
            zeros = torch.zeros(len(self.scale), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that a later one has them elsewhere; Kiln's is pinned
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)
            self._step, self._zero = torch.tensor(1 / TOKENS), torch.tensor(ZERO)
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y = product(x / scale, self._step, self._zero, self._packed).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


def fit(blocks: nn.ModuleList) -> None:
    """Put such layers where they belong in blocks of clay.Transformer, in place."""
    for block in blocks:
        for name in MATRICES:
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, Int8Linear(block.get_submodule(name)))


def quantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors by name, with those matrices rounded and a `.scale` to each; as they are if they are so."""
    made = dict(tensors)
    for name, values in tensors.items():
        matrix = name.removesuffix(".weight")
        if values.is_floating_point() and name.startswith("transformer.layers.") and matrix.endswith(MATRICES):
            values = values.float()
            scale = values.abs().amax(1).clamp_min_(LEAST) / WEIGHTS
            made[name] = (values / scale[:, None]).round_().to(torch.int8)
            made[f"{matrix}.scale"] = scale
    return made
