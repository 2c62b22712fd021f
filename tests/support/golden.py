"""A small checkpoint in the published layout, and the outputs of Clay's reference implementation with it.

The checkpoint comes from claymodel 1.5.0: an `Encoder` of 64 dimensions built with seed 11, then a tenth of a normal
random number added to every bias and norm. Its inputs are normal random numbers too. This module draws both again, bit
by bit, so that no file stores them. `clay_v1.5_micro_tokens.npz` holds the outputs of the reference implementation for
each case: time, latlon, class token, patch mean, first and last patch.
"""

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiln.model import clay
from tests import DATA

CASES: dict[str, Any] = json.loads((DATA / "clay_v1.5_micro.json").read_text())["cases"]
PIXEL_SEEDS = {"sentinel2_256": 7155, "naip_256": 2645, "worldcover_512": 8997}
OUTPUTS = ("cls", "patch_mean", "patch_first", "patch_last")
SEED, DIM, DEPTH, HEADS, DIM_HEAD, MLP, WAVE, FEED, PATCH = 11, 64, 2, 4, 16, 128, 128, 2048, 8


def pixels(case: str) -> Tensor:
    """Return the normalised pixels [B, C, H, W] of a case, rounded to half precision as the reference stores them."""
    about = CASES[case]
    shape = (about["batch"], len(about["waves"]), about["size"], about["size"])
    return torch.randn(*shape, generator=torch.Generator().manual_seed(PIXEL_SEEDS[case])).half().float()


def reference_outputs(case: str) -> dict[str, Tensor]:
    """Return time and latlon [B, 4] and the reference's tokens [B, D] of a case."""
    with np.load(DATA / "clay_v1.5_micro_tokens.npz") as file:
        return {k.partition(".")[2]: torch.from_numpy(file[k]) for k in file if k.startswith(f"{case}.")}


def checkpoint() -> dict[str, Any]:
    """Return the small Lightning checkpoint: 45 encoder tensors, and unused keys of decoder, teacher and projection."""
    g = torch.Generator().manual_seed(SEED)
    drawn: dict[str, Tensor] = {}

    def linear(name: str, out: int, width: int, bias: bool = True) -> None:
        drawn[f"{name}.weight"] = nn.init.kaiming_uniform_(torch.empty(out, width), a=math.sqrt(5), generator=g)
        if bias:
            bound = 1 / math.sqrt(width)
            drawn[f"{name}.bias"] = torch.empty(out).uniform_(-bound, bound, generator=g)

    def xavier(name: str, *shape: int) -> None:
        drawn[name] = nn.init.xavier_uniform_(torch.empty(*shape), generator=g)

    drawn["cls_token"] = torch.randn(1, 1, DIM, generator=g) * 0.02
    generator, layer = "patch_embedding.weight_generator", "patch_embedding.weight_generator.encoder.layers.0"
    linears = {
        f"{layer}.self_attn.out_proj": (WAVE, WAVE),
        f"{layer}.linear1": (FEED, WAVE),
        f"{layer}.linear2": (WAVE, FEED),
        f"{generator}.fc_weight": (DIM * PATCH**2, WAVE),
        f"{generator}.fc_bias": (DIM, WAVE),
        "patch_embedding.fclayer.l1": (WAVE, WAVE),
        "patch_embedding.fclayer.l2": (WAVE, WAVE),
    }
    for name, (out, width) in linears.items():
        if name.endswith("fclayer.l1"):
            drawn[f"{generator}.weight_tokens"] = torch.randn(128, WAVE, generator=g) * 0.02
            drawn[f"{generator}.bias_token"] = torch.randn(1, WAVE, generator=g) * 0.02
        linear(name, out, width)
        if name.endswith("out_proj"):
            xavier(f"{layer}.self_attn.in_proj_weight", 3 * WAVE, WAVE)
    for name, shape in linears.items():  # the reference draws them a second time
        xavier(f"{name}.weight", *shape)
        drawn[f"{name}.bias"] = torch.zeros(shape[0])
    drawn[f"{layer}.self_attn.in_proj_bias"] = torch.zeros(3 * WAVE)
    for norm, width in ((f"{layer}.norm1", WAVE), (f"{layer}.norm2", WAVE), ("transformer.norm", DIM)):
        drawn |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    for n in range(DEPTH):
        attention, mlp = f"transformer.layers.{n}.0", f"transformer.layers.{n}.1.net"
        for norm in (f"{attention}.norm", f"{mlp}.0"):
            drawn |= {f"{norm}.weight": torch.ones(DIM), f"{norm}.bias": torch.zeros(DIM)}
        linear(f"{attention}.to_qkv", 3 * HEADS * DIM_HEAD, DIM, bias=False)
        linear(f"{attention}.to_out", DIM, HEADS * DIM_HEAD, bias=False)
        linear(f"{mlp}.1", MLP, DIM)
        linear(f"{mlp}.3", DIM, MLP)
    state: dict[str, Tensor] = {}
    for name in names():
        tensor = drawn.pop(name)
        if tensor.ndim == 1:
            tensor = tensor + 0.1 * torch.randn(len(tensor), generator=g)
        state[f"model.encoder.{name}"] = tensor
    assert not drawn
    state["model.decoder.mask_patch"] = torch.randn(8, generator=g)
    state["model.teacher.patch_embed.proj.weight"] = torch.randn(4, 3, 2, 2, generator=g)
    state["model.proj.weight"] = torch.randn(4, 4, generator=g)
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "hyper_parameters": {
            "model_size": "large",
            "mask_ratio": 0.75,
            "patch_size": PATCH,
            "shuffle": True,
            "encoder_dim": DIM,
            "encoder_depth": DEPTH,
            "encoder_heads": HEADS,
            "encoder_dim_head": DIM_HEAD,
            "encoder_mlp_ratio": 2,
        },
        "optimizer_states": [],
        "loops": {},
    }


def names() -> list[str]:
    """Return the names of the small encoder's tensors, in the order of the reference's state_dict."""
    shapes = json.loads((DATA / "clay_v1.5_large_encoder_shapes.json").read_text())
    own = (k.removeprefix("model.encoder.") for k in shapes)
    return [k for k in own if not k.startswith("transformer.layers.") or int(k.split(".")[2]) < DEPTH]


def encode(encoder: clay.ClayEncoder, pixels: torch.Tensor, waves: list[float] | None = None, gsd: float = 10.0):
    """Return the tokens of pixels [B, C, H, W] at an unknown time and place."""
    unknown = torch.zeros(len(pixels), 4)
    wavelengths = torch.tensor(waves or [0.665, 0.56, 0.493, 0.842])
    return encoder(pixels, wavelengths=wavelengths, gsd=gsd, time=unknown, latlon=unknown)
