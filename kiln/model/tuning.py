"""The encoder's speed on this machine, by precision and batch size, and the setting to choose.

All blocks of the encoder are alike, so two small depths are timed, and the time of the full depth is extrapolated.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor

from kiln.formats.records import Chip
from kiln.formats.sensor import Sensor
from kiln.model.clay import Geometry
from kiln.model.embedder import Embedder, EmbedPolicy
from kiln.model.identity import Precision
from kiln.model.weights import in_precision, untrained_encoder

DEPTHS = (1, 3)  # blocks that are timed; the difference is the time of two blocks
REPEATS = 3
CHIP_PX = 256
ROUNDING = "int8"  # the precision that is never recommended unmeasured: it rounds
FOUR_BANDS = Sensor(
    "four-bands", ("red", "green", "blue", "nir"), (0.0,) * 4, (1.0,) * 4, (0.65, 0.56, 0.48, 0.84), 1.0
)


@dataclass(frozen=True)
class Speed:
    """The speed of one setting.

    Attributes:
        precision: The encoder's precision.
        batch: Chips in a batch.
        chips_per_second: Chips that the encoder embeds in a second.
        gflops: Gflop/s of the encoder.
        matrix_gflops: Gflop/s of the encoder's matrix products alone, which no encoder can exceed.
    """

    precision: Precision
    batch: int
    chips_per_second: float
    gflops: float
    matrix_gflops: float

    @property
    def matrix_fraction(self) -> float:
        """The encoder's rate as a fraction of its matrix products' rate."""
        return self.gflops / self.matrix_gflops


def block_flops(geometry: Geometry, tokens: int) -> float:
    """Return the floating-point operations of one block for one chip of `tokens` tokens; a multiply-add is two."""
    inner = geometry.heads * geometry.dim_head
    weights = 4 * geometry.dim * inner + 2 * geometry.dim * geometry.mlp
    return 2.0 * tokens * weights + 4.0 * tokens * tokens * inner


def median_seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Return the median time of a call in seconds, after one call to warm up."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))


def matrix_rate(geometry: Geometry, tokens: int, batch: int, precision: Precision, device: str) -> float:
    """Return the Gflop/s of one block's matrix products, one after the other, with nothing between them.

    Args:
        geometry: The encoder's sizes.
        tokens: Tokens of a chip.
        batch: Chips in a batch.
        precision: The encoder's precision.
        device: As torch names it.
    """
    g, inner = geometry, geometry.heads * geometry.dim_head
    encoder = in_precision(untrained_encoder(replace(g, depth=1), 0), precision, device)
    block: Any = encoder.transformer.layers[0]  # torch declares no type for the items of a ModuleList
    attention, mlp = block
    matrices = [(attention.to_qkv, g.dim), (attention.to_out, inner), (mlp.net[1], g.dim), (mlp.net[3], g.mlp)]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(encoder.cls_token.dtype)

    linear = [(matrix, random(batch * tokens, width)) for matrix, width in matrices]
    q, k, v = (random(batch * g.heads, tokens, g.dim_head) for _ in range(3))
    scores = random(batch * g.heads, tokens, tokens)

    def work() -> None:
        for matrix, x in linear:
            matrix(x)
        q @ k.transpose(1, 2)
        scores @ v

    with torch.inference_mode():
        return batch * block_flops(g, tokens) / median_seconds(work, device) / 1e9


def measure(geometry: Geometry, batch: int, precision: Precision, device: str, chip_px: int = CHIP_PX) -> Speed:
    """Measure the encoder as the engine runs it: class tokens of chips of four bands.

    Args:
        geometry: The encoder's sizes. Its weights are random: speed does not depend on them.
        batch: Chips in a batch.
        precision: The encoder's precision.
        device: As torch names it.
        chip_px: Side of a chip in pixels, a multiple of the patch.
    """
    chips = [_chip(chip_px)] * batch
    tokens = 1 + (chip_px // geometry.patch) ** 2

    def seconds(depth: int) -> float:
        encoder = in_precision(untrained_encoder(replace(geometry, depth=depth), 0), precision, device)
        embed = Embedder(encoder, FOUR_BANDS, EmbedPolicy("zeros", FOUR_BANDS.gsd), batch)
        return median_seconds(lambda: embed(chips), device)

    few, more = DEPTHS
    few_seconds, more_seconds = seconds(few), seconds(more)
    block_seconds = max(more_seconds - few_seconds, 1e-9) / (more - few)
    total_seconds = few_seconds + block_seconds * (geometry.depth - few)
    flops = batch * block_flops(geometry, tokens) * geometry.depth
    matrix_gflops = matrix_rate(geometry, tokens, batch, precision, device)
    return Speed(precision, batch, batch / total_seconds, flops / total_seconds / 1e9, matrix_gflops)


def _chip(side_px: int) -> Chip:
    """Return a chip of random pixels. The encoder needs nothing else of it."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, side_px, side_px)).astype(np.uint8)
    return Chip(
        unit_id="",
        chip_id="",
        pixels=pixels,
        footprint=shapely.box(0, 0, 1, 1),
        center=(0.0, 0.0),
        crs="EPSG:4326",
        x0=0.0,
        y0=0.0,
        pixel_size=1.0,
        col=0,
        row=0,
        datetime=None,
        item_id="",
        source="",
        sources=(),
        nodata_fraction=0.0,
    )


def best(speeds: Sequence[Speed], slack: float = 0.02) -> Speed:
    """Return the fastest setting; of those within `slack` of it, the smallest batch, which needs the least memory.

    int8 is returned only if nothing else was measured.
    """
    candidates = [s for s in speeds if s.precision != ROUNDING] or list(speeds)
    top = max(s.chips_per_second for s in candidates)
    return min((s for s in candidates if s.chips_per_second >= top * (1 - slack)), key=lambda s: s.batch)
