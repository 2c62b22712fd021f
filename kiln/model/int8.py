"""Linear layers of int8 weights and 7-bit activations, twice as fast as float32 ones on x86 CPUs.

Each row of weights has its own scale, and so has each token, which does not depend on its batch. Products and sums are
exact, so every processor computes the same numbers. Activations have 7 bits, since processors without VNNI add pairs
of products in 16 bits. Only the matrices that a LayerNorm feeds are int8, since no number there is far from the
others. The matrices behind the attention and the GELU would double the rounding error of a vector
(tests/bench/encoder.py).
"""

import warnings

import torch
from torch import Tensor, nn

from kiln.errors import ConfigError

MAX_WEIGHT = 127  # magnitude of a quantised weight
MAX_ACTIVATION = 63  # magnitude of a quantised activation
ZERO_POINT = 64  # the unsigned number that stands for an activation of zero
MATRICES = ("0.to_qkv", "1.net.1")  # of a block, by the names of clay.Transformer
MIN_SCALE = 1e-12  # so that a row of zeros stays zero


def require_int8(device: str) -> None:
    """Raise ConfigError unless int8 layers run on `device`."""
    if device != "cpu":
        raise ConfigError(f"model.precision int8: expected device cpu, got {device}. int8 is for CPUs: take bfloat16.")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ConfigError("model.precision int8: expected an x86 CPU, got one without FBGEMM. Take another precision.")


class Int8Linear(nn.Module):
    """A linear layer [.., K] to [.., N] float32: `weight` int8 [N, K], `scale` float32 [N] and optional `bias` [N]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Take the shapes of a linear layer; its numbers are loaded later from a state dict."""
        super().__init__()
        self.register_buffer("weight", torch.empty_like(linear.weight, dtype=torch.int8, requires_grad=False))
        self.register_buffer("scale", torch.empty_like(linear.weight[:, 0], requires_grad=False))
        self.bias = linear.bias
        self._packed: torch.ScriptObject | None = None  # the weights in the processor's layout, from the first batch on

    def forward(self, x: Tensor) -> Tensor:
        """[.., K] float32 to [.., N] float32."""
        if self._packed is None:
            require_int8(str(x.device))
            torch.backends.quantized.engine = "fbgemm"
            zeros = torch.zeros(len(self.scale), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces a move of this function; Kiln pins its version
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)
            self._step, self._zero = torch.tensor(1 / MAX_ACTIVATION), torch.tensor(ZERO_POINT)
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(MIN_SCALE)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = multiply(x / scale, self._step, self._zero, self._packed).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


def replace_linears(blocks: nn.ModuleList) -> None:
    """Replace the MATRICES of a transformer's blocks by int8 layers, in place."""
    for block in blocks:
        for name in MATRICES:
            parent, _, child = name.rpartition(".")
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            setattr(block.get_submodule(parent), child, Int8Linear(linear))


def quantise_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors by name with the MATRICES as int8, each with a `.scale`; int8 ones are unchanged."""
    quantised = dict(tensors)
    for name, values in tensors.items():
        matrix = name.removesuffix(".weight")
        if values.is_floating_point() and name.startswith("transformer.layers.") and matrix.endswith(MATRICES):
            values = values.float()
            scale = values.abs().amax(1).clamp_min_(MIN_SCALE) / MAX_WEIGHT
            quantised[name] = (values / scale[:, None]).round_().to(torch.int8)
            quantised[f"{matrix}.scale"] = scale
    return quantised
