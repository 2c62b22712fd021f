"""The encoder against a straightforward one, and against the machine's own rate of matrix products.

    python -m tests.bench.encoder [--rounds 1] [--blocks 24] [--batch 8] [--gpu-batch 128] [--only float32]

The straightforward one is float32, batches of 8, all tokens, attention spelled out, kernels and positions worked out
for every batch, memory as malloc has it. The size is the published one; all blocks are timed, a quarter of an hour on
two cores. With fewer (--blocks) the last one, which does less for class tokens, weighs more than it does in truth: such
a run is for trying the bench out at all. Class tokens are checked against the straightforward ones first; how near int8
comes with trained weights, random ones cannot show (kiln compare does). What was tried and not kept is
measured beside it: int8 in all matrices of a block.
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
from tests.bench.published import GIVEN_BACK
from tests.support.chips import make_chip

BATCH, CHIP = 8, 256
LEAST_COSINE = 0.999
ALL = "int8, all matrices, not kept"
WAYS = ("float32", "bfloat16", "int8", ALL)


@torch.inference_mode()
def straightforward(encoder: clay.ClayEncoder, pixels: Tensor) -> Tensor:
    """Class tokens [B, D] float32 of raw pixels [B, 4, H, W], step by step as the model is described."""
    g = encoder.geometry
    where = pixels.device
    mean, std, waves = (torch.tensor(v, device=where) for v in (NAIP.mean, NAIP.std, NAIP.wavelengths))
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
def everywhere() -> Iterator[None]:
    """int8 in all four matrices of a block."""
    kept, int8.MATRICES = int8.MATRICES, ("0.to_qkv", "0.to_out", "1.net.1", "1.net.3")
    try:
        yield
    finally:
        int8.MATRICES = kept


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least cosine of two sets of vectors [n, D], row by row."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def measure(
    plain: clay.ClayEncoder, device: str, batch: int, rounds: int, only: str | None = None
) -> list[dict[str, Any]]:
    """A row of the table for each way to encode on a device; the straightforward one runs there too."""
    geometry = plain.geometry
    tokens = 1 + (CHIP // geometry.patch) ** 2
    pixels = np.random.default_rng(1).integers(1, 255, (BATCH, 4, CHIP, CHIP)).astype(np.uint8)
    chips = [make_chip(n, pixels=pixels[n % BATCH]) for n in range(batch)]
    theirs, there = copy.deepcopy(plain).to(device), torch.from_numpy(pixels).to(device)
    wanted = straightforward(theirs, there).cpu().numpy()
    rows = []

    def given_back() -> None:
        """The straightforward way, memory as malloc has it."""
        keep_memory(GIVEN_BACK)
        straightforward(theirs, there).sum().item()
        keep_memory()

    for name in WAYS if device == "cpu" else WAYS[:2]:
        if only not in (None, name):
            continue
        precision = name.partition(",")[0]
        with everywhere() if name == ALL else nullcontext():
            encoder = weights.in_precision(plain, precision, device)  # type: ignore[arg-type]
            matrices = tuning.matrix_rate(geometry, tokens, batch, precision, device)
        embed = Embedder(encoder, NAIP, EmbedPolicy("zeros", NAIP.gsd), batch)
        near = cosine(embed(chips)["embeddings"][:BATCH], wanted[:batch])
        pair = in_turn(lambda embed=embed: embed(chips), given_back, rounds, warm=False)  # both have run
        rate = batch / pair.medians[0]
        flops = rate * tuning.block_flops(geometry, tokens) * geometry.depth / 1e9
        rows.append(
            {
                "encoder": f"{device} {name}",
                "chips/s": rate * geometry.depth / clay.Geometry().depth,
                "times straightforward": pair.ratio * batch / BATCH,
                "least cosine": round(near, 6),
                "Gflop/s": flops,
                "matrices alone": matrices,
                "share": flops / matrices,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exits 1 where class tokens of what is kept differ from the straightforward ones."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--blocks", type=int, default=24)
    p.add_argument("--batch", type=int, default=BATCH, help="of Kiln's way on CPUs; the straightforward one takes 8")
    p.add_argument("--gpu-batch", type=int, default=128, help="of Kiln's way on a GPU")
    p.add_argument("--only", choices=WAYS, help="one way")
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    plain = weights.untrained_encoder(replace(clay.Geometry(), depth=args.blocks), 0)
    rows = measure(plain, "cpu", args.batch, args.rounds, args.only)
    notes = [f"{args.blocks} of {clay.Geometry().depth} blocks timed; batch {args.batch}"]
    if torch.cuda.is_available():
        rows += measure(plain, "cuda", args.gpu_batch, args.rounds, args.only)
    else:
        notes.append("no GPU on this machine: its way was not measured")
    publish("encoder", rows, notes, args.out)
    if min((r["least cosine"] for r in rows if "not kept" not in r["encoder"]), default=1) < LEAST_COSINE:
        raise SystemExit(f"a class token's cosine to the straightforward one is below {LEAST_COSINE}")


if __name__ == "__main__":
    main()
