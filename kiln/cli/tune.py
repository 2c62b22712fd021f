"""Measure this machine, and say which precision and batch size make the encoder fastest on it.

    python -m kiln.cli.tune                       # minutes on a CPU; on a GPU: --device cuda
    python -m kiln.cli.tune --batches 1,2,4 --threads 1

The encoder has its published size and random weights: speed does not depend on their values. All blocks being alike, a
few are timed and reckoned up to all of them. Beside it stands the rate of the matrix products alone, of the encoder's
own shapes, which no encoder can pass. The precision is part of the fingerprint: choose it once for a run, for all
machines that work on it. int8, for CPUs, is measured and never recommended: it rounds, and what that costs is seen on a
shard of your own, embedded both ways (python -m kiln.cli.compare).
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.io.text_table import aligned
from kiln.model.identity import PRECISIONS

BLOCKS = (1, 3)  # depths that are timed: their difference is two blocks, the rest is what every encoder pays
REPEATS = 3
CHIP = 256
ROUNDING = "int8"  # of the precisions that which is not recommended unseen


@dataclass(frozen=True)
class Speed:
    """What one setting came to: chips/s of the whole encoder; Gflop/s of it, and of its matrix products alone."""

    precision: str
    batch: int
    chips_per_second: float
    gflops: float
    matrix_gflops: float

    @property
    def share(self) -> float:
        """Of the rate of the matrix products that the encoder reaches."""
        return self.gflops / self.matrix_gflops


def block_flops(geometry: "Geometry", tokens: int) -> float:  # noqa: F821 (torch is imported late)
    """Floating-point operations of one block for one chip of `tokens` tokens: two to a multiply-add."""
    inner = geometry.heads * geometry.dim_head
    weights = 4 * geometry.dim * inner + 2 * geometry.dim * geometry.mlp
    return 2.0 * tokens * weights + 4.0 * tokens * tokens * inner


def seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Median seconds of a call, after one to warm up."""
    import torch

    def once() -> float:
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(repeats))


def matrix_rate(geometry: "Geometry", tokens: int, batch: int, precision: str, device: str) -> float:  # noqa: F821
    """Gflop/s of the matrix products of one block, one after the other, with nothing between them."""
    import torch

    from kiln.model import weights as encoders

    g, inner = geometry, geometry.heads * geometry.dim_head
    one = encoders.in_precision(encoders.untrained_encoder(replace(g, depth=1), 0), precision, device)  # type: ignore[arg-type]
    attention, mlp = one.transformer.layers[0]
    matrices = [(attention.to_qkv, g.dim), (attention.to_out, inner), (mlp.net[1], g.dim), (mlp.net[3], g.mlp)]

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(one.cls_token.dtype)

    linear = [(matrix, made(batch * tokens, k)) for matrix, k in matrices]
    q, k, v = (made(batch * g.heads, tokens, g.dim_head) for _ in range(3))
    scores = made(batch * g.heads, tokens, tokens)

    def work() -> None:
        for matrix, x in linear:
            matrix(x)
        q @ k.transpose(1, 2)
        scores @ v

    with torch.inference_mode():
        return batch * block_flops(g, tokens) / seconds(work, device) / 1e9


def speed(geometry: "Geometry", batch: int, precision: str, device: str, chip: int = CHIP) -> Speed:  # noqa: F821
    """Time the encoder of that geometry as the engine runs it, class tokens of four bands."""
    import numpy as np

    from kiln.archives.sensors import NAIP
    from kiln.model import weights as encoders
    from kiln.model.embedder import Embedder, Policy

    pixels = np.random.default_rng(0).integers(0, 255, (4, chip, chip)).astype(np.uint8)
    tokens = 1 + (chip // geometry.patch) ** 2
    times = {}
    for depth in BLOCKS:
        plain = encoders.untrained_encoder(replace(geometry, depth=depth), 0)
        encoder = encoders.in_precision(plain, precision, device)  # type: ignore[arg-type]
        embed = Embedder(encoder, NAIP, Policy("zeros", NAIP.gsd), batch)
        chips = [_Square(pixels)] * batch
        times[depth] = seconds(lambda: embed(chips), device)  # noqa: B023 (called at once)
    few, more = BLOCKS
    block = max(times[more] - times[few], 1e-9) / (more - few)
    whole = times[few] + block * (geometry.depth - few)
    flops = batch * block_flops(geometry, tokens) * geometry.depth
    matrices = matrix_rate(geometry, tokens, batch, precision, device)
    return Speed(precision, batch, batch / whole, flops / whole / 1e9, matrices)


@dataclass(frozen=True)
class _Square:
    """All that an encoder wants of a chip."""

    pixels: object
    pixel_size: float = 1.0
    datetime: None = None


def best(found: Sequence[Speed], slack: float = 0.02) -> Speed:
    """The fastest; of those within `slack` of it the smallest batch, which takes least memory. int8 only if all are."""
    found = [s for s in found if s.precision != ROUNDING] or found
    top = max(s.chips_per_second for s in found)
    return min((s for s in found if s.chips_per_second >= top * (1 - slack)), key=lambda s: s.batch)


def report(found: Sequence[Speed], device: str, threads: int) -> str:
    """The table, and what to write into the config."""
    rows = [["precision", "batch", "chips/s", "Gflop/s", "its matrices alone", "share"]]
    for s in found:
        rates = [f"{s.chips_per_second:.3g}", f"{s.gflops:,.0f}", f"{s.matrix_gflops:,.0f}", f"{s.share:.0%}"]
        rows.append([s.precision, str(s.batch), *rates])
    b = best(found)
    text = [
        *aligned(rows, left=[0]),
        "",
        "For the config:",
        "",
        "model:",
        f"  precision: {b.precision} # part of the fingerprint",
        "resources:",
        f"  batch_size: {b.batch}",
        f"  embed_threads: {threads}",
        f"  device: {device}",
        "plan:",
        f"  chips_per_second: {b.chips_per_second:.3g}",
    ]
    rounded = [s for s in found if s.precision == ROUNDING]
    if b not in rounded and rounded and (gain := best(rounded).chips_per_second / b.chips_per_second) > 1:
        text += [
            "",
            f"int8 is {gain:.2f} times as fast, and rounds. Embed a shard both ways and see what that costs:",
            "python -m kiln.cli.compare FLOAT32.parquet INT8.parquet",
        ]
    return "\n".join(text)


def main(argv: list[str] | None = None) -> None:
    """Measure and recommend."""
    p = command_line.parser(__doc__, "kiln.cli.tune")
    p.add_argument("--device", default="cpu", help="cpu, or cuda")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of one job's encoder")
    p.add_argument("--batches", default="", metavar="N,N", help="batch sizes to try; a CPU: 1,4,8,16; a GPU: 16 to 256")
    p.add_argument("--precisions", default="", metavar="P,P", help="to try; a GPU has no int8")
    p.add_argument("--chip-size", type=int, default=CHIP, help="pixels of a chip's side")
    p.add_argument("--json", action="store_true", help="print figures alone, as JSON")
    args = p.parse_args(argv)

    def work() -> None:
        import torch

        from kiln.model.clay import Geometry

        if args.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"--device {args.device}: torch sees no card on this machine")
        usual = "1,4,8,16" if args.device == "cpu" else "16,32,64,128,256"
        if not (batches := [int(b) for b in (args.batches or usual).split(",") if b.isdigit() and int(b)]):
            raise ConfigError(f"--batches {args.batches}: want whole numbers, as 4,8")
        usual = ",".join(p for p in PRECISIONS if args.device == "cpu" or p != ROUNDING)
        precisions = (args.precisions or usual).split(",")
        if strange := set(precisions) - set(PRECISIONS):
            raise ConfigError(f"--precisions {', '.join(sorted(strange))}: want {' or '.join(PRECISIONS)}")
        if args.chip_size < 8 or args.chip_size % 8:
            raise ConfigError(f"--chip-size {args.chip_size}: want a multiple of 8")
        torch.set_num_threads(args.threads)
        found = [speed(Geometry(), b, p, args.device, args.chip_size) for p in precisions for b in batches]
        if args.json:
            figures = [asdict(s) | {"share": round(s.share, 3)} for s in found]
            print(json.dumps({"speeds": figures, "best": asdict(best(found))}))
        else:
            print(report(found, args.device, args.threads))

    command_line.run(work)


if __name__ == "__main__":
    main()
