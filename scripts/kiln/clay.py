"""Clay v1.5's encoder, for inference: pixels of any bands in, class and patch tokens out.

Read top to bottom: the encodings of time, place, wavelength and position; the modules, named as in the
published checkpoint so that its tensors fit by name; the loader. Shapes in comments: B chips, C bands, H x W
pixels, L = H W / patch^2 patches, D dimensions.

Architecture and constants: Clay Foundation Model v1.5, https://github.com/Clay-foundation/model (Apache-2.0).
"""

import errno
import json
import math
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.kiln import int8
from scripts.kiln.errors import WeightsError

RECIPE = 1  # raised whenever the same pixels and weights would give other vectors

Precision = Literal["float32", "bfloat16", "int8"]
# Of int8 those numbers that are no whole ones (scripts/kiln/int8.py).
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}

PREFIX = "model.encoder."  # of the encoder's tensors in the published Lightning checkpoint
WAVE_HEADS = 4  # heads of the wavelength transformer; no shape tells
KERNEL_SCALE = 0.02  # of the generated patch kernels
META = 8  # the last channels of the position: time (4) and latitude/longitude (4)
HEADS = {"tiny": (4, 48), "small": (6, 64), "base": (12, 64), "large": (16, 64)}  # heads x width by model_size
CACHED = 16  # kernels and positions kept; a run needs one or two


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder: D `dim`, blocks `depth`, attention `heads` x `dim_head`, `mlp` width, `patch` px."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    dim_head: int = 64
    mlp: int = 4096
    patch: int = 8
    wave_dim: int = 128
    wave_tokens: int = 128
    wave_mlp: int = 2048


# ---------------------------------------------------------------------------------------------- encodings


def encode_time(when: datetime | None) -> list[float]:
    """[sin week, cos week, sin hour, cos hour] as trained: the ISO week of 52, the hour always 12; None gives zeros."""
    if when is None:
        return [0.0] * 4
    week = when.isocalendar().week * 2 * math.pi / 52
    hour = 12 * 2 * math.pi / 24
    return [math.sin(week), math.cos(week), math.sin(hour), math.cos(hour)]


def encode_latlon(lon: float, lat: float) -> list[float]:
    """[sin lon, cos lon, sin lat, cos lat] of degrees, longitude first, as trained."""
    x, y = math.radians(lon), math.radians(lat)
    return [math.sin(x), math.cos(x), math.sin(y), math.cos(y)]


def wave_encoding(wavelengths: Tensor, dim: int) -> Tensor:
    """Wavelengths [C] in micrometres to sines then cosines [C, dim], omega_i = 10000^(-i/(n-1)), n = dim/2."""
    n = dim // 2
    omega = 10000.0 ** -(torch.arange(n, dtype=torch.float32, device=wavelengths.device) / (n - 1))
    phase = wavelengths.float()[:, None] * omega
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def position_encoding(rows: int, cols: int, dim: int, gsd: float, device: torch.device) -> Tensor:
    """[rows * cols, dim] of (sin x, cos x, sin y, cos y), omega_i = gsd / 10000^(2 i'/dim), i' = i/(n-1), n = dim/4.

    The exponent looks like a slip of the authors; the weights were trained with it. Phases reach hundreds of
    radians at 10 m, so everything is float32.
    """
    n = dim // 4
    i = torch.arange(n, dtype=torch.float32, device=device) / (n - 1)
    omega = gsd / 10000.0 ** (2 * i / dim)
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(cols, dtype=torch.float32, device=device),
        indexing="ij",
    )
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega  # [L, n]
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


# ------------------------------------------------------------------------------------------------ modules


class WaveBlock(nn.Module):
    """Two GELU layers around a residual, over encoded wavelengths [C, wave_dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.l1 = nn.Linear(dim, dim)
        self.l2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[C, wave_dim] to [C, wave_dim]."""
        return x + F.gelu(self.l2(F.gelu(self.l1(x))))


class KernelGenerator(nn.Module):
    """A small transformer that writes one patch kernel per wavelength and one bias for all."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(torch.empty(g.wave_tokens, g.wave_dim))
        self.bias_token = nn.Parameter(torch.empty(1, g.wave_dim))
        layer = nn.TransformerEncoderLayer(
            g.wave_dim, WAVE_HEADS, g.wave_mlp, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.fc_weight = nn.Linear(g.wave_dim, g.dim * g.patch**2)
        self.fc_bias = nn.Linear(g.wave_dim, g.dim)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Waves [C, wave_dim] to kernels [C, D * patch^2] and bias [D]."""
        n = len(self.weight_tokens)
        x = torch.cat([self.weight_tokens, waves, self.bias_token])
        out = self.encoder(x[None])[0]
        return self.fc_weight((out + x)[n:-1]), self.fc_bias(out[-1])


class PatchEmbedding(nn.Module):
    """Holds what turns wavelengths into the patch convolution."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.g = g
        self.weight_generator = KernelGenerator(g)
        self.fclayer = WaveBlock(g.wave_dim)

    def kernels(self, wavelengths: Tensor) -> tuple[Tensor, Tensor]:
        """Wavelengths [C], micrometres, to convolution kernels [D, C, patch, patch] and bias [D]."""
        waves = self.fclayer(wave_encoding(wavelengths, self.g.wave_dim))
        weight, bias = self.weight_generator(waves)
        weight = weight.reshape(len(wavelengths), self.g.dim, self.g.patch, self.g.patch).transpose(0, 1)
        return (weight * KERNEL_SCALE).contiguous(), bias


class Attention(nn.Module):
    """Pre-norm self-attention; neither projection has a bias. `asking` tokens alone ask, all of them answer."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.heads = g.heads
        self.norm = nn.LayerNorm(g.dim)
        self.to_qkv = nn.Linear(g.dim, 3 * g.heads * g.dim_head, bias=False)
        self.to_out = nn.Linear(g.heads * g.dim_head, g.dim, bias=False)

    def forward(self, x: Tensor, asking: int | None = None) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D], or to [B, asking, D], the first tokens alone."""
        b, n, _ = x.shape
        x = self.norm(x)
        if asking is None or not isinstance(self.to_qkv, nn.Linear):  # int8 matrices are packed and multiplied whole
            qkv = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)  # [B, heads, 1 + L, dim_head]
            q = q[:, :, :asking]
        else:
            weight = self.to_qkv.weight
            inner = len(weight) // 3
            q = F.linear(x[:, :asking], weight[:inner]).view(b, asking, self.heads, -1).transpose(1, 2)
            k, v = F.linear(x, weight[inner:]).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)  # [B, heads, asking, dim_head]
        return self.to_out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Pre-norm MLP with GELU."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(g.dim), nn.Linear(g.dim, g.mlp), nn.GELU(), nn.Linear(g.mlp, g.dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D]."""
        return self.net(x)


class Transformer(nn.Module):
    """`depth` residual blocks and a final LayerNorm."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(g.dim)
        self.layers = nn.ModuleList(nn.ModuleList([Attention(g), FeedForward(g)]) for _ in range(g.depth))

    def forward(self, x: Tensor, kept: int | None = None) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D], or to [B, kept, D]: of the first tokens alone the last block does less."""
        last = len(self.layers) - 1
        for i, (attention, mlp) in enumerate(self.layers):
            asking = kept if i == last else None
            x = x[:, :asking] + attention(x, asking)
            x = x + mlp(x)
        return self.norm(x)


class ClayEncoder(nn.Module):
    """Clay's encoder: call it with normalised pixels, take `tokens[:, 0]` as the embedding.

    `geometry` tells its sizes, `about` where its weights came from (the `kiln` entry of the safetensors file,
    or the checkpoint's hyper-parameters).
    """

    def __init__(self, geometry: Geometry, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.geometry = geometry
        self.about = about or {}
        self.cls_token = nn.Parameter(torch.empty(1, 1, geometry.dim))
        self.patch_embedding = PatchEmbedding(geometry)
        self.transformer = Transformer(geometry)
        self._kernels: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}
        self._positions: dict[tuple[int, int, float], Tensor] = {}

    @torch.inference_mode()
    def forward(
        self,
        pixels: Tensor,
        *,
        wavelengths: Tensor,
        gsd: float,
        time: Tensor,
        latlon: Tensor,
        class_only: bool = False,
    ) -> Tensor:
        """Encode a batch of chips.

        pixels [B, C, H, W] normalised, H and W multiples of the patch; wavelengths [C] in micrometres; gsd in
        metres; time and latlon [B, 4] as `encode_time` and `encode_latlon` give them, zeros where unknown.
        Returns tokens [B, 1 + H W / patch^2, D] in the encoder's precision, the class token first; with `class_only`
        [B, 1, D], the same number but for rounding, for a thirtieth less of arithmetic.
        Raises ValueError for shapes that do not fit.
        """
        g, b = self.geometry, len(pixels)
        if pixels.ndim != 4 or pixels.shape[1] != len(wavelengths):
            raise ValueError(f"pixels {tuple(pixels.shape)} and {len(wavelengths)} wavelengths: want [B, C, H, W]")
        rows, cols = pixels.shape[2] / g.patch, pixels.shape[3] / g.patch
        if rows % 1 or cols % 1 or not rows or not cols:
            raise ValueError(f"chips of {tuple(pixels.shape[2:])} px are no multiple of the patch of {g.patch} px")
        if time.shape != (b, 4) or latlon.shape != (b, 4):
            raise ValueError(f"time {tuple(time.shape)} and latlon {tuple(latlon.shape)} must be [{b}, 4]")
        rows, cols = int(rows), int(cols)
        kernel, bias = self._kernel(wavelengths)
        x = F.conv2d(pixels.to(kernel), kernel, bias, stride=g.patch)  # [B, D, rows, cols]
        x = x.flatten(2).transpose(1, 2)  # [B, L, D]
        meta = torch.cat([time, latlon], dim=1).to(x.device, torch.float32)  # [B, 8]
        x = x + torch.cat(
            [self._position(rows, cols, gsd).expand(b, -1, -1), meta[:, None].expand(-1, rows * cols, -1)], dim=2
        ).to(x.dtype)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1)  # [B, 1 + L, D]
        return self.transformer(x, kept=1 if class_only else None)

    def _kernel(self, wavelengths: Tensor) -> tuple[Tensor, Tensor]:
        """The patch convolution depends on the wavelengths alone: made once, in float32, kept in the precision."""
        key = tuple(wavelengths.tolist())
        if key not in self._kernels:
            dtype, device = self.cls_token.dtype, self.cls_token.device
            generator = self.patch_embedding
            if dtype != torch.float32:
                generator = PatchEmbedding(self.geometry).to(device)
                generator.load_state_dict(self.patch_embedding.state_dict())
            kernel, bias = generator.eval().kernels(torch.tensor(key, device=device))
            while len(self._kernels) >= CACHED:
                self._kernels.pop(next(iter(self._kernels)))
            self._kernels[key] = (kernel.to(dtype), bias.to(dtype))
        return self._kernels[key]

    def _position(self, rows: int, cols: int, gsd: float) -> Tensor:
        key = (rows, cols, float(gsd))
        if key not in self._positions:
            while len(self._positions) >= CACHED:
                self._positions.pop(next(iter(self._positions)))
            self._positions[key] = position_encoding(rows, cols, self.geometry.dim - META, gsd, self.cls_token.device)
        return self._positions[key]


# ------------------------------------------------------------------------------------------------- loading


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
