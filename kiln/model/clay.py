"""Clay v1.5's encoder, for inference: pixels of any bands in, class and patch tokens out.

Read top to bottom: the encodings of time, place, wavelength and position; the modules, named as in the
published checkpoint so that its tensors fit by name. Shapes in comments: B chips, C bands, H x W
pixels, L = H W / patch^2 patches, D dimensions.

Architecture and constants: Clay Foundation Model v1.5, https://github.com/Clay-foundation/model (Apache-2.0).
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WAVE_HEADS = 4  # heads of the wavelength transformer; no shape shows it
KERNEL_SCALE = 0.02  # of the generated patch kernels
META = 8  # the last channels of the position: time (4) and latitude/longitude (4)
MAX_CACHED = 16  # kernels and positions; a run needs one or two


@dataclass(frozen=True)
class Geometry:
    """Sizes of an encoder: D `dim`, blocks `depth`, attention `heads` x `dim_head`, `mlp` width, `patch` in pixels."""

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
    """Return [sin week, cos week, sin hour, cos hour] as trained: ISO week of 52, hour 12; zeros for None."""
    if when is None:
        return [0.0] * 4
    week = when.isocalendar().week * 2 * math.pi / 52
    hour = 12 * 2 * math.pi / 24
    return [math.sin(week), math.cos(week), math.sin(hour), math.cos(hour)]


def encode_latlon(lon: float, lat: float) -> list[float]:
    """Return [sin lon, cos lon, sin lat, cos lat] of degrees, longitude first, as trained."""
    x, y = math.radians(lon), math.radians(lat)
    return [math.sin(x), math.cos(x), math.sin(y), math.cos(y)]


def wave_encoding(wavelengths: Tensor, dim: int) -> Tensor:
    """Return sines, then cosines [C, dim] of wavelengths [C] in micrometres; omega_i = 10000^(-i/(n-1)), n = dim/2."""
    n = dim // 2
    omega = 10000.0 ** -(torch.arange(n, dtype=torch.float32, device=wavelengths.device) / (n - 1))
    phase = wavelengths.float()[:, None] * omega
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def position_encoding(rows: int, cols: int, dim: int, gsd: float, device: torch.device) -> Tensor:
    """Return (sin x, cos x, sin y, cos y) [rows * cols, dim] of patches, `gsd` in metres.

    omega_i = gsd / 10000^(2 i'/dim), i' = i/(n-1), n = dim/4. The exponent looks like an error of the authors; the
    weights were trained with it. Phases reach hundreds of radians at 10 m, so everything is float32.
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
    """The generator of the patch convolution from wavelengths."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.g = g
        self.weight_generator = KernelGenerator(g)
        self.fclayer = WaveBlock(g.wave_dim)

    def kernels(self, wavelengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return convolution kernels [D, C, patch, patch] and bias [D] for wavelengths [C] in micrometres."""
        waves = self.fclayer(wave_encoding(wavelengths, self.g.wave_dim))
        weight, bias = self.weight_generator(waves)
        weight = weight.reshape(len(wavelengths), self.g.dim, self.g.patch, self.g.patch).transpose(0, 1)
        return (weight * KERNEL_SCALE).contiguous(), bias


class Attention(nn.Module):
    """Pre-norm self-attention without biases. Queries may be the first tokens alone; keys and values are all tokens."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.heads = g.heads
        self.norm = nn.LayerNorm(g.dim)
        self.to_qkv = nn.Linear(g.dim, 3 * g.heads * g.dim_head, bias=False)
        self.to_out = nn.Linear(g.heads * g.dim_head, g.dim, bias=False)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D], or to [B, queries, D] of the first tokens."""
        b, n, _ = x.shape
        x = self.norm(x)
        if queries is None or not isinstance(self.to_qkv, nn.Linear):  # an int8 matrix cannot be split
            qkv = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)  # [B, heads, 1 + L, dim_head]
            q = q[:, :, :queries]
        else:
            weight = self.to_qkv.weight
            inner = len(weight) // 3
            q = F.linear(x[:, :queries], weight[:inner]).view(b, queries, self.heads, -1).transpose(1, 2)
            k, v = F.linear(x, weight[inner:]).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)  # [B, heads, queries, dim_head]
        out: Tensor = self.to_out(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Pre-norm MLP with GELU."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(g.dim), nn.Linear(g.dim, g.mlp), nn.GELU(), nn.Linear(g.mlp, g.dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D]."""
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """`depth` residual blocks and a final LayerNorm."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(g.dim)
        self.layers = nn.ModuleList(nn.ModuleList([Attention(g), FeedForward(g)]) for _ in range(g.depth))

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """[B, 1 + L, D] to [B, 1 + L, D], or [B, outputs, D] of the first tokens, with less work in the last block."""
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            assert isinstance(block, nn.ModuleList)
            attention, mlp = block
            queries = outputs if i == last else None
            x = x[:, :queries] + attention(x, queries)
            x = x + mlp(x)
        out: Tensor = self.norm(x)
        return out


class ClayEncoder(nn.Module):
    """Clay's encoder: call it with normalised pixels, take `tokens[:, 0]` as the embedding.

    Attributes:
        geometry: Its sizes.
        metadata: Origin of its weights: the `kiln` metadata of the safetensors file, or the checkpoint's
            hyper-parameters.
    """

    def __init__(self, geometry: Geometry, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.geometry = geometry
        self.metadata = metadata or {}
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

        Args:
            pixels: [B, C, H, W], normalised; H and W are multiples of the patch.
            wavelengths: [C] in micrometres.
            gsd: Pixel size in metres.
            time: [B, 4], as `encode_time` returns it; zeros where unknown.
            latlon: [B, 4], as `encode_latlon` returns it; zeros where unknown.
            class_only: Whether the class token alone is computed: the same but for rounding, with 3 % less arithmetic.

        Returns:
            Tokens [B, 1 + H W / patch^2, D] in the encoder's precision, the class token first; or [B, 1, D].

        Raises:
            ValueError: If the shapes do not fit.
        """
        g, b = self.geometry, len(pixels)
        if pixels.ndim != 4 or pixels.shape[1] != len(wavelengths):
            raise ValueError(f"pixels: expected [B, {len(wavelengths)}, H, W], got {tuple(pixels.shape)}")
        rows, cols = pixels.shape[2] / g.patch, pixels.shape[3] / g.patch
        if rows % 1 or cols % 1 or not rows or not cols:
            raise ValueError(f"pixels: expected H and W in multiples of {g.patch}, got {tuple(pixels.shape[2:])}")
        if time.shape != (b, 4) or latlon.shape != (b, 4):
            raise ValueError(f"time and latlon: expected [{b}, 4], got {tuple(time.shape)} and {tuple(latlon.shape)}")
        rows, cols = int(rows), int(cols)
        kernel, bias = self._kernel(wavelengths)
        x = F.conv2d(pixels.to(kernel), kernel, bias, stride=g.patch)  # [B, D, rows, cols]
        x = x.flatten(2).transpose(1, 2)  # [B, L, D]
        meta = torch.cat([time, latlon], dim=1).to(x.device, torch.float32)  # [B, 8]
        x = x + torch.cat(
            [self._position(rows, cols, gsd).expand(b, -1, -1), meta[:, None].expand(-1, rows * cols, -1)], dim=2
        ).to(x.dtype)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1)  # [B, 1 + L, D]
        tokens: Tensor = self.transformer(x, outputs=1 if class_only else None)
        return tokens

    def _kernel(self, wavelengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patch convolution of wavelengths: computed once in float32, cached in the encoder's precision."""
        key = tuple(wavelengths.tolist())
        if key not in self._kernels:
            dtype, device = self.cls_token.dtype, self.cls_token.device
            generator = self.patch_embedding
            if dtype != torch.float32:
                generator = PatchEmbedding(self.geometry).to(device)
                generator.load_state_dict(self.patch_embedding.state_dict())
            kernel, bias = generator.eval().kernels(torch.tensor(key, device=device))
            while len(self._kernels) >= MAX_CACHED:
                self._kernels.pop(next(iter(self._kernels)))
            self._kernels[key] = (kernel.to(dtype), bias.to(dtype))
        return self._kernels[key]

    def _position(self, rows: int, cols: int, gsd: float) -> Tensor:
        key = (rows, cols, float(gsd))
        if key not in self._positions:
            while len(self._positions) >= MAX_CACHED:
                self._positions.pop(next(iter(self._positions)))
            self._positions[key] = position_encoding(rows, cols, self.geometry.dim - META, gsd, self.cls_token.device)
        return self._positions[key]
