"""The encoder, compared with a straightforward one and with the machine's rate of matrix products.

    python -m tests.bench.encoder [--rounds 1] [--blocks 24] [--batch 8] [--gpu-batch 128] [--only float32]

The straightforward encoder uses float32, batches of 8, all tokens and malloc's default settings. It writes attention
out, and computes kernels and positions for every batch. Its class tokens are compared with Kiln's first. Random weights
cannot show how close int8 is with trained ones; `kiln compare` measures that.

The encoder has the published size. All blocks are timed, which takes 15 minutes on two cores. The last block does less
work than the others, since only class tokens are needed. With fewer blocks (--blocks) it counts too much, so such a run
is only a test of the bench. A way that Kiln did not adopt is measured too: int8 in all matrices of a block.
"""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.archives.sensors import NAIP
from kiln.model import clay, int8, tuning, weights
from kiln.model.embedder import Embedder, EmbedPolicy, keep_memory
from tests.bench.harness import in_turn, publish
from tests.bench.published import MALLOC_DEFAULT
from tests.support.chips import make_chip

BATCH, CHIP = 8, 256
MIN_COSINE = 0.999
ALL = "int8, all matrices, not adopted"
WAYS = ("float32", "bfloat16", "int8", ALL)


@torch.inference_mode()
def straightforward(encoder: clay.ClayEncoder, pixels: Tensor) -> Tensor:
    """Return class tokens [B, D] float32 of raw pixels [B, 4, H, W], computed as the model's description states."""
    g = encoder.geometry
    device = pixels.device
    mean, std, waves = (torch.tensor(v, device=device) for v in (NAIP.mean, NAIP.std, NAIP.wavelengths))
    x = (pixels.float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    kernel, bias = encoder.patch_embedding.kernels(waves)
    x = F.conv2d(x, kernel, bias, stride=g.patch)
    rows, cols = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    position = clay.position_encoding(rows, cols, g.dim - clay.META, NAIP.gsd, x.device)
    x = x + F.pad(position, (0, clay.META))
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    for attention, mlp in encoder.transformer.layers:
        q, k, v = attention.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(2, (g.heads, -1)).transpose(1, 2) for t in (q, k, v))
        weight = (q @ k.transpose(2, 3) * g.dim_head**-0.5).softmax(dim=-1)
        x = x + attention.to_out((weight @ v).transpose(1, 2).flatten(2))
        x = x + mlp(x)
    return encoder.transformer.norm(x)[:, 0]


@contextmanager
def int8_in_all_matrices() -> Iterator[None]:
    """Use int8 in all four matrices of a block."""
    default, int8.MATRICES = int8.MATRICES, ("0.to_qkv", "0.to_out", "1.net.1", "1.net.3")
    try:
        yield
    finally:
        int8.MATRICES = default


def min_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine of two sets of vectors [n, D], row by row."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def measure(
    plain: clay.ClayEncoder, device: str, batch: int, rounds: int, only: str | None = None
) -> list[dict[str, Any]]:
    """Return a row of the table for each way to encode on a device. The straightforward way runs there too."""
    geometry = plain.geometry
    tokens = 1 + (CHIP // geometry.patch) ** 2
    pixels = np.random.default_rng(1).integers(1, 255, (BATCH, 4, CHIP, CHIP)).astype(np.uint8)
    chips = [make_chip(n, pixels=pixels[n % BATCH]) for n in range(batch)]
    theirs, pixels_there = copy.deepcopy(plain).to(device), torch.from_numpy(pixels).to(device)
    expected = straightforward(theirs, pixels_there).cpu().numpy()
    rows = []

    def straightforward_way() -> None:
        """Encode in the straightforward way, with malloc's default settings."""
        keep_memory(MALLOC_DEFAULT)
        straightforward(theirs, pixels_there).sum().item()
        keep_memory()

    for name in WAYS if device == "cpu" else WAYS[:2]:
        if only not in (None, name):
            continue
        precision = name.partition(",")[0]
        with int8_in_all_matrices() if name == ALL else nullcontext():
            encoder = weights.in_precision(plain, precision, device)  # type: ignore[arg-type]
            matrices = tuning.matrix_rate(geometry, tokens, batch, precision, device)
        embed = Embedder(encoder, NAIP, EmbedPolicy("zeros", NAIP.gsd), batch)
        cosine = min_cosine(embed(chips)["embeddings"][:BATCH], expected[:batch])
        pair = in_turn(lambda embed=embed: embed(chips), straightforward_way, rounds, warm=False)  # both have run
        rate = batch / pair.medians[0]
        flops = rate * tuning.block_flops(geometry, tokens) * geometry.depth / 1e9
        rows.append(
            {
                "encoder": f"{device} {name}",
                "chips/s": rate * geometry.depth / clay.Geometry().depth,
                "times straightforward": pair.ratio * batch / BATCH,
                "min cosine": round(cosine, 6),
                "Gflop/s": flops,
                "matrices alone": matrices,
                "fraction": flops / matrices,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 if class tokens of an adopted way differ from the straightforward ones."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--blocks", type=int, default=24)
    p.add_argument("--batch", type=int, default=BATCH, help="batch size of Kiln's way on CPUs (default: %(default)s)")
    p.add_argument("--gpu-batch", type=int, default=128, help="batch size of Kiln's way on a GPU")
    p.add_argument("--only", choices=WAYS, help="measure only this way")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    plain = weights.untrained_encoder(replace(clay.Geometry(), depth=args.blocks), 0)
    rows = measure(plain, "cpu", args.batch, args.rounds, args.only)
    notes = [f"{args.blocks} of {clay.Geometry().depth} blocks timed; batch {args.batch}"]
    if torch.cuda.is_available():
        rows += measure(plain, "cuda", args.gpu_batch, args.rounds, args.only)
    else:
        notes.append("this machine has no GPU: none was measured")
    publish("encoder", rows, notes, args.out)
    if min((r["min cosine"] for r in rows if "not adopted" not in r["encoder"]), default=1) < MIN_COSINE:
        raise SystemExit(f"a class token's cosine to the straightforward one is below {MIN_COSINE}")


if __name__ == "__main__":
    main()
