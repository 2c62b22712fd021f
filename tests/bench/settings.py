"""Effects of memory, threads, batch size and a compiler on the encoder on a CPU, each compared with Kiln's settings.

    python -m tests.bench.settings [--rounds 3] [--blocks 4]

Each measurement is a separate process, since allocator and threads are configured at its start. The two ways are timed
in turn. The encoder has few blocks of the published size; all blocks take the same time. Kiln already uses the setting
that is worthwhile (kiln/model/embedder.py: keep_memory). The bench shows why it does not use the others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.harness import publish

BATCH = 8


@dataclass(frozen=True)
class Way:
    """A way to encode: environment variables, batch size, compiler, and whether freed memory is retained."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    batch: int = BATCH
    compiled: bool = False
    keep_memory: bool = True


PLAIN = Way("Kiln")
WAYS = [
    Way("malloc's default", keep_memory=False),
    Way("huge pages", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    Way("threads pinned", {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}),
    Way("spinning threads", {"KMP_BLOCKTIME": "infinite", "GOMP_SPINCOUNT": "infinite", "OMP_WAIT_POLICY": "active"}),
    Way("sleeping threads", {"OMP_WAIT_POLICY": "passive"}),
    Way("batch 1", batch=1),
    Way("batch 4", batch=4),
    Way("batch 16", batch=16),
    Way("torch.compile", compiled=True),
]


def one(batch: int, compiled: bool, keep_memory: bool, blocks: int) -> None:
    """Print seconds and page faults per chip of an encoder in this process, and its first vector, as JSON."""
    import resource

    import numpy as np
    import torch

    from kiln.archives.sensors import NAIP
    from kiln.model import clay, embedder, weights
    from tests.support.chips import make_chip

    encoder = weights.untrained_encoder(replace(clay.Geometry(), depth=blocks), 0)
    if compiled:
        encoder.transformer = torch.compile(encoder.transformer)
    pixels = np.random.default_rng(1).integers(1, 255, (16, 4, 256, 256)).astype(np.uint8)
    chips = [make_chip(n, pixels=pixels[n]) for n in range(batch)]
    if not keep_memory:
        embedder.keep_memory = lambda: False
    embed = embedder.Embedder(encoder, NAIP, embedder.EmbedPolicy("zeros", NAIP.gsd), batch)
    embed(chips)
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    vectors = embed(chips)["embeddings"]
    seconds = (time.perf_counter() - began) / batch
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(json.dumps({"seconds": seconds, "faults": faults / batch, "first": vectors[0].tolist()}))


def measure(way: Way, blocks: int) -> dict:
    """Run `one` in a separate process and return what it prints."""
    arguments = [str(way.batch), str(int(way.compiled)), str(int(way.keep_memory)), str(blocks)]
    environment = {**os.environ, **way.environment}
    process = subprocess.run(
        [sys.executable, "-m", "tests.bench.settings", "--one", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.settings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--blocks", type=int, default=4)
    p.add_argument("--only", nargs="+", metavar="WAY", help=f"of: {', '.join(w.name for w in WAYS)}")
    p.add_argument("--one", nargs=4, type=int, metavar=("BATCH", "COMPILED", "KEEP", "BLOCKS"), help=argparse.SUPPRESS)
    p.add_argument("--out", type=Path, default=Path("results/bench"))
    args = p.parse_args(argv)
    if args.one:
        one(args.one[0], bool(args.one[1]), bool(args.one[2]), args.one[3])
        return
    rows = []
    for way in (w for w in WAYS if not args.only or w.name in args.only):
        pairs = [(measure(PLAIN, args.blocks), measure(way, args.blocks)) for _ in range(args.rounds)]
        plain, other = pairs[0]
        difference = max(abs(a - b) for a, b in zip(plain["first"], other["first"], strict=True))
        assert difference < 1e-3, f"{way.name}: vectors differ by {difference:.1e}"
        rows.append(
            {
                "way": way.name,
                "times Kiln": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
                "s a chip": statistics.median(b["seconds"] for _, b in pairs),
                "faults a chip": round(statistics.median(b["faults"] for _, b in pairs)),
                "Kiln": round(statistics.median(a["faults"] for a, _ in pairs)),
                "difference": difference,
            }
        )
        print(f"{way.name}: {rows[-1]['times Kiln']:.3f} times Kiln", flush=True)
    publish(
        "settings", rows, [f"{args.blocks} blocks, batch {BATCH} unless named; vectors were compared first"], args.out
    )


if __name__ == "__main__":
    main()
