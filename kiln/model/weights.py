"""Encoders: loaded from the published checkpoint or from safetensors, in a precision; saved; drawn at random."""

import errno
import itertools
import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kiln.errors import WeightsError
from kiln.model import int8
from kiln.model.clay import KERNEL_SCALE, ClayEncoder, Geometry
from kiln.model.content_digest import KEY, content_digest
from kiln.model.identity import Precision

# Dtype of the floating-point tensors; with int8 those that int8.py does not quantise.
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
PREFIX = "model.encoder."  # of the encoder's tensors in the published Lightning checkpoint
HEADS = {"tiny": (4, 48), "small": (6, 64), "base": (12, 64), "large": (16, 64)}  # heads x width by model_size
ALIGNMENT_BYTES = 64  # of tensors, in files and in memory
MAX_PROBLEMS = 5  # named in an error
MAKE_AGAIN = "Delete it and run `snakemake encoder_weights`: shards that exist stay."


def load_encoder(weights: Path, *, precision: Precision = "float32", device: str = "cpu") -> ClayEncoder:
    """Load an encoder.

    Args:
        weights: The published checkpoint (.ckpt), or the safetensors file that was extracted from it.
        precision: Precision of weights and arithmetic.
        device: `cpu` or `cuda:N`.

    Returns:
        The encoder, for inference.

    Raises:
        ConfigError: If the device does not run the precision.
        WeightsError: If the file is damaged or another one, or a tensor is missing, unexpected or of another shape.
    """
    path = Path(weights)
    tensors, hyper = read_tensors(path)
    return _build_encoder(tensors, read_geometry(tensors, hyper, path), hyper, precision, device, path)


def in_precision(encoder: ClayEncoder, precision: Precision, device: str = "cpu") -> ClayEncoder:
    """Return a copy of an encoder in another precision or on another device. Raises as `load_encoder`."""
    tensors = encoder.state_dict()
    return _build_encoder(tensors, encoder.geometry, encoder.metadata, precision, device, Path("encoder"))


def _build_encoder(
    tensors: dict[str, Tensor],
    geometry: Geometry,
    metadata: dict[str, Any],
    precision: Precision,
    device: str,
    path: Path,
) -> ClayEncoder:
    if precision != "int8" and f"transformer.layers.0.{int8.MATRICES[0]}.scale" in tensors:
        raise WeightsError(f"{path}: expected weights for {precision}, got int8 ones. Load the checkpoint instead.")
    with torch.device("meta"):
        encoder = ClayEncoder(geometry, metadata)
    if precision == "int8":
        int8.require_int8(device)
        int8.replace_linears(encoder.transformer.layers)
        tensors = int8.quantise_tensors(tensors)
    _check_tensors(tensors, encoder, path)
    dtype = DTYPES[precision]
    state = {name: _aligned(t.to(device, dtype if t.is_floating_point() else None)) for name, t in tensors.items()}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory is aligned: the same one, or a copy.

    Libraries round differently where memory is not aligned, so a vector would depend on the length of a file's header.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT_BYTES == 0 else tensor.clone()


def read_metadata(weights: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file of the rule `encoder_weights`, without reading a tensor.

    Args:
        weights: The safetensors file.

    Returns:
        `sha256` of the checkpoint, `precision`, `untrained`, `geometry` and more.

    Raises:
        WeightsError: If the file is missing, damaged, another one, or of an older Kiln and without a digest.
    """
    _check_file(weights)
    try:
        with safe_open(weights, framework="pt") as file:
            return _kiln_metadata(file, weights)
    except (SafetensorError, OSError) as e:
        raise WeightsError(
            f"{weights}: expected a safetensors file, got a damaged one ({_first_line(e)}). {MAKE_AGAIN}"
        ) from e


def _kiln_metadata(file: Any, path: Path) -> dict[str, Any]:
    """Return the metadata of an open safetensors file. Raises WeightsError unless it is Kiln's and has a digest."""
    try:
        metadata = json.loads((file.metadata() or {}).get("kiln", "{}"))
    except ValueError as e:
        raise WeightsError(f"{path}: expected JSON metadata, got damaged text ({_first_line(e)}). {MAKE_AGAIN}") from e
    if not isinstance(metadata, dict) or not {"sha256", "precision", "geometry"} <= set(metadata):
        raise WeightsError(f"{path}: expected the metadata of Kiln, got another safetensors file. {MAKE_AGAIN}")
    if KEY not in metadata:
        raise WeightsError(
            f"{path}: expected a digest of the tensors, got none: an older Kiln extracted them. {MAKE_AGAIN}"
        )
    return metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an encoder's tensors by name, memory-mapped, and its hyper-parameters.

    Args:
        path: A checkpoint or safetensors file. Only tensors are read from a checkpoint: code in it does not run.

    Returns:
        The tensors, by their names without PREFIX; the checkpoint's hyper-parameters, or the safetensors' metadata.

    Raises:
        WeightsError: If the file is missing, damaged or of another model. Tensors and metadata of a safetensors file
            are held against its digest. Those of a checkpoint are verified once, by `model.sha256`.
    """
    _check_file(path)
    try:
        with path.open("rb") as f:
            head = f.read(9)
        if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            with safe_open(path, framework="pt") as file:
                metadata = _kiln_metadata(file, path)
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
            _check_digest(tensors, metadata, path)
            return tensors, metadata
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as e:
        raise _not_weights(path, e) from e
    return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's tensors and the hyper-parameters of a checkpoint. Raises WeightsError for another file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        raise WeightsError(
            f"{path}: expected a checkpoint of tensors alone, got one with code ({_first_line(e)}). Take another file."
        ) from e
    except Exception as e:  # torch has no error of its own: damaged bytes lead to any
        raise _not_weights(path, e) from e
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise WeightsError(f"{path}: expected Clay's checkpoint, got a file without `state_dict`. Take another file.")
    state = checkpoint["state_dict"]
    tensors = {k.removeprefix(PREFIX): v for k, v in state.items() if isinstance(k, str) and k.startswith(PREFIX)}
    if not tensors:
        raise WeightsError(f"{path}: expected tensors named {PREFIX}*, got none. Take Clay's checkpoint.")
    for name, values in tensors.items():
        if not isinstance(values, Tensor) or values.layout is not torch.strided or values.is_meta:
            kind = f"a tensor without plain values ({values.layout})" if isinstance(values, Tensor) else type(values)
            raise WeightsError(f"{path}: {PREFIX}{name}: expected a tensor, got {kind}. Take Clay's checkpoint.")
    hyper = checkpoint.get("hyper_parameters") or {}
    if not isinstance(hyper, dict):
        raise WeightsError(
            f"{path}: hyper_parameters: expected names and values, got {type(hyper)}. Take Clay's checkpoint."
        )
    return tensors, dict(hyper)


def _not_weights(path: Path, e: Exception) -> WeightsError:
    return WeightsError(
        f"{path}: expected a weights file, got a truncated or other one ({_first_line(e)}). Fetch it again."
    )


def _check_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> None:
    """Raise WeightsError unless tensors and metadata have the digest that was written with them."""
    present = content_digest(tensors, metadata)
    if present != metadata[KEY]:
        raise WeightsError(
            f"{path}: expected tensors and metadata of digest {str(metadata[KEY])[:16]}, got {present[:16]}. The file "
            f"is damaged. {MAKE_AGAIN}"
        )


def read_geometry(tensors: Mapping[str, Tensor], hyper: Mapping[str, Any], path: Path) -> Geometry:
    """Return the sizes of an encoder.

    Most follow from shapes. `encoder_heads` and `encoder_dim_head` of the hyper-parameters give the heads, else
    `model_size` does (HEADS), else heads are 64 wide.

    Args:
        tensors: Tensors by name, as `read_tensors` returns them.
        hyper: Hyper-parameters.
        path: Name of the file, for errors.

    Raises:
        WeightsError: If a tensor is missing or of another shape, or the heads contradict the shapes.
    """

    def shape(name: str, axes: int) -> torch.Size:
        if name not in tensors:
            raise WeightsError(f"{path}: tensor {PREFIX}{name} is missing. Take Clay's checkpoint.")
        if tensors[name].ndim != axes:
            raise WeightsError(
                f"{path}: {PREFIX}{name}: expected {axes} axes, got {tensors[name].ndim}. Take Clay's checkpoint."
            )
        if not tensors[name].numel():
            raise WeightsError(
                f"{path}: {PREFIX}{name}: expected numbers, got an empty tensor. Take Clay's checkpoint."
            )
        return tensors[name].shape

    dim = shape("cls_token", 3)[-1]
    blocks = {name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")}
    depth = next(n for n in itertools.count() if str(n) not in blocks)
    inner = shape("transformer.layers.0.0.to_qkv.weight", 2)[0] // 3
    mlp = shape("transformer.layers.0.1.net.1.weight", 2)[0]
    wave_tokens, wave_dim = shape("patch_embedding.weight_generator.weight_tokens", 2)
    wave_mlp = shape("patch_embedding.weight_generator.encoder.layers.0.linear1.weight", 2)[0]
    patch = math.isqrt(shape("patch_embedding.weight_generator.fc_weight.weight", 2)[0] // dim)
    heads, dim_head = HEADS.get(str(hyper.get("model_size", "")), (inner // 64, 64))
    dim_head = hyper.get("encoder_dim_head", dim_head)
    heads = hyper.get("encoder_heads", heads)
    for key, value in (("encoder_heads", heads), ("encoder_dim_head", dim_head)):
        if type(value) is not int or value < 1:
            raise WeightsError(
                f"{path}: {key}: expected a whole number from 1, got {str(value)[:40]!r}. Take Clay's checkpoint."
            )
    if heads * dim_head != inner:
        raise WeightsError(
            f"{path}: {PREFIX}transformer.layers.0.0.to_qkv.weight: expected {heads * dim_head} channels for {heads} "
            f"heads of {dim_head}, got {inner}. The hyper-parameters belong to another model."
        )
    return Geometry(dim, depth, heads, dim_head, mlp, patch, wave_dim, wave_tokens, wave_mlp)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: expected a weights file, got none. Make it with `snakemake encoder_weights`.")


def _check_tensors(tensors: Mapping[str, Tensor], encoder: ClayEncoder, path: Path) -> None:
    """Raise WeightsError unless the tensors have the names, shapes and kinds of the encoder's."""
    state = encoder.state_dict()
    problems = [f"{PREFIX}{name} is missing" for name in state if name not in tensors]
    problems += [f"{PREFIX}{name} is not of this encoder" for name in tensors if name not in state]
    problems += [
        f"{PREFIX}{name}: expected shape {tuple(meta.shape)}, got {tuple(tensors[name].shape)}"
        for name, meta in state.items()
        if name in tensors and tensors[name].shape != meta.shape
    ]
    problems += [
        f"{PREFIX}{name} is {values.dtype}"
        for name, values in tensors.items()
        if values.is_floating_point() != (name not in state or state[name].is_floating_point())
    ]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise WeightsError(f"{path}: {'; '.join(problems[:MAX_PROBLEMS])}{more}. Take Clay's checkpoint.")


def save_encoder(encoder: ClayEncoder, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write an encoder as safetensors in its precision.

    Args:
        encoder: The encoder.
        path: Local path of the file.
        metadata: JSON values for the file's metadata; the sizes and the digest of the content are added.

    Raises:
        OSError: If the disk fails.
    """
    geometry = asdict(encoder.geometry)
    heads = {"encoder_heads": geometry["heads"], "encoder_dim_head": geometry["dim_head"]}
    entry = {**metadata, "geometry": geometry, **heads}
    tensors = {name: values.contiguous() for name, values in encoder.state_dict().items()}
    entry[KEY] = content_digest(tensors, entry)
    text = json.dumps(entry, sort_keys=True)
    try:
        save_file(tensors, path, metadata={"kiln": text})
        if surplus := _data_offset(path) % ALIGNMENT_BYTES:  # spaces lengthen the header, and loading copies nothing
            save_file(tensors, path, metadata={"kiln": text + " " * (ALIGNMENT_BYTES - surplus)})
    except SafetensorError as e:  # an error of the disk, which other writers raise as OSError
        number = re.search(r"os error (\d+)", str(e))
        raise OSError(int(number[1]) if number else errno.EIO, _first_line(e)) from e


def _data_offset(path: Path) -> int:
    """Return the bytes before the tensors of a safetensors file: the length of the header, and the header."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def untrained_encoder(geometry: Geometry, seed: int) -> ClayEncoder:
    """Return an encoder of seeded random weights, for demonstrations and tests; its vectors mean nothing.

    Each tensor is drawn from its own generator in the order of its name, so a value depends on nothing else. Weights
    have the variance 1/fan-in, so that signals of different places stay apart through the blocks.

    Args:
        geometry: Sizes of the encoder.
        seed: Seed of the random numbers.
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
            if "fc_weight" in name:  # it writes kernels: cancel their scale and the number of a patch's pixels
                scale /= KERNEL_SCALE * geometry.patch
            state[name] = torch.randn(meta.shape, generator=generator) * scale
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:160]
