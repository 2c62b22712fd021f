"""Encoders read from the published checkpoint or the safetensors made of it, in a precision; saved; drawn at random."""

import errno
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kiln.errors import WeightsError
from kiln.model import int8
from kiln.model.clay import KERNEL_SCALE, ClayEncoder, Geometry

Precision = Literal["float32", "bfloat16", "int8"]
# Of int8 those numbers that are no whole ones (kiln/model/int8.py).
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
PREFIX = "model.encoder."  # of the encoder's tensors in the published Lightning checkpoint
HEADS = {"tiny": (4, 48), "small": (6, 64), "base": (12, 64), "large": (16, 64)}  # heads x width by model_size


def load_encoder(weights: Path, *, precision: Precision = "float32", device: str = "cpu") -> ClayEncoder:
    """Load the encoder from the published checkpoint (.ckpt) or from the safetensors file extracted from it.

    Raises WeightsError, naming the file and the tensor, for a missing, surplus or misshapen tensor, a truncated
    file or a file of something else; ConfigError for a device that the precision is not for.
    """
    tensors, hyper = read_tensors(Path(weights))
    return _assembled(tensors, read_geometry(tensors, hyper, Path(weights)), hyper, precision, device, Path(weights))


def in_precision(encoder: ClayEncoder, precision: Precision, device: str = "cpu") -> ClayEncoder:
    """The same encoder in another precision or on another device. Raises ConfigError as `load_encoder`."""
    told = encoder.geometry, encoder.about, precision, device, Path("encoder")
    return _assembled(encoder.state_dict(), *told)


def _assembled(
    tensors: dict[str, Tensor], geometry: Geometry, about: dict[str, Any], precision: Precision, device: str, path: Path
) -> ClayEncoder:
    if precision != "int8" and f"transformer.layers.0.{int8.MATRICES[0]}.scale" in tensors:
        raise WeightsError(f"{path}: rounded to int8, of which no {precision} comes: take the checkpoint it is made of")
    with torch.device("meta"):
        encoder = ClayEncoder(geometry, about)
    if precision == "int8":
        int8.check(device)
        int8.fit(encoder.transformer.layers)
        tensors = int8.quantised(tensors)
    _check(tensors, encoder, path)
    dtype = DTYPES[precision]
    state = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in tensors.items()}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


def read_about(weights: Path) -> dict[str, Any]:
    """What a safetensors file made by `encoder_weights` says of itself, without reading a tensor.

    `sha256` of the checkpoint, `precision`, `untrained`, `geometry` and more. Raises WeightsError.
    """
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such weights file; make it with `snakemake encoder_weights`")
    try:
        with safe_open(weights, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("kiln", "{}"))
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{weights}: not a whole safetensors file ({_first_line(e)}); make it again") from e
    if not {"sha256", "precision", "geometry"} <= set(about):
        raise WeightsError(f"{weights}: not made by `snakemake encoder_weights`; extract the encoder with it")
    return about


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's tensors, by their names without prefix, and the hyper-parameters; both kinds memory-mapped."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; make it with `snakemake encoder_weights`")
    try:
        with path.open("rb") as f:
            head = f.read(9)
        if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            with safe_open(path, framework="pt") as file:
                hyper = json.loads((file.metadata() or {}).get("kiln", "{}"))
                return {k: file.get_tensor(k) for k in file.keys()}, hyper  # noqa: SIM118 (no mapping)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        raise WeightsError(f"{path}: truncated, or no weights file at all ({_first_line(e)}); fetch it again") from e
    except Exception as e:  # pickle.UnpicklingError has no common base with the others
        if type(e).__name__ != "UnpicklingError":
            raise
        raise WeightsError(f"{path}: not a checkpoint of tensors alone ({_first_line(e)})") from e
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise WeightsError(f"{path}: a checkpoint without `state_dict`: not Clay's Lightning layout")
    state = checkpoint["state_dict"]
    tensors = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    if not tensors:
        raise WeightsError(f"{path}: no tensor named {PREFIX}*: a checkpoint of another model")
    return tensors, dict(checkpoint.get("hyper_parameters") or {})


def read_geometry(tensors: dict[str, Tensor], hyper: dict[str, Any], path: Path) -> Geometry:
    """Sizes read off shapes; heads and head width from the hyper-parameters, else the published width of 64.

    `encoder_heads` and `encoder_dim_head` win over `model_size`, whose published sizes are in `HEADS`.
    """

    def shape(name: str, rank: int) -> torch.Size:
        if name not in tensors:
            raise WeightsError(f"{path}: tensor {PREFIX}{name} is missing")
        if tensors[name].ndim != rank:
            raise WeightsError(f"{path}: tensor {PREFIX}{name} has {tensors[name].ndim} axes, want {rank}")
        return tensors[name].shape

    dim = shape("cls_token", 3)[-1]
    blocks = {k.split(".")[2] for k in tensors if k.startswith("transformer.layers.")}
    depth = 1 + max((int(b) for b in blocks if b.isdigit()), default=-1)
    inner = shape("transformer.layers.0.0.to_qkv.weight", 2)[0] // 3
    mlp = shape("transformer.layers.0.1.net.1.weight", 2)[0]
    wave_tokens, wave_dim = shape("patch_embedding.weight_generator.weight_tokens", 2)
    wave_mlp = shape("patch_embedding.weight_generator.encoder.layers.0.linear1.weight", 2)[0]
    patch = math.isqrt(shape("patch_embedding.weight_generator.fc_weight.weight", 2)[0] // dim)
    heads, dim_head = HEADS.get(hyper.get("model_size", ""), (inner // 64, 64))
    dim_head = hyper.get("encoder_dim_head", dim_head)
    heads = hyper.get("encoder_heads", heads)
    if heads * dim_head != inner:
        raise WeightsError(
            f"{path}: {heads} heads of {dim_head} make {heads * dim_head} channels, but {PREFIX}transformer.layers."
            f"0.0.to_qkv.weight has {inner}: the hyper-parameters belong to another model"
        )
    return Geometry(dim, depth, heads, dim_head, mlp, patch, wave_dim, wave_tokens, wave_mlp)


def _check(tensors: dict[str, Tensor], encoder: ClayEncoder, path: Path) -> None:
    state = encoder.state_dict()
    expected = {k: v.shape for k, v in state.items()}
    problems = [f"{PREFIX}{k} is missing" for k in expected if k not in tensors]
    problems += [f"{PREFIX}{k} is not of this encoder" for k in tensors if k not in expected]
    problems += [
        f"{PREFIX}{k} has shape {tuple(tensors[k].shape)}, want {tuple(s)}"
        for k, s in expected.items()
        if k in tensors and tensors[k].shape != s
    ]
    problems += [
        f"{PREFIX}{k} is {v.dtype}"
        for k, v in tensors.items()
        if v.is_floating_point() != (k not in state or state[k].is_floating_point())
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{path}: {'; '.join(problems[:5])}{more}")


def save_encoder(encoder: ClayEncoder, path: Path, about: dict[str, Any]) -> None:
    """Write safetensors in the encoder's precision; `about` and the head sizes go into its metadata.

    Raises OSError for what the disk says.
    """
    g = asdict(encoder.geometry)
    about = about | {"geometry": g, "encoder_heads": g["heads"], "encoder_dim_head": g["dim_head"]}
    tensors = {k: v.contiguous() for k, v in encoder.state_dict().items()}
    try:
        save_file(tensors, path, metadata={"kiln": json.dumps(about, sort_keys=True)})
    except SafetensorError as e:  # what the disk says, as other writers say it
        number = re.search(r"os error (\d+)", str(e))
        raise OSError(int(number[1]) if number else errno.EIO, _first_line(e)) from e


def untrained_encoder(geometry: Geometry, seed: int) -> ClayEncoder:
    """An encoder of seeded random weights: for demonstrations and tests, no use for science.

    Each tensor is drawn from its own generator in the order of its name, so a value depends on nothing else.
    Weights have the variance 1/fan-in, so that signals of different places stay apart through the blocks.
    """
    with torch.device("meta"):
        encoder = ClayEncoder(geometry)
    state = {}
    for n, (name, meta) in enumerate(sorted(encoder.state_dict().items())):
        generator = torch.Generator().manual_seed(seed * 100_003 + n)
        if name.endswith("norm.weight") or (name.endswith("weight") and meta.ndim == 1):
            state[name] = torch.ones(meta.shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros(meta.shape)
        else:
            scale = meta.shape[-1] ** -0.5
            if "fc_weight" in name:  # writes kernels: undo their scale and the patch's pixels
                scale /= KERNEL_SCALE * geometry.patch
            state[name] = torch.randn(meta.shape, generator=generator) * scale
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:160]
