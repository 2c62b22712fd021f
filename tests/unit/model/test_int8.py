"""Matrices of int8: integer arithmetic, independence of the batch, distance from float32, and refused hardware."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kiln.archives.sensors import NAIP
from kiln.errors import ConfigError, WeightsError
from kiln.model import clay, int8
from kiln.model import weights as encoders
from kiln.model.embedder import Embedder, EmbedPolicy
from tests.support.chips import make_chip

GEOMETRY = clay.Geometry(dim=256, depth=4, heads=4, dim_head=64, mlp=1024)


@pytest.fixture(scope="module")
def plain() -> clay.ClayEncoder:
    return encoders.untrained_encoder(GEOMETRY, 1)


@pytest.fixture(scope="module")
def rounded(plain: clay.ClayEncoder) -> clay.ClayEncoder:
    return encoders.in_precision(plain, "int8")


def layer(bias: bool, seed: int = 0) -> tuple[nn.Linear, int8.Int8Linear]:
    """Return a linear layer of 96 to 40 numbers and the same in int8."""
    torch.manual_seed(seed)
    linear = nn.Linear(96, 40, bias=bias).requires_grad_(False)
    name = "transformer.layers.0.0.to_qkv"
    state = {k.removeprefix(f"{name}."): v for k, v in int8.quantise_tensors({f"{name}.weight": linear.weight}).items()}
    quantised = int8.Int8Linear(linear)
    quantised.load_state_dict(state | ({"bias": linear.bias} if bias else {}))
    return linear, quantised


@pytest.mark.parametrize("bias", [True, False])
def test_products_and_sums_are_those_of_integers(bias: bool) -> None:
    linear, quantised = layer(bias)
    x = torch.randn(3, 7, 96) * torch.logspace(-3, 3, 7)[:, None]
    weights, tokens = linear.weight.double().numpy(), x.double().numpy()
    scales = np.abs(weights).max(1, keepdims=True) / 127, np.abs(tokens).max(2, keepdims=True) / 63
    whole = np.rint(weights / scales[0]).astype(int), np.rint(tokens / scales[1]).astype(int)
    expected = np.einsum("btk,nk->btn", whole[1], whole[0]) * scales[1] * scales[0].T
    if bias:
        expected += linear.bias.double().numpy()
    error = np.abs(quantised(x).numpy() - expected) / scales[1]
    assert np.quantile(error, 0.99) < 1e-4, (
        "except for numbers half-way between two integers, which float32 may round differently"
    )
    assert error.max() < 2 * scales[0].max() * 127


def test_the_largest_sums_do_not_overflow() -> None:
    linear, _ = layer(False)
    linear.weight[:] = 1.0
    name = "transformer.layers.3.1.net.1"
    tensors = int8.quantise_tensors({f"{name}.weight": linear.weight})
    quantised = int8.Int8Linear(linear)
    quantised.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items()})
    for value in (1.0, -1.0):
        assert quantised(torch.full((2, 96), value)).numpy() == pytest.approx(96 * value, rel=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    _, quantised = layer(False)
    assert torch.equal(quantised(torch.zeros(2, 96)), torch.zeros(2, 40))


def test_a_token_does_not_depend_on_others_in_the_batch() -> None:
    _, quantised = layer(True)
    x = torch.randn(5, 33, 96)
    together = quantised(x)
    assert torch.equal(quantised(x[2:3]), together[2:3])
    x[0] *= 1000  # another chip of the batch with far larger numbers
    assert torch.equal(quantised(x)[1:], together[1:])


def test_only_the_matrices_behind_a_layer_norm_are_int8(rounded: clay.ClayEncoder) -> None:
    whole = sorted(k for k, v in rounded.state_dict().items() if v.dtype == torch.int8)
    blocks = range(GEOMETRY.depth)
    assert whole == sorted(f"transformer.layers.{n}.{m}.weight" for n in blocks for m in ("0.to_qkv", "1.net.1"))
    assert {v.dtype for k, v in rounded.state_dict().items() if k not in whole} == {torch.float32}


@pytest.mark.parametrize("keep", ["class", "mean"])
def test_vectors_lie_near_those_of_float32_and_nearer_than_other_chips(
    plain: clay.ClayEncoder, rounded: clay.ClayEncoder, keep: str
) -> None:
    pixels = np.random.default_rng(2).integers(1, 255, (4, 4, 64, 64)).astype(np.uint8)
    chips = [make_chip(n, pixels=p) for n, p in enumerate(pixels)]
    policy = EmbedPolicy("zeros", 1.0, embedding=keep)  # type: ignore[arg-type]
    exact, near = (Embedder(e, NAIP, policy, 4)(chips)["embeddings"] for e in (plain, rounded))
    exact, near = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (exact, near))
    cosines = exact @ near.T
    assert np.diag(cosines).min() > 0.9995
    assert not np.array_equal(exact, near)
    assert cosines[~np.eye(4, dtype=bool)].max() < np.diag(cosines).min()


def test_a_padded_batch_gives_equal_vectors(rounded: clay.ClayEncoder) -> None:
    pixels = np.random.default_rng(3).integers(1, 255, (4, 4, 32, 32)).astype(np.uint8)
    chips = [make_chip(n, pixels=p) for n, p in enumerate(pixels)]
    embed = Embedder(rounded, NAIP, EmbedPolicy("zeros", 1.0), 4)
    assert np.array_equal(embed(chips)["embeddings"][:1], embed(chips[:1])["embeddings"])


def test_an_encoder_may_be_copied_after_its_first_batch_or_before(rounded: clay.ClayEncoder) -> None:
    inputs = {"wavelengths": torch.tensor(NAIP.wavelengths), "gsd": 1.0, "time": torch.zeros(1, 4)}
    pixels = torch.randn(1, 4, 32, 32)
    first = rounded(pixels, latlon=torch.zeros(1, 4), **inputs)
    for encoder in (copy.deepcopy(rounded), encoders.in_precision(rounded, "int8")):
        assert torch.equal(encoder(pixels, latlon=torch.zeros(1, 4), **inputs), first)


def test_int8_weights_cannot_be_loaded_as_float32(rounded: clay.ClayEncoder) -> None:
    with pytest.raises(WeightsError, match=r"expected weights for float32, got int8 ones\. Load the checkpoint"):
        encoders.in_precision(rounded, "float32")


def test_a_gpu_is_refused(plain: clay.ClayEncoder) -> None:
    with pytest.raises(ConfigError, match=r"expected device cpu, got cuda:0\. int8 is for CPUs"):
        encoders.in_precision(plain, "int8", "cuda:0")


def test_a_cpu_without_int8_products_is_refused(plain: clay.ClayEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: [0, 2])  # qnnpack, as ARM has it
    with pytest.raises(ConfigError, match="int8: expected an x86 CPU"):
        encoders.in_precision(plain, "int8")


def test_a_row_of_zeros_has_a_scale_and_stays_zero():
    quantised = int8.quantise_tensors({"transformer.layers.0.0.to_qkv.weight": torch.zeros(2, 4)})
    assert not quantised["transformer.layers.0.0.to_qkv.weight"].any()
    assert (quantised["transformer.layers.0.0.to_qkv.scale"] > 0).all()
